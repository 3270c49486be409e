"""The trace is what Perfetto reads: events with their fields, streams that never overlap, the same bytes twice."""

import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from cost_models.strategy import Strategy
from planner.simulator.simulation import Simulation, play
from tests.planner.clusters import DEGRADED, cluster, layers, node, step

PROGRAM = step(
    layers(4, 6, gather=3e6, hop=9e6, offload=1e6),
    layers(4, 6, gather=3e6, scatter=6e6, replicate=1e6, gradient=4e6, offload=1e6, name="layer backward"),
    microbatches=2,
)
LAYOUT = Strategy(data=2, ring=4, ulysses=2, shard=8)


def traced() -> Simulation:
    nodes = [node(), node(nics=DEGRADED), node(), node()]
    return play(PROGRAM, cluster(*nodes), LAYOUT, trace=True)


def events(found: Simulation, path: Path) -> list[dict[str, Any]]:
    assert found.trace is not None
    found.trace.write(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    assert set(data) == {"displayTimeUnit", "otherData", "traceEvents"}
    return list(data["traceEvents"])


def test_every_event_is_complete(tmp_path: Path) -> None:
    found = traced()
    for event in events(found, tmp_path / "trace.json"):
        assert event["ph"] in ("M", "X", "s", "f", "C")
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        if event["ph"] == "X":
            assert event["name"] and event["ts"] >= 0 and event["dur"] >= 0
            assert event["ts"] + event["dur"] <= found.step_s * 1e6 + 1e-2
        elif event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name") and event["args"]["name"]
    assert not list(tmp_path.glob("*.part"))


def test_spans_of_a_stream_do_not_overlap_and_fill_the_main_stream(tmp_path: Path) -> None:
    found = traced()
    streams: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    named = {}
    for event in events(found, tmp_path / "trace.json"):
        key = (event["pid"], event["tid"])
        if event["ph"] == "X":
            streams[key].append((event["ts"], event["ts"] + event["dur"]))
        elif event["name"] == "thread_name":
            named[key] = event["args"]["name"]
    assert set(streams) == set(named)
    assert {name.rsplit(" ", 1)[1] for name in named.values()} == {"main", "sharding", "copy"}
    for key, spans in streams.items():
        spans.sort()
        for (_, end), (start, _) in itertools.pairwise(spans):
            assert start >= end - 2e-3, named[key]


def test_same_step_same_bytes_and_same_time_as_without_a_trace() -> None:
    first, second = traced(), traced()
    assert first.trace is not None and second.trace is not None
    assert first.trace.text() == second.trace.text()
    nodes = [node(), node(nics=DEGRADED), node(), node()]
    assert first.step_s == pytest.approx(play(PROGRAM, cluster(*nodes), LAYOUT).step_s, rel=1e-9)


def test_no_trace_unless_asked_for() -> None:
    assert play(PROGRAM, cluster(*[node()] * 4), LAYOUT).trace is None
