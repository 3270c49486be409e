"""A batch equals `price` of each strategy, part by part."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from cost_models import Cluster, InputError, LayerRange, Model, Strategy, Workload, price, price_batch
from cost_models.framework import Framework
from tests.cost_models.mixed import Draw

STRATEGIES = [
    Strategy(ring=4, ulysses=8, shard=32),
    Strategy(ring=8, ulysses=4, shard=16, zero=2, microbatches=2),
    Strategy(data=2, ring=2, ulysses=8, shard=2, zero=1),
    Strategy(data=2, ring=16, shard=1, zero=0),
    Strategy(ulysses=28, shard=28),
    Strategy(ring=4, ulysses=8, shard=32, layers=(LayerRange(recompute="full", count=20), LayerRange(count=12))),
    Strategy(ring=2, ulysses=4, tensor=2, shard=8, zero=1),
    Strategy(pipeline=2, ring=2, ulysses=4, shard=8, zero=1, microbatches=2),
    Strategy(ring=4, ulysses=2, ring_kind="contiguous", loss_chunk_tokens=None),
    Strategy(ring=4, ulysses=2, ring_kind="all_gather"),
    Strategy(ring=8, ulysses=4, ring_kind="all_gather"),
    Strategy(ring=4, ulysses=2, ring_kind="double"),
    Strategy(ring=16, ulysses=2, ring_kind="double", grad_ring_dtype="bf16"),
    Strategy(ring=4, ulysses=8, shard=32, mlp_chunk_tokens=512),
    Strategy(ulysses=8, shard=8, attention_chunk_tokens=8192),
]


@pytest.mark.parametrize("preset", ["dgx-h100", "gb200-nvl72"])
@pytest.mark.parametrize("frames", [0, 64])
def test_batch_equals_price(preset: str, frames: int) -> None:
    cluster = Cluster.load(preset, gpus=32)
    work = Workload(Model.load("longvila-8b"), context_tokens=65536, frames=frames, global_batch=2)
    batch = price_batch(cluster, work, STRATEGIES)
    for index, strategy in enumerate(STRATEGIES):
        alone = price(cluster, work, strategy)
        assert {name: part[index] for name, part in batch.seconds.items()} == pytest.approx(alone.seconds, rel=1e-12)
        assert {name: part[index] for name, part in batch.memory.items()} == pytest.approx(alone.memory, abs=1)
        assert batch.capacity_bytes[index] == alone.capacity_bytes
        assert batch.fits[index] == alone.fits


@pytest.mark.parametrize("first", [0, 8])
def test_a_batch_of_random_questions_costs_what_each_costs(first: int) -> None:
    """Any mode, model, framework, levers and unlike nodes; layouts that cannot exist are left out."""
    compared = 0
    for seed in range(first, first + 8):
        cluster, asked, _ = Draw(seed).question()
        layout, several = asked.strategy, []
        changes = {"ring": layout.ulysses, "ulysses": layout.ring}, {"zero": 0, "shard": 1}, {"zero": 3}
        for change in ({}, *changes):
            with suppress(InputError):
                one = replace(layout, **change)
                several.append((one, price(cluster, asked.workload, one, framework=asked.framework)))
        batch = price_batch(cluster, asked.workload, [one for one, _ in several], framework=asked.framework)
        assert batch.step_s == pytest.approx([cost.step_s for _, cost in several], rel=1e-12)
        assert batch.memory_bytes == pytest.approx([cost.memory_bytes for _, cost in several], abs=16)
        compared += len(several)
    assert compared > 20


@pytest.mark.parametrize("name", ["ours", "aleph-alpha", "deepspeed-gpt"])
def test_stages_that_send_in_other_ways_are_priced_each_as_it_is(name: str) -> None:
    """Whole sums below ZeRO-2, blocking gathers in ZeRO-3: beside stages that have neither."""
    cluster, framework = Cluster.load("dgx-h100", nodes=2), Framework.load(name)
    work = Workload(Model.load("llama-3-8b"), context_tokens=8192, global_batch=16)
    stages = ((8, 3), (16, 3), (16, 2), (16, 1), (1, 0))
    several = [Strategy(data=16, shard=shard, zero=zero) for shard, zero in stages]
    alone = [price(cluster, work, one, framework=framework).step_s for one in several]
    assert price_batch(cluster, work, several, framework=framework).step_s == pytest.approx(alone, rel=1e-12)


def test_order_and_grouping_change_nothing() -> None:
    cluster, work = Cluster.load("dgx-a100", nodes=4), Workload(Model.load("longvila-8b"), context_tokens=65536)
    several = [one for one in STRATEGIES if one.data * one.microbatches == 1]
    forward, back = price_batch(cluster, work, several), price_batch(cluster, work, several[::-1])
    assert np.array_equal(forward.step_s, back.step_s[::-1])


def test_a_strategy_that_cannot_exist_is_refused() -> None:
    cluster, work = Cluster.load("dgx-h100", nodes=8), Workload(Model.load("longvila-8b"), context_tokens=65536)
    with pytest.raises(InputError, match="ulysses=64 exceeds the model's 32 query heads"):
        price_batch(cluster, work, [Strategy(ulysses=8), Strategy(ulysses=64)])
    with pytest.raises(InputError, match="128 ranks on 64 free GPUs"):
        price_batch(cluster, work, [Strategy(ring=128)])
