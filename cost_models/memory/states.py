"""Weights, gradients and optimizer states that a rank holds all the time, by ZeRO stage.

    parameters + gradients + optimizer     over `shard` ranks (gradients from ZeRO-2, weights from ZeRO-3)

Gradients count as resident (they are, from the second microbatch on) unless the framework drops them after a step.
What `offload_states` keeps in host memory is not here. Bytes of one rank; numbers or arrays over candidates.
"""

from __future__ import annotations

from cost_models.layer.sizes import RankSizes
from cost_models.number import Number, both, pick, smaller
from cost_models.step.assembly import trained_expert_params, trained_params
from cost_models.workload import DTYPE_BYTES, OPTIMIZER_STATES


def states(shape: RankSizes) -> dict[str, Number]:
    precision, zero, shard = shape.workload.precision, shape.degrees.zero, shape.degrees.shard
    total, experts = _held(shape), shape.stage_total(lambda here: here.expert_params)
    trained, trained_experts = smaller(trained_params(shape), total), trained_expert_params(shape)
    if shape.workload.mode != "train":
        resident = total * shape.width * (1 + pick(shard > 1, 1 / shard, 0.0)) + experts * shape.width  # stays gathered
        return {"parameters": resident, "gradients": 0.0 * resident, "optimizer": 0.0 * resident}
    master, param = DTYPE_BYTES[precision.master], DTYPE_BYTES[precision.param]
    each = OPTIMIZER_STATES[shape.workload.optimizer] * DTYPE_BYTES[precision.optimizer]
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
        "optimizer": (trained / own + trained_experts / expert_own) * each,
    }


def _held(shape: RankSizes) -> Number:
    """Weights of one rank before sharding, without spread experts."""
    return shape.stage_total(lambda here: here.layer_params) + root_params(shape) + shape.workload.model.vision_params


def _gradients(shape: RankSizes) -> Number:
    zero, degrees = shape.degrees.zero, shape.degrees
    trained, experts = smaller(trained_params(shape), _held(shape)), trained_expert_params(shape)
    held = trained / pick(zero >= 2, degrees.shard, 1) + experts / pick(zero >= 2, degrees.expert_shard, 1)
    return held * DTYPE_BYTES[shape.workload.precision.grad]


def dropped_gradients(shape: RankSizes) -> Number:
    """Gradients that are not there while activations are: dropped after each step of one microbatch."""
    if not shape.framework.drops_gradients or shape.workload.mode != "train":
        return 0
    return pick(both(shape.degrees.microbatches == 1, shape.degrees.zero < 3), _gradients(shape), 0)


def root_params(shape: RankSizes) -> Number:
    """Embedding and head; with a pipeline they lie in its first and last stage."""
    model = shape.workload.model
    if shape.stage is not None:
        tensor, both = shape.degrees.tensor, (shape.stage.first, shape.stage.last)
        held = model.embedding_params * max(both[0], both[1] and model.tied_embeddings) + model.head_params * both[1]
        return held // tensor + model.hidden * both[1]
    apart = min(model.embedding_params, model.head_params) // shape.degrees.tensor
    return shape.root_params - pick(shape.degrees.pipeline > 1, apart, 0)


def dummy_gradients(shape: RankSizes) -> Number:
    """One placeholder for each weight shape: those of a layer, and the head's where one stage holds it all."""
    model, tensor = shape.workload.model, shape.degrees.tensor
    if not shape.workload.trains_weights:
        return 0 * shape.layer_params
    if shape.stage is not None:
        head = model.vocab * model.hidden // tensor if shape.stage.last else 0
        return shape.framework.dummy_gradient_bytes * (
            head + max(map(_shapes, map(shape.of, dict(shape.stage.layers))))
        )
    head = pick(shape.degrees.pipeline == 1, model.vocab * model.hidden, 0)
    if shape.experts is not None:
        return shape.framework.dummy_gradient_bytes * (_shapes(shape) + head // tensor)
    return shape.framework.dummy_gradient_bytes * (model.layer_matmul_params + head) // tensor


def _shapes(shape: RankSizes) -> Number:
    """Weights of a layer, those of equal shape once: its experts share one."""
    if shape.experts is None:
        return shape.layer_params
    model = shape.workload.model
    others = shape.experts.matmul_params(model.hidden, model.gated) * (shape.experts.count - 1) // shape.experts.count
    held = shape.layer_params + shape.expert_params * shape.degrees.expert
    return held - others // pick(shape.degrees.expert == 1, shape.degrees.tensor, 1)
