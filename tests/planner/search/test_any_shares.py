"""The bound over any shares of unlike GPUs against layouts, placements and shares listed one by one."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.plan_scaling import mixed
from cost_models import Cluster, Model, Placement, Strategy, Workload, price
from cost_models.hardware.device import Device
from cost_models.room import DEFAULT_ROOM
from cost_models.strategy import LayerRange
from cost_models.timing.cluster_costs import cluster_costs
from planner.planning import plan
from planner.search.any_shares import least_with_any_shares
from planner.search.space import Space

NAMES = ("h200-sxm-141gb", "h100-sxm-80gb", "a100-sxm-80gb")
COARSE, FINE = np.linspace(0.2, 1, 7), np.linspace(-0.06, 0.06, 7)
TRIED = 2
"""Placements of each degrees."""


def unlike(seed: int) -> tuple[Cluster, Workload]:
    """Three or four GPUs of two kinds on nodes with unlike cards, and a row in which any of their times may count."""
    rng = np.random.default_rng(seed)
    gpus = ((2, 2), (2, 1), (3, 1))[seed % 3]
    base, kinds = Cluster.load("dgx-h100", nodes=2), rng.choice(3, 2, replace=False)
    nodes = {}
    for slot, many in enumerate(gpus):
        device = Device.load(NAMES[kinds[slot]])
        if seed % 4 == 3:  # little memory: layers recompute
            device = replace(device, memory_bytes=int(rng.choice([48, 64])) * 2**30)
        node = replace(base.node(0), gpus=many, device=device)
        shares = tuple(rng.choice([1, 0.2], node.nics.count).tolist())
        nodes[slot] = replace(node, nic_shares=shares) if rng.random() < 0.5 else node
    tokens = int(rng.choice([2**12, 2**15, 2**17, 2**18]))
    return base.override(nodes), Workload(Model.load("longvila-1.5b"), context_tokens=tokens, global_batch=1 + seed % 2)


def listed(cluster: Cluster, work: Workload, rng: np.random.Generator) -> float:
    """The least price found: degrees one by one, a few placements, slow positions with any share of a fast one's."""
    free = [(slot, gpu) for slot in range(cluster.slots) for gpu in range(cluster.node(slot).gpus)]
    least = np.inf
    for data, ulysses, ring in itertools.product((1, 2), (1, 2), (2, 3, 4)):
        ranks = data * ulysses * ring
        if ranks > len(free) or work.global_batch % data:
            continue
        layout = Strategy(
            data=data, ulysses=ulysses, ring=ring, microbatches=work.global_batch // data, loss_chunk_tokens=1024,
            shard=ranks, zero=int(rng.integers(2, 4)),
        )  # fmt: skip
        for at in (np.arange(len(free)), *(rng.permutation(len(free)) for _ in range(TRIED - 1))):
            places = np.array(free)[at[:ranks]]
            on = Placement(slot_of_rank=places[:, 0], gpu_of_rank=places[:, 1])
            least = min(least, best_shares(cluster, work, layout, on))
    return least


def best_shares(cluster: Cluster, work: Workload, layout: Strategy, on: Placement) -> float:
    speed = np.array([cluster.node(slot).device.peak_16bit for slot in on.slot_of_rank])
    of = speed.reshape(layout.data, layout.ring, layout.ulysses).min(axis=(0, 2))

    def at(ratio: float, **changed: object) -> tuple[float, Strategy]:
        shares = tuple(np.where(of == of.max(), 1000, max(1, round(1000 * ratio))).tolist())
        one = replace(layout, token_shares=shares, **changed)
        return price(cluster, work, one, on).step_s, one

    coarse = min(COARSE, key=lambda ratio: at(ratio)[0])
    value, best = min((at(coarse + more) for more in FINE if coarse + more > 0), key=lambda one: one[0])
    if DEFAULT_ROOM.holds(price(cluster, work, best, on)):
        return value
    layers, found = work.model.layers, np.inf
    for again, lean in itertools.product(("mlp", "all_but_attention", "full"), range(1, layers + 1, 3)):
        lean = min(lean, layers - 1)
        ranges = (LayerRange(recompute=again, count=lean), LayerRange(count=layers - lean))
        cost = price(cluster, work, replace(best, layers=ranges), on)
        found = min(found, cost.step_s) if DEFAULT_ROOM.holds(cost) else found
    return found


@pytest.mark.parametrize("seed", [0, 3, 6])
def test_no_layout_is_priced_below_the_bound_of_any_shares(seed: int) -> None:
    cluster, work = unlike(seed)
    least = listed(cluster, work, np.random.default_rng(seed))
    space, costs = Space(cluster=cluster, workload=work, pins={}), cluster_costs(cluster)
    for value in (0.01 * least, 1.001 * least, 1.1 * least, 3 * least):
        bound = least_with_any_shares(space, "time", costs, value, levers=False)
        assert bound is not None and 0.5 * min(least, value) < bound <= min(least, value) * (1 + 1e-9)


def test_what_an_idle_tower_cannot_hide_is_in_the_bound() -> None:
    """256 GPUs of two models with slow links: gathers beside empty vision blocks were free in the bound (gap 0.58%)."""
    found = plan(mixed(256), Workload(Model.load("longvila-8b"), context_tokens=2**21))
    assert found.strategy.token_shares and found.searched.varied["token_shares"] == "any"
    assert 0 <= found.gap < 0.005
