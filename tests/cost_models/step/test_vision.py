"""The vision tower of LongVILA-8B by hand: products, attention, elementwise traffic, the exchange of embeddings.

SigLIP-so400m (its config): 26 blocks of width 1152, MLP 4304, 16 heads, 729 patches a frame; 196 tokens a frame.
"""

from dataclasses import replace

import pytest

from cost_models import Model, Strategy, Workload
from cost_models.flops import model_flops
from cost_models.layer.sizes import RankSizes
from cost_models.step.vision import backward, forward
from cost_models.timing.kernels import Kernels

H100 = Kernels.of("h100-sxm-80gb")
FRAMES = 32  # 256 frames on 8 ranks
PATCHES, TOKENS = FRAMES * 729, FRAMES * 196
SIZES = RankSizes(Workload(Model.load("longvila-8b"), frames=256, text_tokens=1024), Strategy(ulysses=8, shard=8))
BLOCK = [(1152, 1152)] * 4 + [(4304, 1152), (1152, 4304)]  # q, k, v, out; up, down


def seconds(segment):
    return sum(phase.seconds for phase in segment.phases if hasattr(phase, "seconds"))


def test_a_block_s_forward_pass():
    """Elementwise, values of width 1152 a patch: two LayerNorms r w, two residual sums r r w, q, k and v put in the
    order of heads r w: 4 + 6 + 6 = 16. Of width 4304: bias and GELU r w each, 4. Two bytes a value, 10 kernels."""
    tower, _ = forward(SIZES, H100)
    products = sum(H100.gemm_s(PATCHES, out, inside) for out, inside in BLOCK)
    attention = H100.attention_s(729, 729, 16, 16, 72, False, batch=FRAMES)
    moved = PATCHES * 2 * (16 * 1152 + 4 * 4304)
    assert moved == 1_663_193_088
    assert tower.repeat == 26
    assert seconds(tower) == pytest.approx(products + attention + H100.memory_bound_s(moved, 10), rel=1e-12)


def test_a_block_s_backward_pass():
    """Two products for each, attention's own, twice the elementwise traffic: the saved input beside the gradient."""
    _, tower = backward(SIZES, H100)
    products = sum(H100.gemm_s(PATCHES, inside, out) + H100.gemm_s(inside, out, PATCHES) for out, inside in BLOCK)
    attention = H100.attention_s(729, 729, 16, 16, 72, False, backward=True, batch=FRAMES)
    moved = 2 * PATCHES * 2 * (16 * 1152 + 4 * 4304)
    assert seconds(tower) == pytest.approx(products + attention + H100.memory_bound_s(moved, 10), rel=1e-12)


def test_the_projector_and_the_exchange():
    """4 x 1152 -> 4096 -> 4096 for each of 196 tokens a frame; every embedding is sent once, in bf16, each way."""
    _, projector = forward(SIZES, H100)
    back, _ = backward(SIZES, H100)
    shapes = ((4096, 4608), (4096, 4096))
    assert seconds(projector) == pytest.approx(sum(H100.gemm_s(TOKENS, out, inside) for out, inside in shapes))
    assert seconds(back) == pytest.approx(
        sum(H100.gemm_s(TOKENS, inside, out) + H100.gemm_s(inside, out, TOKENS) for out, inside in shapes)
    )
    for segment in (projector, back):
        (sent,) = [phase for phase in segment.phases if hasattr(phase, "op")]
        assert (sent.axis, sent.op, sent.bytes) == ("context", "all_to_all", 32 * 196 * 4096 * 2)


def test_flop_of_the_tower():
    """A frame: 26 blocks of 2 FLOP a weight and patch, and 4 x 729^2 x 1152 of attention; 2 a weight of the projector
    and token. Three passes in training."""
    text = Workload(SIZES.workload.model, context_tokens=SIZES.workload.context_tokens)
    block = 4 * 1152**2 + 2 * 1152 * 4304
    frame = 26 * (2 * block * 729 + 4 * 729**2 * 1152) + 2 * (4608 * 4096 + 4096**2) * 196
    assert model_flops(SIZES.workload) - model_flops(text) == pytest.approx(3 * 256 * frame, rel=1e-9)


def test_pooled_frames_are_encoded_each_and_sent_as_means():
    """Of 257 frames, four to a mean: 65 means on 8 ranks, so 9 of the busiest, whose 36 frames go through the tower."""
    vision = replace(SIZES.workload.model.vision, frames_pooled=4)
    work = Workload(replace(SIZES.workload.model, vision=vision), frames=257, text_tokens=1024)
    assert (work.vision_tokens, work.context_tokens) == (65 * 196, 65 * 196 + 1024)
    assert "257 frames, 196 for each 4" in work.describe()
    sizes = RankSizes(work, Strategy(ulysses=8, shard=8))
    assert sizes.frames == 36
    _, projector = forward(sizes, H100)
    (sent,) = [phase for phase in projector.phases if hasattr(phase, "op")]
    assert sent.bytes == 9 * 196 * 4096 * 2
    shapes = ((4096, 4608), (4096, 4096))
    assert seconds(projector) == pytest.approx(sum(H100.gemm_s(36 * 196, out, inside) for out, inside in shapes))


def test_a_rank_without_frames_runs_a_dummy_one():
    tower, _ = forward(
        RankSizes(Workload(SIZES.workload.model, context_tokens=4096), Strategy(ulysses=8, shard=8)), H100
    )
    products = sum(H100.gemm_s(729, out, inside) for out, inside in BLOCK)
    assert seconds(tower) > products
