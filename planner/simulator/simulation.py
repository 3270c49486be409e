"""The time of one step by discrete events on the real topology: what `price` cannot see is who waits for whom.

    step_program (price's own) > script > flows of every collective on the links > classes of equal ranks > playback

`seconds` are the parts, as `price` names them, of the rank that ends last (of those, the one that waited least); they
add up to `step_s`. `waiting` is time lost to slower ranks of a group. A pipeline is played as its stages in step, every
microbatch through all of them, and its bubble of (stages - 1) / virtual microbatches is added. Links carry what they
really reach, as in `price`. A device that is slower than another one is so by one factor, its compute seconds over the
slowest's. Of a ring of unequal blocks every rank computes what the slowest does in each phase, as in `price`, and they
go round as if all were of their mean. Gathers and reductions slow the segment that hides them, and a segment lasts as
long as its launches take the host, both as in `price`. Left out: other stalls of the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from msgspec import Struct

from cost_models.cost import COMPUTED, PRICED_AS
from cost_models.framework import OURS, Framework
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.device import Device
from cost_models.hardware.placement import Placement
from cost_models.hardware.wiring import NIC_IN, NIC_OUT, LinkRates
from cost_models.layer.sizes import RankSizes
from cost_models.memory.over_time import over_time
from cost_models.pricing import fullest_position, overlap_cost
from cost_models.profile import Profile
from cost_models.program import Compute, Ring, Segment, Staged, StepProgram
from cost_models.ssd_messages import passing_order
from cost_models.step.assembly import step_program
from cost_models.step.unequal import positions, slowest
from cost_models.strategy import Strategy, rank_groups
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.timing.collectives import Collectives
from cost_models.timing.paths import Paths
from cost_models.workload import Workload
from planner.search.space import check_plannable
from planner.simulator.fast_forward import FastForward
from planner.simulator.flows import Pattern, pattern, twice
from planner.simulator.folding import Partition, averaged, coarse, equitable, singletons, split
from planner.simulator.link_classes import LinkClasses
from planner.simulator.network import Network, network
from planner.simulator.passing import passed
from planner.simulator.playback import Playback
from planner.simulator.proof import Unlike
from planner.simulator.streams import BUBBLE, WAITING, Script, instances, write_script
from planner.simulator.topology import Floats, Topology
from planner.simulator.trace import Counter, Place, Recorder, Trace

BUSIEST = 8
FEWER = 3
"""Unless coarse classes are so many times fewer than equitable ones, or once plays that failed have taken more than
these would have up to there, equitable ones are played."""
MOST_CLASSES = 512
"""Of layouts that fold to more classes of ranks averaged ones are played: replicas that are nearly alike as one."""


@dataclass(frozen=True, kw_only=True)
class LinkUse:
    """A link, one of `alike` that carry the same."""

    name: str
    alike: int
    bytes: float
    utilisation: float  # of the step's time at full rate


@dataclass(frozen=True, kw_only=True)
class Simulation:
    step_s: float
    seconds: Mapping[str, float]  # by part as in StepCost, and `waiting`; of the slowest rank; sums to step_s
    exposed_s: Mapping[str, float]  # of these, what is not computation, by kind
    spent_s: Mapping[str, float]  # the same rank's time by part of the step's program
    slowest_rank: int
    busiest_links: tuple[LinkUse, ...]
    sent_bytes: float  # all flows of all ranks
    events: int
    ranks: int
    classes: int  # of ranks that behave alike
    flow_classes: int
    jumps: int  # over repeated rounds, layers, microbatches
    averaged: bool = False  # classes are alike only nearly
    memory: tuple[tuple[float, float], ...] = ()  # of the slowest rank: (from when on, bytes)
    trace: Trace | None = None


def simulate(
    cluster: Cluster,
    workload: Workload,
    strategy: Strategy,
    placement: Placement | None = None,
    *,
    profile: Profile | None = None,
    framework: Framework = OURS,
    fold: bool = True,
    trace: bool = False,
    jitter: float = 0.0,
    seed: int = 0,
) -> Simulation:
    """One step of `workload` under `strategy`. `fold=False` plays every rank, flow and repeat; `trace` keeps spans.

    `jitter` is the standard deviation of the GPUs' speeds: each computes exp(jitter x normal) times as long, drawn
    once for each rank by `seed`.

    >>> from cost_models import Model
    >>> cluster, model = Cluster.load("dgx-h100", nodes=2), Model.load("longvila-8b")
    >>> found = simulate(cluster, Workload(model, context_tokens=2**17), Strategy(ring=2, ulysses=8, shard=16))
    >>> found.classes, abs(sum(found.seconds.values()) - found.step_s) < 1e-9
    (1, True)
    """
    placement = placement or Placement.in_order(cluster, strategy.ranks)
    program, scale = played_program(cluster, workload, strategy, placement, profile, framework)
    device = cluster.runs[0].node.device
    if strategy.token_shares:
        of_ring = positions(cluster_costs(cluster, profile), workload, strategy, placement, framework)
        held, _ = fullest_position(of_ring)
        memory = _memory_by_instance(held.device, held.sizes, program)
    else:
        memory = _memory_by_instance(device, RankSizes(workload, strategy, framework.on(device)), program)
    if jitter:
        scale = scale * np.exp(jitter * np.random.default_rng(seed).standard_normal(strategy.ranks))
    costs = cluster_costs(cluster, profile)
    inside = costs.links(costs.runs(strategy.ranks, placement))
    return play(
        program, cluster, strategy, placement, rates=costs.rates, inside=inside,
        compute_scale=scale, memory=memory, fold=fold, trace=trace,
    )  # fmt: skip


def played_program(
    cluster: Cluster,
    workload: Workload,
    strategy: Strategy,
    placement: Placement,
    profile: Profile | None,
    framework: Framework = OURS,
) -> tuple[StepProgram, Floats]:
    """The step at the slowest device's pace, and for each rank its computation over that."""
    check_plannable(workload.model)
    strategy.check(workload.model)
    placement.check(cluster, strategy.ranks)
    costs = cluster_costs(cluster, profile)
    runs, paths = costs.runs(strategy.ranks, placement), costs.paths(strategy, placement)
    if strategy.token_shares:
        several = positions(costs, workload, strategy, placement, framework)
        program = slowest([one.program() for one in several])
        return _shared(_updated(program, paths), paths), paths.pace * np.ones(strategy.ranks)
    shape, ranges = RankSizes(workload, strategy, framework), strategy.layer_ranges(workload.model.layers)
    attention = framework.measured_attention(workload)
    program = step_program(shape, costs.kernels(runs, attention), ranges)
    factor, devices = np.ones(len(cluster.runs)), costs.devices(runs)
    first = [devices.index(device) for device in devices]  # run with the same device, by run in use
    if len(set(first)) > 1:
        seconds = {i: compute_s(step_program(shape, costs.kernels((runs[i],), attention), ranges)) for i in set(first)}
        factor[list(runs)] = [seconds[i] / compute_s(program) for i in first]
    played = _shared(_updated(program, paths), paths)
    return played, paths.pace * factor[cluster.run_of_slot[placement.slot_of_rank]]


