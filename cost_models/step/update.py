"""The end of a step: the gradients' norm and the optimizer, on this rank's shard or, with ZeRO-Offload, on its host.

    GPU    traffic of norm and update of its weights, a resident gradient buffer cleared
    host   bytes of the CPU's update; new weights go up meanwhile unless they stay there

Bytes per weight are of a fused fp32 AdamW unless the framework's file has a number of its own.
"""

from __future__ import annotations

from cost_models.layer.launches import update_host_s
from cost_models.layer.sizes import RankSizes
from cost_models.layer.weights import trained_expert_params, trained_params
from cost_models.number import Number, larger, pick
from cost_models.program import Compute, Exchange, Segment
from cost_models.step.overheads import framework_time, launched
from cost_models.timing.kernels import Kernels
from cost_models.workload import DTYPE_BYTES, OPTIMIZER_STATES

STATE_BYTES = 8
"""Traffic per weight and state of a fused fp32 update: r4 w4, as of the weight; the gradient is read."""
NORM_BYTES = 4
"""Per gradient: read for the norm."""


def update(sizes: RankSizes, kernels: Kernels) -> Segment:
    """Gradient norm and optimizer on this rank's shard (on everything without sharding); a resident buffer cleared."""
    framework, trained = sizes.framework, trained_params(sizes) / sizes.degrees.pipeline
    experts, zero = sizes.stage_total(trained_expert_params), sizes.degrees.zero
    params = trained / pick(zero == 0, 1, sizes.degrees.shard) + experts / pick(
        zero == 0, 1, sizes.degrees.expert_shard
    )
    if framework.owned_tensors:  # one owner has the largest tensor to itself
        params = larger(params, sizes.workload.model.embedding_params / sizes.degrees.tensor)
    if sizes.degrees.offload_states != "none":
        return _host_update(sizes, kernels, params)
    moved = params * _update_bytes(sizes)
    if framework.accumulator is not None:
        moved = moved + (trained + experts) * DTYPE_BYTES[framework.accumulator]
    exchange = Exchange(part="gradients", axis="shard", op="all_reduce", bytes=4.0)
    step = Compute(part="optimizer", seconds=kernels.memory_bound_s(moved, 6))
    phases = (step, framework_time(kernels, "framework_step"), exchange)
    return launched(Segment(name="optimizer", phases=phases), kernels, update_host_s(sizes))


def _host_update(sizes: RankSizes, kernels: Kernels, params: Number) -> Segment:
    """The CPU's update (ZeRO-Offload, arXiv 2101.06840); new weights go up meanwhile unless they stay on the host."""
    norm = Exchange(part="gradients", axis="shard", op="all_reduce", bytes=4.0)
    return Segment(
        name="optimizer",
        phases=(framework_time(kernels, "framework_step"), norm),
        host_update_bytes=params * (_update_bytes(sizes) - NORM_BYTES),
        offload_bytes=params * sizes.width if sizes.degrees.offload_states == "optimizer" else 0.0,
    )


def _update_bytes(sizes: RankSizes) -> int:
    """Traffic per weight of norm and update; a framework's number is of AdamW, with two states."""
    states = OPTIMIZER_STATES[sizes.workload.optimizer]
    if sizes.framework.optimizer_bytes is not None:
        return sizes.framework.optimizer_bytes - STATE_BYTES * (OPTIMIZER_STATES["adamw"] - states)
    return STATE_BYTES * (1 + states) + 4 + NORM_BYTES
