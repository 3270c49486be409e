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
from collections import Counter
from collections.abc import Callable

import numpy as np

from cost_models.program import Op
from planner.simulator.filling import SAME
from planner.simulator.islands import Group, find_islands
from planner.simulator.network import Batch, Network
from planner.simulator.state import Agenda, Event, Mark, RankState, Running
from planner.simulator.streams import HOST, OFFLOAD, RING, SHARDING, WAITING, Rounds, Script, Send, Stream, Work
from planner.simulator.topology import Floats
from planner.simulator.trace import Recorder, Span
from planner.simulator.transfers import Component, Transfers


class Playback:
    """One run; `play` returns when every rank has ended. `scale` multiplies compute seconds of a rank class."""

    def __init__(self, script: Script, network: Network, scale: Floats) -> None:
        self.script, self.network, self.scale = script, network, scale
        self.recorder: Recorder | None = None  # keeps what the streams do, for a trace
        self.now, self.events, self.serial = 0.0, 0, 0
        self.islands = find_islands(script, network, scale)
        self.transfers = Transfers(network.sharing, self.islands.of_flow, self.islands.count, network.variants)
        classes = network.partition.classes
        self.ranks = [RankState() for _ in range(classes)]
        self.island: list[int] = self.islands.of_class.tolist()
        self.first = dict(zip(reversed(self.island), reversed(range(classes)), strict=True))  # rank class, by island
        self.group_of: list[list[int]] = [one.group_of_class.tolist() for one in network.collectives]
        self.column = {part: i for i, part in enumerate(script.parts)}
        self.starts: list[list[tuple[int, float]]] = [[] for _ in range(classes)]  # of instances, without skipped ones
        self.parts = np.zeros((classes, len(script.parts)))
        self.since = np.zeros(classes)  # when the main stream began what it does now
        self.came = np.zeros(classes)  # … to wait at the gate of its segment, whose launches begin then
        self.began = np.zeros(classes)  # … the segment itself
        self.asked = np.zeros(classes)  # when the sharding stream came to the first collective in its queue
        self.sharing_since = np.full(classes, -1.0)  # when a collective of the sharding stream began; -1: none runs
        self.shared = np.zeros(classes)  # seconds of this segment concurrent with such collectives that have ended
        self.agenda = [Agenda() for _ in range(self.islands.count + 1)]  # the last one: between islands
        self.joined = [0] * self.islands.count  # collectives between islands that the island's ranks wait for
        self.heap: list[tuple[float, int, Event | Component]] = []
        self.marks: list[Mark] = []
        self.waits: dict[tuple[int, int, int, float], list[int]] = {}  # what rank classes began now: see `_wait`
        self.share = {work: self._shares(work) for piece in dict.fromkeys(script.pieces) for work in piece.works}
        self.numbered = [group for groups in self.islands.groups for group in groups]

    def play(self, at_mark: Callable[[Playback, Mark], None] | None = None) -> None:
        """Run to the end. `at_mark` is called where the state may repeat, and may move it ahead in time."""
        for r in range(len(self.ranks)):
            self._push_gather(r, 0)
            self._enter(r)
        self._begin_waits()
        while self._step():
            if at_mark:
                for mark in self.marks:
                    at_mark(self, mark)
            self.marks.clear()
        stuck = [r for r, rank in enumerate(self.ranks) if rank.ended < 0]
        assert not stuck, f"rank classes {stuck[:5]} wait for a collective that never starts"

    def settle(self) -> None:
        """Share the links anew among the flows of what has changed."""
        if self.transfers.changed:
            for component in self.transfers.settle(self.now):
                self.expect(component)
                if self.recorder:
                    self.recorder.rates(self.now, component)

    def expect(self, component: Component) -> None:
        """Put the end of the component's next flow among the events, for the one that was there before."""
        self.serial += 1
        component.serial = self.serial
        if component.time < np.inf:
            heapq.heappush(self.heap, (component.time, component.serial, component))

    def _step(self) -> bool:
        """Go to the next moment at which anything ends; False when nothing is left."""
        self.settle()
        heap = self.heap
        while heap and not self._stands(heap[0]):
            heapq.heappop(heap)
        if not heap:
            return False
        self.now = heap[0][0]
        self.events += 1
        until = self.now * (1 + SAME * 1e-2)
        while heap and heap[0][0] <= until:
            entry = heapq.heappop(heap)
            if not self._stands(entry):
                continue
            if isinstance(entry[2], Component):
                self._flows_end(entry[2])
            else:
                self._happen(entry[2])
        self._begin_waits()
        return True

    def _stands(self, entry: tuple[float, int, Event | Component]) -> bool:
        """Whether it will still happen at that time; what was moved ahead has another entry."""
        time, serial, what = entry
        return what.serial == serial and what.time == time

    def _flows_end(self, component: Component) -> None:
        done = self.transfers.end(component, self.now)
        component.serial = -1
        owners = Counter(self.islands.owner[done].tolist())
        for number in sorted(owners):
            running = self._agenda(self.numbered[number]).running[number]
            running.unfinished -= owners[number]
            if self.recorder and not running.unfinished and isinstance(running.todo, Rounds):
                for r in running.group.ranks:
                    self._record(r, "ring", "hop", running.round_began, running.k, "send")
            self._check(running)

    def _happen(self, event: Event) -> None:
        running = event.running
        event.serial = -event.serial
        if running is None:
            del self.agenda[self.island[event.ranks[0]]].due[-event.serial]
            self._book_waited(event)
            for r in event.ranks:
                self._next(r)
            return
        del self._agenda(running.group).due[-event.serial]
        if event.batch is not None:
            self._start(running.group, event.batch, event.size)
        else:
            running.computing = False
            self._check(running)

    def _start(self, group: Group, batch: Batch, size: float) -> None:
        self.transfers.start(batch.flows, size * batch.share, group.islands, self.now)

    def _agenda(self, group: Group) -> Agenda:
        return self.agenda[-1 if group.between else group.islands[0]]

    def _at(self, seconds: float, event: Event) -> None:
        self.serial += 1
        event.time, event.serial = self.now + seconds, self.serial
        agenda = (
            self.agenda[self.island[event.ranks[0]]] if event.running is None else self._agenda(event.running.group)
        )
        agenda.due[event.serial] = event
        heapq.heappush(self.heap, (event.time, event.serial, event))

    def _book(self, r: int, part: str, began: float, op: Op | None = None) -> None:
        """Main stream of `r` did `part` from `began` until now."""
        self.parts[r, self.column[part]] += self.now - began
        self._record(r, "main", part, began, self.ranks[r].k, op)

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
        elif script.pieces[rank.k].gather and rank.gathered < rank.k:
            return
        self._book(r, waited_for, self.since[r])
        if rank.k == script.end:
            rank.ended = self.now
            return
        if rank.k + 1 < script.main_end:
            self._push_gather(r, rank.k + 1)
        offload = script.pieces[rank.k].offload
        if offload:
            rank.copying = True
            self._arrive(r, self._group(r, offload), offload, rank.k)
        self.began[r], self.shared[r] = self.now, 0.0
        self.starts[r].append((rank.k, self.now))
        if self.first[self.island[r]] == r:
            self.marks.append(Mark(kind="segment", island=self.island[r], k=rank.k))
        self._next(r)

    def _next(self, r: int) -> None:
        """Begin the next action, or end the segment."""
        rank = self.ranks[r]
        piece = self.script.pieces[rank.k]
        rank.action += 1
        self.since[r] = self.now
        behind = rank.action - len(piece.actions)
        if behind == 0 and (taken := piece.overlap_cost * self._shared_s(r)) > 0:
            self._wait(r, taken)
            return
        rank.action += behind == 0
        if behind in (0, 1) and (left := self.came[r] + piece.host_s - self.now) > SAME * self.now:
            self._wait(r, left)
            return
        if behind >= 0:
            for send in piece.reduce:
                self._push(r, send, rank.k, gather=False)
            rank.k += 1
            self._enter(r)
            return
        action = piece.actions[rank.action]
        if isinstance(action, Work):
            self._wait(r, action.seconds * float(self.scale[r]))
        else:
            group = self._group(r, action)
            self.joined[self.island[r]] += group.between
            self._arrive(r, group, action, rank.k)

    def _wait(self, r: int, seconds: float) -> None:
        """Go on in so long. Rank classes of an island that began the same action now for as long share an event."""
        rank = self.ranks[r]
        self.waits.setdefault((self.island[r], rank.k, rank.action, seconds), []).append(r)

    def _begin_waits(self) -> None:
        for (_, k, action, seconds), ranks in self.waits.items():
            actions = self.script.pieces[k].actions
            work = actions[action] if action < len(actions) else None
            part = SHARDING if action == len(actions) else HOST
            self._at(seconds, Event(ranks=tuple(ranks), work=work if isinstance(work, Work) else None, part=part))
        self.waits.clear()

    def _book_waited(self, event: Event) -> None:
        """Main streams of `event.ranks` did what they waited for, from `since` until now."""
        ranks, first = list(event.ranks), event.ranks[0]
        began, k, work = float(self.since[first]), self.ranks[first].k, event.work
        if work is None:
            self.parts[ranks, self.column[event.part]] += self.now - began
        else:
            self.parts[ranks] += self.share[work] * (self.now - began)
        if self.recorder:
            spent = [(event.part, 1.0)] if work is None else [(part, s / work.seconds) for part, s in work.parts]
            for part, share in spent:
                ends = began + share * (self.now - began)
                for r in ranks:
                    self.recorder.span(Span(rank_class=r, stream="main", name=part, start_s=began, end_s=ends, k=k))
                began = ends

    def _shares(self, work: Work) -> Floats:
        """Of each part, its share of the seconds."""
        share = np.zeros(len(self.script.parts))
        for part, seconds in work.parts:
            share[self.column[part]] += seconds / work.seconds
        return share

    def _shared_s(self, r: int) -> float:
        """Seconds of this segment that had a collective of the sharding stream concurrent with them."""
        running = self.now - max(self.sharing_since[r], self.began[r]) if self.sharing_since[r] >= 0 else 0.0
        return float(self.shared[r]) + running

    # sharding stream

    def _push_gather(self, r: int, k: int) -> None:
        if k < self.script.end and (send := self.script.pieces[k].gather):
            self._push(r, send, k, gather=True)

    def _push(self, r: int, send: Send, k: int, *, gather: bool) -> None:
        self.ranks[r].queue.append((send, k, gather))
        self.joined[self.island[r]] += self._group(r, send).between
        self._send_first(r)

    def _send_first(self, r: int) -> None:
        rank = self.ranks[r]
        if rank.queue and not rank.sending:
            rank.sending, self.asked[r] = True, self.now
            send, k, _ = rank.queue[0]
            self._arrive(r, self._group(r, send), send, k)

    # collectives

    def _group(self, r: int, todo: Send | Rounds) -> Group:
        """The group of a rank class that does `todo` together."""
        return self.islands.groups[todo.use][self.group_of[todo.use][r]]

    def _arrive(self, r: int, group: Group, todo: Send | Rounds, k: int) -> None:
        """A rank class has reached a collective; the last one of its group starts it."""
        agenda = self._agenda(group)
        arrived = agenda.arrived.get(group.number, 0) + 1
        agenda.arrived[group.number] = arrived
        if arrived < len(group.ranks):
            return
        del agenda.arrived[group.number]
        members = group.members
        if group.kinds is not None:
            came = self.asked if isinstance(todo, Send) and todo.stream == "sharding" else self.since
            group.kinds.check_start(came[members], self.now)
        agenda.running[group.number] = running = Running(group=group, todo=todo, k=k, began=self.now)
        if self.recorder:
            self.recorder.arrow(r, group.ranks, todo, self.now)
        if isinstance(todo, Rounds):
            self.parts[members, self.column[WAITING]] += self.now - self.since[members]
            self._begin_round(running, todo)
            return
        if todo.stream == "sharding":
            self.sharing_since[members] = self.now
        self._begin(running, todo.bytes, 0.0)

    def _begin_round(self, running: Running, todo: Rounds) -> None:
        now = todo.rounds[running.stage]
        running.round_began = self.now
        self._begin(running, now.bytes, now.seconds * running.group.slowest)

    def _begin(self, running: Running, size: float, seconds: float) -> None:
        """Send `size` bytes in the collective's pattern while computing for `seconds`."""
        batches = running.group.batches if size > 0 else ()
        running.unfinished = len(running.group.flows) if batches else 0
        running.computing = seconds > 0 or not batches
        if running.computing:
            self._at(seconds, Event(running=running))
        for batch in batches:
            if (delay_s := batch.delay_s(size)) > 0:
                self._at(delay_s, Event(running=running, batch=batch, size=size))
            else:
                self._start(running.group, batch, size)

    def _check(self, running: Running) -> None:
        """Go on if neither bytes nor blocks are missing."""
        if running.unfinished or running.computing:
            return
        if isinstance(running.todo, Rounds):
            self._end_round(running, running.todo)
        else:
            self._end(running, running.todo)

    def _end_round(self, running: Running, todo: Rounds) -> None:
        now, group = todo.rounds[running.stage], running.group
        running.blocks_s += now.seconds
        running.exposed_s += self.now - running.round_began - now.seconds * group.slowest
        running.round += 1
        if running.round == now.times:
            running.stage, running.round = running.stage + 1, 0
        if running.stage == len(todo.rounds):
            del self._agenda(group).running[group.number]
            self.book_rounds(running)
            for r in group.ranks:
                self._record(r, "main", "ring attention", running.began, running.k)
                self.joined[self.island[r]] -= group.between
                self._next(r)
            return
        island = self.island[group.ranks[0]]
        if running.round and self.first[island] == group.ranks[0]:
            self.marks.append(Mark(kind="round", island=island, k=running.k, running=running))
        self._begin_round(running, todo)

    def book_rounds(self, running: Running) -> None:
        """Add the rounds that are over to the parts of the group's members."""
        if running.blocks_s or running.exposed_s:
            todo, members, slowest = running.todo, running.group.members, running.group.slowest
            computed = running.blocks_s * self.scale[members]
            self.parts[members, self.column[todo.part]] += computed
            self.parts[members, self.column[WAITING]] += running.blocks_s * slowest - computed
            self.parts[members, self.column[OFFLOAD if todo.use < 0 else RING]] += running.exposed_s
            running.blocks_s = running.exposed_s = 0.0

    def _end(self, running: Running, todo: Send) -> None:
        group = running.group
        del self._agenda(group).running[group.number]
        for r in group.ranks:
            if group.between:
                self.joined[self.island[r]] -= 1
            rank = self.ranks[r]
            if todo.stream == "main":
                self.parts[r, self.column[WAITING]] += running.began - self.since[r]
                self._book(r, todo.part, running.began, self.script.uses[todo.use].op)
                self._next(r)
            elif todo.stream == "copy":
                self._record(r, "copy", todo.part, running.began, running.k)
                rank.copying = False
                self._pass_gate(r, OFFLOAD)
            else:
                self._end_sharding(r, running, todo)

    def _end_sharding(self, r: int, running: Running, todo: Send) -> None:
        rank = self.ranks[r]
        _, k, gather = rank.queue.popleft()
        op = self.script.uses[todo.use].op
        self._record(r, "sharding", "gather weights" if gather else "reduce gradients", running.began, k, op)
        rank.sending = False
        self.shared[r], self.sharing_since[r] = self._shared_s(r), -1.0
        if gather:
            rank.gathered = k
        self._send_first(r)
        self._pass_gate(r, SHARDING)

    def _record(self, r: int, stream: Stream, name: str, began: float, k: int, op: Op | None = None) -> None:
        if self.recorder:
            span = Span(rank_class=r, stream=stream, name=name, start_s=began, end_s=self.now, k=k, op=op)
            self.recorder.span(span)
