"""The vision side of a step: a rank's own frames through the ViT tower and projector, then to their tokens' owners.

Frames are dealt whole, so the busiest rank has ceil(frames / context): the imbalance is in the price. The exchange
moves every embedding once, tokens x hidden bytes over the context group, forward and (if anything behind it trains)
backward. Other ways to deal frames are a habit (`frames.py`). The tower attends within a frame, without mask. A rank
without frames runs one dummy frame. Left out: the patches' own product (0.2% of the tower), decoding of the video.
"""

from __future__ import annotations

from cost_models.layer.sizes import RankSizes
from cost_models.models.model import Vision
from cost_models.number import Number, larger, pick
from cost_models.program import Compute, Exchange, Segment
from cost_models.step.sharding import Weights, sharded
from cost_models.timing.kernels import Kernels
from cost_models.workload import DTYPE_BYTES


def forward(shape: RankSizes, kernels: Kernels) -> list[Segment]:
    """Tower layers, projector and exchange; without frames, a dummy one, as every rank joins a sharded tower."""
    vision = shape.workload.model.vision
    if vision is None:
        return []
    tower = Segment(
        name="vision forward",
        phases=(Compute(part="vision", seconds=_block_s(shape, vision, kernels, grad=False)),),
        repeat=vision.layers,
        offload_bytes=shape.fetched_bytes(_block_params(vision)),
    )
    projector = Segment(
        name="projector and exchange",
        phases=(
            Compute(part="vision", seconds=_projector_s(shape, vision, kernels, grad=False)),
            *_exchange(shape, vision),
        ),
        offload_bytes=shape.fetched_bytes(_edge_params(shape, vision)),
    )
    return [
        sharded(tower, shape, kernels, Weights(gathered=_block_params(vision))),
        sharded(projector, shape, kernels, Weights(gathered=_edge_params(shape, vision))),
    ]


def backward(shape: RankSizes, kernels: Kernels) -> list[Segment]:
    """The same in reverse for the parts that train."""
    vision = shape.workload.model.vision
    if vision is None or not (shape.trains("projector") or shape.trains("tower")):
        return []
    reduce = DTYPE_BYTES[shape.workload.precision.reduce]
    edge, block = _edge_params(shape, vision), _block_params(vision)
    projector = Segment(
        name="projector backward",
        phases=(
            *_exchange(shape, vision, grad=True),
            Compute(part="vision", seconds=_projector_s(shape, vision, kernels, grad=True)),
        ),
        from_host=True,
        offload_bytes=shape.returned_bytes(edge * reduce),
    )
    segments = [sharded(projector, shape, kernels, Weights(trained=edge))]
    if shape.trains("tower"):
        tower = Segment(
            name="vision backward",
            phases=(Compute(part="vision", seconds=_block_s(shape, vision, kernels, grad=True)),),
            repeat=vision.layers,
            from_host=True,
            offload_bytes=shape.fetched_bytes(block) + shape.returned_bytes(block * reduce),
        )
        weights = Weights(gathered=pick(shape.degrees.zero == 3, block, 0), trained=block)
        segments.append(sharded(tower, shape, kernels, weights))
    return segments


def _block_params(vision: Vision) -> float:
    return vision.tower_params / vision.layers


def _edge_params(shape: RankSizes, vision: Vision) -> float:
    return float(vision.projector_params(shape.workload.model.hidden))


def _frames(shape: RankSizes) -> Number:
    return larger(shape.frames, 1)


def _exchange(shape: RankSizes, vision: Vision, grad: bool = False) -> tuple[Exchange, ...]:
    """Embeddings of the own frames to the ranks that own their tokens, or what stands in its place (`frames.py`)."""
    hidden, sharding = shape.workload.model.hidden, shape.framework.frame_sharding
    if sharding == "exchanged":
        moved = shape.frames * vision.tokens_per_frame * hidden * shape.width
        return (Exchange(part="embeddings", axis="context", op="all_to_all", bytes=moved),)
    if sharding == "reduced" and not grad:  # the all-reduce carries no gradient
        whole = shape.rows * shape.workload.context_tokens * hidden * shape.width
        return (Exchange(part="embeddings", axis="context", op="all_reduce", bytes=whole),)
    return ()


def _block_s(shape: RankSizes, vision: Vision, kernels: Kernels, grad: bool) -> Number:
    dtype, frames = shape.workload.precision.param, _frames(shape)
    tokens, hidden = frames * vision.patches, vision.hidden
    products = [(hidden, hidden)] * 4 + [(vision.ffn, hidden)] * (2 if vision.gated else 1) + [(hidden, vision.ffn)]
    seconds = sum(_product_s(kernels, tokens, n, k, dtype, grad) for n, k in products)
    attention = kernels.attention_s(
        vision.patches,
        vision.patches,
        vision.heads,
        vision.heads,
        hidden // vision.heads,
        causal=False,
        backward=grad,
        batch=frames,
        dtype=dtype,
    )
    moved = tokens * shape.width * (16 * hidden + 4 * vision.ffn) * (2 if grad else 1)
    return seconds + attention + kernels.memory_bound_s(moved, 10)


def _projector_s(shape: RankSizes, vision: Vision, kernels: Kernels, grad: bool) -> Number:
    dtype, tokens = shape.workload.precision.param, _frames(shape) * vision.tokens_per_frame
    out = shape.workload.model.hidden
    shapes = ((vision.projector_hidden, vision.projector_in), (out, vision.projector_hidden))
    return vision.projectors * sum(_product_s(kernels, tokens, n, k, dtype, grad) for n, k in shapes)


def _product_s(kernels: Kernels, m: Number, n: Number, k: Number, dtype: str, grad: bool) -> Number:
    if not grad:
        return kernels.gemm_s(m, n, k, dtype)
    return kernels.gemm_s(m, k, n, dtype) + kernels.gemm_s(k, n, m, dtype)
