"""Collectives across nodes: what the closed form makes of published tables, and rows that cannot be true."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from validation.fit import networks
from validation.fit.rows import DEFAULT_FOLDER

CELLS = networks.multinode(DEFAULT_FOLDER)


@pytest.mark.parametrize("op", ["all_gather", "all_reduce", "reduce_scatter", "alltoall", "sendrecv"])
def test_tables_across_nodes_are_met_within_a_tenth(op: str) -> None:
    """The median cell; of all-to-alls the median source (half of the cells are two machines with cards in reverse)."""
    errors: dict[str, list[float]] = {}
    for cell in CELLS:
        if cell.op == op and cell.across:
            errors.setdefault(cell.source, []).append(abs(cell.error))
    every = np.concatenate([np.array(found) for found in errors.values()])
    middle = np.median([np.median(found) for found in errors.values()]) if op == "alltoall" else np.median(every)
    assert middle < 0.1


def test_messages_of_1_to_64_mib_are_no_longer_early() -> None:
    signed = [cell.error for cell in CELLS if cell.across and 2**20 <= cell.buffer_bytes < 2**26]
    assert len(signed) > 100 and abs(np.median(signed)) < 0.1


def test_a_cell_is_the_median_of_its_rows() -> None:
    assert all(cell.rows >= 1 for cell in CELLS) and max(cell.rows for cell in CELLS) >= 4
    assert not any(word in cell.setting for cell in CELLS for word in networks.NOT_NCCLS_CHOICE)


def test_a_rate_above_the_link_is_an_error_of_the_data() -> None:
    """Doubled bytes, as one file once had them: 670 GB/s over a link of 300."""
    cell = next(
        cell for cell in networks.vidur(DEFAULT_FOLDER) if cell.machine == "a100_dgx" and cell.cluster.slots == 1
    )
    assert not networks.impossible(cell)
    doubled = replace(cell, op="send_recv", ranks=2, buffer_bytes=2.0**28, seconds=2.0**28 / 670e9)
    assert networks.impossible(doubled) == "send_recv over 2 ranks: 670 GB/s over links of 300"


def test_a_source_left_out_is_predicted_on_a_network_that_it_did_not_describe() -> None:
    seen, unseen = (
        {(cell.source, cell.machine): cell.cluster.runs[0].node.nics for cell in cells}
        for cells in (CELLS, networks.left_out(DEFAULT_FOLDER))
    )
    moved = {source for source, machine in unseen if unseen[source, machine] != seen[source, machine]}
    assert moved == {source for source, *_ in networks.UNSEEN}
    alps = unseen["cscs_alps", next(machine for source, machine in unseen if source == "cscs_alps")]
    assert (alps.kind, alps.latency_s) == ("roce", 4e-6)
