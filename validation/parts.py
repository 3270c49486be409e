"""Domains of the certificate for parts of a step: kernels and collectives, by rows that no curve was fitted to.

    attention, products        measured: a board's curve without one of its sources, on that source's rows; scaled: a
                               board's rows by another board's curve (`fit/sources.py`)
    elementwise                measured: sizes left out of the fits, as `python -m validation.fit` packed their errors;
                               scaled: one generation from another's
    collectives inside a node  sizes and numbers of ranks left out of the tables; tables of machines without a curve
    over PCIe, across nodes    published tables over links whose rates come from elsewhere (`fit/networks.py`)

A source of one board, or a table of one machine, counts as one source. Messages below 1 MiB are left out: a step waits
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
from cost_models.curves.grid import Floats
from cost_models.timing.packed import FOLDER as CURVES
from validation.domains import Family, pooled, stated
from validation.fit import networks
from validation.fit.sources import left_out_sources

FITTED = ("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "NVIDIA B200")
"""Machines whose tables the links' curves are: these rows count by what was left out of them."""
LEAST_BYTES = 2**20
STATED: Mapping[str, tuple[float, str]] = {
    "offload": (
        1.0,
        "no rows of copies to host memory alone; a CPU's update is an estimate; wider where published steps refute it",
    ),
    "host": (0.3, "launches of a layer are counted, their time comes from one source"),
}


def domains(folder: Path) -> dict[str, Domain]:
    """Every part's domain."""
    made = {name: pooled(one) for name, one in families(folder).items()}
    return made | {name: stated(*words) for name, words in STATED.items()}


def families(folder: Path) -> dict[str, dict[str, Family]]:
    """Errors by domain and by source."""
    found: dict[str, dict[str, Family]] = {}
    for path in sorted(CURVES.glob("*.json")):
        for domain, family, summary in _packed(path):
            one = Family(rows=summary["rows"], quantiles=tuple(summary["quantiles"]))
            found.setdefault(domain, {})[family] = one
    for domain, sources in left_out_sources(folder).items():
        found[domain] = {source: _family(-np.log1p(errors)) for source, errors in sources.items()}
    for domain, tables in _tables(folder).items():
        found.setdefault(domain, {}).update({source: _family(np.array(logs)) for source, logs in tables.items()})
    return dict(sorted(found.items()))


def _family(logs: Floats) -> Family:
    return Family(rows=len(logs), quantiles=tuple(np.quantile(logs, PROBABILITIES).tolist()))


def _tables(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Errors of published tables of collectives, by domain and by source and machine."""
    found: dict[str, dict[str, list[float]]] = {}
    for cell in (*networks.multinode(folder), *networks.vidur(folder), *networks.aiconfigurator(folder)):
        if cell.buffer_bytes >= LEAST_BYTES and cell.machine not in FITTED:
            machines = found.setdefault(f"collectives {place_of(cell)}", {})
            machines.setdefault(f"{cell.source}, {cell.machine}", []).append(-math.log1p(cell.error))
    return found


def place_of(cell: networks.Cell) -> str:
    if cell.across:
        return "across nodes"
    return "over PCIe" if cell.cluster.runs[0].node.scale_up.link.startswith("pcie") else "inside a node"


def _packed(path: Path) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(domain, family, summary) of links, or of what memory limits, of one file of packed curves."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    if path.stem == "links":
        for link, families in facts.items():
            yield from (("collectives inside a node", f"{link}: {name}", one) for name, one in families.items())
    elif path.stem != "checks":
        for name, one in facts["left_out"].items():
            if name.startswith("memory-bound"):
                yield "elementwise, measured", f"{path.stem}: {name}", one
        if "scaled" in facts["memory_bound"]:
            yield "elementwise, scaled", "generations", facts["memory_bound"]["scaled"]
