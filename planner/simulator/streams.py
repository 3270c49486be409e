"""A step program written out for playing: which collectives run on which stream, segment after segment.

    instance k = 0, 1, …: every repeat of every segment of every microbatch, then the epilogue's
    Ring of P pieces  ->  rounds of (compute s, bytes sent beside it):
        (first, hop) · (piece, hop) · (P - 3) x (piece, hop + gradient) · (piece, gradient) · (0, gradient)

A gradient hop is sent one block after the block that made it, so the last one has nothing to hide behind. What needs
no partner (a group of one) is dropped. A fractional repeat (layers that pipeline stages do not divide) becomes one
more instance with everything scaled. Units: seconds and bytes of one rank. Left out: a double ring is played as a
plain one, and sending takes no SMs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Literal, NamedTuple

from msgspec import Struct

from cost_models.program import (
    Axis,
    Broadcasts,
    Compute,
    Exchange,
    Op,
    Passed,
    Phase,
    Ring,
    Segment,
    Staged,
    StepProgram,
)
from cost_models.strategy import Strategy
from cost_models.timing.passing import joined_s

Stream = Literal["main", "sharding", "copy", "ring"]
"""`ring` has the hops of a ring, while the main stream computes their blocks."""


class Use(NamedTuple):
    """A collective on one stream: flows of its own."""

    stream: Stream
    axis: Axis
    op: Op
    reach: int = 1  # of a tree's round: to so many stretches further on


class Work(Struct, frozen=True, kw_only=True, dict=True):
    """Computation in a row: seconds by part, in order."""

    parts: tuple[tuple[str, float], ...]

    @cached_property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self.parts)


class Send(Struct, frozen=True, kw_only=True):
    """A collective: `use` indexes Script.uses, behind them host memory out (-2) and in (-1)."""

    part: str
    use: int
    bytes: float
    stream: Stream


class Round(NamedTuple):
    """Equal rounds: each computes so long while so many bytes go to the next rank."""

    times: int
    seconds: float
    bytes: float


class Rounds(Struct, frozen=True, kw_only=True):
    """A ring's rounds, in order."""

    part: str
    use: int
    rounds: tuple[Round, ...]


Action = Work | Send | Rounds


class Piece(Struct, frozen=True, kw_only=True):
    """One instance of a segment."""

    name: str
    actions: tuple[Action, ...]
    gather: Send | None
    reduce: tuple[Send, ...]  # after it: reduce-scatter, then all-reduce over the replicas
    offload: Send | None
    host_s: float = 0.0  # it lasts at least so long: what the host needs to launch it
    overlap_cost: float = 0.0  # seconds that a second of the sharding stream beside it adds to it

    @property
    def works(self) -> list[Work]:
        return [action for action in self.actions if isinstance(action, Work)]


class Script(Struct, frozen=True, kw_only=True, dict=True):
    """What every rank does in a step, as instances of segments."""

    uses: tuple[Use, ...]
    cycle: tuple[Piece, ...]  # one microbatch
    last: tuple[Piece, ...]  # the last one: as long, with what happens once a step
    run_end: tuple[int, ...]  # for each of the cycle: the last of the equal ones in a row
    cycles: int
    epilogue: tuple[Piece, ...]
    bubble_cycles: float  # microbatches' worth of pipeline bubble
    parts: tuple[str, ...]  # everything that a main stream can spend time on

    @cached_property
    def main_end(self) -> int:
        """The first instance of the epilogue."""
        return len(self.cycle) * self.cycles

    @cached_property
    def steady_end(self) -> int:
        """Up to here every cycle is like the one before."""
        return self.main_end - (len(self.cycle) if self.last is not self.cycle else 0)

    @cached_property
    def end(self) -> int:
        return self.main_end + len(self.epilogue)

    def kind(self, k: int) -> int:
        """Equal for instances that are equal pieces in a row, wherever in the run of microbatches."""
        if k >= self.main_end:
            return k
        return self.run_end[k % len(self.cycle)] + (self.end if k >= self.steady_end else 0)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """All instances in order."""
        return self.cycle * (self.cycles - 1) + self.last + self.epilogue


HOST_OUT, HOST_IN = -2, -1
"""Host memory, as a `use`. A layer's input leaves in its forward pass and returns in backward; blocks of attention,
whose copies go one by one in both directions, are played on the other direction's link."""
WAITING, RING, SHARDING, OFFLOAD, BUBBLE, HOST = "waiting", "ring", "sharding", "offload", "bubble", "host"


def instances(segment: Segment) -> int:
    """How often a segment is written out: every repeat, and what is left of a fraction."""
    whole, rest = divmod(float(segment.repeat), 1.0)
    return int(whole) + (rest > 1e-9)


def write_script(program: StepProgram, strategy: Strategy) -> Script:
    """A microbatch written out (the last one apart where it differs) and the epilogue, collectives on their streams."""
    writer = _Writer(strategy)
    cycle = tuple(writer.pieces(program.microbatch))
    last = tuple(writer.pieces(program.last)) if any(one.last for one in program.microbatch) else cycle
    epilogue = writer.pieces(program.epilogue)
    ends = list(range(len(cycle)))
    for k in range(len(cycle) - 2, -1, -1):
        if cycle[k] is cycle[k + 1]:
            ends[k] = ends[k + 1]
    actions = [action for piece in (*cycle, *last, *epilogue) for action in piece.actions]
    named = [[part for part, _ in one.parts] if isinstance(one, Work) else [one.part] for one in actions]
    parts = dict.fromkeys(
        (*(part for names in named for part in names), WAITING, RING, SHARDING, OFFLOAD, BUBBLE, HOST)
    )
    return Script(
        uses=tuple(writer.uses),
        cycle=cycle,
        last=last,
        run_end=tuple(ends),
        cycles=int(program.microbatches),
        epilogue=tuple(epilogue),
        bubble_cycles=float((program.pipeline - 1) / program.virtual),
        parts=tuple(parts),
    )


