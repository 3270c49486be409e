"""What a playback says when it has ended: times by part, the slowest rank, the busiest links, memory, and the trace.

`seconds` are the parts, as `price` names them, of the rank that ends last (of those, the one that waited least); they
add up to `step_s`. `waiting` is time lost to slower ranks of a group. A pipeline's bubble of (stages - 1) / virtual
microbatches is added to what was played.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from cost_models.cost import COMPUTED, PRICED_AS
from cost_models.hardware.wiring import NIC_IN, NIC_OUT
from planner.simulator.folding import Partition
from planner.simulator.link_classes import LinkClasses
from planner.simulator.network import Network
from planner.simulator.playback import Playback
from planner.simulator.streams import BUBBLE, WAITING
from planner.simulator.topology import Floats, Topology
from planner.simulator.trace import Counter, Place, Trace

BUSIEST = 8
"""Links that are named."""


@dataclass(frozen=True, kw_only=True)
class LinkUse:
    """A link, one of `alike` that carry the same."""

    name: str
    alike: int
    bytes: float
    utilisation: float  # of the step's time at full rate


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A simulated step: its seconds by part, its busiest links, its memory over time."""

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


def result(playback: Playback, jumps: int, memory: Floats | None, trace: Trace | None) -> Simulation:
    """Of a playback at its end, which jumped over so many repeats; `memory`: see `simulation.play`."""
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


def places(topology: Topology, partition: Partition) -> tuple[Place, ...]:
    """Where the first rank of each class is, and how many ranks the class has."""
    found = zip(partition.representative.tolist(), partition.size.tolist(), strict=True)
    return tuple(
        Place(rank=rank, ranks=size, slot=int(topology.slot[rank]), gpu=int(topology.gpu[rank])) for rank, size in found
    )


def memory_counters(playback: Playback, topology: Topology, memory: Floats | None) -> Iterator[Counter]:
    """GiB of the first rank of each class over the step."""
    for r, place in enumerate(places(topology, playback.network.partition)):
        if curve := _memory_over_time(playback, memory, r):
            times, held = zip(*curve, strict=True)
            in_gib = tuple(value / 2**30 for value in held)
            yield Counter(name=f"rank {place.rank} memory", slot=place.slot, unit="GiB", times_s=times, values=in_gib)


def link_counters(playback: Playback) -> tuple[Counter, ...]:
    """How loaded the busiest links are over the step."""
    assert playback.recorder is not None
    folded = playback.network
    links = _busiest_first(folded, _load(folded, playback.transfers.carried))[:BUSIEST]
    return tuple(
        Counter(name=folded.link_names[link], slot=None, unit="load", times_s=tuple(times), values=tuple(values))
        for link, times, values in playback.recorder.link_loads(links)
    )


def card_loads(folded: Network, topology: Topology, carried: Floats, step_s: float) -> dict[str, float]:
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
