"""What a layer keeps from its forward to its backward pass, by recompute policy, and what comes back to life then.

What one decoder layer keeps per token in unfused Hugging Face code (h hidden, q/k widths, f ffn, b bytes):
    norms   2 x (4 h fp32 copy + b h normalised + b h output + 4)  attention  b (q + 2 k') + b q out + b q + 4 H lse
    MLP     b f x 4 (gate, its activation, up, their product)      mlp drops the last row, full keeps b h
Bytes of one rank and one microbatch; numbers or arrays over candidates.
"""

from __future__ import annotations

from cost_models.either import Number, pick, smaller
from cost_models.step import layer
from cost_models.step.recompute import policy
from cost_models.step.shape import Shape
from cost_models.strategy import LayerRange


def saves_input(sizes: Shape) -> bool:
    """Whether a norm saves its input as it is: a fused one, or one that computes in fp32 on fp32; else an fp32 copy."""
    return sizes.framework.norm == "fused" or sizes.width >= 4


def final_norm_input(sizes: Shape) -> Number:
    if not saves_input(sizes) or (sizes.stage is not None and not sizes.stage.last):
        return 0
    return sizes.row_bytes if sizes.stage is not None else pick(sizes.degrees.pipeline == 1, sizes.row_bytes, 0)


def kept_bytes(sizes: Shape, part: LayerRange | str) -> Number:
    """Bytes that one layer keeps from its forward to its backward pass under a recompute policy."""
    if sizes.workload.mode != "train":
        return 0 * sizes.tokens
    if isinstance(part, str):
        return layer.kept_bytes(sizes, part)
    return layer.kept_bytes(sizes, part.recompute, part.offload == "activations")


def recomputed_bytes(sizes: Shape, recompute: str) -> Number:
    """Bytes that come back to life in the backward pass of one layer under a policy.

    The kept input is one of them where the first norm saves it as it is.
    """
    if not policy(recompute).returns:
        return 0 * sizes.tokens
    back = kept_bytes(sizes, "none") - kept_bytes(sizes, recompute)
    if not policy(recompute).keeps_input or saves_input(sizes):
        return back
    return back + sizes.row_bytes


def microbatches_in_flight(sizes: Shape) -> Number:
    """1F1B: the first stage holds up to `pipeline` microbatches of its layers (interleaved: a few chunks more)."""
    stages, chunks = sizes.degrees.pipeline, sizes.degrees.virtual
    if sizes.degrees.schedule == "gpipe":
        return sizes.degrees.microbatches
    if sizes.stage is not None and not sizes.stage.first:
        stages = 1
    most = pick(chunks > 1, stages * (1 + (stages - 1) / (stages * chunks)), stages)
    return smaller(most, sizes.degrees.microbatches)
