"""Weights, gradients and optimizer states that a rank holds all the time, by ZeRO stage.

    parameters + gradients + optimizer     over `shard` ranks (gradients from ZeRO-2, weights from ZeRO-3)

Gradients count as resident (they are, from the second microbatch on) unless the framework drops them after a step.
Where it defers reductions they lie whole, as they will be reduced, until the last microbatch.
Units that are gathered one by one (`gathers_units`, FSDP2) are copies, also of frozen weights and over one shard: below
ZeRO-3 they lie beside the shards from a unit's forward to the end of its backward pass (`freed_weights`).
What `offload_states` keeps in host memory is not here. Bytes of one rank; numbers or arrays over candidates.
"""

from __future__ import annotations

from cost_models.layer.sizes import RankSizes
from cost_models.layer.weights import (
    expert_params,
    experts_apart,
    layer_params,
    stage_params,
    trained_expert_params,
    trained_params,
)
from cost_models.number import Number, both, pick, smaller
from cost_models.workload import DTYPE_BYTES, OPTIMIZER_STATES


def states(sizes: RankSizes) -> dict[str, Number]:
    """Bytes of a rank between steps: parameters, gradients, optimizer."""
    precision, zero, shard = sizes.workload.precision, sizes.degrees.zero, sizes.degrees.shard
    total, experts, units = stage_params(sizes), sizes.stage_total(expert_params), sizes.framework.gathers_units
    trained, trained_experts = _trained(sizes)
    if sizes.workload.mode != "train":
        resident = total * sizes.width * (1 + pick(shard > 1, 1 / shard, 0.0)) + experts * sizes.width  # stays gathered
        return {"parameters": resident, "gradients": 0.0 * resident, "optimizer": 0.0 * resident}
    master, param = DTYPE_BYTES[precision.master], DTYPE_BYTES[precision.param]
    each = OPTIMIZER_STATES[sizes.workload.optimizer] * DTYPE_BYTES[precision.optimizer]
    ranks, expert_ranks = pick(zero >= 1, shard, 1), pick(zero >= 1, sizes.degrees.expert_shard, 1)
    copied = zero < 3 if master != param or units else both(zero < 3, ranks > 1)
    whole = total + pick(experts_apart(sizes), 0, experts)
    stored = (total / ranks + experts / expert_ranks) * master + pick(copied, whole * param, 0)
    if sizes.workload.lora_rank:  # frozen weights have no master: they stay in the parameter dtype
        frozen, copies = total - trained, pick(copied, (total if units else trained) * param, 0)
        stored = trained * master / ranks + copies + frozen * param / (ranks if units else pick(zero == 3, shard, 1))
    if sizes.degrees.offload_states != "none":  # the host has them: masters, states and gradients
        held = (total / pick(zero == 3, ranks, 1) + experts / pick(zero == 3, expert_ranks, 1)) * param
        resident = 0.0 * held if sizes.degrees.offload_states == "all" else held
        return {"parameters": resident, "gradients": 0.0 * held, "optimizer": 0.0 * held}
    return {
        "parameters": stored,
        "gradients": _gradients(sizes) - dropped_gradients(sizes),
        "optimizer": (trained / ranks + trained_experts / expert_ranks) * each,
    }


def freed_weights(sizes: RankSizes, weights: Number) -> Number:
    """Bytes of so many weights that `states` counts whole and that go with a unit's backward pass. With a pipeline they
    stay for its further microbatches."""
    if not sizes.framework.gathers_units:
        return 0
    held = both(sizes.degrees.zero < 3, sizes.degrees.pipeline == 1)
    return pick(held, weights * DTYPE_BYTES[sizes.workload.precision.param], 0)


def host_state_bytes(sizes: RankSizes) -> Number:
    """In host memory, of one rank: what `offload_states` keeps there. The CPU updates in the master's width."""
    if sizes.degrees.offload_states == "none":
        return 0.0 * sizes.tokens
    precision, zero, degrees = sizes.workload.precision, sizes.degrees.zero, sizes.degrees
    trained, trained_experts = _trained(sizes)
    each = 2 * DTYPE_BYTES[precision.master]
    each += OPTIMIZER_STATES[sizes.workload.optimizer] * DTYPE_BYTES[precision.optimizer]
    ranks, expert_ranks = pick(zero >= 1, degrees.shard, 1), pick(zero >= 1, degrees.expert_shard, 1)
    held = (trained / ranks + trained_experts / expert_ranks) * each
    if degrees.offload_states == "all" and not sizes.framework.fetches_master:
        experts = sizes.stage_total(expert_params)
        held = held + (stage_params(sizes) / ranks + experts / expert_ranks) * DTYPE_BYTES[precision.param]
    return held


def _trained(sizes: RankSizes) -> tuple[Number, Number]:
    """Weights with gradients on one rank before sharding: (those that all share, spread experts)."""
    return smaller(trained_params(sizes), stage_params(sizes)), sizes.stage_total(trained_expert_params)


def _gradients(sizes: RankSizes) -> Number:
    zero, degrees, (trained, experts) = sizes.degrees.zero, sizes.degrees, _trained(sizes)
    held = trained / pick(zero >= 2, degrees.shard, 1) + experts / pick(zero >= 2, degrees.expert_shard, 1)
    precision, held = sizes.workload.precision, held * DTYPE_BYTES[sizes.workload.precision.grad]
    if not sizes.framework.defers_reductions:
        return held
    waits = both(both(zero >= 2, degrees.shard > 1), degrees.microbatches > 1)
    each = pick(experts_apart(sizes), DTYPE_BYTES[precision.grad], DTYPE_BYTES[precision.reduce])
    return pick(waits, trained * DTYPE_BYTES[precision.reduce] + experts * each, held)


def dropped_gradients(sizes: RankSizes) -> Number:
    """Gradients that are not there while activations are: dropped after each step of one microbatch."""
    stage = sizes.framework.drops_gradients_to
    if stage is None or sizes.workload.mode != "train" or sizes.degrees.offload_states != "none":
        return 0
    return pick(both(sizes.degrees.microbatches == 1, sizes.degrees.zero <= stage), _gradients(sizes), 0)


def dummy_gradients(sizes: RankSizes) -> Number:
    """One placeholder for each weight sizes: those of a layer, and the head's where one stage holds it all."""
    model, tensor = sizes.workload.model, sizes.degrees.tensor
    if not sizes.workload.trains_weights:
        return 0 * layer_params(sizes)
    if sizes.stage is not None:
        head = model.vocab * model.hidden // tensor if sizes.stage.last else 0
        return sizes.framework.dummy_gradient_bytes * (
            head + max(map(_shapes, map(sizes.of, dict(sizes.stage.layers))))
        )
    head = pick(sizes.degrees.pipeline == 1, model.vocab * model.hidden, 0)
    if sizes.experts is not None:
        return sizes.framework.dummy_gradient_bytes * (_shapes(sizes) + head // tensor)
    return sizes.framework.dummy_gradient_bytes * (model.layer_matmul_params + head) // tensor


def _shapes(sizes: RankSizes) -> Number:
    """Weights of a layer, those of equal shape once: its experts share one."""
    if sizes.experts is None:
        return layer_params(sizes)
    model = sizes.workload.model
    others = sizes.experts.matmul_params(model.hidden, model.gated) * (sizes.experts.count - 1) // sizes.experts.count
    held = layer_params(sizes) + expert_params(sizes) * sizes.degrees.expert
    return held - others // pick(sizes.degrees.expert == 1, sizes.degrees.tensor, 1)
