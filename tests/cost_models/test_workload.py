"""Workloads, strategies and the strict reader: what is derived, what is refused."""

from typing import get_args

import numpy as np
import pytest

from cost_models import Cluster, InputError, LayerRange, Model, Strategy, Workload, price, strict
from cost_models.layer.sizes import RankSizes
from cost_models.strategy import AXIS_GROUPS, Axis, rank_grid, rank_groups, stacked
from cost_models.workload import DTYPE_BYTES, Precision

MODEL = Model.load("longvila-8b")


def test_frames_fill_the_context_and_the_rest_is_text():
    work = Workload(MODEL, context_tokens=2**18, frames=1024)
    assert (work.vision_tokens, work.text_tokens) == (1024 * 196, 2**18 - 1024 * 196)
    assert Workload(MODEL, frames=10, text_tokens=40).context_tokens == 2000
    assert Workload(MODEL, context_tokens=100).text_tokens == 100


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "context_tokens=0 must be at least 1"),
        ({"context_tokens": 100, "frames": 1}, "1 frames are 196 tokens"),
        ({"context_tokens": 100, "mode": "fly"}, "mode='fly' is unknown; legal: train, prefill, decode"),
        ({"context_tokens": 100, "global_batch": 0}, "at least 1"),
    ],
)
def test_workloads_that_cannot_be_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        Workload(MODEL, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ring": 0}, "ring=0 must be at least 1"),
        ({"shard": 3, "ring": 4}, "shard=3 does not divide data x context = 4"),
        ({"zero": 4}, "zero=4 is unknown; legal: 0, 1, 2, 3"),
        ({"ring_kind": "spiral"}, "ring_kind='spiral' is unknown; legal: zigzag"),
    ],
)
def test_strategies_that_cannot_be_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        Strategy(**given)


def test_groups_partition_the_ranks_along_every_axis():
    strategy = Strategy(pipeline=2, data=2, ring=3, ulysses=2, tensor=2, shard=4)
    assert rank_grid(strategy).shape == (2, 2, 3, 2, 2)
    for axis, size in (("ring", 3), ("ulysses", 2), ("context", 6), ("shard", 4), ("replicate", 3), ("tensor", 2)):
        groups = rank_groups(strategy, axis)
        assert groups.shape == (48 // size, size)
        assert sorted(groups.ravel().tolist()) == list(range(48))
    assert rank_groups(strategy, "ulysses")[0].tolist() == [0, 2]
    assert rank_groups(strategy, "context")[0].tolist() == [0, 2, 4, 6, 8, 10]


def test_shapes_of_many_candidates_equal_those_of_each():
    work = Workload(MODEL, context_tokens=100_000, global_batch=4)
    degrees = [(1, 5, 7), (2, 3, 8), (4, 1, 1), (1, 2, 24)]
    data, ring, ulysses = (np.array(column) for column in zip(*degrees, strict=True))
    ranks = data * ring * ulysses
    many = RankSizes(
        work, Strategy().varied(data=data, ring=ring, ulysses=ulysses, shard=ranks, zero=3, microbatches=4 // data)
    )
    for i, (d, r, u) in enumerate(degrees):
        one = RankSizes(work, Strategy(data=d, ring=r, ulysses=u, shard=d * r * u, microbatches=4 // d))
        for name in ("tokens", "ring_tokens", "heads", "kv_heads", "sent_kv_heads", "rows"):
            assert getattr(many, name)[i] == getattr(one, name), name
        assert one.tokens * r * u >= 100_000 > (one.tokens - 4) * r * u  # padding is less than two tokens a rank pair


def test_the_strict_reader_round_trips_and_names_faults():
    strategy = Strategy(ring=4, shard=2, layers=(LayerRange(recompute="mlp", count=3), LayerRange(count=5)))
    assert strict.read(Strategy, strict.plain(strategy), "strategy") == strategy
    for data, message in (
        ({"rign": 2}, "strategy.rign is unknown; did you mean ring"),
        ({"ring": "2"}, "strategy.ring: '2' is not a whole number"),
        ({"ring": True}, "strategy.ring: True is not a whole number"),
        ({"layers": {"count": 1}}, "strategy.layers must be a list"),
        ({"layers": [{}]}, r"strategy.layers\[0\].count is missing"),
        ([], "strategy must hold keys and values"),
    ):
        with pytest.raises(InputError, match=message):
            strict.read(Strategy, data, "strategy")


def test_every_legal_number_type_is_priced_where_the_device_computes_in_it() -> None:
    """One list of types: what a workload may hold is refused by a device without such a peak, and by nothing else."""
    cluster, model = Cluster.load("dgx-h100", gpus=8), Model.load("longvila-1.5b")
    for dtype in DTYPE_BYTES:
        work = Workload(model, context_tokens=8192, precision=Precision(param=dtype))
        if dtype in cluster.runs[0].node.device.peak_flops:
            assert price(cluster, work, Strategy(ulysses=4)).step_s > 0
        else:
            with pytest.raises(InputError, match=f"h100-sxm-80gb has no {dtype} peak"):
                price(cluster, work, Strategy(ulysses=4))
    with pytest.raises(InputError, match=r"precision\.param='int4' is unknown; legal: fp64"):
        Precision(param="int4")


def test_the_table_of_axes_holds_every_axis_and_each_cuts_the_ranks_once():
    assert set(AXIS_GROUPS) == set(get_args(Axis))
    strategy = Strategy(pipeline=2, data=2, ring=2, ulysses=3, tensor=2, shard=6, expert=4)
    for axis in AXIS_GROUPS:
        groups = rank_groups(strategy, axis)
        assert groups.shape[1] == getattr(strategy, axis)
        assert sorted(groups.ravel().tolist()) == list(range(strategy.ranks))
    assert rank_groups(strategy, "shard")[0].tolist() == [0, 2, 4, 6, 8, 10]
    assert rank_groups(strategy, "expert_replicate")[0].tolist() == [0, 12]


def test_strategies_as_arrays_have_the_derived_degrees_of_each():
    several = [Strategy(data=2, ring=4, ulysses=2, shard=8), Strategy(ring=6, ulysses=4, shard=3, zero=2)]
    for name in ("context", "replicate", "ranks", "expert_shard", "expert_replicate"):
        assert getattr(stacked(several), name).tolist() == [getattr(one, name) for one in several], name
    with pytest.raises(InputError, match="must be at least 1"):
        Strategy().varied(ring=np.array([1, 0]))
    with pytest.raises(InputError, match="zero="):
        Strategy().varied(zero=np.array([3, 4]))
