"""The price of a case under a framework's habits: the step's own program, with what the framework adds.

    step = (microbatches - 1) x plain + last + after + update + bubble
    last = a microbatch whose backward pass hides the gradient reduction (ZeRO-0 and -1), if the framework overlaps it
    bubble = (stages - 1) / chunks x layers of one stage; head and embedding stand in one stage only

Segments, kernels, paths and memory are those of `price`; with the neutral habits and ZeRO-2 or -3 the result is
`price`'s. Left out: what varies from run to run (stragglers, data loading).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cost_models.memory.components import context_bytes
from cost_models.memory.peak import peak
from cost_models.pricing import fold_segment
from cost_models.program import Compute, Exchange, Phase, Segment
from cost_models.step.assembly import step_program
from cost_models.step.habits import OURS, Habits
from cost_models.step.shape import Shape
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.timing.host import PYTORCH_2024
from cost_models.timing.kernels import FA2_ARCHITECTURES, Kernels
from cost_models.timing.paths import Paths
from cost_models.workload import DTYPE_BYTES
from validation.cases import Case

ROOT_SEGMENTS = ("embed", "head and loss", "root gradients")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    step_s: float
    memory_bytes: float
    allocated_bytes: float  # what the allocator counts: without context, libraries' buffers and slack
    reserved_bytes: float  # the same with the allocator's slack
    seconds: dict[str, float]
    memory: dict[str, float]


def predict(case: Case, habits: Habits | None = None) -> Prediction:
    """Seconds and bytes of one step; `habits` replaces the framework's."""
    habits = case.framework.habits if habits is None else habits
    strategy, workload, cluster = case.strategy, case.workload, case.cluster
    strategy.check(workload.model)
    node = cluster.runs[0].node
    kernels = kernels_for(case, habits)
    paths = cluster_costs(cluster).paths(strategy)
    if habits.reduced_whole:
        every = replace(strategy, shard=strategy.data * strategy.context)
        whole = cluster_costs(cluster).paths(every).axes["shard"]
        paths = replace(paths, axes={**paths.axes, "replicate": whole})
    shape, ranges = Shape(workload, strategy, habits), strategy.layer_ranges(workload.model.layers)
    program = step_program(shape, kernels, ranges)
    micro = [_with_copies(segment, shape, kernels) for segment in program.microbatch]
    seconds = _fold(micro, list(program.epilogue), shape, kernels, paths, node.scale_up.latency_s)
    parts = memory_of(case, habits)
    own = sum(size for name, size in parts.items() if name not in ("communication", "reserve"))
    return Prediction(
        step_s=sum(seconds.values()),
        memory_bytes=sum(parts.values()),
        allocated_bytes=own,
        reserved_bytes=own + parts["reserve"] - context_bytes(node.device),
        seconds=seconds,
        memory=parts,
    )


def memory_of(case: Case, habits: Habits | None = None) -> dict[str, float]:
    """Bytes by component alone, of the fullest stage's rank."""
    shape = Shape(case.workload, case.strategy, case.framework.habits if habits is None else habits)
    ranges, device = case.strategy.layer_ranges(case.workload.model.layers), case.cluster.runs[0].node.device
    return {name: float(value) for name, value in peak(shape, ranges, device, by_stage=True).items()}


def kernels_for(case: Case, habits: Habits) -> Kernels:
    """The device's kernels, with the attention kernel that the framework had."""
    device = case.cluster.runs[0].node.device
    older = habits.attention in ("fa2", "fa1") and device.architecture in FA2_ARCHITECTURES
    return Kernels.of(device, attention="fa2" if older else "newest")


def _with_copies(segment: Segment, shape: Shape, kernels: Kernels) -> Segment:
    """Casts of weights at every use, and gradients added to a resident buffer."""
    habits, moved = shape.habits, 0.0
    here = shape.of(segment.kind) if segment.kind else shape
    weights = float(here.layer_params + here.expert_params)
    trained = float(here.trained_layer_params + here.trained_expert_params)
    if segment.name == "layer forward":
        moved = weights * habits.cast_bytes
    elif segment.name.startswith("layer backward"):
        again = 1 if segment.name.endswith("full") else 0
        moved = weights * habits.cast_bytes * (1 + again) + trained * habits.accumulate_bytes
    elif (habits.accumulate_bytes or habits.accumulator) and segment.name in ("head and loss", "root gradients"):
        moved = _root_copies(segment.name, shape)
    phases = tuple(_exposed(phase, shape) for phase in segment.phases)
    if moved:
        phases = (*phases, Compute(part="memory_bound", seconds=kernels.memory_bound_s(moved, 6)))
    gathered = segment.gather_bytes * (4 / shape.width if habits.gathered_fp32 else 1)
    segment = replace(segment, phases=phases, gather_bytes=gathered)
    return _blocking(segment, shape, kernels) if habits.blocking_collectives and shape.degrees.zero == 3 else segment


