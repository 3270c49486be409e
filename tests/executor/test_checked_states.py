"""Planned bytes against counted ones below ZeRO-3 as with it: what FSDP2 gathers, frees and reduces, unit by unit.

4,096 tokens of the tiny model, whose activations are most of it, and 256, of which weights are most.
"""

import pytest

from cost_models import LayerRange, Strategy
from cost_models.workload import Precision
from executor.check.check import check
from tests.executor.planned import FP32, make_plan

HELD = ("parameters", "gradients", "optimizer", "activations", "vision")
BOUND = "gathered + working + logits"
BF16 = Precision()


def counted(
    *, zero, shards, precision, microbatches=1, tokens=4096, policy="none", offload="none", levers=None, **asked
):
    """Components by name. One replica: where nothing is sharded the ranks replicate."""
    ulysses = min(shards, 2)
    strategy = Strategy(
        ring=shards // ulysses, ulysses=ulysses, shard=shards if zero else 1, zero=zero, microbatches=microbatches,
        layers=(LayerRange(recompute=policy, offload=offload, count=4),), **levers or {},
    )  # fmt: skip
    plan = make_plan(strategy, tokens=tokens, precision=precision, **asked)
    return {part.name: part for part in check(plan, 0).components}


def assert_close(found):
    """What stays within 1%; the highest moment not below its count by more than 0.2% of all, nor 8% above."""
    assert all(abs(found[name].difference) < 0.01 for name in HELD), found
    assert_bound(found)


def assert_bound(found, below=2e-3, above=0.08):
    moment, total = found[BOUND], found["total of these"]
    assert moment.planned_bytes - moment.counted_bytes > -below * total.counted_bytes, found
    assert moment.difference < above, found


@pytest.mark.parametrize(
    ("zero", "microbatches", "shards", "precision"),
    [
        (0, 1, 1, FP32), (0, 2, 8, BF16), (1, 1, 2, BF16), (1, 2, 8, FP32), (2, 1, 8, BF16), (2, 2, 1, FP32),
        (3, 1, 1, FP32),
    ],
)  # fmt: skip
def test_every_stage_of_sharding_holds_what_is_planned(zero, microbatches, shards, precision):
    found = counted(zero=zero, microbatches=microbatches, shards=shards, precision=precision)
    assert_close(found)


@pytest.mark.parametrize(
    ("zero", "shards", "precision", "beside", "policy"),
    [
        (0, 1, BF16, (), "none"), (1, 2, FP32, ("norms",), "none"), (2, 8, BF16, ("embeddings", "norms"), "full"),
        (3, 2, BF16, (), "none"),
    ],
)  # fmt: skip
def test_frozen_weights_are_gathered_as_trained_ones_are(zero, shards, precision, beside, policy):
    """Rank 16, so that no adapter is padded; where norms are frozen their normalised values are not kept."""
    adapters = {"lora_rank": 16, "lora_beside": beside}
    found = counted(zero=zero, shards=shards, precision=precision, policy=policy, **adapters)
    assert_close(found)


@pytest.mark.parametrize(("zero", "shards", "precision"), [(0, 1, FP32), (2, 2, BF16)])
def test_gradients_take_the_place_of_weights_that_are_freed(zero, shards, precision):
    """A short row: the highest moment is a layer's backward pass, when the weights of those behind it are gone."""
    found = counted(zero=zero, shards=shards, precision=precision, tokens=256)
    assert abs(found["total of these"].difference) < 0.02, found
    assert all(abs(found[name].difference) < 0.01 for name in HELD), found


@pytest.mark.parametrize(
    ("zero", "policy", "offload", "levers"),
    [
        (0, "full", "activations", {"mlp_chunk_tokens": 128}),
        (1, "all_but_attention", "activations", {"loss_chunk_tokens": 256}),
        (2, "full", "none", {"attention_head_chunks": 2, "mlp_chunk_tokens": 128}),
    ],
)
def test_levers_hold_what_is_planned_below_zero_3(zero, policy, offload, levers):
    found = counted(zero=zero, shards=4, precision=BF16, policy=policy, offload=offload, levers=levers)
    total = found["total of these"].counted_bytes  # little is kept: positions, 8 bytes a token, show in it
    assert all(abs(found[name].planned_bytes - found[name].counted_bytes) < 2e-3 * total for name in HELD), found
    assert_bound(found)
