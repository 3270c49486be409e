"""A step as a GOAL schedule, which LogGOPSim and ATLAHS replay: what every rank computes, sends and receives.

    rank 0 {
    l1: calc 1250000 cpu 0                   nanoseconds of the main stream
    l2: send 4194304b to 1 tag 7 cpu 0 nic 0
    l3: recv 4194304b from 7 tag 7 cpu 0 nic 0
    l2 requires l1
    }

The main stream and the sharding stream are chains; a segment requires its gathered weights, a reduction requires its
segment, the epilogue both. An all_to_all is a message to each other member. A ring's hop is sent while its block is
computed. Gathers and reductions are one message around their ring, with the bytes of all its steps. Left out: copies
to host memory, what the host and hidden collectives add to a segment, and latencies, which the replayer adds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cost_models.errors import InputError
from cost_models.program import StepProgram
from cost_models.strategy import Strategy, rank_groups
from planner.simulator.streams import Action, Rounds, Script, Send, Work, write_script
from planner.simulator.topology import Floats

MOST_OPERATIONS = 5_000_000
TAGS = 64
"""Of one instance of a segment: each of its collectives has one."""


@dataclass(slots=True)
class _Rank:
    """The lines of one rank. `last` is the label that the next operation of a stream requires."""

    scale: float
    lines: list[str] = field(default_factory=list)
    labels: int = 0
    main: tuple[int, ...] = ()
    sharding: tuple[int, ...] = ()

    def add(self, operation: str, after: tuple[int, ...]) -> int:
        self.labels += 1
        self.lines.append(f"l{self.labels}: {operation}")
        self.lines += [f"l{self.labels} requires l{label}" for label in dict.fromkeys(after)]
        return self.labels

    def calc(self, seconds: float, after: tuple[int, ...]) -> int:
        return self.add(f"calc {round(seconds * self.scale * 1e9)} cpu 0", after)


@dataclass(frozen=True, slots=True)
class _Peers:
    """The members of a rank's group on one axis, in order, and the rank's place among them."""

    members: tuple[int, ...]
    place: int

    @property
    def next(self) -> int:
        return self.members[(self.place + 1) % len(self.members)]

    @property
    def before(self) -> int:
        return self.members[self.place - 1]


def goal(program: StepProgram, scale: Floats, strategy: Strategy) -> str:
    """The schedule of all ranks. `scale` (per rank) multiplies compute seconds."""
    script = write_script(program, strategy)
    groups = [rank_groups(strategy, use.axis) for use in script.uses]
    places = [_places(group) for group in groups]
    text = [f"num_ranks {strategy.ranks}\n"]
    operations = 0
    for r in range(strategy.ranks):
        peers = [
            _Peers(tuple(group[place[r, 0]].tolist()), int(place[r, 1]))
            for group, place in zip(groups, places, strict=True)
        ]
        lines = _rank(script, peers, float(scale[r]))
        operations += len(lines)
        if operations / (r + 1) * strategy.ranks > 3 * MOST_OPERATIONS:
            raise InputError(
                f"--goal: about {len(lines) * strategy.ranks // 3:,} operations; at most {MOST_OPERATIONS:,} are "
                "written (fewer GPUs, layers or microbatches)"
            )
        text += [f"\nrank {r} {{\n", "\n".join(lines), "\n}\n"]
    return "".join(text)


def _places(groups: np.ndarray) -> np.ndarray:
    """For each rank its group and its place there."""
    place = np.empty((groups.size, 2), dtype=np.int64)
    rows, columns = np.indices(groups.shape)
    place[groups.ravel(), 0], place[groups.ravel(), 1] = rows.ravel(), columns.ravel()
    return place


def _rank(script: Script, peers: list[_Peers], scale: float) -> list[str]:
    rank, gathered = _Rank(scale), {}

    def gather(k: int) -> None:
        if send := script.pieces[k].gather:
            rank.sharding = _send(script, rank, peers, send, k * TAGS, rank.sharding + rank.main)
            gathered[k] = rank.sharding

    gather(0)
    for k in range(script.end):
        piece = script.pieces[k]
        if k >= script.main_end:
            if k not in gathered:
                gather(k)
            rank.main += rank.sharding
        elif k + 1 < script.main_end:
            gather(k + 1)
        rank.main += gathered.get(k, ())
        for i, action in enumerate(piece.actions, 1):
            _act(script, rank, peers, action, k * TAGS + i)
        for i, send in enumerate(piece.reduce, len(piece.actions) + 1):
            rank.sharding = _send(script, rank, peers, send, k * TAGS + i, rank.sharding + rank.main)
    return rank.lines


def _act(script: Script, rank: _Rank, peers: list[_Peers], action: Action, tag: int) -> None:
    if isinstance(action, Work):
        rank.main = (rank.calc(action.seconds, rank.main),)
    elif isinstance(action, Send):
        rank.main = _send(script, rank, peers, action, tag, rank.main)
    else:
        _rounds(rank, None if action.use < 0 else peers[action.use], action, tag)


def _rounds(rank: _Rank, peers: _Peers | None, rounds: Rounds, tag: int) -> None:
    """Blocks and hops: the next round requires both."""
    for one in rounds.rounds:
        for _ in range(one.times):
            after = rank.main
            done = [rank.calc(one.seconds, after)]
            if peers and one.bytes > 0:
                done.append(_message(rank, peers.next, one.bytes, tag, after))
                done.append(_receipt(rank, peers.before, one.bytes, tag, after))
            rank.main = tuple(done)


def _send(
    script: Script, rank: _Rank, peers: list[_Peers], send: Send, tag: int, after: tuple[int, ...]
) -> tuple[int, ...]:
    """The messages of a collective; their labels."""
    mine, op = peers[send.use], script.uses[send.use].op
    count = len(mine.members)
    if op == "all_to_all":
        others = [member for member in mine.members if member != mine.members[mine.place]]
        sent = [_message(rank, other, send.bytes / count, tag, after) for other in others]
        return (*sent, *(_receipt(rank, other, send.bytes / count, tag, after) for other in others))
    times = 1.0 if op == "send" else (count - 1) / count * (2 if op == "all_reduce" else 1)
    size = send.bytes * times
    return _message(rank, mine.next, size, tag, after), _receipt(rank, mine.before, size, tag, after)


def _message(rank: _Rank, to: int, size: float, tag: int, after: tuple[int, ...]) -> int:
    return rank.add(f"send {max(1, round(size))}b to {to} tag {tag} cpu 0 nic 0", after)


def _receipt(rank: _Rank, source: int, size: float, tag: int, after: tuple[int, ...]) -> int:
    return rank.add(f"recv {max(1, round(size))}b from {source} tag {tag} cpu 0 nic 0", after)
