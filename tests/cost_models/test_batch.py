"""A batch equals `price` of each strategy, part by part."""

import numpy as np
import pytest

from cost_models import Cluster, InputError, LayerRange, Model, Strategy, Workload, price, price_batch

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
