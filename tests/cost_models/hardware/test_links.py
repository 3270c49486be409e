"""Links that were scaled, against what others measured on them: the band that `links.py` states."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from cost_models.hardware.links import HOST_STAGED_SHARE
from cost_models.timing.collectives import Collectives, wire_bytes

FOLDER = Path(__file__).parents[3] / "measurements"
MEASURED = [
    # link, op, ranks, bus GB/s of large messages, source
    ("nvlink3-bridge", "all_reduce", 2, 208),  # A100 PCIe pair, NV12: NVIDIA/nccl-tests issue 178
    ("nvlink3-quad", "send_recv", 2, 72),  # Leonardo, 4 A100 without switch: NVIDIA/nccl-tests issue 331
    ("nvlink4", "all_gather", 8, 370),  # what NCCL's authors expect of H100: NVIDIA/nccl-tests issue 212
    ("nvlink4-h800", "all_reduce", 8, 215),  # 8 H800: NVIDIA/nccl issue 1374
    ("pcie5", "all_reduce", 8, 28),  # 8 RTX 5090: NVIDIA/nccl issue 1639
    ("pcie5", "all_reduce", 4, 35),  # 4 RTX 5090, the same
]


@pytest.mark.parametrize(("link", "op", "ranks", "bus"), MEASURED)
def test_scaled_links_meet_published_bus_bandwidths_within_the_band(link: str, op: str, ranks: int, bus: float) -> None:
    wire = wire_bytes(op, ranks, 2.0**30)
    reached = wire / Collectives.of(link).intra_s(op, ranks, wire) / 1e9
    low, high = (0.5, 2.0) if link.startswith("pcie") else (1 / 1.34, 1.34)
    assert low < reached / bus < high


def test_cards_without_peer_to_peer_meet_vidurs_a40_rows() -> None:
    # kernels_comm_vidur.csv: two A40 of one node that no bridge joins, 1 MB and more, through host memory
    errors = []
    link = Collectives.of("pcie4", bytes_per_s=32e9 * HOST_STAGED_SHARE)
    with (FOLDER / "kernels_comm_vidur.csv").open(newline="") as handle:
        for row in csv.DictReader(handle):
            if (row["node_sku"], row["op"], row["nodes"]) == ("a40_pairwise_nvlink", "send_recv", "1"):
                size = float(row["bytes"])
                if size >= 2**20:
                    errors.append(float(link.intra_s("send_recv", 2, size)) / (float(row["median_ms"]) * 1e-3) - 1)
    assert len(errors) > 30 and np.median(np.abs(errors)) < 0.06


def test_galvatrons_unnamed_node_runs_as_the_a100_tables_say() -> None:
    # kernels_comm_galvatron.csv: one node of 2, 4, 8 GPUs, 16 MB to 1 GB; these rows shaped no table
    errors = []
    with (FOLDER / "kernels_comm_galvatron.csv").open(newline="") as handle:
        for row in csv.DictReader(handle):
            op = {"allreduce": "all_reduce", "all2all": "all_to_all"}.get(row["op"])
            if op and row["time_ms"] and float(row["MB"]) >= 16:
                ranks = int(row["ranks"])
                wire = wire_bytes(op, ranks, float(row["MB"]) * 2**20)
                seconds = float(Collectives.of("nvlink3").intra_s(op, ranks, wire))
                errors.append(seconds / (float(row["time_ms"]) * 1e-3) - 1)
    assert len(errors) == 42 and np.median(np.abs(errors)) < 0.08


def test_pcie_s_latency_is_that_of_a_ring_s_steps_and_its_rates_are_in_gib() -> None:
    # kernels_simumax_network_fit.json, 8 A100 PCIe: all-gather 4.83 us a step, 0.4497 x 30 GiB/s; all-to-all 30.04
    link, wire = Collectives.of("pcie4"), wire_bytes("all_gather", 8, 2.0**29)
    assert link.intra_s("all_gather", 8, 1.0) == pytest.approx(7 * 4.83e-6, rel=0.01)
    assert link.intra_s("all_to_all", 8, 1.0) == pytest.approx(7 * 30.04e-6, rel=0.01)
    assert link.intra_s("all_reduce", 8, 1.0) == pytest.approx(2 * 7 * 8.98e-6, rel=0.01)
    rate = wire / (link.intra_s("all_gather", 8, wire) - 7 * 4.83e-6)
    assert rate == pytest.approx(0.4497 * 30 * 2**30, rel=0.01)
