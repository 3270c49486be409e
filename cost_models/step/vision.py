"""The vision side of a step: a rank's frames through the ViT tower and projector, then to the ranks that hold their
tokens.

A frame stays on one rank, so the busiest rank has ceil(frames / context): the price counts the imbalance. The exchange
moves every embedding once, tokens x hidden bytes over the context group, forward and (if anything behind it trains)
backward. A framework may deal frames in another way (`frames.py`). The tower attends within a frame, without mask. A
rank without frames runs one dummy frame, as every rank joins a sharded tower. Frames in several chunks gather and
reduce the tower for each, and run forward again in backward. On CPUs a profile has host time of a block's calls and of
what it moves. Left out: the patches' product (0.2% of the tower), decoding of the video.
"""

from __future__ import annotations

from collections.abc import Iterable

from cost_models.curves.samples import FORWARD_SHARE
from cost_models.layer.sizes import RankSizes
from cost_models.layer.weights import fetched_bytes, returned_bytes
from cost_models.models.model import Vision
from cost_models.number import Number, larger, pick, somewhere
from cost_models.program import Compute, Exchange, Segment
from cost_models.step.sharding import Weights, gathered_params, sharded
from cost_models.timing.kernels import Kernels
from cost_models.workload import DTYPE_BYTES


def forward(sizes: RankSizes, kernels: Kernels) -> list[Segment]:
    """Tower layers, projector and exchange."""
    vision = sizes.workload.model.vision
    if vision is None:
        return []
    block, edge = _params(sizes, vision)
    tower = Segment(
        name="vision forward",
        phases=(_block(sizes, vision, kernels, grad=False), _host(sizes, vision, kernels, FORWARD_SHARE, 1)),
        repeat=vision.layers,
        offload_bytes=fetched_bytes(sizes, block),
    )
    projector = Segment(
        name="projector and exchange",
        phases=(_projector(sizes, vision, kernels, grad=False), *_exchange(sizes, vision, grad=False)),
        offload_bytes=fetched_bytes(sizes, edge),
    )
    trained = (block * sizes.trains("tower"), edge * sizes.trains("projector"))
    calls = sizes.tower_calls
    return [
        sharded(tower, sizes, kernels, Weights(gathered=calls * gathered_params(sizes, block, trained[0]))),
        sharded(projector, sizes, kernels, Weights(gathered=gathered_params(sizes, edge, trained[1]))),
    ]


def backward(sizes: RankSizes, kernels: Kernels) -> list[Segment]:
    """The same in reverse for the parts that train."""
    vision = sizes.workload.model.vision
    if vision is None or not (sizes.trains("projector") or sizes.trains("tower")):
        return []
    reduce, (block, edge) = DTYPE_BYTES[sizes.workload.precision.reduce], _params(sizes, vision)
    projector = Segment(
        name="projector backward",
        phases=(*_exchange(sizes, vision, grad=True), _projector(sizes, vision, kernels, grad=True)),
        from_host=True,
        offload_bytes=returned_bytes(sizes, edge * reduce),
    )
    segments = [sharded(projector, sizes, kernels, Weights(trained=edge * sizes.trains("projector")))]
    if sizes.trains("tower"):
        calls, again = sizes.tower_calls, sizes.tower_runs_again
        tower = Segment(
            name="vision backward",
            phases=(
                *_again(sizes, vision, kernels),
                _block(sizes, vision, kernels, grad=True),
                _host(sizes, vision, kernels, 1 - FORWARD_SHARE, 2),
            ),
            repeat=vision.layers,
            from_host=True,
            offload_bytes=fetched_bytes(sizes, block) + returned_bytes(sizes, block * reduce),
        )
        gathers = calls * pick(again, 2, 1)  # of a chunk: once to compute it again, once for its gradients
        weights = Weights(gathered=pick(sizes.degrees.zero == 3, block * gathers, 0), trained=block * calls)
        segments.append(sharded(tower, sizes, kernels, weights))
    return segments


