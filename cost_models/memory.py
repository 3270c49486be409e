"""Peak memory of the busiest rank by component, at the highest moment of the step (`moments`).

    parameters + gradients + optimizer     ZeRO: over `shard` ranks (gradients from ZeRO-2, weights from ZeRO-3)
    activations   what each layer keeps until its backward pass, by recompute policy; rotary tables
    gathered, working, logits              alive at that moment only: whole weights; what is recomputed, gradients in
                  flight; the loss and the head's gradient        vision   of the own frames
    communication, reserve   library buffers, CUDA context, allocator slack: named estimates below

What one decoder layer keeps per token in unfused Hugging Face code (h hidden, q/k widths, f ffn, b bytes):
    norms   2 x (4 h fp32 copy + b h normalised + b h output + 4)  attention  b (q + 2 k') + b q out + b q + 4 H lse
    MLP     b f x 4 (gate, its activation, up, their product)      mlp drops the last row, full keeps b h
Gradients count as resident (they are, from the second microbatch on) unless the framework drops them after a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cost_models.adapters import adapter_kept_bytes
from cost_models.chunked import chunk_kept_bytes
from cost_models.device import Device
from cost_models.either import both, larger, pick, smaller
from cost_models.expert_layer import expert_kept_bytes
from cost_models.latent_layer import latent_kept_bytes
from cost_models.shape import Shape
from cost_models.step import trained_expert_params, trained_params
from cost_models.strategy import LayerRange
from cost_models.workload import DTYPE_BYTES

if TYPE_CHECKING:
    from cost_models.moments import Moment

CONTEXT_BYTES = {"gpu": 640 * 2**20, "cpu": 450 * 2**20}
"""CUDA context and cuBLAS workspaces; on a CPU the interpreter with its libraries. Estimates."""
GROUP_BYTES = {"gpu": 192 * 2**20, "cpu": 2**20}
"""Buffers of one process group of more than one rank (NCCL channels; gloo's pairs). Estimates."""
SLACK = 0.03
"""Share of the dynamic memory lost to fragmentation. Estimate."""


def context_bytes(device: Device) -> int:
    """Of CONTEXT_BYTES, what this device has."""
    return CONTEXT_BYTES["cpu" if device.architecture == "cpu" else "gpu"]


def memory(shape: Shape, activations: Any, moment: Moment, device: Device) -> dict[str, Any]:
    """Components in bytes. `activations`: kept by all layers together; `moment`: the highest of the step."""
    kind = "cpu" if device.architecture == "cpu" else "gpu"
    parts = {
        **_states(shape),
        "gathered": moment.gathered,
        "activations": activations * microbatches_in_flight(shape) + _outside_layers(shape),
        "working": moment.working,
        "logits": moment.logits,
        "vision": _vision(shape),
        "cache": _cache(shape),
        "communication": _communication(shape, GROUP_BYTES[kind]),
    }
    dynamic = sum(parts[name] for name in ("gathered", "activations", "working", "logits", "vision"))
    parts["reserve"] = context_bytes(device) + SLACK * dynamic
    return parts


def _outside_layers(shape: Shape) -> Any:
    """Cosines and sines of the rotary positions and the positions (8 B), and the final norm's input if it is saved."""
    if shape.workload.mode != "train":
        return 0 * shape.tokens
    model, width = shape.workload.model, shape.width
    last = final_norm_input(shape)
    if shape.habits.rotary == "none":
        return last
    tables = shape.rows * shape.workload.context_tokens if shape.habits.whole_rotary else shape.tokens
    return last + tables * 2 * model.head_dim * width + shape.tokens * 8


def final_norm_input(shape: Shape) -> Any:
    if not saves_input(shape) or (shape.stage is not None and not shape.stage.last):
        return 0
    whole = shape.outer_tokens * shape.workload.model.hidden * shape.width
    return whole if shape.stage is not None else pick(shape.degrees.pipeline == 1, whole, 0)


def saves_input(shape: Shape) -> bool:
    """Whether a norm saves its input as it is: a fused one, or one that computes in fp32 on fp32; else an fp32 copy."""
    return shape.habits.norm == "fused" or shape.width >= 4


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


def recomputed(shape: Shape, recompute: str) -> Any:
    """Bytes that come back to life in the backward pass of one layer under a policy.

    The kept input is one of them where the first norm saves it as it is.
    """
    if recompute in ("none", "core_attention"):
        return 0 * shape.tokens
    back = kept(shape, "none") - kept(shape, recompute)
    if recompute == "mlp" or saves_input(shape):
        return back
    return back + shape.outer_tokens * shape.workload.model.hidden * shape.width


def _states(shape: Shape) -> dict[str, Any]:
    precision, zero, shard = shape.workload.precision, shape.degrees.zero, shape.degrees.shard
    total, experts = _held(shape), shape.stage_total(lambda here: here.expert_params)
    trained, trained_experts = smaller(trained_params(shape), total), trained_expert_params(shape)
    if shape.workload.mode != "train":
        resident = total * shape.width * (1 + pick(shard > 1, 1 / shard, 0.0)) + experts * shape.width  # stays gathered
        return {"parameters": resident, "gradients": 0.0 * resident, "optimizer": 0.0 * resident}
    master, param = DTYPE_BYTES[precision.master], DTYPE_BYTES[precision.param]
    states = {"adamw": 2, "sgd": 1}[shape.workload.optimizer] * DTYPE_BYTES[precision.optimizer]
    own, expert_own = pick(zero >= 1, shard, 1), pick(zero >= 1, shape.degrees.expert_shard, 1)
    copied = zero < 3 if master != param else both(zero < 3, own > 1)
    stored = (total / own + experts / expert_own) * master + pick(copied, (total + experts) * param, 0)
    if shape.workload.lora_rank:  # frozen weights have no master: they stay in the parameter dtype
        frozen, whole = total - trained, pick(copied, trained * param, 0)
        stored = trained * master / own + whole + frozen * param / pick(zero == 3, shard, 1)
    if shape.degrees.offload_states != "none":  # beside each other on the host: masters, states and gradients
        held = (total / pick(zero == 3, own, 1) + experts / pick(zero == 3, expert_own, 1)) * param
        resident = 0.0 * held if shape.degrees.offload_states == "all" else held
        return {"parameters": resident, "gradients": 0.0 * held, "optimizer": 0.0 * held}
    return {
        "parameters": stored,
        "gradients": _gradients(shape) - dropped_gradients(shape),
        "optimizer": (trained / own + trained_experts / expert_own) * states,
    }


def _held(shape: Shape) -> Any:
    """Weights of one rank before sharding, without spread experts."""
    return shape.stage_total(lambda here: here.layer_params) + root_params(shape) + shape.workload.model.vision_params


def _gradients(shape: Shape) -> Any:
    zero, degrees = shape.degrees.zero, shape.degrees
    trained, experts = smaller(trained_params(shape), _held(shape)), trained_expert_params(shape)
    held = trained / pick(zero >= 2, degrees.shard, 1) + experts / pick(zero >= 2, degrees.expert_shard, 1)
    return held * DTYPE_BYTES[shape.workload.precision.grad]


def dropped_gradients(shape: Shape) -> Any:
    """Gradients that are not there while activations are: dropped after each step of one microbatch."""
    if not shape.habits.drops_gradients or shape.workload.mode != "train":
        return 0
    return pick(both(shape.degrees.microbatches == 1, shape.degrees.zero < 3), _gradients(shape), 0)


def root_params(shape: Shape) -> Any:
    """Embedding and head; with a pipeline they lie in its first and last stage."""
    model = shape.workload.model
    if shape.stage is not None:
        tensor, both = shape.degrees.tensor, (shape.stage.first, shape.stage.last)
        held = model.embedding_params * max(both[0], both[1] and model.tied_embeddings) + model.head_params * both[1]
        return held // tensor + model.hidden * both[1]
    apart = min(model.embedding_params, model.head_params) // shape.degrees.tensor
    return shape.root_params - pick(shape.degrees.pipeline > 1, apart, 0)


def dummy_gradients(shape: Shape) -> Any:
    """One placeholder for each weight shape: those of a layer, and the head's where one stage holds it all."""
    model, tensor = shape.workload.model, shape.degrees.tensor
    if not shape.workload.trains_weights:
        return 0 * shape.layer_params
    if shape.stage is not None:
        head = model.vocab * model.hidden // tensor if shape.stage.last else 0
        return shape.habits.dummy_gradient_bytes * (head + max(map(_shapes, map(shape.of, dict(shape.stage.layers)))))
    head = pick(shape.degrees.pipeline == 1, model.vocab * model.hidden, 0)
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


def microbatches_in_flight(shape: Shape) -> Any:
    """1F1B: the first stage holds up to `pipeline` microbatches of its layers (interleaved: a few chunks more)."""
    stages, chunks = shape.degrees.pipeline, shape.degrees.virtual
    if shape.degrees.schedule == "gpipe":
        return shape.degrees.microbatches
    if shape.stage is not None and not shape.stage.first:
        stages = 1
    most = pick(chunks > 1, stages * (1 + (stages - 1) / (stages * chunks)), stages)
    return smaller(most, shape.degrees.microbatches)


def _vision(shape: Shape) -> Any:
    """Pictures, what tower and projector keep of them, and the vision tokens that come from other ranks.

    Tower, per patch and layer (one layer's worth without training): 2 residuals, 2 normalised, q, k, v, attention's
    output (8 h), GELU's input and output (2 f), lse and statistics of the norms. Projector, per token: its input,
    normalised, GELU's input and output.
    """
    vision, width = shape.workload.model.vision, shape.width
    if vision is None or shape.workload.mode == "decode":
        return 0 * shape.tokens
    frames = larger(shape.frames, 1)
    layer = (8 * vision.hidden + 2 * vision.ffn) * width + 4 * (vision.heads + 4)
    pixels = 3 * vision.patch_size**2 * width
    tower = frames * vision.patches * (pixels + layer * (vision.layers if shape.trains("tower") else 1))
    projector = frames * vision.tokens_per_frame * (2 * (vision.projector_in + vision.projector_hidden) * width + 8)
    received = smaller(shape.rows * shape.workload.vision_tokens, shape.tokens) * shape.workload.model.hidden * width
    if shape.habits.frame_sharding == "reduced":  # the whole row, zero-filled, on every rank
        received = received + shape.rows * shape.workload.context_tokens * shape.workload.model.hidden * width
    return tower + projector + received


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
    return sum(pick(size > 1, group_bytes, 0) for size in axes)
