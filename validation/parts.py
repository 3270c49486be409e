"""Domains of the certificate for parts of a step: kernels and collectives, by rows that no curve was fitted to.

    attention, products, elementwise     measured: families left out of the fits, as `python -m validation.fit` packed
                                         their errors      scaled: one generation from another's curves
    collectives inside a node            sizes and numbers of ranks left out of the tables; tables of other sources
    over PCIe, across nodes              published tables over links whose rates come from elsewhere, and each source on
                                         a network described without it (`fit/networks.py`)

A family of one device, or a table of one source, counts as one source. Messages below 1 MiB are left out: a step waits
for larger ones. What has no rows is stated, with the reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cost_models.certificate import PROBABILITIES, Domain
from cost_models.errors import InputError
from cost_models.timing.packed import FOLDER as CURVES
from validation.domains import Family, pooled, stated
from validation.fit import networks

KERNELS = {
    "gemm": "products", "busy products": "products", "grouped products": "products", "attention": "attention",
    "unequal dims": "attention", "memory-bound": "elementwise", "memory_bound": "elementwise",
}  # fmt: skip
"""By the first words of a family's name, or of an operation's."""
FITTED = ("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "NVIDIA B200")
"""Machines whose tables the links' curves are: these rows count by what was left out of them."""
LEAST_BYTES = 2**20
STATED: Mapping[str, tuple[float, str]] = {
    "offload": (
        1.0,
        "no rows of copies to host memory alone; a CPU's update is an estimate: steps miss it by up to ten times",
    ),
    "host": (0.3, "launches of a layer are counted, their time comes from one source"),
}


def domains(folder: Path) -> dict[str, Domain]:
    """Every part's domain."""
    made = {name: pooled(one) for name, one in families(folder).items()}
    return made | {name: stated(*words) for name, words in STATED.items()}


def families(folder: Path) -> dict[str, dict[str, Family]]:
    """Errors by domain and by family or table."""
    found: dict[str, dict[str, Family]] = {}
    for path in sorted(CURVES.glob("*.json")):
        for name, family, summary in _packed(path):
            found.setdefault(name, {})[family] = Family(rows=summary["rows"], quantiles=tuple(summary["quantiles"]))
    for name, tables in _tables(folder).items():
        for source, logs in tables.items():
            spots = tuple(np.quantile(logs, PROBABILITIES).tolist())
            found.setdefault(name, {})[source] = Family(rows=len(logs), quantiles=spots)
    return dict(sorted(found.items()))


def _tables(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Errors of published tables of collectives, by domain and by source and machine."""
    found: dict[str, dict[str, list[float]]] = {}
    for cell in (*networks.left_out(folder), *networks.vidur(folder), *networks.aiconfigurator(folder)):
        if cell.buffer_bytes >= LEAST_BYTES and cell.machine not in FITTED:
            machines = found.setdefault(f"collectives {place_of(cell)}", {})
            machines.setdefault(f"{cell.source}, {cell.machine}", []).append(-math.log1p(cell.error))
    return found


def place_of(cell: networks.Cell) -> str:
    if cell.across:
        return "across nodes"
    return "over PCIe" if cell.cluster.runs[0].node.scale_up.link.startswith("pcie") else "inside a node"


def _packed(path: Path) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(domain, family, summary) of one file of packed curves."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    if path.stem == "links":
        for link, families in facts.items():
            yield from (("collectives inside a node", f"{link}: {name}", one) for name, one in families.items())
        return
    if path.stem == "checks":
        return  # other clocks and servers of the same rows
    for name, one in facts["left_out"].items():
        yield f"{_kernel(name)}, measured", f"{path.stem}: {name}", one
    for op, said in facts.items():
        if op != "left_out" and "scaled" in said:
            yield f"{_kernel(op)}, scaled", f"generations: {op}", said["scaled"]


def _kernel(family: str) -> str:
    found = next((kernel for words, kernel in KERNELS.items() if family.startswith(words)), None)
    if found is None:
        raise InputError(f"validation/parts.py does not say which kernel the family {family!r} is of")
    return found
