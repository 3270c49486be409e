"""A sharded step over real gloo ranks is one process's step: loss and every gradient of tower, projector and LLM."""

from types import SimpleNamespace

import pytest
import torch

from cost_models.errors import InputError
from executor.sharding import ContextSharding
from tests.executor.sharded_step import Case, assert_same_step
from tests.ranks import run_ranks

EXACT, SINGLE = 1e-9, 1e-5

FOUR_RANKS = [
    Case(ulysses=4),
    Case(ring=4),
    Case(ulysses=2, ring=2),
    Case(ulysses=2, ring=2, reverse=True),
    Case(ulysses=2, ring=2, kind="contiguous"),
    Case(ulysses=2, ring=2, dtype="float32"),
    Case(ulysses=4, llm="qwen2"),
    Case(ulysses=2, ring=2, frames=((1,),)),
    Case(ulysses=2, ring=2, frames=((0,), (0, 0))),
    Case(data=2, ulysses=2, frames=((5,), (0, 3))),
    Case(data=2, ring=2, shard=2, zero=2),
    Case(data=2, ring=2, shard=1, zero=0, dtype="float32"),
    Case(data=4, shard=2, frames=((1,), (2,), (0,), (1, 1))),
    Case(ulysses=2, ring=2, recompute=(("full", 2),)),
    Case(ulysses=2, ring=2, recompute=(("all_but_attention", 1), ("mlp", 1))),
    Case(data=2, ulysses=2, recompute=(("none", 1), ("all_but_attention", 1)), dtype="float32"),
]


EIGHT_RANKS = [
    Case(ulysses=2, ring=4, dtype="float32", frames=((5, 4), (3,))),
    Case(ulysses=4, ring=2, llm="qwen2", frames=((7,),)),
    Case(data=2, ulysses=2, ring=2, shard=4, reverse=True),
]


def _check(cases: list[Case]) -> None:
    for case in cases:
        assert_same_step(case, EXACT if case.dtype == "float64" else SINGLE)


def test_four_ranks_equal_one():
    run_ranks(_check, 4, FOUR_RANKS)


def test_eight_ranks_equal_one():
    run_ranks(_check, 8, EIGHT_RANKS)


def test_wrong_settings_are_named():
    groups = SimpleNamespace(shard=SimpleNamespace(size=4))
    with pytest.raises(InputError, match="zero=5 is not one of 0, 1, 2, 3"):
        ContextSharding(groups=groups, device=torch.device("cpu"), zero=5)
    with pytest.raises(InputError, match="zero=0 shards nothing, but shard=4; use shard=1 or zero 1, 2, 3"):
        ContextSharding(groups=groups, device=torch.device("cpu"), zero=0)
