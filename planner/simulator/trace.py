"""A simulated step as a Chrome trace, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

    process = slot (node)    thread = stream of one rank    spans ("X"), arrows ("s" to "f"), counters ("C"), in us

One rank of each class is shown: the others do the same at the same time. An arrow goes from the rank that reaches a
collective last to those that waited for it. Counters show the load of the busiest links and each rank's memory. Same
simulation, same bytes: keys are sorted, times are rounded to a nanosecond, no clock is read. Left out: single flows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from cost_models.program import Op
from planner.files import write_whole
from planner.simulator.network import Network
from planner.simulator.streams import Rounds, Send, Stream
from planner.simulator.topology import Floats, Ints
from planner.simulator.transfers import Component

STREAMS: tuple[Stream, ...] = ("main", "sharding", "copy", "ring")


class Span(Struct, frozen=True, kw_only=True):
    """What a stream of a rank class did for how long, in instance `k` of the script; `op` if it was a collective."""

    rank_class: int
    stream: Stream
    name: str
    start_s: float
    end_s: float
    k: int
    op: Op | None = None


class Arrow(Struct, frozen=True, kw_only=True):
    """A collective starts: `source` reached it last, `target` waited."""

    source: int
    target: int
    stream: Stream
    at_s: float


class Place(Struct, frozen=True, kw_only=True):
    """The rank that stands for a class."""

    rank: int
    ranks: int  # in the class
    slot: int
    gpu: int


class Counter(Struct, frozen=True, kw_only=True):
    """Values over time: each holds from its time to the next one's. `slot` is `None` for what lies between slots."""

    name: str
    slot: int | None
    unit: str
    times_s: tuple[float, ...]
    values: tuple[float, ...]


class Recorder:
    """Collects what a playback does."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.spans: list[Span] = []
        self.arrows: list[Arrow] = []
        self._rates: list[tuple[float, tuple[int, ...], Ints, Floats]] = []

    def span(self, span: Span) -> None:
        if span.end_s > span.start_s:
            self.spans.append(span)

    def arrow(self, source: int, members: Sequence[int], todo: Send | Rounds, at_s: float) -> None:
        stream: Stream = "main" if isinstance(todo, Rounds) else todo.stream
        for target in members:
            if target != source:
                self.arrows.append(Arrow(source=source, target=target, stream=stream, at_s=at_s))

    def rates(self, now: float, component: Component) -> None:
        self._rates.append((now, component.islands, component.flows, component.rate))

    def link_loads(self, links: Sequence[int]) -> Iterator[tuple[int, list[float], list[float]]]:
        """For each of `links` the times at which its load changes, and the load from then on, of its capacity."""
        sharing = self.network.sharing
        for link in links:
            entry = np.flatnonzero(sharing.link == link)
            per_flow = np.zeros(sharing.flows)
            np.add.at(per_flow, sharing.flow[entry], sharing.count[entry] / sharing.capacity[link])
            load: dict[int, float] = {}  # by island
            times, values = [0.0], [0.0]
            for now, islands, flows, rate in self._rates:
                for island in islands:
                    load[island] = 0.0
                load[islands[0]] = float(per_flow[flows] @ rate)
                total = sum(load.values())
                if now == times[-1]:
                    values[-1] = total
                elif abs(total - values[-1]) > 1e-12:
                    times.append(now)
                    values.append(total)
            yield link, times, values


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What Perfetto draws: spans, arrows between them, counters."""

    spans: tuple[Span, ...]
    places: tuple[Place, ...]  # by rank class
    arrows: tuple[Arrow, ...] = ()
    counters: tuple[Counter, ...] = ()
    card_loads: Mapping[str, float] = field(default_factory=dict)  # share of the step that a card is busy, by its link

    def events(self) -> list[dict[str, Any]]:
        """Trace events: names of processes and threads first, then spans by start, arrows, counters."""
        named: list[dict[str, Any]] = []
        slots = sorted({place.slot for place in self.places})
        between = slots[-1] + 1
        processes = [(slot, f"slot {slot}") for slot in slots] + [(between, "busiest links")] * bool(self.counters)
        for number, name in processes:
            named.append({"ph": "M", "name": "process_name", "pid": number, "tid": 0, "args": {"name": name}})
        used = {(span.rank_class, span.stream) for span in self.spans}
        for c, place in enumerate(self.places):
            for stream in STREAMS:
                if (c, stream) in used:
                    label = f"rank {place.rank} (x{place.ranks}) {stream}"
                    thread = {"pid": place.slot, "tid": self._thread(place, stream)}
                    named.append({"ph": "M", "name": "thread_name", **thread, "args": {"name": label}})
        order = sorted(self.spans, key=lambda span: (span.start_s, span.rank_class, STREAMS.index(span.stream)))
        arrows = [event for i, arrow in enumerate(self.arrows) for event in self._arrow(i, arrow)]
        counters = [event for counter in self.counters for event in _samples(counter, between)]
        return named + [self._event(span) for span in order] + arrows + counters

    def _thread(self, place: Place, stream: Stream) -> int:
        return place.gpu * len(STREAMS) + STREAMS.index(stream)

    def _on(self, rank_class: int, stream: Stream) -> dict[str, int]:
        place = self.places[rank_class]
        return {"pid": place.slot, "tid": self._thread(place, stream)}

    def _event(self, span: Span) -> dict[str, Any]:
        return {
            "ph": "X",
            "name": span.name,
            "cat": span.stream,
            **self._on(span.rank_class, span.stream),
            "ts": round(span.start_s * 1e6, 3),
            "dur": round((span.end_s - span.start_s) * 1e6, 3),
        }

    def _arrow(self, number: int, arrow: Arrow) -> list[dict[str, Any]]:
        both = {"name": "starts", "cat": "waits for", "id": number, "ts": round(arrow.at_s * 1e6, 3)}
        return [
            {"ph": "s", **both, **self._on(arrow.source, arrow.stream)},
            {"ph": "f", "bp": "e", **both, **self._on(arrow.target, arrow.stream)},
        ]

    def text(self) -> str:
        events = ",\n".join(json.dumps(event, sort_keys=True) for event in self.events())
        return f'{{"displayTimeUnit": "ms", "traceEvents": [\n{events}\n]}}\n'

    def write(self, path: Path | str) -> None:
        """All of the file or none of it."""
        write_whole(path, self.text(), "--trace")


def _samples(counter: Counter, between: int) -> Iterator[dict[str, Any]]:
    for time_s, value in zip(counter.times_s, counter.values, strict=True):
        yield {
            "ph": "C",
            "name": counter.name,
            "pid": between if counter.slot is None else counter.slot,
            "tid": 0,
            "ts": round(time_s * 1e6, 3),
            "args": {counter.unit: round(value, 6)},
        }
