"""Jump over repeats: when a step comes back to the same state a period later, the next periods are the same.

    state at mark i + 1 = state at mark i, all shifted by dt   ->   n periods on: now + n dt, sums + n x their growth

Marks are where rank class 0 begins a segment (equal layers, whole microbatches) or a round of a ring. Compared are
positions relative to the mark, everything that is due (relative to now), and bytes left in flight. What was already
under way at the first mark need not be equal: it may go on evenly (a gather under way while ring rounds pass), and
then n stays below the moment at which it ends. n also stays inside the run of equal segments or rounds, counting the
segment ahead that is already prefetched. The result equals playing on, to rounding.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from planner.simulator.playback import Event, Mark, Playback, Running
from planner.simulator.script import Rounds
from planner.simulator.topology import Floats, Ints

CLOSE = 1e-11
"""Relative to the period (or to a flow's size): closer than this is equal."""
TRIES = 6
"""After so many marks without a repeat, only every 16th pair of a run is looked at."""


@dataclass(frozen=True, kw_only=True, eq=False)
class State:
    """Everything that decides what happens next, and what has been added up so far."""

    at: int  # instance, or round
    now: float
    discrete: tuple[Any, ...]
    due: dict[tuple[Any, ...], tuple[float, int]]  # time and serial of what is due
    rounds: dict[tuple[int, int], tuple[float, int, int]]  # began, round, rounds in the stage
    active: Ints
    left: Floats
    serial: Ints
    since: tuple[Floats, ...]  # moments that each rank class remembers
    shared: Floats
    round_began: dict[tuple[int, int], float]
    parts: Floats
    carried: Floats


@dataclass(slots=True)
class Seen:
    state: State
    failures: int = 0


@dataclass(slots=True)
class Jumper:
    """`at_mark` of a playback. `segments=False` leaves layers alone (for a trace) and jumps over ring rounds only."""

    segments: bool = True
    jumps: int = 0
    seen: dict[tuple[Any, ...], Seen] = field(default_factory=dict)

    def __call__(self, playback: Playback, mark: Mark) -> None:
        if mark.kind == "round":
            running = mark.running
            if running is not None and playback.running.get(running.key) is running:
                key = ("round", running.key, running.began, running.stage)
                self._look(playback, key, running.round, playback.ranks[0].k, 0, 2**62)
            return
        script, k = playback.script, playback.ranks[0].k
        if not self.segments or k >= script.main_end or k != mark.k:
            return
        within, cycle = k % len(script.cycle), len(script.cycle)
        if within == 0 and script.cycles > 2 and self._look(playback, ("cycle",), k, k, cycle, script.main_end - 1):
            return
        end = script.run_end[within]
        if end > within + 1:
            self._look(playback, ("run", k - within + end), k, k, 1, k - within + end)

    def _look(self, playback: Playback, key: tuple[Any, ...], at: int, k: int, period: int, last: int) -> bool:
        """Compare with the mark before and jump if the state has come back. `last` = instance that must hold out."""
        seen = self.seen.get(key)
        if seen is not None and seen.failures > TRIES and at % 16 > 1:
            return False
        state = capture(playback, at, k)
        before = None if seen is None else seen.state
        times = 0
        if before is not None and at - before.at == (period or 1):
            times = repeats(before, state)
            if period:
                ahead = max(rank.k for rank in playback.ranks) + 1
                times = min(times, (last - ahead) // period)
        if before is not None and times > 0:
            leap(playback, before, state, times, period)
            self.jumps += 1
            del self.seen[key]
            return True
        self.seen[key] = Seen(state=state, failures=0 if seen is None else seen.failures + 1)
        return False


def capture(playback: Playback, at: int, k: int) -> State:
    """The state now, with instances relative to `k`."""
    ranks = tuple(
        (r.k - k, r.action, max(r.gathered - r.k, -1), r.sending, r.copying, tuple((q[0], q[1] - k) for q in r.queue))
        for r in playback.ranks
    )
    running = sorted(playback.running.values(), key=lambda one: one.key)
    inside = tuple((one.key, one.todo, one.k - k, one.stage, one.unfinished, one.computing) for one in running)
    flows = playback.flows
    if flows.changed:
        flows.share_links()
    due = {_name(event): (time, serial) for time, serial, event in playback.heap}
    return State(
        at=at,
        now=playback.now,
        discrete=(ranks, inside, tuple(sorted(playback.arrived.items())), tuple(sorted(due))),
        due=due,
        rounds={one.key: (one.began, one.round, _count(one)) for one in running},
        active=flows.active,
        left=flows.left[flows.active],
        serial=flows.serial[flows.active],
        since=tuple(moments.copy() for moments in _moments(playback)),
        shared=playback.shared.copy(),
        round_began={one.key: one.round_began for one in running},
        parts=playback.parts.copy(),
        carried=flows.carried.copy(),
    )


def _moments(playback: Playback) -> tuple[Floats, ...]:
    return playback.since, playback.came, playback.began, playback.sharing_since


def _name(event: Event) -> tuple[int, ...]:
    if event.running is None:
        return (0, event.rank)
    first = -1 if event.batch is None else int(event.batch.flows[0])
    return (1, *event.running.key, first)


def _count(one: Running) -> int:
    return one.todo.rounds[one.stage].times if isinstance(one.todo, Rounds) else 1


def repeats(before: State, now: State) -> int:
    """How many more periods are sure to be like the one between the two states; 0 if they differ."""
    period = now.now - before.now
    if period <= 0 or before.discrete != now.discrete or not np.array_equal(before.active, now.active):
        return 0
    most = 2**62
    tolerance = CLOSE * period + 1e-15 * now.now
    for name, (time, serial) in now.due.items():
        time_before, serial_before = before.due[name]
        if serial == serial_before:
            most = min(most, int((time - now.now) / period * (1 - 1e-9)))
        elif abs((time - now.now) - (time_before - before.now)) > tolerance:
            return 0
    for then, since in zip(before.since, now.since, strict=True):
        waited = np.where(since != then, (now.now - since) - (before.now - then), 0.0)
        if np.abs(waited).max() > tolerance:
            return 0
    if np.abs(now.shared - before.shared).max() > tolerance:
        return 0
    for key, (began, done, count) in now.rounds.items():
        if not _as_long_ago(before, now, before.rounds[key][0], began, tolerance):
            return 0
        if not _as_long_ago(before, now, before.round_began[key], now.round_began[key], tolerance):
            return 0
        began_before, done_before, _ = before.rounds[key]
        if began == began_before and done > done_before:
            most = min(most, (count - 1 - done) // (done - done_before))
        elif done != done_before:
            return 0
    return min(most, _flow_repeats(before, now))


def _as_long_ago(before: State, now: State, then: float, time: float, tolerance: float) -> bool:
    """Whether something began as long before `now` as its like did a period earlier, or is still the same."""
    return then == time or abs((now.now - time) - (before.now - then)) <= tolerance


def _flow_repeats(before: State, now: State) -> int:
    """Flows that were under way all along may go on evenly until one would end; others must be as before."""
    same = before.serial == now.serial
    sent = before.left - now.left
    scale = np.maximum(before.left, now.left)
    if np.any(~same & (np.abs(sent) > CLOSE * scale)):
        return 0
    moving = same & (sent > 0)
    if not moving.any():
        return 2**62
    return int((now.left[moving] / sent[moving] * (1 - 1e-9)).min())


def leap(playback: Playback, before: State, now: State, times: int, period: int) -> None:
    """Move everything `times` periods ahead (`period` = instances in one)."""
    shift = times * (now.now - before.now)
    playback.now += shift
    playback.parts += times * (now.parts - before.parts)
    flows = playback.flows
    flows.carried += times * (now.carried - before.carried)
    same = before.serial == now.serial
    flows.left[now.active[same]] -= times * (before.left - now.left)[same]
    for moments, then in zip(_moments(playback), before.since, strict=True):
        moments[moments != then] += shift
    ahead = times * period
    for rank in playback.ranks:
        rank.k += ahead
        rank.gathered += ahead
        rank.queue = deque((send, k + ahead, gather) for send, k, gather in rank.queue)
    for key, one in playback.running.items():
        one.k += ahead
        began_before, done_before, _ = before.rounds[key]
        if one.began == began_before:
            one.round += times * (one.round - done_before)
        else:
            one.began += shift
        if one.round_began != before.round_began[key]:
            one.round_began += shift
    for i, (time, serial, event) in enumerate(playback.heap):
        if before.due[_name(event)][1] != serial:
            playback.heap[i] = (time + shift, serial, event)
    playback.heap.sort(key=lambda entry: entry[:2])
