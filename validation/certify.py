"""`python -m validation.certify`: write `cost_models/certificate.json`, how wrong prices are on rows not fitted.

    parts    kernels and collectives: families left out of the fits, tables of other sources (`parts.py`)
    memory   allocated, reserved, device: printed peaks (ln of measured / predicted)
    steps    whole steps and pairs of layouts of the held-out rows (`steps.py`)

The certificate carries the digest of the code, of the measurements and of itself; `tests/validation/test_certify.py`
fails where one of them is another. Curves are fitted apart (`python -m validation.fit`).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from cost_models import strict
from cost_models.bands import sigma_of
from cost_models.certificate import (
    PATH,
    PROBABILITIES,
    Certificate,
    Domain,
    Pairs,
    code_digest,
    digest_of,
    files_digest,
)
from cost_models.errors import InputError
from validation import parts, steps
from validation.domains import Error, measured, stated
from validation.rows import FOLDER, files
from validation.score import FileReport, score
from validation.tables import write

ROOT = FOLDER.parent
HELD_OUT = FOLDER / "later"
LEVELS = ("allocated", "reserved", "device memory")
STATED = {"reserved": 0.05, "device memory": 0.06}
"""Spread of a level of memory without held-out rows: fragments, the driver's context and NCCL's buffers. Estimates."""


def data_digest() -> str:
    """Of every measurement."""
    return files_digest(ROOT, (path for path in FOLDER.rglob("*") if path.suffix in (".csv", ".json")))


def certify(domains: dict[str, Domain], reports: Sequence[FileReport]) -> Certificate:
    """The certificate, from the parts' domains and the held-out files' reports."""
    rows = steps.steps(reports)
    domains = domains | memory(reports)
    flat = Pairs(sources=(), residual=0.0, normal=(0.0,) * len(PROBABILITIES), apart=())
    draft = Certificate(
        version=1, code=code_digest(), data=data_digest(), domains=domains, residual=0.0, pairs=flat,
        digest="",
    )  # fmt: skip
    middle = measured(rows).bias
    centred = [replace(one, error=one.error - middle) for one in rows]
    value = steps.residual(
        centred, lambda tried: [sigma_of(one.basis, replace(draft, residual=tried)) for one in centred]
    )
    draft = replace(draft, residual=value)
    draft = replace(draft, domains=domains | steps.domains(rows, draft))
    draft = replace(draft, pairs=steps.pair_facts(steps.pairs(rows), draft))
    plain = strict.plain(draft)
    del plain["digest"]
    return replace(draft, digest=digest_of(plain))


def memory(reports: Sequence[FileReport]) -> dict[str, Domain]:
    """Errors of printed peaks by level; a level without rows is stated, wider than the one below."""
    found: dict[str, list[Error]] = {level: [] for level in LEVELS}
    for report in reports:
        for one in report.verdicts:
            for level, ratio in (("allocated", one.memory_error), ("reserved", one.reserved_error)):
                if ratio is not None:
                    found[level].append(Error(source=one.source, error=-math.log1p(ratio)))
    why = "no held-out rows print this level: an estimate of fragments, context and buffers"
    return {level: measured(errors) if errors else stated(STATED[level], why) for level, errors in found.items()}


def text_of(found: Certificate) -> str:
    """One domain a line."""
    plain = strict.plain(found)
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in plain["domains"].items()]
    head = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in plain.items() if name != "domains"]
    return "{\n" + ",\n".join([*head, ' "domains": {\n' + ",\n".join(lines) + "\n }"]) + "\n}\n"


def renewed() -> Certificate:
    """The certificate of this checkout."""
    return certify(parts.domains(FOLDER), score(files(HELD_OUT), HELD_OUT))


@click.command(help=__doc__)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=PATH, help="Where to write it.")
def main(output: Path) -> None:
    console = Console(stderr=True)
    try:
        found = renewed()
        write(output, text_of(found))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    for name, domain in found.domains.items():
        shown = domain.stated or f"{domain.rows} rows of {len(domain.sources)} sources, bias {domain.bias:+.1%}"
        console.print(f"{name}: spread {domain.spread:.1%}; {shown}", highlight=False)


if __name__ == "__main__":
    main()