def _blocking(segment: Segment, shape: Shape, kernels: Kernels) -> Segment:
    """Gathers before the work and reductions after it, weight by weight; a recomputed layer is gathered once more.

    As lists of tensors each collective goes through a flat buffer, read and written with eager operators per rank; the
    buffer of a gather is cleared first.
    """
    habits, ranks = shape.habits, int(shape.degrees.shard)
    each = habits.blocking_collectives if segment.name.startswith("layer") else 1
    times = 2 if segment.name.endswith(" full") else 1
    phases: tuple[Phase, ...] = ()
    for op, size, count, passes in (
        ("all_gather", float(segment.gather_bytes), each * times, 3),
        ("reduce_scatter", float(segment.scatter_bytes), each, 2),
    ):
        if size:
            piece = Exchange(part="sharding", axis="shard", op=op, bytes=size / each)  # type: ignore[arg-type]
            flat_s = kernels.memory_bound_s(passes * size / each, 1) if habits.list_operators else 0.0
            host_s = habits.list_operators * ranks * PYTORCH_2024.operator_s
            phases += (piece, Compute(part="sharding", seconds=flat_s + host_s)) * count
    return replace(segment.without_sharding(), phases=(*phases, *segment.phases))


def _root_copies(name: str, shape: Shape) -> float:
    """The head's gradient is added like a layer's; the embedding's is a whole table first, zeroed and then added.

    A head whose product adds it itself (`accumulator`) pays in its product; an embedding has none.
    With a pipeline the embedding stands on the first stage, where no head is.
    """
    model, tensor, width = shape.workload.model, int(shape.degrees.tensor), int(shape.width)
    table = model.embedding_params / tensor
    if name == "head and loss":
        return table * shape.habits.accumulate_bytes * shape.workload.trains_head
    alone = shape.degrees.pipeline == 1 and float(shape.trained_root_params) >= table
    return table * (width + width + 2 * DTYPE_BYTES[shape.workload.precision.grad]) * alone


def _exposed(phase: Phase, shape: Shape) -> Phase:
    """A tensor exchange that is cut in chunks shows its first one; the products beside are longer than the rest."""
    if shape.habits.tensor_chunks and isinstance(phase, Exchange) and phase.part == "tensor":
        return replace(phase, bytes=phase.bytes / shape.degrees.tensor)
    return phase


def _fold(
    micro: list[Segment], epilogue: list[Segment], shape: Shape, kernels: Kernels, paths: Paths, hop_s: float
) -> dict[str, float]:
    degrees = shape.degrees
    once = degrees.zero < 2
    plain = [segment.without_sharding() for segment in micro] if once else micro
    if once:  # a step's sum over the replicas, spread over the microbatches, is here in the last one
        micro = [_reduced_once(one, shape, kernels) for one in micro]
    last = micro if once and shape.habits.reduction == "overlapped" else plain
    total: dict[str, float] = {}
    if once and shape.habits.owned_tensors:
        last = [replace(segment, gather_bytes=0.0) for segment in last]
        total["sharding"] = _broadcasts_s(micro, shape, paths, hop_s)
    for segments, times in ((plain, degrees.microbatches - 1), (last, 1), (epilogue, 1)):
        for segment in segments:
            _add(total, segment, paths, times * float(segment.repeat))
    if once and shape.habits.reduction == "exposed":
        for segment in micro:
            alone = replace(segment, phases=(), offload_bytes=0.0)
            _add(total, alone, paths, float(segment.repeat))
    layers = [segment for segment in plain if segment.name not in ROOT_SEGMENTS]
    stage: dict[str, float] = {}
    for segment in layers:
        _add(stage, segment, paths, float(segment.fill(degrees.pipeline)))
    bubble = sum(stage.values()) / degrees.virtual
    total["pipeline"] = total.get("pipeline", 0.0) + bubble
    return total


def _broadcasts_s(micro: list[Segment], shape: Shape, paths: Paths, hop_s: float) -> float:
    """Every owner's weights down the chain of its group: their bytes, and for each owner the chain's latency.

    Tensors are dealt out whole (those of the layers, embedding, head and last norm), so that no more ranks own any.
    NCCL counts the network's latency for every rank of a chain that leaves a node (src/graph/tuning.cc, broadcast).
    """
    path, ranks = paths.axes["shard"], int(shape.degrees.shard)
    if ranks == 1:
        return 0.0
    owners = min(ranks, shape.habits.owned_tensors * shape.workload.model.layers + 3)
    moved = sum(float(segment.gather_bytes) * float(segment.repeat) for segment in micro)
    chain_s = ranks * (float(path.latency_s) if path.hops_out else hop_s)
    return float(paths.exchange_s("shard", "all_gather", moved)) + owners * chain_s


def _reduced_once(segment: Segment, shape: Shape, kernels: Kernels) -> Segment:
    """The sum over the replicas whole, in one microbatch; with the copies of flat buckets beside it."""
    habits, microbatches = shape.habits, shape.degrees.microbatches
    experts = segment.expert_replicate_bytes * microbatches
    gradient, summed = segment.scatter_bytes, segment.replicate_bytes * microbatches
    phases = segment.phases
    if habits.reduce_copy_bytes and gradient:
        copied = gradient / DTYPE_BYTES[shape.workload.precision.reduce] * habits.reduce_copy_bytes
        phases = (*phases, Compute(part="memory_bound", seconds=kernels.memory_bound_s(copied, 3)))
    if habits.reduced_whole:
        gradient, summed = 0.0, gradient
    return replace(
        segment, phases=phases, scatter_bytes=gradient, replicate_bytes=summed, expert_replicate_bytes=experts
    )


def _add(total: dict[str, float], segment: Segment, paths: Paths, times: float) -> None:
    for name, seconds in fold_segment(segment, paths).seconds.items():
        total[name] = total.get(name, 0.0) + float(seconds) * times


def neutral(case: Case) -> Prediction:
    """As a plan would be priced: this project's own habits."""
    return predict(case, OURS)
