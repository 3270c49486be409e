"""The planner against enumeration, on what it must get right, and on properties of its optimum."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models import Cluster, InputError, Model, Placement, Strategy, Workload, price
from cost_models.hardware.cluster import NodeRun
from cost_models.hardware.device import Device
from cost_models.hardware.node import ScaleUp
from cost_models.models.model import LayerKind
from cost_models.room import AS_PRICED, DEFAULT_ROOM, Room
from planner.search.integer_program import ROUNDING_BYTES
from planner.search.objective import Objective
from planner.search.reasons import reason
from planner.solve import NothingFits, Solution, solve
from planner.targets.target import MMSP
from tests.planner import brute_force
from tests.planner.brute_force import best_value
from tests.planner.clusters import GB, PAIRS, PCIE, cluster, node

NO_LEVERS = replace(MMSP, levers=())
TINY = Model(name="tiny", layers=2, hidden=1024, ffn=2048, heads=6, kv_heads=2, head_dim=64, vocab=512)
SLOWER = Device.load("a100-sxm-80gb")
SCALE_UPS = (PCIE, PAIRS, replace(node().scale_up, link="xgmi-mi300x", bytes_per_s=110 * GB))
EQUAL = 1e-12
OBJECTIVES: tuple[Objective, ...] = ("time", "memory")


def value(found: Solution, objective: str = "time") -> float:
    return brute_force.value(found.best[0].cost, objective)


def with_memory(of: Cluster, memory_bytes: int) -> Cluster:
    runs = [
        replace(run, node=replace(run.node, device=replace(run.node.device, memory_bytes=memory_bytes)))
        for run in of.runs
    ]
    return replace(of, runs=tuple(runs))


def random_cluster(rng: np.random.Generator) -> Cluster:
    """Two or three lopsided nodes of up to five GPUs: other NICs, a missing one, other links, slower GPUs or clocks."""
    sizes = [(2, 1), (3, 1), (2, 2), (3, 2), (1, 1, 1), (2, 1, 1)][int(rng.integers(6))]
    cards = int(rng.choice([1, 2, 4]))
    nodes = []
    for gpus in sizes:
        one = node(gpus, cards)
        one = replace(one, nics=replace(one.nics, bytes_per_s=float(rng.choice([1, 10, 50])) * GB))
        if cards > 1 and rng.random() < 0.3:
            one = replace(one, missing_nics=(0,))
        if rng.random() < 0.4:
            one = replace(one, scale_up=SCALE_UPS[int(rng.integers(len(SCALE_UPS)))])
        if rng.random() < 0.3:
            one = replace(one, device=one.device.at_clock(0.9e9) if rng.random() < 0.5 else SLOWER)
        nodes.append(one)
    leaf, oversubscription = int(rng.integers(1, 4)), float(rng.choice([1, 4]))
    return cluster(*nodes, leaf=leaf, oversubscription=oversubscription)


@pytest.mark.parametrize("seed", range(12))
def test_equals_enumeration_on_small_clusters(seed: int) -> None:
    """Without levers of memory, which `test_levers` enumerates."""
    rng = np.random.default_rng(seed)
    here = random_cluster(rng)
    mode = str(rng.choice(["train", "train", "train", "prefill", "decode"]))
    objective = str(rng.choice(["time", "time", "gpu-hours"]))
    model = replace(TINY, layers=1, layer_kinds=()) if rng.random() < 0.5 else TINY
    batch = int(rng.integers(1, 3)) if here.gpus <= 4 else 1
    work = Workload(model, context_tokens=int(rng.choice([2**12, 2**16, 2**18])), global_batch=batch, mode=mode)
    if mode == "train" and rng.random() < 0.6:
        needed = solve(here, work, target=NO_LEVERS).best[0].cost.memory_bytes
        here = with_memory(here, int(needed * rng.uniform(0.8, 0.999)))
    expected = best_value(here, work, objective)
    if expected is None:
        with pytest.raises(NothingFits):
            solve(here, work, objective=objective, target=NO_LEVERS)
        return
    found = solve(here, work, objective=objective, target=NO_LEVERS)
    assert value(found, objective) == pytest.approx(expected, rel=EQUAL)
    assert found.bound == pytest.approx(expected, rel=1e-9)
    assert found.reproducible


@pytest.mark.parametrize("sizes", [(2, 1), (1, 1, 1)])
def test_least_memory_equals_enumeration(sizes: tuple[int, ...]) -> None:
    here = cluster(*(node(gpus) for gpus in sizes))
    work = Workload(TINY, context_tokens=2**15)
    found = solve(here, work, objective="memory")
    assert value(found, "memory") == best_value(here, work, "memory")


def test_only_a_mix_of_policies_fits_by_a_hair() -> None:
    """Neither no recompute nor one policy for all layers is best: some layers recompute, others do not."""
    here, model = cluster(node(2), node(1)), replace(TINY, layers=4, layer_kinds=())
    work = Workload(model, context_tokens=2**18)
    roomy = solve(here, work).best[0]
    assert len(roomy.strategy.layers) == 1
    tight = with_memory(here, roomy.cost.memory_bytes - 2**26)
    found = solve(tight, work)
    best = found.best[0]
    assert len(best.strategy.layers) >= 2, "one policy for all layers won"
    assert best.cost.fits
    assert best.cost.step_s == pytest.approx(best_value(tight, work), rel=EQUAL)
    for policy in ("none", "mlp", "all_but_attention", "full"):
        try:
            one = solve(tight, work, fixed={"recompute": policy}).best[0]
        except NothingFits:
            continue
        assert one.cost.step_s > best.cost.step_s


def test_layers_with_and_without_a_window_equal_enumeration() -> None:
    """Against a policy for each single layer, in any order, listed once for every amount of memory; without levers."""
    kinds: tuple[LayerKind, ...] = ("window", "attention")
    model = replace(TINY, layers=2, layer_kinds=kinds, window=2**10)
    here, work = cluster(node(2), node(1)), Workload(model, context_tokens=2**18)
    every = [cost for costs in brute_force.prices(here, work) for cost in costs]
    needed = solve(here, work).best[0].cost.memory_bytes
    for spared, objective in itertools.product((2**24, 2**26, 2**27), OBJECTIVES):
        tight = with_memory(here, needed - spared)
        found = solve(tight, work, objective=objective, fixed={"offload_states": "none", "attention_head_chunks": 1})
        limit = DEFAULT_ROOM.limit_bytes(found.best[0].cost.capacity_bytes)
        expected = min(brute_force.value(cost, objective) for cost in every if cost.memory_bytes <= limit)
        assert value(found, objective) == pytest.approx(expected, rel=EQUAL)
        assert found.bound <= value(found, objective)


def test_groups_lie_differently_on_a_lopsided_cluster() -> None:
    """Four GPUs and two: the larger node hosts two head-exchange groups, the smaller one."""
    slow = replace(node(4), nics=replace(node(4).nics, bytes_per_s=1 * GB))
    here = cluster(slow, replace(slow, gpus=2))
    model = replace(TINY, heads=8, kv_heads=8, layers=1, layer_kinds=())
    work = Workload(model, context_tokens=2**17)
    found = solve(here, work, fixed={"data": 1, "ulysses": 2, "ring": 3, "shard": 6, "zero": 3})
    best = found.best[0]
    groups = best.placement.slot_of_rank.reshape(3, 2)
    assert np.all(groups[:, 0] == groups[:, 1]), "a head-exchange group was split over the slow network"
    assert sorted(np.bincount(groups[:, 0]).tolist()) == [1, 2]
    free = solve(here, work)
    assert free.best[0].cost.step_s <= best.cost.step_s
    assert free.bound == pytest.approx(free.best[0].cost.step_s, rel=1e-9), "not proven"


def test_a_slow_node_is_left_out_when_that_wins() -> None:
    fast, slow = node(4), replace(node(4), device=Device.load("l20"))
    here = cluster(fast, slow, fast)
    found = solve(here, Workload(TINY, context_tokens=2**19)).best[0]
    assert set(found.placement.slot_of_rank.tolist()) == {0, 2}
    everything = solve(here, Workload(TINY, context_tokens=2**19), fixed={"ring": 12, "ulysses": 1}).best[0]
    assert everything.cost.step_s > found.cost.step_s


@pytest.mark.parametrize("scale_up", [PAIRS, PCIE, replace(PAIRS, gpus_per_switch=3, cross_bytes_per_s=0.0)], ids=str)
@pytest.mark.parametrize("heads", [4, 6])
def test_gpus_of_a_box_without_a_switch_are_not_alike(scale_up: ScaleUp, heads: int) -> None:
    """Bound <= optimum over all placements GPU by GPU <= answer, and equal where the answer claims it."""
    here = cluster(node(5, 1, scale_up=scale_up))
    work = Workload(replace(TINY, heads=heads, kv_heads=heads, layers=1, layer_kinds=()), context_tokens=2**16)
    found, expected = solve(here, work), best_value(here, work)
    assert found.bound <= expected * (1 + EQUAL)
    assert value(found) == pytest.approx(expected, rel=EQUAL)


def test_rings_on_the_bridges_of_a_shipped_box() -> None:
    """8 A100 PCIe in bridged pairs, keys not grouped: rings of neighbours on a bridge beat ulysses over all eight."""
    here = Cluster.load("a100-pcie-pairs", gpus=8)
    model = replace(TINY, layers=2, layer_kinds=(), hidden=2048, ffn=8192, heads=12, kv_heads=12, head_dim=128)
    work, layout = Workload(model, context_tokens=2**16), Strategy(ring=2, ulysses=4, shard=8, zero=2)
    bridged = Placement(slot_of_rank=np.zeros(8, dtype=np.int64), gpu_of_rank=np.array([0, 2, 4, 6, 1, 3, 5, 7]))
    found = solve(here, work)
    assert value(found) <= price(here, work, layout, bridged).step_s < 0.95 * price(here, work, layout).step_s


@pytest.mark.parametrize("card", [2, 10])
def test_the_better_of_two_links_can_be_picked(card: int) -> None:
    """Two switched nodes beside two meshes of like nominal rate: as good as alone, in any order, however fast."""
    base = Cluster.load("dgx-h100", nodes=2)
    one = replace(base.node(0), nics=replace(base.node(0).nics, bytes_per_s=card * GB))
    work = Workload(Model.load("longvila-1.5b"), context_tokens=2**15)

    def run(link: str, rate: float) -> NodeRun:
        return NodeRun(count=2, node=replace(one, scale_up=replace(one.scale_up, link=link, bytes_per_s=rate * GB)))

    mesh = run("xgmi-mi300x", 448)
    alone = value(solve(replace(base, runs=(run("nvlink4", 450),)), work))
    slower = value(solve(replace(base, runs=(mesh, run("nvlink4", 447))), work))
    both = [value(solve(replace(base, runs=runs), work)) for runs in
            ((mesh, run("nvlink4", 450)), (run("nvlink4", 450), mesh))]  # fmt: skip
    assert both[0] == pytest.approx(both[1], rel=1e-9)
    assert both[0] <= min(alone, slower) * (1 + EQUAL)


@pytest.mark.parametrize("seed", range(2))
def test_the_order_of_slots_changes_nothing(seed: int) -> None:
    """Five nodes of one leaf, some partly taken, with slow or missing cards, or another device."""
    rng = np.random.default_rng(seed)
    good = Cluster.load("dgx-h100", nodes=8)
    changes = (
        {"gpus": 5}, {"missing_nics": (2, 3)}, {"nics": replace(good.node(0).nics, bytes_per_s=12.5e9)},
        {"device": Device.load("a100-sxm-80gb")}, {}, {}, {},
    )  # fmt: skip
    nodes = [replace(good.node(0), **changes[rng.integers(len(changes))]) for _ in range(5)]
    work = Workload(Model.load("longvila-8b"), context_tokens=2**17, global_batch=2)

    def ordered(order: list[int]) -> Cluster:
        return replace(good, runs=tuple(NodeRun(count=1, node=nodes[i]) for i in order))

    first, other = solve(ordered(list(range(5))), work), solve(ordered(rng.permutation(5).tolist()), work)
    assert value(other) == pytest.approx(value(first), rel=1e-9)
    assert other.bound == pytest.approx(first.bound, rel=1e-9)


def test_two_clocks_of_one_device_are_two_devices() -> None:
    """A node at half the clock is left out, wherever it stands, and the bound holds."""
    good = Cluster.load("dgx-h100", nodes=4)
    slow = replace(good.node(0), device=good.node(0).device.at_clock(900e6))
    runs = (good.runs[0], NodeRun(count=1, node=slow))
    work = Workload(Model.load("longvila-8b"), context_tokens=2**19)
    alone = value(solve(good, work))
    for order in (runs, runs[::-1]):
        found = solve(replace(good, runs=order), work)
        assert value(found) == pytest.approx(alone, rel=1e-9)
        assert found.bound <= alone * (1 + EQUAL)


def test_published_headline_on_256_gpus() -> None:
    """LongVILA-8B, 2M tokens, batch 1 on 32 DGX-H100: the whole cluster in one context group, little recompute."""
    work = Workload(Model.load("longvila-8b"), context_tokens=2 * 2**20)
    found = solve(Cluster.load("dgx-h100", nodes=32), work, room=AS_PRICED)
    best = found.best[0]
    assert best.strategy.context == 256
    assert best.strategy.ulysses in (8, 16), "head exchange within a node, or a pair of them"
    kept = {part.recompute: part.count for part in best.strategy.layers}
    assert kept["none"] >= 25, "NCCL's buffers, the root's copy and a gather's buffer (6 GiB) are 7 layers' MLPs"
    groups = best.placement.slot_of_rank.reshape(best.strategy.ring, best.strategy.ulysses)
    assert all(len(set(group)) == best.strategy.ulysses // 8 for group in groups.tolist()), "groups lie scattered"
    assert found.gap < 1.5e-3, "the bound grants a ring the channels of all cards of a node, whoever lies beside it"
    assert found.bound <= best.cost.step_s
    assert len(found.best) == 5
    assert len({(choice.strategy.data, choice.strategy.ulysses) for choice in found.best}) == 5
    seconds = [choice.cost.step_s for choice in found.best]
    assert seconds == sorted(seconds)
    reasons = [reason(choice.cost, best.cost, "time") for choice in (*found.best[1:], *found.lost)]
    assert all(reasons) and any(why.startswith("too big: ") for why in reasons)


def test_short_contexts_do_not_take_a_whole_large_cluster() -> None:
    work = Workload(Model.load("longvila-8b"), context_tokens=8192)
    found = solve(Cluster.load("dgx-h100", nodes=2048), work)
    assert found.best[0].strategy.ranks <= 64
    assert found.gap < 0.03


def test_same_input_same_answer() -> None:
    here, work = Cluster.load("dgx-h100", nodes=4), Workload(Model.load("longvila-7b"), context_tokens=2**19)
    first, second = solve(here, work), solve(here, work)
    assert [c.strategy for c in first.best] == [c.strategy for c in second.best]
    assert (first.bound, first.gap) == (second.bound, second.gap)
    for a, b in zip(first.best, second.best, strict=True):
        assert np.array_equal(a.placement.slot_of_rank, b.placement.slot_of_rank)
        assert np.array_equal(a.placement.gpu_of_rank, b.placement.gpu_of_rank)


@pytest.mark.parametrize("limit_s", [1e-9, 1e-3])
@pytest.mark.parametrize("objective", ["time", "memory"])
def test_a_time_limit_is_owned_up_to(limit_s: float, objective: str) -> None:
    """Cut short, the answer is still a plan that fits and its bound still valid."""
    here, work = Cluster.load("dgx-h100", nodes=16), Workload(Model.load("longvila-8b"), context_tokens=2**21)
    hurried, whole = (solve(here, work, objective=objective, time_limit_s=s) for s in (limit_s, 20.0))
    assert hurried.best[0].cost.fits
    rounding = ROUNDING_BYTES if objective == "memory" else 0.0  # a price's parts are whole bytes, a bound's are not
    assert hurried.bound - rounding <= value(whole, objective) <= value(hurried, objective) * (1 + EQUAL)
    assert whole.reproducible
    assert limit_s > 1e-6 or not hurried.reproducible


@pytest.mark.parametrize(
    "fixed",
    [
        {"ulysses": 4, "recompute": "full"},
        {"zero": 2},
        {"shard": 1, "recompute": "full"},
        {"ring_kind": "contiguous", "loss_chunk_tokens": 512},
        {"mlp_chunk_tokens": 1024},
        {"tensor": 2, "ring": 4},
        {"pipeline": 2, "microbatches": 2},
        {"ulysses": 5, "ring": 3},
    ],
)
def test_pins_are_kept(fixed: dict[str, object]) -> None:
    here, work = Cluster.load("dgx-h100", nodes=2), Workload(Model.load("longvila-1.5b"), context_tokens=2**16)
    found = solve(here, replace(work, global_batch=2), fixed=fixed)
    for choice in found.best:
        for name, pinned in fixed.items():
            if name == "recompute":
                assert {part.recompute for part in choice.strategy.layers} == {pinned}
            else:
                assert getattr(choice.strategy, name) == pinned
        again = price(here, replace(work, global_batch=2), choice.strategy, choice.placement)
        assert again.step_s == choice.cost.step_s


@pytest.mark.parametrize(
    ("fixed", "words"),
    [
        ({"ulysses": 64}, "legal: 1, 2"),
        ({"data": 3}, "legal: 1"),
        ({"ring": 17}, "legal: 1 to 16"),
        ({"ring": 9, "ulysses": 2}, "may be 1 to 16"),
        ({"shard": 7, "ring": 4, "ulysses": 2, "data": 1}, "legal: 1, 2, 4, 8"),
        ({"recompute": "some"}, "legal: none, mlp"),
        ({"heads": 3}, "legal: data, ring"),
        ({"microbatches": 2}, "legal: 1"),
        ({"tensor": 5}, "tensor=5"),
        ({"pipeline": 100}, "pipeline=100"),
    ],
)
def test_impossible_pins_name_the_legal_values(fixed: dict[str, object], words: str) -> None:
    here, work = Cluster.load("dgx-h100", nodes=2), Workload(Model.load("longvila-1.5b"), context_tokens=2**16)
    with pytest.raises(InputError, match=words):
        solve(here, work, fixed=fixed)


def test_remedies_are_true() -> None:
    """What is offered when nothing fits does fit, and one node or one K token less does not."""
    here, model = Cluster.load("dgx-h100", nodes=1), Model.load("longvila-8b")
    with pytest.raises(NothingFits) as caught:
        solve(here, Workload(model, context_tokens=2**21), target=NO_LEVERS)
    words = " ".join(caught.value.remedies)
    context = int(words.split("context of at most ")[1].split("(")[1].split()[0])
    assert solve(here, Workload(model, context_tokens=context), target=NO_LEVERS).best[0].cost.fits
    with pytest.raises(NothingFits):
        solve(here, Workload(model, context_tokens=context + 1024), target=NO_LEVERS)
    gpus, work = int(words.split(" GPUs more (")[1].split(")")[0]), Workload(model, context_tokens=2**21)
    assert solve(Cluster.load("dgx-h100", gpus=gpus), work, target=NO_LEVERS).best[0].cost.fits
    with pytest.raises(NothingFits):
        solve(Cluster.load("dgx-h100", gpus=gpus - 8), work, target=NO_LEVERS)


@pytest.mark.parametrize("axis", ["tensor", "pipeline"])
def test_a_model_that_fits_when_it_is_cut_is_told_so(axis: str) -> None:
    """70B on one node: its weights fit no single GPU, but a part of every layer or some of the layers do."""
    here = Cluster.load("dgx-h100", nodes=1)
    work = Workload(Model.load("llama-3-70b"), context_tokens=2**17, mode="decode")
    with pytest.raises(NothingFits) as caught:
        solve(here, work)
    pin = next(one for one in caught.value.remedies if one.startswith(axis)).split(" ")[0]
    assert solve(here, work, fixed={axis: int(pin.removeprefix(f"{axis}="))}).best[0].cost.fits


def test_a_search_that_only_asks_whether_it_fits_pays_for_no_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bisections and sweeps meet rows that do not fit many times; what would fit is sought only where it is shown."""
    monkeypatch.setattr("planner.search.remedies._tried", lambda space, samples: pytest.fail("remedies were sought"))
    work = Workload(Model.load("longvila-8b"), context_tokens=2**21)
    with pytest.raises(NothingFits) as caught:
        solve(Cluster.load("dgx-h100", nodes=1), work, target=NO_LEVERS)
    assert caught.value.problem.startswith("nothing fits: longvila-8b")


