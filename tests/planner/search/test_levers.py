"""Levers of memory in the search: as an enumeration has it, cut where memory is not short, named where missing."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs

from cost_models import Cluster, LayerRange, Model, Workload, price
from cost_models.room import DEFAULT_ROOM, Room
from cost_models.timing.cluster_costs import cluster_costs
from planner.planning import plan
from planner.reverse.longest import longest_context
from planner.search import with_levers
from planner.search.best_first import Search
from planner.search.levers import WORTH, Bundle
from planner.search.space import spaces
from planner.solve import NothingFits, solve
from planner.targets.executed import unsupported
from planner.targets.target import MMSP, Target
from tests.planner.brute_force import strategies
from tests.planner.test_solve import TINY, with_memory

ONE_LAYER = replace(TINY, layers=1, layer_kinds=())
CHOICES = {
    "slices": ("mlp_chunk_tokens", (None, 16384, 4096)),
    "loss": ("loss_chunk_tokens", (1024, 128, 16)),
    "heads": ("attention_head_chunks", (1, 2, 4, 8, 16)),
    "rows": ("attention_chunk_tokens", (None, 65536)),
    "states": ("offload_states", ("none", "all")),
}
KEPT = [("none", "none"), ("mlp", "none"), ("all_but_attention", "none"), ("full", "none")]
OFFLOADED = [("all_but_attention", "activations"), ("full", "activations")]


def priced(here, work, levers):
    """(strategy, its price) of every mix of layers with every combination of lever values, in the order of ranks."""
    fields = [CHOICES[name] for name in levers if name in CHOICES]
    kept = KEPT + OFFLOADED * ("inputs" in levers)
    listed = [*strategies(here, work)]
    listed += [replace(one, zero=3) for one in listed if one.ranks == 1]  # one rank frees weights that wait on the host
    for one in listed:
        for values in itertools.product(*(several for _, several in fields)):
            chosen = {field: value for (field, _), value in zip(fields, values, strict=True)}
            chunks = chosen.get("attention_head_chunks", 1)
            if chunks > work.model.heads // one.ulysses or (chunks > 1 and chosen.get("mlp_chunk_tokens") is None):
                continue  # the degrees here divide the heads
            on_host = chosen.get("offload_states") == "all"
            if (on_host and one.zero < 3) or (not on_host and one.ranks == 1 and one.zero == 3):
                continue
            by_rows = chosen.get("attention_chunk_tokens") is not None
            if by_rows and (one.ring > 1 or chunks > 1):
                continue
            for mix in itertools.combinations_with_replacement(kept, work.model.layers):
                if by_rows and ("all_but_attention" in dict(mix)):
                    continue
                layers = tuple(LayerRange(recompute=again, offload=offload, count=1) for again, offload in mix)
                layout = replace(one, layers=layers, **chosen)
                yield layout, price(here, work, layout)


def enumerated(here, work, levers):
    """Least seconds of all of `priced` that fit."""
    return min((cost.step_s for _, cost in priced(here, work, levers) if DEFAULT_ROOM.holds(cost)), default=np.inf)


@pytest.mark.parametrize("levers", [("inputs", "slices", "states"), ("inputs", "rows", "loss")])
def test_where_few_mixes_of_layers_and_levers_fit_the_plan_is_the_best_of_them(levers):
    """Two layers, memory for the leanest few of all combinations, and host memory for none to all of them."""
    here, work = Cluster.load("dgx-h100", gpus=1), Workload(TINY, context_tokens=2**16)
    costs = [cost for _, cost in priced(here, work, levers)]
    sizes, hosts = ({getattr(cost, name) for cost in costs} for name in ("memory_bytes", "host_bytes"))
    tried = set()
    for memory, host in itertools.product(sorted(sizes)[1 :: len(sizes) // 7], sorted(hosts)[1::2]):
        room = Room(headroom_bytes=int(costs[0].capacity_bytes - memory))
        run = here.runs[0]
        there = replace(here, runs=(replace(run, node=replace(run.node, host_memory_bytes=int(host) + 1)),))
        limit = room.limit_bytes(costs[0].capacity_bytes)
        fits = [cost for cost in costs if cost.memory_bytes <= limit and cost.host_bytes <= host + 1]
        if not fits:
            continue
        found = solve(there, work, room=room, target=replace(MMSP, levers=levers))
        least = min(cost.step_s for cost in fits)
        value, spent = found.best[0].cost.step_s, found.best[0].cost.seconds["recompute"]
        assert found.bound <= least * (1 + 1e-9)
        assert value == pytest.approx(least, rel=1e-9) or (spent <= WORTH * value and value <= least * (1 + 2 * WORTH))
        tried.add(len(fits))
    assert len(tried) > 3 and min(tried) < len(costs) / 3


@pytest.mark.parametrize(
    ("levers", "share", "host_gib"),
    [
        (("inputs", "slices", "states"), 0.8, 0),
        (("inputs", "slices", "states"), 0.6, 0),
        (("inputs", "states"), 0.9, 1),
        (("slices", "heads", "loss"), 0.7, 0),
        (("slices", "heads", "rows"), 0.65, 0),
    ],
)
def test_equals_an_enumeration_where_nothing_fits_without(levers, share, host_gib):
    here, work = Cluster.load("dgx-h100", gpus=2), Workload(ONE_LAYER, context_tokens=2**17)
    least = solve(here, work, objective="memory").best[0].cost.memory_bytes
    here = with_memory(here, int(least * share))
    if host_gib:
        run = here.runs[0]
        here = replace(here, runs=(replace(run, node=replace(run.node, host_memory_bytes=host_gib * 2**30)),))
    expected = enumerated(here, work, levers)
    target = replace(MMSP, levers=levers)
    if not np.isfinite(expected):
        with pytest.raises(NothingFits):
            solve(here, work, target=target)
        return
    found = solve(here, work, target=target)
    assert found.best[0].cost.step_s == pytest.approx(expected, rel=1e-9)
    assert found.bound <= expected * (1 + 1e-9) and found.gap < 1e-6


def test_no_lever_is_tried_where_memory_costs_nothing(monkeypatch):
    monkeypatch.setattr(with_levers, "_Bounds", lambda *_: pytest.fail("levers were bounded"))
    found = solve(Cluster.load("dgx-h100", gpus=2), Workload(ONE_LAYER, context_tokens=2**14))
    assert [part.recompute for part in found.best[0].strategy.layers] == ["none"]


@pytest.fixture(scope="module")
def long_plan():
    """2M tokens of 8B on one node, where nothing fits without levers."""
    return plan(Cluster.load("dgx-h100", nodes=1), Workload(Model.load("longvila-8b"), context_tokens=2**21))


def test_the_executor_refuses_no_lever_that_a_plan_for_it_chose(long_plan):
    chosen = long_plan.strategy
    assert chosen.mlp_chunk_tokens and chosen.offload_states == "all" and unsupported(long_plan) == []
    assert "mlp_chunk_tokens" in long_plan.searched.varied and long_plan.cost.fits


@pytest.mark.parametrize(
    ("target", "fixed", "least", "most"),
    [
        ("alst", {}, 0.9 * 3.8e6, 1.05 * 3.8e6),  # its recipe's length; the paper prints 3.7M
        ("fpdt", {}, 4 * 2**20, 5 * 2**20),  # the longest that ran, of lengths 1M apart
        ("untied-ulysses", {"ulysses": 8, "offload_states": "none"}, 0.9 * 5 * 2**20, 1.05 * 5 * 2**20),
    ],
)
def test_longest_rows_of_llama_3_8b_on_8_h100_with_the_levers_of_each(target, fixed, least, most):
    here, work = Cluster.load("dgx-h100", gpus=8), Workload(Model.load("llama-3-8b"), context_tokens=2**20)
    found = longest_context(here, work, fixed, target=Target.load(target))
    assert least <= found.context_tokens <= most


def test_all_levers_of_this_executor_hold_more_than_five_and_a_half_million_tokens():
    here, work = Cluster.load("dgx-h100", gpus=8), Workload(Model.load("llama-3-8b"), context_tokens=5_500_928)
    found = solve(here, replace(work, text_tokens=None)).best[0]
    assert found.cost.fits and DEFAULT_ROOM.holds(found.cost)


def test_a_missing_lever_is_named_when_nothing_fits():
    here, work = Cluster.load("dgx-h100", gpus=8), Workload(Model.load("llama-3-8b"), context_tokens=2**20)
    with pytest.raises(NothingFits) as caught:
        solve(here, work, target=replace(MMSP, levers=("loss",)))
    named = [one for one in caught.value.remedies if "not among the levers" in one]
    assert any(one.startswith("a layer's input on the host fits") for one in named)
    assert not any("offload_states=all fits:" in one for one in named)


def test_a_vocabulary_of_ten_million_takes_a_smaller_slice_of_the_loss():
    """Its logits of 1,024 tokens take 40 GiB in float32 alone."""
    model = Model(name="wide", layers=1, hidden=64, ffn=128, heads=1, kv_heads=1, head_dim=64, vocab=10_000_000)
    found = solve(Cluster.load("dgx-h100", gpus=8), Workload(model, context_tokens=2**15))
    assert found.best[0].strategy.loss_chunk_tokens in (128, 16)


@pytest.fixture(scope="module")
def pressed():
    """(cluster, workload, target, space): 80% of the least memory without levers."""
    here, work = with_memory(Cluster.load("dgx-h100", gpus=2), 7 * 2**29), Workload(ONE_LAYER, context_tokens=2**17)
    target = replace(MMSP, levers=("inputs", "slices", "heads", "loss"))
    (space,) = spaces(here, work, {}, DEFAULT_ROOM, target)
    return here, work, target, space


def found_in(space, bundle, objective):
    one = structs.replace(space, levers=bundle)
    return Search(one, objective, cluster_costs(space.cluster)).run(runners=0).incumbent


def test_no_bundle_is_better_than_its_floors(pressed):
    """Nor is one without inputs on the host, which is not searched, better than the same with them."""
    space = pressed[-1]
    bounds = with_levers._Bounds(space, "time", cluster_costs(space.cluster), np.inf)
    best = {bundle: found_in(space, bundle, "time") for bundle in (*bounds.bundles, *bounds.within_another)}
    assert 0 < sum(np.isfinite([*best.values()])) < len(best)
    for bundle, value in best.items():
        floor = bounds.floor(structs.replace(space, levers=bundle), np.inf)
        assert bounds.endless(bundle) <= floor * (1 + 1e-12) and floor <= value * (1 + 1e-12)
        if bundle in bounds.within_another:
            assert best[Bundle(chosen=(("inputs", True), *bundle.chosen))] <= value


def test_the_least_memory_where_nothing_fits_without_levers(pressed):
    here, work, target, space = pressed
    found = solve(here, work, objective="memory", target=target).best[0].cost.memory_bytes
    several = with_levers._levers(space)
    assert found == pytest.approx(min(found_in(space, bundle, "memory") for bundle in several), rel=1e-9)


def test_one_gpu_holds_8b_with_its_states_on_the_host():
    """FSDP over one rank frees weights that wait in host memory; it was "nothing fits" below two GPUs."""
    here, work = Cluster.load("dgx-h100", gpus=1), Workload(Model.load("llama-3-8b"), context_tokens=2**13)
    found = solve(here, work).best[0]
    assert (found.strategy.ranks, found.strategy.zero, found.strategy.offload_states) == (1, 3, "all")
    with pytest.raises(NothingFits):
        solve(here, work, target=replace(MMSP, levers=("inputs", "slices", "loss")))
