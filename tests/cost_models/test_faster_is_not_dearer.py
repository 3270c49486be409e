"""No price of a layout rises when something of its cluster gets faster: random unlike nodes, any lever, any mode."""

from __future__ import annotations

import pytest

from benchmarks.plan_proof import dearer

SEEDS = 200


@pytest.mark.parametrize("first", range(0, SEEDS, 40))
def test_no_price_rises_where_something_gets_faster(first: int) -> None:
    assert not [found for seed in range(first, first + 40) for found in dearer(seed)]
