"""Collective times: golden rows, order, what was not measured, and a profile."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_models.curves.samples import COLLECTIVES, Sample
from cost_models.errors import InputError
from cost_models.hardware.device import Device
from cost_models.timing.collectives import LINKS, Collectives, wire_bytes

FILE = Path(__file__).parents[3] / "measurements" / "kernels_comm_aiconfigurator.csv"
GPUS = {"nvlink3": "NVIDIA A100-SXM4-80GB", "nvlink4": "NVIDIA H100 80GB HBM3", "nvlink5": "NVIDIA B200"}


@pytest.mark.parametrize("link", GPUS)
@pytest.mark.parametrize(("op", "nccl"), [("all_to_all", "alltoall"), ("all_reduce",) * 2, ("reduce_scatter",) * 2])
def test_the_rows_are_met(link: str, op: str, nccl: str) -> None:
    errors = []
    with FILE.open(newline="") as handle:
        for row in csv.DictReader(handle):
            if (row["device"], row["op"], row["nccl_dtype"]) == (GPUS[link], nccl, "half"):
                ranks = int(row["num_gpus"])
                predicted = Collectives.of(link).intra_s(op, ranks, wire_bytes(op, ranks, float(row["bytes"])))
                errors.append(abs(predicted / (float(row["latency_ms"]) * 1e-3) - 1))
    assert np.median(errors) < 0.03 and np.percentile(errors, 90) < 0.15


def test_one_row_by_hand() -> None:
    # h100_sxm nccl 2.27.3: all_gather of 268435456 bytes on 8 GPUs, 0.731 ms, bus 321 GB/s
    wire = wire_bytes("all_gather", 8, 268435456)
    assert wire / Collectives.of("nvlink4").intra_s("all_gather", 8, wire) == pytest.approx(321e9, rel=0.02)


@given(
    link=st.sampled_from(sorted(LINKS)),
    op=st.sampled_from(COLLECTIVES),
    ranks=st.integers(2, 72),
    size=st.floats(0, 1e11),
    more=st.floats(1, 1e4),
)
def test_more_bytes_take_no_less_time_and_never_beat_the_link(
    link: str, op: str, ranks: int, size: float, more: float
) -> None:
    collectives = Collectives.of(link)
    small, large = (collectives.intra_s(op, ranks, size * x) for x in (1, more))
    assert 0 < small <= large * (1 + 1e-12)
    assert size / small <= LINKS[link].bytes_per_s * (1 + 1e-9)


def test_arrays_equal_numbers() -> None:
    sizes = np.array([0.0, 100.0, 1e5, 3e8, 1e10])
    for ranks in (2, 3, 8, 72):
        collectives = Collectives.of("nvlink5")
        many = collectives.intra_s("all_gather", ranks, sizes)
        assert many == pytest.approx([collectives.intra_s("all_gather", ranks, float(s)) for s in sizes], rel=1e-12)


def test_one_rank_costs_nothing() -> None:
    assert Collectives.of("nvlink4").intra_s("all_reduce", 1, 1e9) == 0.0
    assert Collectives.of("nvlink4").intra_s("all_reduce", 1, np.ones(3)).tolist() == [0, 0, 0]


def test_a_device_names_its_link_and_a_wrong_name_the_legal_ones() -> None:
    assert Collectives.of("gb200").name == Collectives.of(Device.load("gb200")).name == "nvlink5"
    with pytest.raises(InputError, match="link='nvlink9'; legal: nvlink3, nvlink4"):
        Collectives.of("nvlink9")
    with pytest.raises(InputError, match="collective='gather'; legal: all_to_all"):
        Collectives.of("nvlink4").intra_s("gather", 2, 1)
    with pytest.raises(InputError, match="ranks=0 must be at least 1"):
        Collectives.of("nvlink4").intra_s("all_reduce", 0, 1)


def test_what_was_not_measured_says_so_and_scales_by_rate() -> None:
    h800, h100 = Collectives.of("h800"), Collectives.of("nvlink4")
    assert h800.is_estimate("all_reduce") and not h100.is_estimate("all_reduce")
    assert h100.is_estimate("all_to_all", ranks=16)
    assert "scaled from nvlink4" in h800.source("all_reduce")
    assert h100.source("all_to_all").startswith("measured: H100")
    assert h800.intra_s("all_to_all", 8, 1e9) == pytest.approx(450 / 200 * h100.intra_s("all_to_all", 8, 1e9), rel=0.02)
    assert h800.intra_s("all_to_all", 8, 0) == h100.intra_s("all_to_all", 8, 0)


def test_a_cluster_may_state_its_own_rate() -> None:
    ours, halved = Collectives.of("nvlink4"), Collectives.of("nvlink4", bytes_per_s=225e9)
    assert halved.intra_s("all_gather", 8, 1e9) == pytest.approx(2 * ours.intra_s("all_gather", 8, 1e9), rel=0.02)
    assert halved.is_estimate("all_gather") and not ours.is_estimate("all_gather")
    with pytest.raises(InputError, match="bytes_per_s=0 must be above 0"):
        Collectives.of("nvlink4", bytes_per_s=0)


def test_more_than_eight_ranks_add_latency_and_keep_the_rate() -> None:
    nvl72 = Collectives.of("nvlink5")
    assert nvl72.intra_s("all_gather", 72, 0) > nvl72.intra_s("all_gather", 8, 0)
    assert nvl72.intra_s("all_gather", 72, 1e10) == pytest.approx(nvl72.intra_s("all_gather", 8, 1e10), rel=0.05)


def test_a_profile_replaces_the_table_also_for_other_group_sizes() -> None:
    samples = [
        Sample(op="all_to_all", ranks=4, path="shared-memory", bytes=b, median_s=3e-4 + b / 5e8)
        for b in (1e3, 1e5, 1e6, 1e7)
    ]
    collectives = Collectives.of("cpu", samples=samples)
    for sample in samples:
        assert collectives.intra_s("all_to_all", 4, sample.bytes) == pytest.approx(sample.median_s)
    assert collectives.intra_s("all_to_all", 4, 1e9) == pytest.approx(2.0, rel=0.05)
    assert not collectives.is_estimate("all_to_all") and collectives.is_estimate("all_gather")
    assert collectives.intra_s("all_to_all", 2, 1e7) > Collectives.of("cpu").intra_s("all_to_all", 2, 1e7)
    elsewhere = Collectives.of("nvlink4", samples=samples)
    assert elsewhere.intra_s("all_to_all", 4, 1e6) == Collectives.of("nvlink4").intra_s("all_to_all", 4, 1e6)


def test_a_mesh_gives_a_group_the_links_of_its_members() -> None:
    # HGX A100 4-GPU: 4 of 12 links to each neighbour; MI300X: one xGMI link of 64 GB/s to each of 7 neighbours
    quad, switch = Collectives.of("nvlink3-quad"), Collectives.of("nvlink3")
    assert quad.intra_s("all_gather", 4, 1e9) == switch.intra_s("all_gather", 4, 1e9)
    assert quad.intra_s("all_gather", 2, 1e9) == pytest.approx(3 * switch.intra_s("all_gather", 2, 1e9), rel=0.02)
    assert quad.intra_s("send_recv", 4, 1e9) == pytest.approx(3 * switch.intra_s("send_recv", 4, 1e9), rel=0.02)
    xgmi = Collectives.of("mi300x")
    assert xgmi.intra_s("all_to_all", 2, 1e9) > 6 * xgmi.intra_s("all_to_all", 8, 1e9)
