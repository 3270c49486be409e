"""States in host memory: what leaves the GPU, what crosses its host link, and what the CPU's update takes."""

from dataclasses import replace

import pytest

from cost_models import Cluster, InputError, Model, Strategy, Workload, price, price_batch
from cost_models.timing.paths import HOST_MEMORY_BYTES_PER_S
from planner import plan, simulate
from planner.targets.target import Target

WORK = Workload(Model.load("longvila-8b"), context_tokens=2**18)
HERE = Cluster.load("dgx-a100", nodes=1)
LAYOUT = Strategy(ulysses=8, shard=8)


def test_states_leave_the_gpu():
    """16 B of each weight's 18 over 8 GPUs: masters, two states and gradients; with `all` the weights, too."""
    at_home, optimizer, everything = (
        price(HERE, WORK, replace(LAYOUT, offload_states=where)).memory for where in ("none", "optimizer", "all")
    )
    weights = at_home["optimizer"] / 8  # of one rank: two fp32 states each
    assert optimizer["parameters"] == pytest.approx(2 * weights, rel=1e-6)
    assert everything["parameters"] == 0
    for memory in (optimizer, everything):
        assert memory["optimizer"] == memory["gradients"] == 0
        assert memory["activations"] == at_home["activations"]


def test_the_update_reads_and_writes_host_memory():
    """28 B of a weight at a GPU's share of its node's rate; new weights go up beside it."""
    cost = price(HERE, WORK, replace(LAYOUT, offload_states="optimizer"))
    weights = price(HERE, WORK, LAYOUT).memory["optimizer"] / 8
    assert any("CPU's update" in line for line in cost.estimates)
    assert cost.seconds["optimizer"] == pytest.approx(28 * weights / (HOST_MEMORY_BYTES_PER_S / 8), rel=1e-6)


def test_copies_hide_behind_long_layers_and_show_beside_short_ones():
    """Before and after: 8B's own parts of weights and gradients over 25 GB/s are 0.3 s in a step; the fp32
    master is fetched before each pass, and fp32 gradients go back."""
    long = price(HERE, WORK, replace(LAYOUT, offload_states="all"))
    assert long.seconds["offload"] < 0.05 * long.step_s
    slow = replace(HERE.runs[0].node, host_link_bytes_per_s=1e9)
    here = replace(HERE, runs=(replace(HERE.runs[0], node=slow),))
    short = price(here, Workload(WORK.model, context_tokens=2**12), replace(LAYOUT, offload_states="all"))
    moved = 8.03e9 / 8 * (4 + 4 + 4)
    assert short.seconds["offload"] == pytest.approx(moved / 1e9, rel=0.3)


@pytest.mark.parametrize("where", ["optimizer", "all"])
def test_batch_and_simulation_agree_with_the_price(where):
    layout = replace(LAYOUT, offload_states=where)
    cost, played = price(HERE, WORK, layout), simulate(HERE, WORK, layout)
    assert price_batch(HERE, WORK, [layout, LAYOUT]).step_s[0] == pytest.approx(cost.step_s, rel=1e-9)
    assert played.seconds["optimizer"] == pytest.approx(cost.seconds["optimizer"], rel=1e-6)
    assert played.step_s == pytest.approx(cost.step_s, rel=0.05)


def test_bad_words_are_refused():
    with pytest.raises(InputError, match="legal: none, optimizer, all"):
        Strategy(offload_states="disk")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="zero=2; legal here: none, optimizer"):
        Strategy(zero=2, offload_states="all")
    with pytest.raises(InputError, match="grad_ring_dtype='int8' is unknown; legal: fp32, bf16"):
        Strategy(grad_ring_dtype="int8")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="offload_states=optimizer does not exist with --for trl"):
        plan(HERE, WORK, fixed={"offload_states": "optimizer"}, targets=[Target.load("trl")])


def test_a_node_that_stays_unused_changes_nothing():
    four = replace(HERE.runs[0].node, gpus=4)
    alone = replace(HERE, runs=(replace(HERE.runs[0], node=four),))
    beside = replace(HERE, runs=(replace(HERE.runs[0], node=four), HERE.runs[0]))
    layout = Strategy(ulysses=4, shard=4, offload_states="optimizer")
    assert price(beside, WORK, layout).step_s == pytest.approx(price(alone, WORK, layout).step_s, rel=1e-12)


def test_less_sharding_never_takes_less_memory():
    used = [price(HERE, WORK, Strategy(ulysses=8, shard=8, zero=z, offload_states="optimizer")) for z in (1, 2, 3)]
    assert used[0].memory_bytes >= used[1].memory_bytes >= used[2].memory_bytes


def test_no_states_are_updated_without_training():
    with pytest.raises(InputError, match="offload_states=all with mode=prefill"):
        price(HERE, Workload(WORK.model, context_tokens=2**14, mode="prefill"), replace(LAYOUT, offload_states="all"))
