"""Play a script on a network, event by event: streams of every rank class, collectives, flows and their shared rates.

    main stream      gate (weights gathered, copy done) > actions of the segment in order > what the sharding stream
                     took from them > what the host still needs to launch them > next segment
    sharding stream  first in, first out: gather of segment k + 1 when k starts, reductions of k when k has ended
    copy stream      host memory beside a segment; the next segment waits for it

A collective starts when every member of its group has reached it and ends for all of them when its last flow does.
A ring's round ends when all its blocks are computed and all its bytes are there. Between events all rates are
constant. Every second of a rank's main stream is booked to one part; they add up to its end time. What happens at the
same time (to 1e-12) is one event. Flows of one collective and group never meet themselves, as streams are in order.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from planner.simulator.flight import SAME, Flows
from planner.simulator.network import Batch, Network
from planner.simulator.script import HOST, OFFLOAD, RING, SHARDING, WAITING, Rounds, Script, Send, Stream, Work
from planner.simulator.topology import Floats, Ints
from planner.simulator.trace import Span


@dataclass(slots=True, eq=False)
class Running:
    """A collective in progress."""

    key: tuple[int, int]  # (collective, group class)
    todo: Send | Rounds
    k: int  # instance it belongs to
    members: Ints
    began: float
    stage: int = 0
    round: int = 0
    round_began: float = 0.0
    unfinished: int = 0
    computing: bool = False


@dataclass(slots=True, eq=False)
class RankState:
    """Where one rank class is in the script."""

    k: int = 0
    action: int = -1  # -1: at the gate; behind the last: slowed by the sharding stream, then by the host
    gathered: int = -1  # last instance whose weights are there
    sending: bool = False
    copying: bool = False
    queue: deque[tuple[Send, int, bool]] = field(default_factory=deque)  # (what, instance, whether it is a gather)
    main_ended: float = 0.0
    ended: float = -1.0


@dataclass(slots=True, eq=False)
class Event:
    """A rank's computation ends; or a ring's blocks do; or a batch of flows starts."""

    rank: int = -1
    running: Running | None = None
    batch: Batch | None = None
    size: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A moment of rank class 0 that comes again: it begins instance `k`, or a round of a ring."""

    kind: str  # "segment" or "round"
    k: int
    running: Running | None = None


