"""States in host memory: what leaves the GPU, what crosses its host link, and what the CPU's update takes."""

from dataclasses import replace

import pytest

from cost_models import Cluster, InputError, Model, Strategy, Workload, price, price_batch
from cost_models.timing.paths import HOST_MEMORY_BYTES_PER_S
from planner import plan, simulate

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
    assert cost.seconds["optimizer"] == pytest.approx(28 * weights / (HOST_MEMORY_BYTES_PER_S / 8), rel=1e-6)


def test_copies_hide_behind_long_layers_and_show_beside_short_ones():
    """Before and after: 8B's own parts of weights and gradients over 25 GB/s are 0.2 s in a step."""
    long = price(HERE, WORK, replace(LAYOUT, offload_states="all"))
    assert long.seconds["offload"] < 0.05 * long.step_s
    slow = replace(HERE.runs[0].node, host_link_bytes_per_s=1e9)
    here = replace(HERE, runs=(replace(HERE.runs[0], node=slow),))
    short = price(here, Workload(WORK.model, context_tokens=2**12), replace(LAYOUT, offload_states="all"))
    moved = 8.03e9 / 8 * (2 + 2 + 4)
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
    with pytest.raises(InputError, match="not planned"):
        plan(HERE, WORK, fixed={"offload_states": "all"})
