"""Skip repeats: when a step comes back to the same state a period later, the next periods are the same.

    state at mark i + 1 = state at mark i, all shifted by dt   ->   n periods on: now + n dt, sums + n x their growth

Marks are where an island's first rank class begins a segment (equal layers, microbatches) or a round of a ring.
Compared are positions relative to the mark, everything that is due (relative to now), and bytes left in flight. What
was already under way at the first mark need not be equal: it may go on evenly (a gather under way while ring rounds
pass), and then n stays below the moment at which it ends. n also stays inside the run of equal segments or rounds,
counting the segment ahead that is already prefetched. The result equals playing on, to rounding.

An island that waits for no other one, in segments without collectives between islands, is moved ahead alone: the
others go on from where they are. Otherwise the state is that of all islands, at the marks of rank class 0.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

import numpy as np
from msgspec import Struct, field

from planner.simulator.playback import Playback
from planner.simulator.state import Agenda, Event, Mark, RankState, Running
from planner.simulator.streams import Piece, Rounds, Send
from planner.simulator.topology import Floats, Ints
from planner.simulator.transfers import Component

CLOSE = 1e-11
"""Relative to the period (or to a flow's size): closer than this is equal."""
TRIES = 6
"""After so many marks without a repeat, only every 16th pair of a run is looked at."""
FOREVER = 2**62
Key = tuple[object, ...]


class Scope(Struct, frozen=True, kw_only=True, eq=False):
    """The part of a playback that is moved ahead together: one island, or all."""

    classes: Ints
    flows: Ints
    islands: tuple[int, ...]

    @staticmethod
    def of(playback: Playback, island: int | None) -> Scope:
        """`None` means all islands."""
        of_class, of_flow = playback.islands.of_class, playback.islands.of_flow
        if island is None:
            everything = tuple(range(playback.islands.count))
            return Scope(classes=np.arange(len(of_class)), flows=np.arange(len(of_flow)), islands=everything)
        return Scope(
            classes=np.flatnonzero(of_class == island), flows=np.flatnonzero(of_flow == island), islands=(island,)
        )

    def ranks(self, playback: Playback) -> list[RankState]:
        return [playback.ranks[r] for r in self.classes.tolist()]

    def agendas(self, playback: Playback) -> list[Agenda]:
        return playback.agenda if len(self.islands) == playback.islands.count else [playback.agenda[self.islands[0]]]

    def running(self, playback: Playback) -> list[Running]:
        found = [one for agenda in self.agendas(playback) for one in agenda.running.values()]
        return sorted(found, key=lambda one: one.group.number)

    def events(self, playback: Playback) -> Iterator[Event]:
        return (event for agenda in self.agendas(playback) for event in agenda.due.values())

    def components(self, playback: Playback) -> list[Component]:
        return playback.transfers.components(self.islands)


class State(Struct, frozen=True, kw_only=True, eq=False):
    """Everything that decides what happens next, and what has been added up so far."""

    at: int  # instance, or round
    now: float
    discrete: Key
    due: dict[tuple[int, ...], tuple[float, int]]  # time and serial of what is due
    rounds: dict[int, tuple[float, int, int]]  # by group: began, round, rounds in the stage
    round_began: dict[int, float]
    active: Ints
    left: Floats
    serial: Ints
    asleep: float  # until then, the soonest of the components that were moved ahead of now
    since: tuple[Floats, ...]  # moments that each rank class remembers
    shared: Floats
    parts: Floats
    carried: Floats


class Seen(Struct):
    state: State
    failures: int = 0


class FastForward(Struct):
    """`at_mark` of a playback."""

    jumps: int = 0
    seen: dict[Key, Seen] = field(default_factory=dict)
    scopes: dict[int | None, Scope] = field(default_factory=dict)

    def __call__(self, playback: Playback, mark: Mark) -> None:
        script, rank = playback.script, playback.ranks[playback.first[mark.island]]
        several = playback.islands.count > 1
        free = several and not playback.joined[mark.island]
        if mark.kind == "round":
            running = mark.running
            agenda = playback.agenda[mark.island]
            if running is None or (several and not free) or agenda.running.get(running.group.number) is not running:
                return
            key: Key = ("round", running.group.number, running.began, running.stage)
            self._look(playback, mark.island, key, running.round, rank.k, 0, FOREVER)
            return
        k = rank.k
        if k >= script.main_end or k != mark.k or not (free or mark.island == playback.islands.of_class[0]):
            return
        within, cycle = k % len(script.cycle), len(script.cycle)
        connected = playback.islands.between
        if within == 0 and k < script.steady_end and script.cycles > 2:
            alone = free and not any(_meets(piece, connected) for piece in script.cycle)
            if (alone or mark.island == playback.islands.of_class[0]) and self._look(
                playback, mark.island if alone else None, ("cycle", mark.island), k, k, cycle, script.steady_end - 1
            ):
                return
        end = script.run_end[within]
        alone = free and not _meets(script.pieces[k], connected)
        if end > within + 1 and (alone or mark.island == playback.islands.of_class[0]):
            last = k - within + end
            self._look(playback, mark.island if alone else None, ("run", mark.island, alone, last), k, k, 1, last)

    def _look(self, playback: Playback, island: int | None, key: Key, at: int, k: int, period: int, last: int) -> bool:
        """Compare with the mark before and jump if the state has come back. `last` = instance that must hold out."""
        seen = self.seen.get(key)
        if seen is not None and seen.failures > TRIES and at % 16 > 1:
            return False
        if island not in self.scopes:
            self.scopes[island] = Scope.of(playback, island)
        scope = self.scopes[island]
        state = capture(playback, scope, at, k)
        before = None if seen is None else seen.state
        times = 0
        if before is not None and at - before.at == (period or 1):
            times = repeats(before, state)
            if period:
                ahead = max(rank.k for rank in scope.ranks(playback)) + 1
                times = min(times, (last - ahead) // period)
        if before is not None and times > 0:
            leap(playback, scope, before, state, times, period)
            self.jumps += 1
            del self.seen[key]
            return True
        self.seen[key] = Seen(state=state, failures=0 if seen is None else seen.failures + 1)
        return False


def _meets(piece: Piece, between: frozenset[int]) -> bool:
    """Whether the segment has a collective between islands."""
    sends = (*piece.actions, *piece.reduce)
    return any(isinstance(send, Send | Rounds) and send.use in between for send in sends)


def capture(playback: Playback, scope: Scope, at: int, k: int) -> State:
    """The state now, with instances relative to `k`."""
    playback.settle()
    kind = playback.script.kind
    ranks = tuple(
        (
            *(r.k - k, kind(r.k), r.action, max(r.gathered - r.k, -1), r.sending, r.copying, r.ended >= 0),
            tuple((q[0], q[1] - k) for q in r.queue),
        )
        for r in scope.ranks(playback)
    )
    running = scope.running(playback)
    for one in running:
        playback.book_rounds(one)
    inside = tuple((one.group.number, one.todo, one.k - k, one.stage, one.unfinished, one.computing) for one in running)
    due = {_name(event): (event.time, event.serial) for event in scope.events(playback)}
    arrived = tuple(sorted(pair for agenda in scope.agendas(playback) for pair in agenda.arrived.items()))
    transfers, parts = playback.transfers, scope.components(playback)
    active = np.concatenate([part.flows for part in parts])
    return State(
        at=at,
        now=playback.now,
        discrete=(ranks, inside, arrived, tuple(sorted(due))),
        due=due,
        rounds={one.group.number: (one.began, one.round, _count(one)) for one in running},
        round_began={one.group.number: one.round_began for one in running},
        active=active,
        left=np.concatenate([part.left_at(playback.now) for part in parts]),
        serial=transfers.serial[active],
        asleep=min((part.at for part in parts if part.at > playback.now and part.flows.size), default=np.inf),
        since=tuple(moments[scope.classes] for moments in _moments(playback)),
        shared=playback.shared[scope.classes],
        parts=playback.parts[scope.classes],
        carried=transfers.carried[scope.flows],
    )


def _moments(playback: Playback) -> tuple[Floats, ...]:
    return playback.since, playback.came, playback.began, playback.asked, playback.sharing_since


def _name(event: Event) -> tuple[int, ...]:
    if event.running is None:
        return (0, *event.ranks)
    first = -1 if event.batch is None else int(event.batch.flows[0])
    return (1, event.running.group.number, first)


def _count(one: Running) -> int:
    return one.todo.rounds[one.stage].times if isinstance(one.todo, Rounds) else 1


def repeats(before: State, now: State) -> int:
    """How many more periods are sure to be like the one between the two states; 0 if they differ."""
    period = now.now - before.now
    if period <= 0 or before.discrete != now.discrete or not np.array_equal(before.active, now.active):
        return 0
    most = FOREVER
    if now.asleep < np.inf:
        most = int((now.asleep - now.now) / period * (1 - 1e-9))
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
    for number, (began, done, count) in now.rounds.items():
        began_before, done_before, _ = before.rounds[number]
        if not _as_long_ago(before, now, began_before, began, tolerance):
            return 0
        if not _as_long_ago(before, now, before.round_began[number], now.round_began[number], tolerance):
            return 0
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
        return FOREVER
    return int((now.left[moving] / sent[moving] * (1 - 1e-9)).min())


def leap(playback: Playback, scope: Scope, before: State, now: State, times: int, period: int) -> None:
    """Move everything in `scope` ahead by `times` periods (`period` = instances in one)."""
    shift = times * (now.now - before.now)
    playback.parts[scope.classes] += times * (now.parts - before.parts)
    playback.transfers.carried[scope.flows] += times * (now.carried - before.carried)
    _move_flows(playback, scope, before, now, times, shift)
    for moments, then in zip(_moments(playback), before.since, strict=True):
        here = moments[scope.classes]
        moments[scope.classes] = np.where(here != then, here + shift, here)
    ahead = times * period
    for rank in scope.ranks(playback):
        rank.k += ahead
        rank.gathered += ahead
        rank.queue = deque((send, k + ahead, gather) for send, k, gather in rank.queue)
    for one in scope.running(playback):
        one.k += ahead
        began_before, done_before, _ = before.rounds[one.group.number]
        if one.began == began_before:
            one.round += times * (one.round - done_before)
        else:
            one.began += shift
        if one.round_began != before.round_began[one.group.number]:
            one.round_began += shift
    for event in scope.events(playback):
        if before.due[_name(event)][1] != event.serial:
            event.time += shift
            heapq.heappush(playback.heap, (event.time, event.serial, event))


def _move_flows(playback: Playback, scope: Scope, before: State, now: State, times: int, shift: float) -> None:
    """Components that are under way go on by `shift`; what they have in flight since before is less by then."""
    same = before.serial == now.serial
    left = np.where(same, now.left - times * (before.left - now.left), now.left)
    first = 0
    for part in scope.components(playback):
        mine = slice(first, first + len(part.flows))
        first = mine.stop
        if part.flows.size and part.at <= playback.now:
            part.left, part.at = left[mine], playback.now + shift
            part.time = part.at + float((part.left / part.rate).min())
            playback.expect(part)
