"""Peak memory of the busiest rank by component, at the moment when the backward pass has just begun.

    parameters + gradients + optimizer     ZeRO: over `shard` ranks (gradients from ZeRO-2, weights from ZeRO-3)
    gathered      whole weights in the parameter dtype: the root, and two layers in flight (all layers below ZeRO-3)
    activations   what each layer keeps until its backward pass, by recompute policy
    working       the largest transient of one layer: what is recomputed, attention's ring buffers, whole gradients
    logits        one chunk of the loss, or all of it, with the head's gradient        vision   of the own frames
    communication, reserve   library buffers, CUDA context, allocator slack: named estimates below

What one decoder layer keeps per token in unfused Hugging Face code (h hidden, q/k widths, f ffn, b bytes):
    norms   2 x (4 h fp32 copy + b h normalised + b h output)      attention  b (q + 2 k') + b q out + b q + 4 H lse
    MLP     b f x 4 (gate, its activation, up, their product)      mlp drops the last row, full keeps b h
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cost_models.adapters import adapter_kept_bytes
from cost_models.device import Device
from cost_models.either import pick
from cost_models.expert_layer import expert_kept_bytes, expert_working_bytes
from cost_models.latent_layer import latent_kept_bytes
from cost_models.shape import Shape
from cost_models.step import trained_expert_params, trained_params
from cost_models.strategy import LayerRange
from cost_models.workload import DTYPE_BYTES

CONTEXT_BYTES = {"gpu": 640 * 2**20, "cpu": 450 * 2**20}
"""CUDA context and cuBLAS workspaces; on a CPU the interpreter with its libraries. Estimates."""
GROUP_BYTES = {"gpu": 192 * 2**20, "cpu": 2**20}
"""Buffers of one process group of more than one rank (NCCL channels; gloo's pairs). Estimates."""
SLACK = 0.03
"""Share of the dynamic memory lost to fragmentation. Estimate."""


def memory(shape: Shape, activations: Any, again: Any, device: Device) -> dict[str, Any]:
    """Components in bytes. `activations`: kept by all layers together; `again`: recomputed by one."""
    kind = "cpu" if device.architecture == "cpu" else "gpu"
    parts = {
        **_states(shape),
        "gathered": _gathered(shape),
        "activations": np.asarray(activations) * _microbatches_in_flight(shape),
        "working": working(shape) + again,
        "logits": _logits(shape),
        "vision": _vision(shape),
        "cache": _cache(shape),
        "communication": _communication(shape, GROUP_BYTES[kind]),
    }
    dynamic = sum(parts[name] for name in ("gathered", "activations", "working", "logits", "vision"))
    parts["reserve"] = CONTEXT_BYTES[kind] + SLACK * dynamic
    return parts


def kept(shape: Shape, part: LayerRange | str, offload: str = "none") -> Any:
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
    norms = 2 * outer * model.hidden * (2 * width + (0 if habits.norm == "fused" else 4))
    masks = 2 * outer * model.hidden if habits.dropout else 0
    out = np.where(np.asarray(shape.degrees.ulysses) > 1, tokens * shape.out_width * width, 0)
    attention = queries + kv + output + lse + out
    if model.latent is not None:
        attention = attention + latent_kept_bytes(shape, model.latent)
    mlp = tokens * shape.ffn * width * _mlp_tensors(shape)
    if shape.experts is not None:
        mlp = expert_kept_bytes(shape, shape.experts)
    if shape.workload.lora_rank:
        attention = attention + adapter_kept_bytes(shape)
    dropped = {"none": 0, "core_attention": _scores(shape), "mlp": mlp}
    return norms + masks + attention + _scores(shape) + mlp - dropped[recompute]


def _mlp_tensors(shape: Shape) -> int:
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


def recomputed(shape: Shape, recompute: str) -> Any:
    """Bytes that come back to life in the backward pass of one layer under a policy."""
    if recompute in ("none", "core_attention"):
        return 0 * shape.tokens
    return kept(shape, "none") - kept(shape, recompute)


def working(shape: Shape) -> Any:
    """Transients of one layer: gradients of its widest tensors, attention's in-flight KV and dKV, whole gradients."""
    model, width, tokens = shape.workload.model, shape.width, shape.tokens
    exchanged = shape.ring_tokens * shape.rows
    queries, output = exchanged * shape.heads * model.head_dim, exchanged * shape.heads * model.v_dim
    kv, ring = exchanged * shape.kv_heads * (model.head_dim + model.v_dim), np.asarray(shape.degrees.ring) > 1
    mlp = tokens * shape.ffn * width * (3 if model.gated else 2)
    if shape.experts is not None:
        mlp = expert_working_bytes(shape, shape.experts)
    if shape.workload.mode != "train":
        attention = (queries + output) * width + np.where(ring, kv * width * 2, 0)
        return np.maximum(attention, mlp) + tokens * model.hidden * width * 2
    gradient_bytes = DTYPE_BYTES[shape.degrees.grad_ring_dtype]
    attention = (queries + 2 * output) * width + kv * width
    attention = attention + np.where(ring, kv * (2 * width + 2 * gradient_bytes), 0)
    whole = (shape.trained_layer_params + shape.trained_expert_params) * _transient_gradient(shape)
    whole = whole + _dummy_gradients(shape)
    return np.maximum(attention, mlp) + tokens * model.hidden * (4 + width) + whole


def _states(shape: Shape) -> dict[str, Any]:
    precision, zero = shape.workload.precision, np.asarray(shape.degrees.zero)
    model, shard = shape.workload.model, shape.degrees.shard
    total = shape.stage_total(lambda here: here.layer_params) + _root_params(shape) + model.vision_params
    trained = np.minimum(trained_params(shape), total)
    experts = shape.stage_total(lambda here: here.expert_params)
    trained_experts = trained_expert_params(shape)
    if shape.workload.mode != "train":
        width = shape.width
        resident = total * width * (1 + np.where(np.asarray(shard) > 1, 1 / np.asarray(shard), 0.0))  # gathered to stay
        resident = resident + experts * width
        return {"parameters": resident, "gradients": 0.0 * resident, "optimizer": 0.0 * resident}
    master, param = DTYPE_BYTES[precision.master], DTYPE_BYTES[precision.param]
    states = {"adamw": 2, "sgd": 1}[shape.workload.optimizer] * DTYPE_BYTES[precision.optimizer]
    own, expert_own = np.where(zero >= 1, shard, 1), np.where(zero >= 1, shape.degrees.expert_shard, 1)
    copy = np.where((zero < 3) & ((own > 1) | (master != param)), (total + experts) * param, 0)
    gradients = trained / np.where(zero >= 2, shard, 1) + trained_experts / np.where(zero >= 2, expert_own, 1)
    stored = (total / own + experts / expert_own) * master + copy
    if shape.workload.lora_rank:  # frozen weights have no master: they stay in the parameter dtype
        frozen, whole = total - trained, np.where((zero < 3) & ((own > 1) | (master != param)), trained * param, 0)
        stored = trained * master / own + whole + frozen * param / np.where(zero == 3, shard, 1)
    return {
        "parameters": stored,
        "gradients": gradients * DTYPE_BYTES[precision.grad],
        "optimizer": (trained / own + trained_experts / expert_own) * states,
    }


def _root_params(shape: Shape) -> Any:
    """Embedding and head; with a pipeline they lie in its first and last stage."""
    model = shape.workload.model
    if shape.stage is not None:
        tensor, both = shape.degrees.tensor, (shape.stage.first, shape.stage.last)
        held = model.embedding_params * max(both[0], both[1] and model.tied_embeddings) + model.head_params * both[1]
        return held // tensor + model.hidden * both[1]
    apart = np.minimum(model.embedding_params, model.head_params) // shape.degrees.tensor
    return shape.root_params - np.where(np.asarray(shape.degrees.pipeline) > 1, apart, 0)


def _transient_gradient(shape: Shape) -> Any:
    """Bytes per weight of a whole gradient on its way to its shards; below ZeRO-2 it is added to the resident one."""
    passing = shape.width + DTYPE_BYTES[shape.workload.precision.reduce]
    return np.where(np.asarray(shape.degrees.zero) >= 2, passing, 0)


def _dummy_gradients(shape: Shape) -> Any:
    """One placeholder for each weight shape: those of a layer, and the head's where one stage holds it all."""
    model, tensor = shape.workload.model, shape.degrees.tensor
    if not shape.workload.trains_weights:
        return 0 * shape.layer_params
    if shape.stage is not None:
        head = model.vocab * model.hidden // tensor if shape.stage.last else 0
        return shape.habits.dummy_gradient_bytes * (head + max(map(_shapes, map(shape.of, dict(shape.stage.layers)))))
    head = np.where(np.asarray(shape.degrees.pipeline) == 1, model.vocab * model.hidden, 0)
    if shape.experts is not None:
        return shape.habits.dummy_gradient_bytes * (_shapes(shape) + head // tensor)
    return shape.habits.dummy_gradient_bytes * (model.layer_matmul_params + head) // tensor


def _shapes(shape: Shape) -> Any:
    """Weights of a layer, those of equal shape once: its experts share one."""
    if shape.experts is None:
        return shape.layer_params
    model = shape.workload.model
    others = shape.experts.matmul_params(model.hidden, model.gated) * (shape.experts.count - 1) // shape.experts.count
    held = shape.layer_params + shape.expert_params * shape.degrees.expert
    return held - others // pick(shape.degrees.expert == 1, shape.degrees.tensor, 1)


def _gathered(shape: Shape) -> Any:
    """ZeRO-3: the root and two layers whole at once. Below, and to answer, whole weights are resident."""
    whole = (shape.root_params + 2 * (shape.layer_params + shape.expert_params)) * shape.width
    return np.where((np.asarray(shape.degrees.zero) == 3) & (shape.workload.mode == "train"), whole, 0)


def _microbatches_in_flight(shape: Shape) -> Any:
    """1F1B: the first stage holds up to `pipeline` microbatches of its layers (interleaved: a few chunks more)."""
    stages, chunks = np.asarray(shape.degrees.pipeline), np.asarray(shape.degrees.virtual)
    if shape.degrees.schedule == "gpipe":
        return np.asarray(shape.degrees.microbatches)
    if shape.stage is not None and not shape.stage.first:
        stages = np.asarray(1)
    most = np.where(chunks > 1, stages * (1 + (stages - 1) / (stages * chunks)), stages)
    return np.minimum(most, shape.degrees.microbatches)


def _logits(shape: Shape) -> Any:
    """What the loss holds at its highest moment: for one chunk of tokens, or for all of the rank by autograd.

    whole    logits in the parameter dtype, in fp32, and the gradient of both; the head's whole gradient
    chunk    b + 4 + 4 per logit (a CPU's; CUDA's log-softmax casts as it reads), or the gradient's b beside the
             chunk's product; all the while the head's gradient in float32, which the backward pass then casts
    """
    model, width = shape.workload.model, shape.width
    vocab = model.vocab // shape.degrees.tensor
    if shape.stage is not None and not shape.stage.last:
        return 0 * shape.tokens
    if shape.workload.mode != "train":
        return np.maximum(shape.rows, 1) * vocab * width
    chunk, trained = shape.degrees.loss_chunk_tokens, 1 if shape.workload.trains_head else 0
    weights = model.hidden * vocab * trained
    passing = weights * _transient_gradient(shape)
    if chunk is None:
        held = 2 * width + 8 if shape.habits.logit_bytes is None else shape.habits.logit_bytes
        return shape.tokens * vocab * held + passing
    logits = np.minimum(shape.tokens, chunk) * vocab
    wide = max(4, width)
    product = weights * width if width < wide else 0 * weights
    highest = np.maximum(logits * (2 * wide if width == wide else width + 8), logits * width + product)
    return np.maximum(weights * wide + highest, passing)


def _vision(shape: Shape) -> Any:
    """Pictures, and what the tower keeps per patch and layer: b (8 h + 2 f); one layer's worth without training.

    Per layer: 2 residuals, 2 normalised, q, k, v, attention's output (8 h); GELU's input and output (2 f).
    """
    vision, width = shape.workload.model.vision, shape.width
    if vision is None or shape.workload.mode == "decode":
        return 0 * shape.tokens
    patches = np.maximum(shape.frames, 1) * vision.patches
    layer = patches * (8 * vision.hidden + 2 * vision.ffn) * width
    pixels = patches * 3 * vision.patch_size**2 * width
    embeddings = 2 * np.maximum(shape.frames, 1) * vision.tokens_per_frame * shape.workload.model.hidden * width
    if shape.habits.frame_sharding == "reduced":  # the whole row, zero-filled, on every rank
        embeddings = embeddings + shape.rows * shape.workload.context_tokens * shape.workload.model.hidden * width
    kept_layers = vision.layers if shape.trains("tower") else 1
    return pixels + embeddings + layer * kept_layers


def _cache(shape: Shape) -> Any:
    if shape.workload.mode == "train":
        return 0 * shape.tokens
    tokens = shape.rows * (shape.ring_tokens // shape.degrees.ulysses)
    latent = shape.workload.model.latent
    columns = 2 * shape.kv_width if latent is None else latent.kv_rank + latent.rope_dim
    return tokens * columns * shape.width * shape.workload.model.layers // shape.degrees.pipeline


def _communication(shape: Shape, group_bytes: int) -> Any:
    degrees = shape.degrees
    axes = (degrees.ulysses, degrees.ring, degrees.shard, degrees.replicate, degrees.tensor, degrees.pipeline,
            degrees.expert)  # fmt: skip
    return sum(np.where(np.asarray(size) > 1, group_bytes, 0) for size in axes)
