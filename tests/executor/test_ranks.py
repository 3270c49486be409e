"""The helper itself: results in rank order, the first failure named, nothing left running."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.ranks import RankFailure, run_ranks


def _sum_of_ranks(offset: float) -> tuple[int, float]:
    value = torch.tensor(dist.get_rank() + offset)
    dist.all_reduce(value)
    return dist.get_rank(), value.item()


def _second_fails() -> None:
    if dist.get_rank() == 1:
        raise ValueError("the second rank has had enough")
    time.sleep(60)


def _second_dies() -> None:
    if dist.get_rank() == 1:
        os._exit(7)
    time.sleep(60)


def test_results_come_back_in_rank_order():
    assert run_ranks(_sum_of_ranks, 2, 0.5) == [(0, 2.0), (1, 2.0)]


@pytest.mark.parametrize(("function", "message"), [(_second_fails, "had enough"), (_second_dies, "exit code 7")])
def test_first_failure_is_named_and_the_rest_killed(function, message):
    with pytest.raises(RankFailure, match=f"rank 1(.|\n)*{message}"):
        run_ranks(function, 2)
