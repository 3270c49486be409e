"""Plans of models some of whose layers mix tokens by a state."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from cost_models import Cluster, Model, Strategy, Workload, price
from cost_models.hardware.placement import Placement
from cost_models.models.ssd import Ssd
from cost_models.program import Passed, Segment, StepProgram
from cost_models.room import DEFAULT_ROOM
from cost_models.ssd_messages import PASSES
from cost_models.timing.cluster_costs import ClusterCosts
from cost_models.timing.passing import passed_s
from longvila.ssd import DiscreteMamba2, state_of
from planner.planning import plan
from planner.reverse.keep_attention import evenly, hybrid
from planner.screens.plan_lines import plan_lines
from planner.simulator.simulation import play, simulate
from planner.solve import solve
from planner.targets.target import Target

SMALL = hybrid(
    Model(name="small", layers=4, hidden=1024, ffn=2048, vocab=32000, heads=8, kv_heads=8, head_dim=128), [3]
)
MODEL = hybrid(Model.load("longvila-1.5b"), evenly(7, 28))


def single_gpus(count, bytes_per_s):
    """Nodes of one GPU and one slow card: all placements are alike, and all that is sent crosses the network."""
    cluster = Cluster.load("dgx-h100", nodes=count)
    node = cluster.runs[0].node
    one = replace(node, gpus=1, nics=replace(node.nics, count=1, bytes_per_s=bytes_per_s))
    return replace(cluster, runs=(replace(cluster.runs[0], node=one),))


CLUSTERS = {"node": Cluster.load("dgx-h100", nodes=1), "slow": single_gpus(4, 1e9)}


def test_a_program_that_runs_no_such_layers_is_not_said_to_lack_memory():
    every = [Target.load(name) for name in ("mmsp", "megatron", "torchtitan")]
    found = plan(Cluster.load("dgx-h100", gpus=2), Workload(SMALL, context_tokens=2**14), targets=every)
    lines = "\n".join(plan_lines(found))
    assert "does not fit" not in lines and "megatron" not in lines
    assert "no other program that --for names runs state-space layers" in lines


@pytest.mark.parametrize("kind", ["balanced", "contiguous"])
@pytest.mark.parametrize("name", CLUSTERS)
def test_the_plan_is_the_best_of_all_layouts_splits_and_ways(name, kind):
    """Against prices of every layout without recompute, on clusters whose placements are all alike. The way is one of
    those that any packed row allows."""
    cluster = CLUSTERS[name]
    work, model, most = Workload(SMALL, context_tokens=2**14), SMALL, cluster.gpus
    found = solve(cluster, work, fixed={"recompute": "none", "zero": 3, "ring_kind": kind, "data": 1})
    best = float("inf")
    degrees = [(ring, ulysses) for ring in range(1, most + 1) for ulysses in range(1, most // ring + 1)]
    for (ring, ulysses), split, way in itertools.product(degrees, ("states", "mixed", "heads"), PASSES):
        if model.ssd.heads % {"states": 1, "mixed": ulysses, "heads": ring * ulysses}[split] or ulysses > model.heads:
            continue
        if way == "chain" and ((kind == "balanced" and ring > 1) or split == "heads"):
            continue
        one = Strategy(
            ring=ring, ulysses=ulysses, shard=ring * ulysses, zero=3, ssd=split, ssd_pass=way, ring_kind=kind,
            loss_chunk_tokens=1024,
        )  # fmt: skip
        cost = price(cluster, work, one)
        best = min(best, cost.step_s) if DEFAULT_ROOM.holds(cost) else best
    assert found.best[0].cost.step_s == pytest.approx(best, rel=1e-9)
    assert found.bound <= best * (1 + 1e-9) and found.best[0].strategy.ssd_pass in PASSES


def test_how_states_are_passed_is_chosen_by_the_links():
    """Over one shared slow card a node a chain sends least; `--fix` holds the others, at their price."""
    cluster = Cluster.load("dgx-h100", nodes=2)
    node = cluster.runs[0].node
    slow = replace(node, gpus=4, nics=replace(node.nics, count=1, bytes_per_s=1e9))
    cluster = replace(cluster, runs=(replace(cluster.runs[0], node=slow),))
    work, seconds = Workload(SMALL, context_tokens=2**14), {}
    held = {"recompute": "none", "ring": 2, "ulysses": 4, "ssd": "states", "ring_kind": "contiguous", "data": 1}
    free = solve(cluster, work, fixed=held).best[0]
    for way in PASSES:
        one = solve(cluster, work, fixed={**held, "ssd_pass": way}).best[0]
        seconds[way] = one.cost.step_s
        assert one.strategy.ssd_pass == way
    assert free.strategy.ssd_pass == "chain" and free.cost.step_s == min(seconds.values()) == seconds["chain"]


@pytest.mark.parametrize(("split", "way"), [("states", "gather"), ("mixed", "gather"), ("states", "tree")])
def test_the_simulator_plays_what_is_priced(split, way):
    cluster, work = Cluster.load("dgx-h100", nodes=2), Workload(MODEL, context_tokens=2**16)
    strategy = Strategy(ring=4, ulysses=4, shard=16, ssd=split, ssd_pass=way, ring_kind="balanced")
    priced = price(cluster, work, strategy).step_s
    assert priced * (1 - 1e-9) <= simulate(cluster, work, strategy).step_s <= priced * 1.1


@pytest.mark.parametrize(("name", "crossings"), [("reached", 2), ("measured", 3)])
def test_steps_of_a_tree_that_wait_for_nothing_share_the_card(name, crossings):
    """Two nodes of two, rows up and back: the first stretch sends to the second and to the third. NCCL queues them."""
    cluster = single_gpus(2, 1e8)
    node = cluster.runs[0].node
    cluster = replace(cluster, runs=(replace(cluster.runs[0], node=replace(node, gpus=2)),))
    strategy = Strategy(ring=2, ulysses=2, ring_kind="balanced", ssd="states", ssd_pass="tree")
    costs = ClusterCosts(cluster)
    costs.__dict__["rates"] = replace(costs.rates, name=name)  # as with a profile of the links
    placement = Placement(slot_of_rank=np.array([0, 0, 1, 1]), gpu_of_rank=np.array([0, 1, 0, 1]))
    state = Passed(
        part="ring", axis="context", way="tree", state_bytes=2**24, summary_bytes=2**24, slots=1, stretches=4, reach=4,
        turns=1, chained=1,
    )  # fmt: skip
    segment = Segment(name="states", phases=(state,))
    priced_s = passed_s(state, costs.paths(strategy, placement))
    program = StepProgram(microbatch=(segment,), epilogue=(), microbatches=1)
    played = play(program, cluster, strategy, placement, rates=costs.rates)
    one_s = costs.paths(strategy, placement).exchange_s("context", "send", 2**24)
    assert priced_s / one_s == pytest.approx(crossings, rel=0.1)  # an all-to-all has another share of a card
    assert played.step_s == pytest.approx(priced_s, rel=0.1)


CONFIG = {
    "model_type": "qwen2", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4,
    "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 32000,
}  # fmt: skip
HYBRID = {
    **CONFIG, "layer_types": ["ssd"] * 3 + ["full_attention"], "ssd": {"heads": 16, "head_size": 64, "state": 64},
}  # fmt: skip


def test_keep_attention_as_typed(typed, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    words = ("--keep-attention", "1,4", "--gpus", "2", "--ctx", "64K", "--model", str(tmp_path))
    code, told, _ = typed(*words, "--json")
    few, all_ = json.loads(told)
    assert code == 0 and few["step_s"] < all_["step_s"] and few["longest_tokens"] > 2**16
    assert "ssd" in few["plan"] and "ssd" not in all_["plan"]
    code, told, _ = typed(*words, "--window", "4K")
    assert code == 0 and "attend to a window of 4096 tokens" in " ".join(told.split())
    for wrong, flag in ((("--keep-attention", "9..3"), "--keep-attention '9..3'"), (("--window", "4K"), "--window")):
        code, _, told = typed("--gpus", "8", "--ctx", "64K", "--model", "longvila-1.5b", *wrong)
        assert code == 2 and flag in told and len(told.splitlines()) == 1


def test_a_state_is_remembered_in_as_many_bytes_as_are_priced():
    made, cache = DiscreteMamba2(8, heads=2, head_size=4, state=3), DynamicCache()
    made(torch.zeros(1, 9, 8), past_key_values=cache)
    held = sum(one.untyped_storage().nbytes() for one in state_of(cache, 0).known)
    assert held == Ssd(heads=2, head_size=4, state=3).cached_bytes(4)


def test_answers_are_planned_and_states_do_not_grow_with_the_row():
    """Of 28 layers 7 attend: a quarter of the keys, and states of one size."""
    cluster, dense = CLUSTERS["node"], Model.load("longvila-1.5b")
    one, cache = Strategy(ulysses=4, shard=4), {}
    for tokens in (2**16, 2**17):
        for model in (MODEL, dense):
            work = Workload(model, context_tokens=tokens, mode="decode")
            cache[model is MODEL, tokens] = price(cluster, work, one).memory["cache"]
    states = 21 * MODEL.ssd.cached_bytes(2)
    for tokens in (2**16, 2**17):
        assert cache[True, tokens] - states == pytest.approx(cache[False, tokens] / 4)
    for mode in ("prefill", "decode"):
        found = plan(cluster, Workload(MODEL, context_tokens=2**17, mode=mode))
        attended = plan(cluster, Workload(dense, context_tokens=2**17, mode=mode))
        assert found.serving.longest_tokens > attended.serving.longest_tokens
        assert found.bound <= found.cost.step_s == pytest.approx(found.simulated.step_s, rel=0.02)


def test_a_target_that_does_not_run_them_says_so(typed, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(HYBRID))
    words = ("--gpus", "8", "--ctx", "64K", "--model", str(tmp_path))
    code, _, told = typed(*words, "--for", "megatron")
    assert code == 2 and "state-space layers; legal: mmsp" in told
    code, told, _ = typed(*words)
    assert code == 0 and "state-space layers: " in told and "ssd states, mixed, heads" in told