class Playback:
    """One run; `play` returns when every rank has ended. `scale` multiplies compute seconds of a rank class."""

    def __init__(self, script: Script, network: Network, scale: Floats) -> None:
        self.script, self.network, self.scale = script, network, scale
        self.spans: list[Span] | None = None  # a list collects what the streams do
        self.now, self.events, self.serial = 0.0, 0, 0
        self.flows = Flows(network.sharing)
        classes = network.partition.classes
        self.ranks = [RankState() for _ in range(classes)]
        self.column = {part: i for i, part in enumerate(script.parts)}
        self.parts = np.zeros((classes, len(script.parts)))
        self.since = np.zeros(classes)  # when the main stream began what it does now
        self.came = np.zeros(classes)  # … to wait at the gate of its segment, whose launches begin then
        self.began = np.zeros(classes)  # … the segment itself
        self.sharing_since = np.full(classes, -1.0)  # when a collective of the sharding stream began; -1: none runs
        self.shared = np.zeros(classes)  # seconds of this segment with such a collective beside it, of those that ended
        self.running: dict[tuple[int, int], Running] = {}
        self.arrived: dict[tuple[int, int], int] = {}
        self.heap: list[tuple[float, int, Event]] = []
        self.marks: list[Mark] = []
        self.owner = np.zeros(network.sharing.flows, dtype=np.int64)
        self.keys = [(c, g) for c, coll in enumerate(network.collectives) for g in range(len(coll.batches))]
        for number, (c, g) in enumerate(self.keys):
            for batch in network.collectives[c].batches[g]:
                self.owner[batch.flows] = number

    def play(self, at_mark: Callable[[Playback, Mark], None] | None = None) -> None:
        """Run to the end. `at_mark` is called where the state may repeat, and may move it ahead in time."""
        for r in range(len(self.ranks)):
            self._push_gather(r, 0)
            self._enter(r)
        while self._step():
            if at_mark:
                for mark in self.marks:
                    at_mark(self, mark)
            self.marks.clear()
        stuck = [r for r, rank in enumerate(self.ranks) if rank.ended < 0]
        assert not stuck, f"rank classes {stuck[:5]} wait for a collective that never starts"

    def _step(self) -> bool:
        """Go to the next moment at which anything ends; False when nothing is left."""
        if self.flows.changed:
            self.flows.share_links()
        then = self.now + self.flows.next_end_s()
        if self.heap:
            then = min(then, self.heap[0][0])
        if then == np.inf:
            return False
        done = self.flows.advance(then - self.now, then)
        self.now = then
        self.events += 1
        if done.size:
            owners = Counter(self.owner[done].tolist())
            for number in sorted(owners):
                running = self.running[self.keys[number]]
                running.unfinished -= owners[number]
                self._check(running)
        while self.heap and self.heap[0][0] <= self.now * (1 + SAME * 1e-2):
            self._happen(heapq.heappop(self.heap)[2])
        return True

    def _happen(self, event: Event) -> None:
        if event.batch is not None and event.running is not None:
            self.flows.start(event.batch, event.size)
        elif event.running is not None:
            event.running.computing = False
            self._check(event.running)
        else:
            self._book(event.rank, self._doing(event.rank), self.since[event.rank])
            self._next(event.rank)

    def _doing(self, r: int) -> str:
        """The part that a computation, or a wait at the end of a segment, is booked to."""
        rank = self.ranks[r]
        behind = rank.action - len(actions := self.script.piece(rank.k).actions)
        return actions[rank.action].part if behind < 0 else (SHARDING, HOST)[behind]

    def _at(self, seconds: float, event: Event) -> None:
        self.serial += 1
        heapq.heappush(self.heap, (self.now + seconds, self.serial, event))

    def _book(self, r: int, part: str, began: float) -> None:
        """Main stream of `r` did `part` from `began` until now."""
        self.parts[r, self.column[part]] += self.now - began
        if self.spans is not None and self.now > began:
            self.spans.append(Span(rank_class=r, stream="main", name=part, start_s=began, end_s=self.now))

    # main stream

    def _enter(self, r: int) -> None:
        """Come to the gate of the next instance."""
        rank = self.ranks[r]
        rank.action = -1
        self.since[r] = self.came[r] = self.now
        if rank.k == self.script.main_end:
            rank.main_ended = self.now
        if self.script.main_end <= rank.k < self.script.end:
            self._push_gather(r, rank.k)
        self._pass_gate(r, SHARDING)

    def _pass_gate(self, r: int, waited_for: str) -> None:
        """Go on if nothing is missing; the wait is booked to what came last."""
        rank, script = self.ranks[r], self.script
        if rank.action != -1 or rank.ended >= 0 or rank.copying:
            return
        if rank.k >= script.main_end:
            if rank.sending or rank.queue:
                return
        elif script.piece(rank.k).gather and rank.gathered < rank.k:
            return
        self._book(r, waited_for, self.since[r])
        if rank.k == script.end:
            rank.ended = self.now
            return
        if rank.k + 1 < script.main_end:
            self._push_gather(r, rank.k + 1)
        offload = script.piece(rank.k).offload
        if offload:
            rank.copying = True
            self._arrive(r, offload, rank.k)
        self.began[r], self.shared[r] = self.now, 0.0
        if r == 0:
            self.marks.append(Mark(kind="segment", k=rank.k))
        self._next(r)

    def _next(self, r: int) -> None:
        """Begin the next action, or end the segment."""
        rank = self.ranks[r]
        piece = self.script.piece(rank.k)
        rank.action += 1
        self.since[r] = self.now
        behind = rank.action - len(piece.actions)
        if behind == 0 and (taken := piece.overlap_cost * self._shared_s(r)) > 0:
            self._at(taken, Event(rank=r))
            return
        rank.action += behind == 0
        if behind in (0, 1) and (left := self.came[r] + piece.host_s - self.now) > SAME * self.now:
            self._at(left, Event(rank=r))
            return
        if behind >= 0:
            for send in piece.reduce:
                self._push(r, send, rank.k, gather=False)
            rank.k += 1
            self._enter(r)
            return
        action = piece.actions[rank.action]
        if isinstance(action, Work):
            self._at(action.seconds * self.scale[r], Event(rank=r))
        else:
            self._arrive(r, action, rank.k)

    def _shared_s(self, r: int) -> float:
        """Seconds of this segment that had a collective of the sharding stream beside them."""
        running = self.now - max(self.sharing_since[r], self.began[r]) if self.sharing_since[r] >= 0 else 0.0
        return float(self.shared[r]) + running

    # sharding stream

    def _push_gather(self, r: int, k: int) -> None:
        if k < self.script.end and (send := self.script.piece(k).gather):
            self._push(r, send, k, gather=True)

    def _push(self, r: int, send: Send, k: int, *, gather: bool) -> None:
        self.ranks[r].queue.append((send, k, gather))
        self._send_first(r)

    def _send_first(self, r: int) -> None:
        rank = self.ranks[r]
        if rank.queue and not rank.sending:
            rank.sending = True
            self._arrive(r, rank.queue[0][0], rank.queue[0][1])

    # collectives

    def _arrive(self, r: int, todo: Send | Rounds, k: int) -> None:
        """A rank class has reached a collective; the last one of its group starts it."""
        c = todo.use % len(self.network.collectives)
        collective = self.network.collectives[c]
        key = (c, int(collective.group_of_class[r]))
        members = collective.members[key[1]]
        self.arrived[key] = self.arrived.get(key, 0) + 1
        if self.arrived[key] < len(members):
            return
        del self.arrived[key]
        running = Running(key=key, todo=todo, k=k, members=members, began=self.now)
        if not isinstance(todo, Rounds) and todo.stream == "sharding":
            self.sharing_since[members] = self.now
        self.running[key] = running
        if isinstance(todo, Rounds):
            self.parts[members, self.column[WAITING]] += self.now - self.since[members]
            self._begin_round(running, todo)
        else:
            self._begin(running, todo.bytes, 0.0)

    def _begin_round(self, running: Running, todo: Rounds) -> None:
        now = todo.rounds[running.stage]
        running.round_began = self.now
        self._begin(running, now.bytes, now.seconds * float(self.scale[running.members].max()))

    def _begin(self, running: Running, size: float, seconds: float) -> None:
        """Send `size` bytes in the collective's pattern while computing for `seconds`."""
        c, g = running.key
        batches = self.network.collectives[c].batches[g] if size > 0 else ()
        running.unfinished = sum(len(batch.flows) for batch in batches)
        running.computing = seconds > 0 or not batches
        if running.computing:
            self._at(seconds, Event(running=running))
        for batch in batches:
            if batch.latency_s > 0:
                self._at(batch.latency_s, Event(running=running, batch=batch, size=size))
            else:
                self.flows.start(batch, size)

    def _check(self, running: Running) -> None:
        """Go on if neither bytes nor blocks are missing."""
        if running.unfinished or running.computing:
            return
        if isinstance(running.todo, Rounds):
            self._end_round(running, running.todo)
        else:
            self._end(running, running.todo)

    def _end_round(self, running: Running, todo: Rounds) -> None:
        now, members = todo.rounds[running.stage], running.members
        own = now.seconds * self.scale[members]
        longest = now.seconds * float(self.scale[members].max())
        self.parts[members, self.column[todo.part]] += own
        self.parts[members, self.column[WAITING]] += longest - own
        exposed = OFFLOAD if todo.use < 0 else RING
        self.parts[members, self.column[exposed]] += self.now - running.round_began - longest
        running.round += 1
        if running.round == now.times:
            running.stage, running.round = running.stage + 1, 0
        if running.stage == len(todo.rounds):
            del self.running[running.key]
            for r in members.tolist():
                self._span(r, "main", "ring attention", running.began)
                self._next(r)
            return
        if running.round and running.members[0] == 0:
            self.marks.append(Mark(kind="round", k=running.k, running=running))
        self._begin_round(running, todo)

    def _end(self, running: Running, todo: Send) -> None:
        del self.running[running.key]
        for r in running.members.tolist():
            rank = self.ranks[r]
            if todo.stream == "main":
                self.parts[r, self.column[WAITING]] += running.began - self.since[r]
                self._book(r, todo.part, running.began)
                self._next(r)
            elif todo.stream == "copy":
                self._span(r, "copy", todo.part, running.began)
                rank.copying = False
                self._pass_gate(r, OFFLOAD)
            else:
                self._end_sharding(r, running)

    def _end_sharding(self, r: int, running: Running) -> None:
        rank = self.ranks[r]
        _, k, gather = rank.queue.popleft()
        self._span(r, "sharding", "gather weights" if gather else "reduce gradients", running.began)
        rank.sending = False
        self.shared[r], self.sharing_since[r] = self._shared_s(r), -1.0
        if gather:
            rank.gathered = k
        self._send_first(r)
        self._pass_gate(r, SHARDING)

    def _span(self, r: int, stream: Stream, name: str, began: float) -> None:
        if self.spans is not None:
            self.spans.append(Span(rank_class=r, stream=stream, name=name, start_s=began, end_s=self.now))
