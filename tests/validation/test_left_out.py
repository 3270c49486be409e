"""The table of collectives across nodes with the source left out, and the command that prints it."""

from __future__ import annotations

import numpy as np
from click.testing import CliRunner

from validation import left_out
from validation.fit import networks
from validation.rows import FOLDER
from validation.tables import percent


def test_the_table_is_of_every_cell_across_nodes_and_of_no_other() -> None:
    operations, sources = left_out.tables(FOLDER)
    cells = [cell for cell in networks.left_out(FOLDER) if cell.across]
    assert (
        sum(int(str(row[1])) for row in operations.rows) == len(cells) == sum(int(str(row[3])) for row in sources.rows)
    )
    gathers = next(row for row in operations.rows if row[0] == "all_gather")
    assert gathers[4] == percent(float(np.median([abs(cell.error) for cell in cells if cell.op == "all_gather"])))
    medians = [float(str(row[4]).rstrip("%")) for row in sources.rows]
    assert medians == sorted(medians, reverse=True)


def test_the_command_prints_it() -> None:
    ran = CliRunner().invoke(left_out.main)
    assert ran.exit_code == 0 and "Collectives across nodes, with the source left out" in ran.output
