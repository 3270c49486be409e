"""A simulated step as a Chrome trace, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

    process = slot (node)      thread = stream of one rank      complete events ("ph": "X"), times in microseconds

One rank of each class is shown: the others do the same at the same time. Same simulation, same bytes: keys are sorted,
times are rounded to a nanosecond, and no clock is read. Left out: single flows and their rates.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.simulator.script import Stream

STREAMS: tuple[Stream, ...] = ("main", "sharding", "copy")


@dataclass(frozen=True, kw_only=True)
class Span:
    """What a stream of a rank class did for how long."""

    rank_class: int
    stream: Stream
    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class Place:
    """The rank that stands for a class."""

    rank: int
    ranks: int  # in the class
    slot: int
    gpu: int


@dataclass(frozen=True, kw_only=True)
class Trace:
    spans: tuple[Span, ...]
    places: tuple[Place, ...]  # by rank class

    def events(self) -> list[dict[str, Any]]:
        """Trace events: names of processes and threads first, then spans by start."""
        named: list[dict[str, Any]] = []
        for slot in sorted({place.slot for place in self.places}):
            named.append({"ph": "M", "name": "process_name", "pid": slot, "tid": 0, "args": {"name": f"slot {slot}"}})
        for c, place in enumerate(self.places):
            for stream in STREAMS:
                if any(span.rank_class == c and span.stream == stream for span in self.spans):
                    label = f"rank {place.rank} (x{place.ranks}) {stream}"
                    thread = {"pid": place.slot, "tid": self._thread(place, stream)}
                    named.append({"ph": "M", "name": "thread_name", **thread, "args": {"name": label}})
        order = sorted(self.spans, key=lambda span: (span.start_s, span.rank_class, STREAMS.index(span.stream)))
        return named + [self._event(span) for span in order]

    def _thread(self, place: Place, stream: Stream) -> int:
        return place.gpu * len(STREAMS) + STREAMS.index(stream)

    def _event(self, span: Span) -> dict[str, Any]:
        place = self.places[span.rank_class]
        return {
            "ph": "X",
            "name": span.name,
            "cat": span.stream,
            "pid": place.slot,
            "tid": self._thread(place, span.stream),
            "ts": round(span.start_s * 1e6, 3),
            "dur": round((span.end_s - span.start_s) * 1e6, 3),
        }

    def text(self) -> str:
        events = ",\n".join(json.dumps(event, sort_keys=True) for event in self.events())
        return f'{{"displayTimeUnit": "ms", "traceEvents": [\n{events}\n]}}\n'

    def write(self, path: Path | str) -> None:
        """The whole file or none of it."""
        target = Path(path)
        draft = target.with_name(target.name + ".part")
        draft.write_text(self.text(), encoding="utf-8")
        draft.replace(target)