def test_a_pin_that_makes_it_too_big_is_named() -> None:
    here, work = Cluster.load("dgx-h100", nodes=32), Workload(Model.load("longvila-8b"), context_tokens=2**21)
    with pytest.raises(NothingFits, match="without shard=1 it fits"):
        solve(here, work, fixed={"shard": 1})


SMALL = st.sampled_from([(2, 1), (1, 1), (2, 2), (3, 1), (1, 1, 1)])
RATES = st.sampled_from([1.0, 5.0, 20.0])
FEW = settings(max_examples=8, deadline=None, derandomize=True)


@FEW
@given(
    sizes=SMALL, rates=st.tuples(RATES, RATES, RATES), which=st.integers(0, 2), context=st.sampled_from([2**14, 2**18])
)
def test_optimum_never_rises_with_a_faster_link(
    sizes: tuple[int, ...], rates: tuple[float, ...], which: int, context: int
) -> None:
    def here(faster: float) -> Cluster:
        factors = [faster if i == which % len(sizes) else 1.0 for i in range(len(sizes))]
        made = [node(gpus) for gpus in sizes]
        return cluster(
            *(
                replace(one, nics=replace(one.nics, bytes_per_s=rate * factor * GB))
                for one, rate, factor in zip(made, rates, factors, strict=False)
            )
        )

    work = Workload(TINY, context_tokens=context)
    assert value(solve(here(3.0), work)) <= value(solve(here(1.0), work)) * (1 + EQUAL)