def _shared(program: StepProgram, paths: Paths) -> StepProgram:
    """With what hidden collectives take from the computation by where they run."""

    def shared(segment: Segment) -> Segment:
        last = None if segment.last is None else shared(segment.last)
        return segment._replace(overlap_cost=float(overlap_cost(segment, paths)), last=last)

    return replace(program, microbatch=tuple(map(shared, program.microbatch)))


def _updated(program: StepProgram, paths: Paths) -> StepProgram:
    """With the CPU's update of states in host memory, if there is one, in seconds, which no slow board stretches."""

    def updated(segment: Segment) -> Segment:
        if not segment.host_update_bytes:
            return segment
        rate = paths.host_memory_bytes_per_s * float(paths.pace)
        host = Compute(part="optimizer", seconds=segment.host_update_bytes / rate)
        return segment._replace(phases=(host, *segment.phases))

    return replace(program, epilogue=tuple(map(updated, program.epilogue)))


def compute_s(program: StepProgram) -> float:
    """Seconds that one rank computes in a step."""
    total = 0.0
    for segment, times in program.segments():
        for phase in segment.phases:
            if isinstance(phase, Compute):
                total += float(phase.seconds * times)
            elif isinstance(phase, Ring):
                total += float((phase.first_s + (phase.pieces - 1) * phase.piece_s) * times)
            elif isinstance(phase, Staged):
                total += float(phase.blocks * phase.seconds * times)
    return total


