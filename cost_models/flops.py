"""FLOP of a step: the model's (the numerator of MFU) and the executed ones (recompute counted, causal once).

    matmul weight  2 per token forward, 4 backward          attention, causal  4 D H pairs forward, 2.5 x backward
    pairs = L (L + 1) / 2 for each row; packed documents see only their own

MFU here: matmul weights (embedding lookup not counted, output head counted) and causal attention with the backward
counted as twice the forward (the usual convention); the executed count takes the kernel's 2.5 x. A frozen weight
counts 2 backward, a token counts the experts that it visits.
"""

from __future__ import annotations

from cost_models.strategy import Strategy
from cost_models.workload import Workload


def model_flops(workload: Workload) -> float:
    """The whole step over all ranks, without recompute."""
    weights, attention = _llm(workload)
    passes = 3 if workload.mode == "train" else 1
    tower = _tower(workload) * (3 if _trains_tower(workload) else 1)
    return _weight_passes(workload) * weights + passes * (attention + _adapters(workload)) + tower


def executed_flops(workload: Workload, strategy: Strategy) -> float:
    """With recompute, and attention's backward at 2.5 times its forward."""
    weights, attention = _llm(workload)
    if workload.mode != "train":
        return model_flops(workload)
    model = workload.model
    layers = model.layers
    head = 2.0 * model.vocab * model.hidden * _tokens(workload)
    body = weights - head
    mlp = 2.0 * (model.active_matmul_params / layers - model.attention_params) * _tokens(workload)
    total = _weight_passes(workload) * weights + 3 * _adapters(workload) + 3.5 * attention
    for part in strategy.layer_ranges(layers):
        share = part.count / layers
        if part.recompute == "full":
            total += share * (body + attention)
        elif part.recompute == "all_but_attention":
            last = mlp / (3 if model.gated else 2)  # the last product is not run again
            total += share * (body - layers * (last if strategy.mlp_chunk_tokens is None else mlp))
        elif part.recompute == "mlp" and strategy.mlp_chunk_tokens is None:
            total += part.count * mlp * (2 / 3 if model.gated else 1 / 2)
        elif part.recompute == "core_attention":
            total += share * attention
    if strategy.mlp_chunk_tokens is not None:  # every slice runs forward again, whatever the layer recomputes
        total += layers * mlp
    return total + _tower(workload) * (3 if _trains_tower(workload) else 1)


def _weight_passes(workload: Workload) -> int:
    """Forward, the gradient of the input, and that of the weight unless it is frozen."""
    if workload.mode != "train":
        return 1
    return 3 if workload.trains_weights else 2


def _adapters(workload: Workload) -> float:
    """Low-rank adapters of all layers forward, one for each map of a layer."""
    model, ups = workload.model, 2 if workload.model.gated else 1
    q, kv, out = model.heads * model.head_dim, model.kv_heads * model.head_dim, model.heads * model.v_dim
    columns = {
        "qkv": 3 * model.hidden + q + 2 * kv,
        "out": out + model.hidden,
        "up": ups * (model.hidden + model.ffn),
        "down": model.hidden + model.ffn,
    }
    each = sum(columns[target] for target in workload.lora_targets)
    return 2.0 * workload.lora_rank * each * model.layers * _tokens(workload)


def _tokens(workload: Workload) -> float:
    return float(workload.global_batch * (1 if workload.mode == "decode" else workload.context_tokens))


def _llm(workload: Workload) -> tuple[float, float]:
    """(matmul weights, attention) of one forward pass."""
    model, context = workload.model, float(workload.context_tokens)
    body = 2.0 * model.active_matmul_params * _tokens(workload)
    head_tokens = _tokens(workload) if workload.mode == "train" else float(workload.global_batch)
    head = 2.0 * model.vocab * model.hidden * head_tokens
    pairs = context if workload.mode == "decode" else context * (context + 1) / 2 * workload.attended_fraction
    attention = 2.0 * model.heads * (model.head_dim + model.v_dim) * pairs * model.layers * workload.global_batch
    return body + head, attention


def _trains_tower(workload: Workload) -> bool:
    return workload.mode == "train" and "tower" in workload.trainable


def _tower(workload: Workload) -> float:
    """Tower and projector forward over all frames; a decode step finds them in the cache."""
    vision = workload.model.vision
    if vision is None or not workload.frames or workload.mode == "decode":
        return 0.0
    frames = float(workload.frames * workload.global_batch)
    block = 4 * vision.hidden**2 + (3 if vision.gated else 2) * vision.hidden * vision.ffn
    tower = vision.layers * (2.0 * block * vision.patches + 4.0 * vision.patches**2 * vision.hidden)
    projector = vision.projector_in * vision.projector_hidden + vision.projector_hidden * workload.model.hidden
    return frames * (tower + 2.0 * projector * vision.tokens_per_frame)
