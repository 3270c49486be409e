"""`python -m validation.left_out`: published collectives across nodes, each source on a network described without it.

    as described   predicted / measured - 1 on clusters whose rates and latencies these tables showed, too
    left out       the same, where what a source alone showed of its network is unknown (`fit/networks.py`)

Cells, as medians of their rows. Both tables are on the page of the certificate, too. Left out: SLOWER and START_S of
`cost_models/timing/protocols.py`, which stay as fitted to all sources together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from validation.fit import networks
from validation.rows import FOLDER
from validation.statistics import Errors
from validation.tables import Cell, Table, display, percent, signed

Cells = Sequence[networks.Cell]


def tables(folder: Path) -> list[Table]:
    """By operation, and by source: the worst first."""
    described, unseen = (
        [cell for cell in found if cell.across] for found in (networks.multinode(folder), networks.left_out(folder))
    )
    return [_operations(described, unseen), _sources(unseen)]


def _operations(described: Cells, unseen: Cells) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for op in sorted({cell.op for cell in unseen}):
        mine = [cell for cell in unseen if cell.op == op]
        errors = Errors.of(cell.error for cell in mine)
        seen = Errors.of(cell.error for cell in described if cell.op == op)
        middle = float(np.median([one.median for _, one in _by_source(mine)]))
        shares = [percent(one) for one in (seen.median, errors.median, middle, errors.p90)]
        rows.append((op, str(len(mine)), str(len({cell.source for cell in mine})), *shares, signed(errors.bias)))
    return Table(
        title="Collectives across nodes, with the source left out",
        text="NCCL's and RCCL's published tables, each source on a network described without it. `described`: on its "
        "network as these tables showed it. `tables`: the median of the tables' medians.",
        columns=("operation", "cells", "sources", "described", "left out", "tables", "90th percentile", "bias"),
        rows=rows,
    )


def _sources(unseen: Cells) -> Table:
    return Table(
        title="The same by table",
        text="A table is one operation of one source on one kind of machine. The worst first.",
        columns=("operation", "source", "machine", "cells", "median", "bias"),
        rows=[
            (*name, str(errors.rows), percent(errors.median), signed(errors.bias))
            for name, errors in sorted(_by_source(unseen), key=lambda one: (-one[1].median, one[0]))
        ],
    )


def _by_source(cells: Cells) -> list[tuple[tuple[str, str, str], Errors]]:
    found: dict[tuple[str, str, str], list[float]] = {}
    for cell in cells:
        found.setdefault((cell.op, cell.source, cell.machine), []).append(cell.error)
    return [(name, Errors.of(errors)) for name, errors in found.items()]


@click.command(help=__doc__)
def main() -> None:
    display(tables(FOLDER))


if __name__ == "__main__":
    main()