def _params(sizes: RankSizes, vision: Vision) -> tuple[float, float]:
    """(weights of a block of the tower, of the projector)."""
    return vision.tower_params / vision.layers, float(vision.projector_params(sizes.workload.model.hidden))


def _exchange(sizes: RankSizes, vision: Vision, grad: bool) -> tuple[Exchange, ...]:
    """Embeddings of a rank's frames to the ranks that hold their tokens, by the framework's way (`frames.py`)."""
    hidden, sharding = sizes.workload.model.hidden, sizes.framework.frame_sharding
    if sharding == "exchanged":
        moved = sizes.frames * vision.tokens_per_frame * hidden * sizes.width / vision.frames_pooled
        return (Exchange(part="embeddings", axis="context", op="all_to_all", bytes=moved),)
    if sharding == "reduced" and not grad:  # the all-reduce carries no gradient
        row = sizes.rows * sizes.workload.context_tokens * hidden * sizes.width
        return (Exchange(part="embeddings", axis="context", op="all_reduce", bytes=row),)
    return ()


def _block(sizes: RankSizes, vision: Vision, kernels: Kernels, grad: bool) -> Compute:
    frames, dim = larger(sizes.frames, 1), vision.hidden // vision.heads
    tokens = frames * vision.patches
    attention = kernels.attention_s(
        vision.patches, vision.patches, vision.heads, vision.heads, dim, causal=False,
        backward=grad, batch=frames, dtype=sizes.workload.precision.param,
    )  # fmt: skip
    moved = block_bytes(vision, frames, sizes.width) * (2 if grad else 1)
    seconds = _products_s(sizes, kernels, vision.block_maps, tokens, grad) + attention
    return Compute(part="vision", seconds=seconds + kernels.memory_bound_s(moved, 10))


def block_bytes(vision: Vision, frames: Number, width: float) -> Number:
    """What a block's norms, activation and sums read and write of so many frames forward, `width` bytes a number."""
    return frames * vision.patches * width * (16 * vision.hidden + 4 * vision.ffn)


def _host(sizes: RankSizes, vision: Vision, kernels: Kernels, share: float, ways: int) -> Compute:
    """Host time of a block's calls, of a share each, and of what they move `ways` times; a microbatch's has the first
    call's."""
    again = pick(sizes.tower_runs_again, 1.0, 0.0) * (ways > 1)
    calls = share * (sizes.tower_calls - 1) + FORWARD_SHARE * sizes.tower_calls * again
    moved = block_bytes(vision, sizes.frames, sizes.width) * (ways + again)
    seconds = calls * kernels.framework_s("framework_tower") + moved * kernels.framework_s("framework_tower_byte")
    return Compute(part="vision", seconds=seconds)


def _again(sizes: RankSizes, vision: Vision, kernels: Kernels) -> tuple[Compute, ...]:
    """A block's forward pass once more, with its share of the projector's, where chunks are computed again."""
    if not somewhere(sizes.tower_runs_again):
        return ()
    seconds = _block(sizes, vision, kernels, grad=False).seconds
    seconds = seconds + _projector(sizes, vision, kernels, grad=False).seconds / vision.layers
    return (Compute(part="vision", seconds=pick(sizes.tower_runs_again, seconds, 0.0)),)


def _projector(sizes: RankSizes, vision: Vision, kernels: Kernels, grad: bool) -> Compute:
    tokens, maps = larger(sizes.frames, 1) * vision.tokens_per_frame, vision.projector_maps(sizes.workload.model.hidden)
    return Compute(part="vision", seconds=_products_s(sizes, kernels, maps, tokens, grad))


def _products_s(
    sizes: RankSizes, kernels: Kernels, maps: Iterable[tuple[int, int]], rows: Number, grad: bool
) -> Number:
    """Linear maps on `rows`, or the gradients of their inputs and weights."""
    dtype = sizes.workload.precision.param
    if not grad:
        return sum(kernels.gemm_s(rows, out, inside, dtype) for out, inside in maps)
    return sum(
        kernels.gemm_s(rows, inside, out, dtype) + kernels.gemm_s(inside, out, rows, dtype) for out, inside in maps
    )