def play(
    program: StepProgram,
    cluster: Cluster,
    strategy: Strategy,
    placement: Placement | None = None,
    *,
    rates: LinkRates | None = None,
    inside: Collectives | None = None,
    compute_scale: Floats | None = None,
    memory: Floats | None = None,
    fold: bool = True,
    trace: bool = False,
) -> Simulation:
    """Play `program` on links at `rates` (default: data sheets'), whose collectives inside a domain take `inside`'s
    latency (default: that of their hops).

    `compute_scale` (per rank) stretches computation. `memory` has a rank's bytes during each instance of a segment:
    those of one microbatch, then the epilogue's.
    """
    setup = set_up(program, cluster, strategy, placement, rates=rates, inside=inside, compute_scale=compute_scale)
    playback, jumps = played(setup, fold=fold, trace=trace)
    topology = setup.topology
    made = None
    if playback.recorder:
        made = Trace(
            spans=tuple(playback.recorder.spans),
            places=_places(topology, playback.network.partition),
            arrows=tuple(playback.recorder.arrows),
            counters=(*_link_counters(playback), *_memory_counters(playback, topology, memory)),
        )
    found = _result(playback, jumps, memory, made)
    if made is None:
        return found
    carried = playback.transfers.carried
    return replace(
        found, trace=replace(made, card_loads=_card_loads(playback.network, topology, carried, found.step_s))
    )


class Setup(Struct, frozen=True, kw_only=True, eq=False):
    """A step and where it runs, before its ranks are put into classes."""

    script: Script
    topology: Topology
    patterns: list[Pattern]  # by use
    different: list[Pattern]  # of these, by more than how often a ring goes round
    scale: Floats  # (ranks,)

    def playback(self, partition: Partition) -> Playback:
        """All set up, nothing played."""
        folded = network(self.topology, partition, self.patterns)
        return Playback(self.script, folded, self.scale[partition.representative])


def set_up(
    program: StepProgram,
    cluster: Cluster,
    strategy: Strategy,
    placement: Placement | None = None,
    *,
    rates: LinkRates | None = None,
    inside: Collectives | None = None,
    compute_scale: Floats | None = None,
) -> Setup:
    placement = placement or Placement.in_order(cluster, strategy.ranks)
    placement.check(cluster, strategy.ranks)
    scale = np.ones(strategy.ranks) if compute_scale is None else np.asarray(compute_scale, dtype=np.float64)
    script = write_script(program, strategy)
    topology = Topology(cluster, placement, rates, inside)
    patterns, different = _patterns(topology, script, strategy)
    return Setup(script=script, topology=topology, patterns=patterns, different=different, scale=scale)


