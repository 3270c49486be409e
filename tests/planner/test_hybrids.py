"""Plans of models some of whose layers mix tokens by a state."""

import itertools
import json

import pytest

from cost_models import Cluster, Model, Strategy, Workload, price
from cost_models.room import DEFAULT_ROOM
from planner.reverse.keep_attention import evenly, hybrid
from planner.simulator.simulation import simulate
from planner.solve import solve

MODEL = hybrid(Model.load("longvila-1.5b"), evenly(7, 28))


def test_the_plan_is_the_best_of_all_layouts_and_splits():
    """Against prices of every layout without recompute on one node, whose placements are all alike."""
    cluster, work = Cluster.load("dgx-h100", nodes=1), Workload(MODEL, context_tokens=2**14)
    found = solve(cluster, work, fixed={"recompute": "none"})
    best = float("inf")
    for ring, ulysses, split in itertools.product(range(1, 9), range(1, 9), ("states", "mixed", "heads")):
        ranks = ring * ulysses
        dealt = {"states": 1, "mixed": ulysses, "heads": ranks}[split]
        if ranks > 8 or MODEL.ssd.heads % dealt:
            continue
        for shard, zero in ((ranks, 2), (ranks, 3), (1, 0)):
            if (shard == 1) != (zero == 0):
                continue
            one = Strategy(
                ring=ring, ulysses=ulysses, shard=shard, zero=zero, ssd=split, ring_kind="balanced",
                loss_chunk_tokens=1024,
            )  # fmt: skip
            cost = price(cluster, work, one)
            best = min(best, cost.step_s) if DEFAULT_ROOM.holds(cost) else best
    assert found.best[0].cost.step_s == pytest.approx(best, rel=1e-9)
    assert found.bound <= best * (1 + 1e-9)


@pytest.mark.parametrize("split", ["states", "mixed"])
def test_the_simulator_plays_what_is_priced(split):
    cluster, work = Cluster.load("dgx-h100", nodes=2), Workload(MODEL, context_tokens=2**16)
    strategy = Strategy(ring=4, ulysses=4, shard=16, ssd=split, ring_kind="balanced")
    priced = price(cluster, work, strategy).step_s
    assert priced * (1 - 1e-9) <= simulate(cluster, work, strategy).step_s <= priced * 1.1


def test_keep_attention_as_typed(typed):
    words = ("--keep-attention", "4,28", "--gpus", "8", "--ctx", "64K", "--model", "longvila-1.5b")
    code, told, _ = typed(*words, "--json")
    few, all_ = json.loads(told)
    assert code == 0 and few["step_s"] < all_["step_s"] and few["longest_tokens"] > 2**16
    assert "ssd" in few["plan"] and "ssd" not in all_["plan"]
    code, told, _ = typed(*words, "--window", "4K")
    assert code == 0 and "attend to a window of 4096 tokens" in told
    for wrong, flag in ((("--keep-attention", "9..3"), "--keep-attention '9..3'"), (("--window", "4K"), "--window")):
        code, _, told = typed("--gpus", "8", "--ctx", "64K", "--model", "longvila-1.5b", *wrong)
        assert code == 2 and flag in told and len(told.splitlines()) == 1


def test_a_target_that_does_not_run_them_says_so(typed, tmp_path):
    config = {
        "model_type": "qwen2", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 4, "vocab_size": 32000, "layer_types": ["ssd"] * 3 + ["full_attention"],
        "ssd": {"heads": 16, "head_size": 64, "state": 64},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = ("--gpus", "8", "--ctx", "64K", "--model", str(tmp_path))
    code, _, told = typed(*words, "--for", "megatron")
    assert code == 2 and "state-space layers; legal: mmsp" in told
    code, told, _ = typed(*words)
    assert code == 0 and "state-space layers: " in told and "ssd states, mixed, heads" in told
