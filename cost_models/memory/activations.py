"""What a layer keeps from its forward to its backward pass, by recompute policy, and what comes back to life then.

What one decoder layer keeps per token in unfused Hugging Face code (h hidden, q/k widths, f ffn, b bytes):
    norms   2 x (4 h fp32 copy + b h normalised + b h output + 4)  attention  b (q + 2 k') + b q out + b q + 4 H lse
    MLP     b f x 4 (gate, its activation, up, their product)      mlp drops the last row, full keeps b h
Bytes of one rank and one microbatch; numbers or arrays over candidates.
"""

from __future__ import annotations

from typing import Any

from cost_models.either import pick, smaller
from cost_models.step.adapters import adapter_kept_bytes
from cost_models.step.chunked import chunk_kept_bytes
from cost_models.step.expert_layer import expert_kept_bytes
from cost_models.step.latent_layer import latent_kept_bytes
from cost_models.step.shape import Shape
from cost_models.strategy import LayerRange


def saves_input(shape: Shape) -> bool:
    """Whether a norm saves its input as it is: a fused one, or one that computes in fp32 on fp32; else an fp32 copy."""
    return shape.habits.norm == "fused" or shape.width >= 4


def final_norm_input(shape: Shape) -> Any:
    if not saves_input(shape) or (shape.stage is not None and not shape.stage.last):
        return 0
    whole = shape.outer_tokens * shape.workload.model.hidden * shape.width
    return whole if shape.stage is not None else pick(shape.degrees.pipeline == 1, whole, 0)


def kept_bytes(shape: Shape, part: LayerRange | str, offload: str = "none") -> Any:
    """Bytes that one layer keeps from its forward to its backward pass under a recompute policy."""
    recompute = part if isinstance(part, str) else part.recompute
    offload = offload if isinstance(part, str) else part.offload
    if shape.workload.mode != "train":
        return 0 * shape.tokens
    model, width, tokens = shape.workload.model, shape.width, shape.tokens
    exchanged = shape.ring_tokens * shape.rows * width
    queries, output = exchanged * shape.heads * model.head_dim, exchanged * shape.heads * model.v_dim
    kv = exchanged * shape.kv_heads * (model.head_dim + model.v_dim)
    lse = shape.ring_tokens * shape.rows * shape.heads * 4
    outer, habits = shape.outer_tokens, shape.habits
    boundary = 0 if offload == "activations" else outer * model.hidden * width
    if recompute == "full":
        return boundary
    if recompute == "all_but_attention":
        return boundary + output + lse
    norms = 2 * outer * (model.hidden * (2 * width + (0 if habits.norm == "fused" else 4)) + 4)
    masks = 2 * outer * model.hidden if habits.dropout else 0
    out = pick(shape.degrees.ulysses > 1, tokens * shape.out_width * width, 0)
    attention = queries + kv + output + lse + out
    if shape.degrees.attention_chunk_tokens is not None:  # the first norm's result, too, is in host memory
        attention = chunk_kept_bytes(shape) - outer * model.hidden * width
    if model.latent is not None:
        attention = attention + latent_kept_bytes(shape, model.latent)
    mlp = tokens * shape.ffn * width * mlp_tensors(shape) if shape.degrees.mlp_chunk_tokens is None else 0 * tokens
    if shape.experts is not None:
        mlp = expert_kept_bytes(shape, shape.experts)
    if shape.workload.lora_rank:
        attention = attention + adapter_kept_bytes(shape)
    dropped = {"none": 0, "core_attention": _scores(shape), "mlp": mlp}
    return norms + masks + attention + _scores(shape) + mlp - dropped[recompute]


def recomputed_bytes(shape: Shape, recompute: str) -> Any:
    """Bytes that come back to life in the backward pass of one layer under a policy.

    The kept input is one of them where the first norm saves it as it is.
    """
    if recompute in ("none", "core_attention"):
        return 0 * shape.tokens
    back = kept_bytes(shape, "none") - kept_bytes(shape, recompute)
    if recompute == "mlp" or saves_input(shape):
        return back
    return back + shape.outer_tokens * shape.workload.model.hidden * shape.width


def mlp_tensors(shape: Shape) -> int:
    """Gate, its activation, up, their product; a fused kernel computes the activation again."""
    if not shape.workload.model.gated:
        return 2
    return 3 if shape.habits.activation == "fused" else 4


def _scores(shape: Shape) -> Any:
    """Without flash attention: the softmax, and with dropout its mask and result."""
    if shape.habits.attention != "unfused":
        return 0
    each = shape.width + ((shape.width + 1) if shape.habits.dropout else 0)
    return shape.rows * shape.heads * shape.ring_tokens * shape.ring_tokens * each


def microbatches_in_flight(shape: Shape) -> Any:
    """1F1B: the first stage holds up to `pipeline` microbatches of its layers (interleaved: a few chunks more)."""
    stages, chunks = shape.degrees.pipeline, shape.degrees.virtual
    if shape.degrees.schedule == "gpipe":
        return shape.degrees.microbatches
    if shape.stage is not None and not shape.stage.first:
        stages = 1
    most = pick(chunks > 1, stages * (1 + (stages - 1) / (stages * chunks)), stages)
    return smaller(most, shape.degrees.microbatches)