def played(setup: Setup, *, fold: bool = True, trace: bool = False) -> tuple[Playback, int]:
    """The playback at its end, and how often it jumped over repeats; without `fold` each rank is a class of its own.

    Coarse classes, where they are far fewer, are split where `proof.py` finds that they differ, and played anew. Of
    more than MOST_CLASSES, averaged ones are played instead.
    """
    about = setup.topology, setup.different
    enough = np.inf if trace else max(FEWER, 1) * MOST_CLASSES  # then they are not played
    fine = equitable(*about, setup.scale, enough) if fold else singletons(setup.topology.ranks)
    partition = coarse(*about, setup.scale) if fine.classes > 1 and fold else fine
    spent = 0  # rank classes times events of the plays that failed
    while True:
        if partition.classes * FEWER > fine.classes:
            partition = fine
        if partition.classes > MOST_CLASSES and fold and not trace:
            partition = averaged(*about, setup.scale)
        playback, forward = setup.playback(partition), FastForward()
        playback.recorder = Recorder(playback.network) if trace else None
        try:
            playback.play(forward if fold and not trace else None)
            break
        except Unlike as unlike:
            variants = playback.network.variants
            assert variants is not None
            partition = split(*about, partition, variants.ranks(unlike.kinds))
            spent += playback.network.partition.classes * playback.events
            if spent > fine.classes * playback.events:
                partition = fine
    return playback, forward.jumps


def _patterns(topology: Topology, script: Script, strategy: Strategy) -> tuple[list[Pattern], list[Pattern]]:
    """The pattern of each use, and those among them that differ by more than how often a ring goes round."""
    made: dict[tuple[str, str, int], Pattern] = {}
    uses = []
    for use in script.uses:
        op = "all_gather" if use.op in ("reduce_scatter", "all_reduce") else use.op
        key = use.axis, op, use.reach
        if key not in made:
            groups = rank_groups(strategy, use.axis)
            order = passing_order(strategy, use.axis) if op in ("chain", "tree") else ()
            made[key] = passed(topology, groups, op, order, use.reach) if order else pattern(topology, groups, op)
        uses.append(twice(made[key]) if use.op == "all_reduce" else made[key])
    return uses, list(made.values())


def _places(topology: Topology, partition: Partition) -> tuple[Place, ...]:
    found = zip(partition.representative.tolist(), partition.size.tolist(), strict=True)
    return tuple(
        Place(rank=rank, ranks=size, slot=int(topology.slot[rank]), gpu=int(topology.gpu[rank])) for rank, size in found
    )


def _memory_by_instance(device: Device, sizes: RankSizes, program: StepProgram) -> Floats:
    """Bytes of a rank while each instance of a microbatch's segments runs, then each of the epilogue's."""
    ranges = sizes.degrees.layer_ranges(sizes.workload.model.layers)
    segments = (*program.microbatch, *program.epilogue)
    found = []
    ends = over_time(sizes, ranges, program, device)
    for segment, (first, last) in zip(segments, ends, strict=True):
        found.append(np.linspace(first, last, instances(segment)))
    return np.concatenate(found)


def _memory_over_time(playback: Playback, memory: Floats | None, r: int) -> tuple[tuple[float, float], ...]:
    """When each instance began, and the bytes from then on; what was skipped is evenly spaced."""
    if memory is None:
        return ()
    script = playback.script
    known = np.array(playback.starts[r])
    k = np.arange(script.end)
    starts = np.interp(k, known[:, 0], known[:, 1])
    cycle = len(script.cycle)
    level = memory[np.where(k < script.main_end, k % cycle, k - script.main_end + cycle)]
    return tuple(zip(starts.tolist(), level.tolist(), strict=True))


def _memory_counters(playback: Playback, topology: Topology, memory: Floats | None) -> Iterator[Counter]:
    for r, place in enumerate(_places(topology, playback.network.partition)):
        if curve := _memory_over_time(playback, memory, r):
            times, held = zip(*curve, strict=True)
            in_gib = tuple(value / 2**30 for value in held)
            yield Counter(name=f"rank {place.rank} memory", slot=place.slot, unit="GiB", times_s=times, values=in_gib)