@FEW
@given(sizes=SMALL, extra=st.integers(1, 2), slower=st.booleans(), objective=st.sampled_from(["time", "memory"]))
def test_optimum_never_rises_with_a_node_that_may_stay_unused(
    sizes: tuple[int, ...], extra: int, slower: bool, objective: str
) -> None:
    nodes = [node(gpus) for gpus in sizes]
    more = replace(node(extra), device=SLOWER) if slower else node(extra)
    work = Workload(TINY, context_tokens=2**15)
    before = value(solve(cluster(*nodes), work, objective=objective), objective)
    assert value(solve(cluster(*nodes, more), work, objective=objective), objective) <= before * (1 + EQUAL)


@FEW
@given(sizes=SMALL, share=st.floats(0.75, 1.0), growth=st.floats(1.0, 1.3))
def test_optimum_never_rises_with_memory(sizes: tuple[int, ...], share: float, growth: float) -> None:
    here, work = cluster(*(node(gpus) for gpus in sizes)), Workload(TINY, context_tokens=2**16)
    needed = solve(here, work).best[0].cost.memory_bytes
    try:
        before = value(solve(with_memory(here, int(needed * share)), work))
    except NothingFits:
        return
    assert value(solve(with_memory(here, int(needed * share * growth)), work)) <= before * (1 + EQUAL)


