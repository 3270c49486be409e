"""Unequal shares of a row in a ring: how they are dealt, what they wait for, and what a step with them costs."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_models import Cluster, InputError, LayerRange, Model, Strategy, Workload, price
from cost_models.framework import OURS
from cost_models.hardware.device import Device
from cost_models.hardware.placement import Placement
from cost_models.step.unequal import positions
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.token_layout import Layout
from cost_models.token_shares import dealt, stall

LAYERS = (LayerRange(recompute="full", count=32),)
EQUAL = Strategy(ring=4, ulysses=8, shard=32, layers=LAYERS)
UNEQUAL = replace(EQUAL, token_shares=(2, 2, 1, 1))


def _mixed(second="a100-sxm-80gb"):
    where = Cluster.load("dgx-h100", nodes=4)
    return where.override(dict.fromkeys((2, 3), replace(where.node(0), device=Device.load(second))))


def _work(**asked):
    return Workload(Model.load("longvila-8b"), context_tokens=2**19, **asked)


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=9), st.integers(0, 500))
def test_units_are_dealt_by_shares_and_every_block_has_one(shares, more):
    units = len(shares) + more
    given_ = dealt(units, tuple(shares))
    parts = np.array(shares) * units / sum(shares)
    assert sum(given_) == units and min(given_) >= 1
    if parts.min() >= 1:
        assert np.abs(np.array(given_) - parts).max() <= 1


@given(st.lists(st.integers(1, 9), min_size=2, max_size=7), st.integers(0, 2**16))
def test_a_ring_waits_as_its_transfers_say(tokens, seed):
    """Step by step: a transfer begins when both neighbours are in the step, and a step ends with block and transfer."""
    each = np.random.default_rng(seed).uniform(0.5, 3, len(tokens))
    ring, ends = len(tokens), {}
    for step in range(ring):
        for rank in range(ring):
            began = [ends.get((other % ring, step - 1), 0.0) for other in (rank - 1, rank, rank + 1)]
            computed = began[1] + tokens[rank] * tokens[rank - step] * each[rank]
            ends[rank, step] = max(computed, *began) if step + 1 < ring else computed
    alone = max(held * seconds * sum(tokens) for held, seconds in zip(tokens, each, strict=True))
    found = stall(tokens, each)
    assert found == pytest.approx(max(ends.values()) / alone) and found >= 1 - 1e-12


def test_equal_shares_cost_what_none_cost():
    ones = replace(EQUAL, token_shares=(7,) * 4)
    for where in (Cluster.load("dgx-h100", nodes=4), _mixed()):
        one, other = price(where, _work(), EQUAL), price(where, _work(), ones)
        assert other.seconds == pytest.approx(one.seconds, rel=1e-12) and other.memory == one.memory


def test_more_tokens_on_faster_cards_take_less_time():
    """All but constant parts of a step are in proportion to a rank's tokens: of speeds 1 and v, shares of v take the
    row's tokens through (1 + v) / 2 times as fast as equal ones."""
    where, work = _mixed(), _work()
    equal = price(where, work, EQUAL)
    fast = price(Cluster.load("dgx-h100", nodes=4), work, EQUAL)
    ratio = equal.seconds["compute"] / fast.seconds["compute"]
    shares = (round(100 * ratio),) * 2 + (100,) * 2
    unequal = price(where, work, replace(EQUAL, token_shares=shares))
    ideal = equal.step_s * 2 / (1 + ratio)
    assert 0.99 * ideal < unequal.step_s < 1.06 * ideal  # kernels of unlike kind have unlike ratios
    turned = price(where, work, replace(EQUAL, token_shares=shares[::-1]))
    assert turned.step_s > equal.step_s


def test_every_position_is_priced_with_the_tokens_that_its_ranks_hold():
    where, work = _mixed(), _work()
    found = positions(cluster_costs(where), work, UNEQUAL, None, OURS)
    layout = Layout(tokens=work.context_tokens, ring=4, ulysses=8, shares=UNEQUAL.token_shares)
    held = {ring: one.sizes.tokens for one in found for ring in one.rings}
    assert held == {ring: len(layout.index(ring, 0)) for ring in range(4)}
    assert [one.device.name for one in found] == ["h100-sxm-80gb", "a100-sxm-80gb"]
    turned = Placement(slot_of_rank=np.repeat([2, 0, 1, 3], 8), gpu_of_rank=np.tile(np.arange(8), 4))
    assert [one.rings for one in positions(cluster_costs(where), work, UNEQUAL, turned, OURS)] == [
        (0,),
        (1,),
        (2,),
        (3,),
    ]


def test_memory_is_that_of_the_position_with_least_room():
    small = _mixed("a100-sxm-40gb")
    equal, unequal = price(small, _work(), EQUAL), price(small, _work(), UNEQUAL)
    assert unequal.capacity_bytes == equal.capacity_bytes == Device.load("a100-sxm-40gb").allocatable_bytes
    assert unequal.memory["activations"] < equal.memory["activations"]
    turned = price(small, _work(), replace(UNEQUAL, layers=(), token_shares=(9, 9, 1, 1)))
    assert turned.capacity_bytes == Device.load("h100-sxm-80gb").allocatable_bytes


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"token_shares": (1, 2)}, "a ring of 4 needs 4 whole numbers of at least 1"),
        ({"token_shares": (1, 2, 0, 1)}, "a ring of 4 needs 4 whole numbers of at least 1"),
        ({"ring_kind": "balanced"}, "token_shares with ring_kind=balanced; legal here: zigzag"),
        ({"tensor": 2}, "token_shares with tensor=2; legal here: tensor=1"),
        ({"pipeline": 2}, "token_shares with pipeline=2; legal here: pipeline=1"),
    ],
)
def test_layouts_without_unequal_shares_are_refused(changed, message):
    with pytest.raises(InputError, match=message):
        replace(UNEQUAL, **changed)


def test_work_without_unequal_shares_is_refused():
    for work, message in ((_work(mode="prefill"), "mode=prefill"), (_work(lengths=((2**18, 2),)), "packed documents")):
        with pytest.raises(InputError, match=f"token_shares with {message} is not priced"):
            price(_mixed(), work, replace(UNEQUAL, layers=()))