def _result(playback: Playback, jumps: int, memory: Floats | None, trace: Trace | None) -> Simulation:
    script, folded = playback.script, playback.network
    ended = np.array([rank.ended for rank in playback.ranks])
    bubble = np.array([rank.main_ended for rank in playback.ranks]) * script.bubble_cycles / script.cycles
    playback.parts[:, playback.column[BUBBLE]] += bubble
    late = ended + bubble
    last = np.flatnonzero(late >= late.max() * (1 - 1e-12))
    slowest = int(last[playback.parts[last, playback.column[WAITING]].argmin()])
    spent = {part: float(playback.parts[slowest, i]) for part, i in playback.column.items()}
    step_s = float(late.max())
    return Simulation(
        step_s=step_s,
        seconds=_as_priced(spent),
        exposed_s={part: value for part, value in spent.items() if part not in COMPUTED and value > 0},
        spent_s=spent,
        slowest_rank=int(folded.partition.representative[slowest]),
        busiest_links=_busiest(folded, playback.transfers.carried, step_s),
        sent_bytes=float(playback.transfers.carried @ folded.copies),
        events=playback.events,
        ranks=int(folded.partition.size.sum()),
        classes=folded.partition.classes,
        flow_classes=folded.sharing.flows,
        jumps=jumps,
        averaged=folded.partition.averaged,
        memory=_memory_over_time(playback, memory, slowest),
        trace=trace,
    )


def _as_priced(spent: Mapping[str, float]) -> dict[str, float]:
    """Under the names of StepCost; only what took time."""
    seconds: dict[str, float] = {}
    for part, value in spent.items():
        if value > 0:
            name = PRICED_AS.get(part, part)
            seconds[name] = seconds.get(name, 0.0) + value
    return seconds


def _busiest_first(folded: Network, load: Floats) -> list[int]:
    """The links that carry anything, by the time that each needs for its `load` (bytes)."""
    needed = load / folded.sharing.capacity
    most = float(needed.max(initial=0.0)) or 1.0
    return sorted(
        np.flatnonzero(load > 0).tolist(),
        key=lambda link: (-round(float(needed[link]) / most, 9), folded.link_names[link]),
    )


def _load(folded: Network, carried: Floats) -> Floats:
    sharing = folded.sharing
    load = np.bincount(sharing.link, sharing.count * carried[sharing.flow], len(sharing.capacity))
    return np.asarray(load, dtype=np.float64)


def _link_counters(playback: Playback) -> tuple[Counter, ...]:
    """How loaded the busiest links are over the step."""
    assert playback.recorder is not None
    folded = playback.network
    links = _busiest_first(folded, _load(folded, playback.transfers.carried))[:BUSIEST]
    return tuple(
        Counter(name=folded.link_names[link], slot=None, unit="load", times_s=tuple(times), values=tuple(values))
        for link, times, values in playback.recorder.link_loads(links)
    )


def _card_loads(folded: Network, topology: Topology, carried: Floats, step_s: float) -> dict[str, float]:
    """Share of the step that each network card is busy, one way, by the link's name."""
    used = _load(folded, carried) / (folded.sharing.capacity * step_s)
    of_class = dict(zip(folded.link_names, used.tolist(), strict=True))
    classes = LinkClasses(topology, folded.partition)
    loads: dict[str, float] = {}
    for kind in (NIC_OUT, NIC_IN):
        class_of_unit, _, lowest = classes.of_kind(kind)
        for unit, number in enumerate(class_of_unit.tolist()):
            loads[topology.link_name(kind, unit)] = of_class.get(topology.link_name(kind, int(lowest[number])), 0.0)
    return loads


def _busiest(folded: Network, carried: Floats, step_s: float) -> tuple[LinkUse, ...]:
    load = _load(folded, carried)
    used = load / (folded.sharing.capacity * step_s)
    return tuple(
        LinkUse(
            name=folded.link_names[link],
            alike=int(folded.link_copies[link]),
            bytes=float(load[link]),
            utilisation=float(used[link]),
        )
        for link in _busiest_first(folded, load)[:BUSIEST]
    )