def test_a_plan_fits_with_the_confidence_asked_for() -> None:
    """The same row recomputes more the surer its memory must be; the bound holds against every such limit."""
    here, work = Cluster.load("dgx-h100", nodes=1), Workload(Model.load("longvila-8b"), context_tokens=2**17)
    rooms = [AS_PRICED, Room(confidence=0.8), Room(confidence=0.95), Room(confidence=0.999)]
    found = [solve(here, work, room=room) for room in rooms]
    for room, one in zip(rooms, found, strict=True):
        assert room.holds(one.best[0].cost) and one.gap < 0.01
        assert one.best[0].cost.memory_bytes > 0.97 * room.limit_bytes(one.best[0].cost.capacity_bytes)
    seconds = [value(one) for one in found]
    assert seconds == sorted(seconds) and len(set(seconds)) == len(seconds)


def test_less_confidence_is_a_remedy_that_works() -> None:
    here, work = Cluster.load("dgx-h100", nodes=1), Workload(Model.load("longvila-8b"), context_tokens=2**18)
    most = solve(here, work, objective="memory", room=AS_PRICED).best[0].cost
    tight = with_memory(here, int(most.memory_bytes * 1.04))
    with pytest.raises(NothingFits) as caught:
        solve(tight, work, target=NO_LEVERS)
    remedy = next(one for one in caught.value.remedies if "--confidence" in one)
    confidence = float(remedy.rpartition(" ")[2].rstrip("`)"))
    assert 0.5 <= confidence < 0.95
    assert solve(tight, work, room=Room(confidence=confidence), target=NO_LEVERS).best[0].cost.fits
    assert "95% confidence" in caught.value.problem
