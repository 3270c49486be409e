"""Cards between nodes: what they reach by kind, against published runs, and what is refused."""

from __future__ import annotations

import typing

import pytest

from cost_models import Cluster, InputError
from cost_models.hardware.networks import NETWORKS, NetworkKind
from cost_models.hardware.node import Nics

MEASURED = [
    # preset, GB/s that one node reaches, source, tolerance
    ("aws-p4d", 340 / 8, "stas00/ml-engineering network/README.md: EFA v1, all-reduce tests", 0.02),
    ("jean-zay-v100", 135 / 8, "stas00/ml-engineering network/README.md: Omni-Path at Jean Zay, 2022", 0.02),
    ("dgx-h100", 8 * 48, "NVIDIA/nccl-tests issue 267: 48 to 49 GB/s of a ConnectX-7", 0.1),
    ("gcp-a2", 4.7, "NVIDIA/nccl issue 398: TCP on 100 Gbit/s (AWS p3dn)", 0.05),
]


@pytest.mark.parametrize(("preset", "gb_per_s", "source", "tolerance"), MEASURED)
def test_what_a_node_reaches(preset: str, gb_per_s: float, source: str, tolerance: float) -> None:
    nics = Cluster.load(preset, nodes=1).runs[0].node.nics
    assert nics.count * nics.reached_bytes_per_s / 1e9 == pytest.approx(gb_per_s, rel=tolerance), source


def test_every_kind_has_a_share_and_a_source() -> None:
    assert set(NETWORKS) == set(typing.get_args(NetworkKind))
    assert all(0 < network.share <= 1 and network.source for network in NETWORKS.values())


def test_infiniband_without_gpudirect_meets_a_published_run() -> None:
    # NVIDIA/nccl-tests issue 78: 8 nodes of 8 V100, one 100 Gbit/s card: 4.3 GB/s of bus bandwidth
    card = Nics(count=1, bytes_per_s=12.5e9, latency_s=3e-6, gpudirect=False)
    assert card.reached_bytes_per_s == pytest.approx(4.3e9, rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bytes_per_s": -50e9}, "bytes_per_s=-5e\\+10"),
        ({"bytes_per_s": 0.0}, "bytes_per_s=0, .*bytes_per_s from 1 to"),
        ({"latency_s": -1e-6}, "latency_s=-1e-06"),
        ({"count": -1}, "count=-1"),
        ({"kind": "ethernet"}, "kind=ethernet .TCP. has no GPUDirect; add gpudirect: false, or give kind: roce"),
    ],
)
def test_impossible_cards_are_refused_by_value(change: dict[str, object], message: str) -> None:
    good: dict[str, typing.Any] = {"count": 8, "bytes_per_s": 50e9, "latency_s": 3e-6}
    with pytest.raises(InputError, match=message):
        Nics(**{**good, **change})
