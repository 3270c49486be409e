"""The trace is what Perfetto reads: events with their fields, streams that never overlap, the same bytes twice."""

import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from cost_models import Cluster, Model, Workload
from cost_models.strategy import Strategy
from planner.simulator.result import Simulation
from planner.simulator.simulation import play, simulate
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
    assert set(data) == {"displayTimeUnit", "traceEvents"}
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
    assert {name.rsplit(" ", 1)[1] for name in named.values()} == {"main", "sharding", "copy", "ring"}
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


def test_arrows_come_from_the_last_to_arrive_and_counters_stay_below_what_links_carry(tmp_path: Path) -> None:
    found = traced()
    drawn = events(found, tmp_path / "trace.json")
    starts = {event["id"]: event for event in drawn if event["ph"] == "s"}
    ends = {event["id"]: event for event in drawn if event["ph"] == "f"}
    assert starts and set(starts) == set(ends)
    for number, start in starts.items():
        assert start["ts"] == ends[number]["ts"]
        assert (start["pid"], start["tid"]) != (ends[number]["pid"], ends[number]["tid"])
    loads = [event["args"]["load"] for event in drawn if event["ph"] == "C" and "load" in event["args"]]
    assert max(loads) == pytest.approx(1) and min(loads) >= 0


def test_a_links_counter_adds_up_to_its_bytes() -> None:
    found = traced()
    assert found.trace is not None
    for use, counter in zip(found.busiest_links, found.trace.counters, strict=False):
        assert counter.name == use.name
        ends = (*counter.times_s[1:], found.step_s)
        busy = sum(v * (end - start) for start, end, v in zip(counter.times_s, ends, counter.values, strict=True))
        assert busy == pytest.approx(use.utilisation * found.step_s, rel=1e-9)


def test_jitter_is_drawn_by_seed_and_slows_a_step_down() -> None:
    where, layout = Cluster.load("dgx-h100", nodes=1), Strategy(ulysses=8, shard=8)
    work = Workload(Model.load("longvila-1.5b"), context_tokens=2**15)
    even = simulate(where, work, layout)
    first, again, other = (simulate(where, work, layout, jitter=0.05, seed=seed).step_s for seed in (1, 1, 2))
    assert first == again != other
    assert even.step_s < min(first, other) < even.step_s * 1.3
