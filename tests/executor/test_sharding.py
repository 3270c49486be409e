"""A sharded step over real gloo ranks is one process's step: loss and every gradient of tower, projector and LLM."""


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


def _check(cases: list[Case]) -> None:
    for case in cases:
        assert_same_step(case, EXACT if case.dtype == "float64" else SINGLE)


def test_four_ranks_equal_one():
    run_ranks(_check, 4, FOUR_RANKS)