class _Reach(NamedTuple):
    """A message from every stretch of the row to the one so many further on, or along all of them."""

    part: str
    axis: Axis
    op: Op
    bytes: float
    reach: int


class _Writer:
    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.uses: list[Use] = []

    def pieces(self, segments: Iterable[Segment]) -> list[Piece]:
        found: list[Piece] = []
        for segment in segments:
            whole, rest = divmod(float(segment.repeat), 1.0)
            if whole:
                found += [self._piece(segment, 1.0)] * int(whole)
            if rest > 1e-9:
                found.append(self._piece(segment, rest))
        return found

    def _piece(self, segment: Segment, scale: float) -> Piece:
        actions: list[Action] = []
        for phase in self._played(segment.phases):
            action = self._action(phase, scale, segment.from_host)
            if isinstance(action, Work) and actions and isinstance(actions[-1], Work):
                actions[-1] = Work(parts=actions[-1].parts + action.parts)
            elif action is not None:
                actions.append(action)
        sharding = [
            self._send("sharding", SHARDING, one.axis, one.op, float(one.bytes) * scale) for one in segment.sharding
        ]
        sends = [(send, one.op) for send, one in zip(sharding, segment.sharding, strict=True) if send is not None]
        offload = None
        if segment.offload_bytes > 0:
            way = HOST_IN if segment.from_host else HOST_OUT
            offload = Send(part=OFFLOAD, use=way, bytes=float(segment.offload_bytes * scale), stream="copy")
        return Piece(
            name=segment.name,
            actions=tuple(actions),
            gather=next((send for send, op in sends if op == "all_gather"), None),
            reduce=tuple(send for send, op in sends if op != "all_gather"),
            offload=offload,
            host_s=float(segment.launching_s()) * scale,
            overlap_cost=segment.overlap_cost,
        )

    def _played(self, phases: Iterable[Phase]) -> Iterator[Phase | _Reach]:
        """Passed states as a gather, as a chain, or as the rounds of a tree, and what ranks take to join them."""
        for phase in phases:
            if not isinstance(phase, Passed):
                yield phase
                continue
            ranks = getattr(self.strategy, phase.axis)
            if phase.way == "gather":
                yield from [phase.handed] * (ranks - 1) if phase.by_transfers else [phase.gathered(ranks)]
            elif phase.way == "chain":
                yield _Reach(phase.part, phase.axis, "chain", float(phase.state_bytes), 1)
            else:
                assert phase.way == "tree", phase.way
                rounds = range(math.ceil(math.log2(phase.reach)))
                yield from (
                    _Reach(phase.part, phase.axis, "tree", float(phase.summary_bytes), 2**each) for each in rounds
                )
            if ranks > 1:
                yield Compute("memory_bound", joined_s(phase, phase.way, ranks))

    def _action(self, phase: Phase | _Reach, scale: float, from_host: bool) -> Action | None:
        if isinstance(phase, Compute):
            seconds = float(phase.seconds) * scale
            return Work(parts=((phase.part, seconds),)) if seconds > 0 else None
        if isinstance(phase, Exchange):
            return self._send("main", phase.part, phase.axis, phase.op, float(phase.bytes) * scale)
        if isinstance(phase, _Reach):
            return self._send("main", phase.part, phase.axis, phase.op, phase.bytes * scale, phase.reach)
        if isinstance(phase, Staged):
            if not phase.blocks:
                return None
            one = Round(int(phase.blocks), float(phase.seconds) * scale, float(phase.bytes) * scale)
            return Rounds(part=phase.part, use=HOST_OUT if from_host else HOST_IN, rounds=(one,))
        if isinstance(phase, Broadcasts):
            raise AssertionError("the broadcasts of owners are priced, not played")
        assert isinstance(phase, Ring), phase
        use = self._use("main", "ring", "send")
        rounds = ring_rounds(phase, scale)
        if use is None:
            return Work(parts=((phase.part, sum(r.times * r.seconds for r in rounds)),))
        return Rounds(part=phase.part, use=use, rounds=rounds)

    def _send(self, stream: Stream, part: str, axis: Axis, op: Op, size: float, reach: int = 1) -> Send | None:
        use = self._use(stream, axis, op, reach) if size > 0 else None
        return None if use is None else Send(part=part, use=use, bytes=float(size), stream=stream)

    def _use(self, stream: Stream, axis: Axis, op: Op, reach: int = 1) -> int | None:
        if getattr(self.strategy, axis) == 1:
            return None
        use = Use(stream, axis, op, reach)
        if use not in self.uses:
            self.uses.append(use)
        return self.uses.index(use)


def ring_rounds(ring: Ring, scale: float = 1.0) -> tuple[Round, ...]:
    """Rounds that end when both their block and their bytes are done; equal neighbours are one with a count."""
    pieces, hop, gradient = int(ring.pieces), float(ring.hop_bytes) * scale, float(ring.gradient_bytes) * scale
    first, piece = float(ring.first_s) * scale, float(ring.piece_s) * scale
    if pieces == 1:
        return (Round(1, first, 0.0),)
    rounds = [Round(1, first, hop)]
    if pieces > 2:
        rounds += [Round(1, piece, hop)] if gradient else []
        rounds.append(Round(pieces - 2 - (gradient > 0), piece, hop + gradient))
    rounds.append(Round(1, piece, gradient if pieces > 2 else 0.0))
    if gradient:
        rounds.append(Round(1, 0.0, gradient))
    return tuple(r for r in rounds if r.times)
