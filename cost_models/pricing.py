"""The closed-form cost of a strategy on a placement: every segment of the step folded to named seconds and bytes.

    segment = compute + all-to-all + exposed ring + what sharding cannot hide behind these
    ring    = over(hop, first) + (P - 2) over(hop + gradient hop, piece) + last gradient hop
    over(t, c) = max(t - c, 0): what a transfer of t, concurrent with computation of c, adds
    step    = (microbatches - 1) x segments + segments of the last microbatch + pipeline bubble + epilogue
    bubble  = one microbatch's way through the other stages' layers / chunks (head and embedding stand on one stage),
              and what the last stage waits in every other microbatch for one that has more to do

This is the only closed form. A framework says which kernels, copies and reductions run; the default is this project's
executor. Gathers and reductions are concurrent with their segment, and share the links with what else it sends there:
together these take as long as one after the other. So do copies to host memory where GPUs talk over PCIe. The same
functions take arrays of candidates, so that the planner's columns and `price` cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from cost_models import flops
from cost_models.basis import basis_of
from cost_models.cost import MEMORY, PRICED_AS, SECONDS, Memory, StepCost
from cost_models.framework import OURS, Framework
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.device import DRIVER_GIB, Device
from cost_models.hardware.placement import Placement, check_placement
from cost_models.layer.sizes import RankSizes
from cost_models.memory.components import fullest
from cost_models.memory.host import fullest_host, rank_host_bytes
from cost_models.models.model import Model
from cost_models.number import Number, larger, pick, smaller, somewhere
from cost_models.profile import Profile
from cost_models.program import Broadcasts, Compute, Exchange, Passed, Ring, Segment, Staged, StepProgram
from cost_models.step.assembly import step_program
from cost_models.step.unequal import Position, positions, slowest
from cost_models.strategy import Strategy
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.timing.kernels import OPS, Kernels
from cost_models.timing.passing import passed_s
from cost_models.timing.paths import Paths, met
from cost_models.units import show_bytes
from cost_models.workload import Workload


class Held(NamedTuple):
    """Peak memory of a rank, by part, at a moment, and what its device has."""

    parts: Mapping[str, Number]
    moment: str
    capacity_bytes: int


class Folded(NamedTuple):
    """One segment (or a sum of them): exposed seconds by part, communication hidden behind compute."""

    seconds: dict[str, Number]
    hidden_s: dict[str, Number]

    def add(self, other: Folded, times: Number = 1) -> None:
        for total, parts in zip(self, other, strict=True):
            for name, value in parts.items():
                _book(total, name, value * times)

    @property
    def total_s(self) -> Number:
        return sum(self.seconds.values())


def price(
    cluster: Cluster,
    workload: Workload,
    strategy: Strategy,
    placement: Placement | None = None,
    profile: Profile | None = None,
    framework: Framework = OURS,
) -> StepCost:
    """Time, memory and bytes of one step by part, as `framework` runs it. InputError: a strategy that cannot exist.

    >>> from cost_models import Cluster, Model, Strategy, Workload
    >>> work = Workload(Model.load("longvila-8b"), context_tokens=2 * 2**20)
    >>> cost = price(Cluster.load("dgx-h100", nodes=32), work, Strategy(ring=32, ulysses=8, shard=256))
    >>> cost.fits, 0.2 < cost.mfu < 0.7
    (True, True)
    """
    framework.check_scope("step")
    strategy.check(workload.model)
    check_placement(cluster, strategy.ranks, placement)
    here = cluster_costs(cluster, profile)
    runs, paths = here.runs(strategy.ranks, placement), here.paths(strategy, placement, framework.owned_tensors > 0)
    kernels, devices = here.kernels(runs, framework.measured_attention(workload)), here.devices(runs)
    ranges = strategy.layer_ranges(workload.model.layers)
    if strategy.token_shares:
        several = positions(here, workload, strategy, placement, framework)
        program = slowest([one.program() for one in several])
        _, held = fullest_position(several)
        on_host = max(float(rank_host_bytes(one.sizes, ranges)) for one in several)
    else:
        sizes = RankSizes(workload, strategy, framework.on(devices[0]))
        program = step_program(sizes, kernels, ranges)
        held = Held(*fullest(sizes, ranges, devices[0]), min(device.allocatable_bytes for device in devices))
        on_host = float(rank_host_bytes(sizes, ranges))
    folded = fold(program, paths)
    host = fullest_host(cluster, runs, strategy.ranks, placement, on_host)
    named = (*SECONDS, "experts") if "experts" in folded.seconds else SECONDS
    seconds = _floats({name: folded.seconds.get(name, 0.0) for name in named})
    hidden_s = _floats(folded.hidden_s)
    cost = StepCost(
        seconds=seconds,
        memory=Memory((name, round(float(held.parts[name]))) for name in MEMORY),
        sent_bytes=_floats(sent_bytes(program, strategy)),
        hidden_s=hidden_s,
        capacity_bytes=held.capacity_bytes,
        model_flops=flops.model_flops(workload),
        executed_flops=flops.executed_flops(workload, strategy, framework),
        peak_flops=strategy.ranks * sum(device.peak_16bit for device in devices) / len(devices),
        tokens=workload.global_batch * (1 if workload.mode == "decode" else workload.context_tokens),
        ranks=strategy.ranks,
        estimates=(*estimates(kernels, paths, cluster, strategy, workload.model), *_memory_estimates(devices, host)),
        moment=held.moment,
        host_bytes=host[0],
        host_capacity_bytes=host[1],
        basis=basis_of(seconds, hidden_s, program, kernels, paths, PRICED_AS, framework.product_dtype is not None),
    )
    narrow = framework.product_dtype
    peaks = (device.peak(narrow) if narrow else device.peak_16bit for device in devices)
    _refuse_above_peak(cost, strategy.ranks * max(peaks))
    return cost


def fullest_position(several: Sequence[Position]) -> tuple[Position, Held]:
    """The position of a ring of unequal blocks that has least room, and what its ranks hold."""
    found = []
    for one in several:
        ranges = one.sizes.degrees.layer_ranges(one.sizes.workload.model.layers)
        found.append((one, Held(*fullest(one.sizes, ranges, one.device), one.device.allocatable_bytes)))
    return max(found, key=lambda pair: sum(pair[1].parts.values()) / pair[1].capacity_bytes)


def _floats(parts: Mapping[str, Number]) -> dict[str, float]:
    return {name: float(value) for name, value in parts.items()}


def fold(program: StepProgram, paths: Paths) -> Folded:
    """All segments of a step of one rank."""
    step = Folded(seconds={}, hidden_s={"sharding": 0.0})
    known: dict[int, Folded] = {}

    def folded(segment: Segment) -> Folded:  # runs of equal layers have the same segment
        if id(segment) not in known:
            known[id(segment)] = fold_segment(segment, paths)
        return known[id(segment)]

    filling: Number = 0.0
    here_s: Number = 0.0
    layers_s: Number = 0.0
    for segment in program.microbatch:
        once, times = folded(segment), program.microbatches
        here_s = here_s + once.total_s * segment.repeat
        if segment.kind is not None:
            layers_s = layers_s + once.total_s * (segment.repeat + segment.fill(program.pipeline))
        if segment.last is not None:
            step.add(folded(segment.last), segment.repeat)
            times = times - 1
        step.add(once, times * segment.repeat)
        filling = filling + once.total_s * segment.fill(program.pipeline)
    for segment in program.epilogue:
        step.add(fold_segment(segment, paths), segment.repeat)
    waits = larger(0.0, layers_s * program.longest - here_s) * (program.microbatches - 1)
    _book(step.seconds, "pipeline", filling / program.virtual + waits)
    return step


def fold_segment(segment: Segment, paths: Paths) -> Folded:
    """One repeat of a segment."""
    seconds: dict[str, Number] = {}
    hidden: dict[str, Number] = {}
    busy: Number = 0.0  # seconds of the links that carry the sharding's collectives, taken by others
    staged: Number = 0.0  # seconds of the host's link that blocks of attention hide
    for phase in segment.phases:
        name = PRICED_AS[phase.part]
        if isinstance(phase, Compute):
            _book(seconds, name, phase.seconds * paths.pace)
        elif isinstance(phase, Exchange):
            sent_s = (
                paths.exchange_s(phase.axis, phase.op, phase.bytes)
                if phase.copies == 1
                else paths.dispatch_s(phase.axis, phase.bytes, phase.copies, phase.beside)
            )
            sent_s = pick(phase.bytes > 0, sent_s, 0.0)  # of arrays, those candidates that send
            _book(seconds, name, sent_s)
            busy = busy + pick(paths.shares_links(phase.axis, "shard"), sent_s, 0.0)
        elif isinstance(phase, Broadcasts):
            _book(seconds, name, _broadcasts_s(phase, paths))
        elif isinstance(phase, Passed):
            _book(seconds, name, paths.passed.recall(lambda *of: passed_s(Passed(*of), paths), phase))
        elif isinstance(phase, Staged):
            phase = phase._replace(seconds=phase.seconds * paths.pace)
            copied = phase.blocks * phase.bytes / paths.host_bytes_per_s
            exposed = phase.blocks * over(phase.bytes / paths.host_bytes_per_s, phase.seconds)
            _book(seconds, name, phase.blocks * phase.seconds)
            _book(seconds, "offload", exposed)
            _book(hidden, "offload", copied - exposed)
            staged = staged + copied - exposed
        else:
            phase = phase._replace(first_s=phase.first_s * paths.pace, piece_s=phase.piece_s * paths.pace)
            computed, exposed, sent = _ring(phase, paths)
            _book(seconds, name, computed)
            _book(seconds, "ring", exposed)
            _book(hidden, "ring", sent - exposed)
            busy = busy + pick(paths.shares_links("ring", "shard"), sent, 0.0)
    _concurrent(segment, paths, seconds, hidden, busy, staged)
    return Folded(seconds=seconds, hidden_s=hidden)


def _concurrent(
    segment: Segment, paths: Paths, seconds: dict[str, Number], hidden: dict[str, Number], busy: Number, staged: Number
) -> None:
    """Adds what runs concurrently with a segment's phases: sharding, host memory, and the host's launches."""
    if somewhere(segment.host_update_bytes > 0):
        _book(seconds, "optimizer", segment.host_update_bytes / paths.host_memory_bytes_per_s)
    duration = sum(seconds.values())
    exposed: Number = 0.0
    sharding: Number = 0.0
    if segment.sharding:
        sharding = sharding_s(segment, paths)
        cost = overlap_cost(segment, paths, sharding)
        exposed = smaller(larger(cost * sharding, sharding + busy - duration), sharding)
        _book(seconds, "sharding", exposed)
        _book(hidden, "sharding", sharding - exposed)
    copied = segment.offload_bytes / paths.host_bytes_per_s + staged
    if somewhere(copied > 0):
        bus = pick(paths.crosses("shard"), 0.0, sharding + busy) if paths.copies_share else 0.0
        _book(seconds, "offload", larger(0.0, copied + bus - duration - exposed))
    launching = segment.launching_s()
    if somewhere(launching > 0):
        _book(seconds, "host", larger(0.0, launching - sum(seconds.values())))


def _book(total: dict[str, Number], name: str, value: Number) -> None:
    total[name] = total[name] + value if name in total else value


def _broadcasts_s(sent: Broadcasts, paths: Paths) -> Number:
    """Bytes as of a gather, and for each owner the latency of a chain through its group.

    NCCL counts the network's latency for every rank of a chain that leaves a node (src/graph/tuning.cc, broadcast).
    """
    path = paths.axes[sent.axis]
    seconds: Number = paths.exchange_s(sent.axis, "all_gather", sent.bytes)
    if path.ranks > 1:
        seconds += sent.owners * path.chain_latency_s
    return seconds


def _ring(ring: Ring, paths: Paths) -> tuple[Number, Number, Number]:
    """(compute, exposed, sent) seconds: hop i hides behind block i, gradient hop i behind block i + 1.

    Over NVLink a hop may hide behind no more than the share `hiding` of the block (`layer/attention.py`).
    """
    if ring.double:
        return _double_ring(ring, paths)
    hops = ring.pieces - 1
    hop = paths.exchange_s("ring", "send", ring.hop_bytes)
    both_ways: Number = hop
    gradient: Number = 0.0
    if somewhere(ring.gradient_bytes > 0):
        both_ways = paths.exchange_s("ring", "send", ring.hop_bytes + ring.gradient_bytes)
        gradient = pick(ring.gradient_bytes > 0, paths.exchange_s("ring", "send", ring.gradient_bytes), 0.0)
    computed, further = ring.first_s + hops * ring.piece_s, larger(hops - 1, 0)
    hiding = pick(paths.crosses("ring"), 1.0, ring.hiding if paths.inside.many_channels else 1.0)
    exposed = over(hop, hiding * ring.first_s) + further * over(both_ways, hiding * ring.piece_s)
    exposed = pick(hops > 0, exposed + gradient, 0.0)
    sent = pick(hops > 0, hop + further * both_ways + gradient, 0.0)
    return computed, exposed, sent


def over(sending_s: Number, computing_s: Number) -> Number:
    """What a transfer of `sending_s`, concurrent with computation of `computing_s`, adds to it.

    >>> over(2.0, 1.0), over(1.0, 2.0)
    (1.0, 0.0)
    """
    return larger(0.0, sending_s - computing_s)


def _double_ring(ring: Ring, paths: Paths) -> tuple[Number, Number, Number]:
    """Rings inside the domains while one over the domains brings the next window's first block, on every rank's NIC.

    An inner hop hides behind a block, an outer one behind an inner round (LoongTrain, arXiv 2406.18485).
    """
    path = paths.axes["ring"]
    inner = path.local
    windows = ring.pieces / inner
    hop_bytes = ring.hop_bytes + ring.gradient_bytes
    inside = pick(inner > 1, paths.inside_s("send", path, hop_bytes), 0.0)
    outside = pick(windows > 1, paths.outward_s("ring", hop_bytes), 0.0)
    hiding = ring.hiding if paths.inside.many_channels else 1.0
    exposed = windows * (inner - 1) * over(inside, hiding * ring.piece_s)
    exposed = exposed + (windows - 1) * over(outside, inner * ring.piece_s)
    home = pick(ring.gradient_bytes > 0, paths.exchange_s("ring", "send", ring.gradient_bytes), 0.0)
    last = pick(ring.pieces > 1, home, 0.0)
    sent = windows * (inner - 1) * inside + (windows - 1) * outside + last
    return ring.first_s + (ring.pieces - 1) * ring.piece_s, exposed + last, sent


def sharding_s(segment: Segment, paths: Paths) -> Number:
    """Seconds on the sharding stream for one repeat."""
    total: Number = 0.0
    for one in segment.sharding:
        total = total + pick(one.bytes > 0, paths.exchange_s(one.axis, one.op, one.bytes), 0.0)
    return total


def overlap_cost(segment: Segment, paths: Paths, sharding: Number) -> Number:
    """Seconds by which a hidden second of the segment's collectives (`sharding` in all) lengthens its phases, by where
    those run."""
    if not segment.overlap_cost:
        return 0.0
    taken: Number = 0.0
    for one in segment.sharding:
        taken = taken + pick(one.bytes > 0, paths.taken_s(one.axis, one.op, one.bytes), 0.0)
    return segment.overlap_cost * taken / larger(sharding, 1e-12)


def sent_bytes(program: StepProgram, strategy: Strategy) -> dict[str, Number]:
    """Bytes that one rank sends in a step, by axis and operation (the rank's part of the result is not sent)."""
    sent: dict[str, Number] = {}

    def count(axis: str, op: str, size: Number, times: Number) -> None:
        ranks = getattr(strategy, axis)
        if ranks > 1 and somewhere(size > 0):
            share = 1.0 if op == "send" else (ranks - 1) / ranks * (2 if op == "all_reduce" else 1)
            _book(sent, f"{axis} {op}", share * size * times)

    for segment, times in program.segments():
        for phase in (*segment.sharding, *segment.phases):
            if isinstance(phase, Exchange):
                once = 1.0 if phase.copies == 1 else met(getattr(strategy, phase.axis), phase.copies)
                once = phase.beside / phase.copies if somewhere(phase.beside > 0) else once
                count(phase.axis, phase.op, phase.bytes * once, times)
            elif isinstance(phase, Broadcasts):
                count(phase.axis, "broadcast", phase.bytes, times)
            elif isinstance(phase, Passed) and phase.way == "gather":
                count(phase.axis, "all_gather", phase.gathered(getattr(strategy, phase.axis)).bytes, times)
            elif isinstance(phase, Passed):
                count(phase.axis, "send", _passed_bytes(phase), times)
            elif isinstance(phase, Ring):
                hops = phase.pieces - 1
                count("ring", "send", (phase.hop_bytes + phase.gradient_bytes) * hops, times)
    return sent


def _passed_bytes(phase: Passed) -> Number:
    """Sent by a rank in the middle of the row."""
    if phase.way == "chain":
        return phase.state_bytes
    return math.ceil(math.log2(phase.reach)) * phase.slots * phase.summary_bytes


def estimates(kernels: Kernels, paths: Paths, cluster: Cluster, strategy: Strategy, model: Model) -> tuple[str, ...]:
    """What no measurement backs, in words."""
    words = [f"attention by {kernels.attention_kernel}: the kernel that is assumed"]
    words += [f"{op}: {kernels.source(op)}" for op in OPS if kernels.is_estimate(op)]
    inside = paths.inside
    if strategy.ranks > 1 and inside.is_estimate("all_to_all"):
        words.append(f"links inside a node: {inside.source('all_to_all')}")
    if any(somewhere(paths.crosses(axis)) for axis in paths.axes):
        words.append(paths.network_source)
    if strategy.offload_states != "none":
        words.append("the CPU's update of states in host memory: its rate")
    if model.window:
        words.append(f"windows of {model.window} keys: their share of the pairs, less what tiles lose at both edges")
    if model.ssd is not None and not kernels.scans:
        words.append("scans of states: their operators counted from our code, timed as products and passes over memory")
    return (*words, *cluster.notes)


def _memory_estimates(devices: Sequence[Device], host: tuple[int, int]) -> Iterator[str]:
    yield "memory: fragments, communication and context are estimates; the rest is counted tensor by tensor"
    for name in dict.fromkeys(device.name for device in devices if not device.allocatable_source):
        yield f"memory of {name}: {DRIVER_GIB} GiB (0.02 to 1.1) of what its driver lists are the driver's own"
    if host[0] and not host[1]:
        yield f"host memory is not known: the {show_bytes(host[0])} a node needs there are compared with nothing"


def _refuse_above_peak(cost: StepCost, peak_flops: float) -> None:
    if cost.executed_flops > cost.step_s * peak_flops:
        raise AssertionError(
            f"{cost.executed_flops:.3g} FLOP in {cost.step_s:.3g} s is above the peak of {peak_flops:.3g} FLOP/s"
        )
