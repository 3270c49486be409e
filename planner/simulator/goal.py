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

from collections.abc import Iterator
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


def goal(program: StepProgram, scale: Floats, strategy: Strategy) -> Iterator[str]:
    """The schedule: a head, then a part for each rank. `scale` (per rank) multiplies compute seconds.

    Ranks that compute as long have the same lines but for the ranks that they name: `%(u+i)d` is member i after the
    rank itself in its group of use u.
    """
    script = write_script(program, strategy)
    groups = [rank_groups(strategy, use.axis) for use in script.uses]
    yield f"num_ranks {strategy.ranks}\n"
    lines: dict[float, str] = {}
    places = [np.argsort(group, axis=None) for group in groups]  # of each rank, row by row
    for r in range(strategy.ranks):
        mine = float(scale[r])
        if mine not in lines:
            made = _rank(script, [group.shape[1] for group in groups], mine)
            if sum(": " in line for line in made) * strategy.ranks > MOST_OPERATIONS:
                raise InputError(
                    f"--goal: {sum(': ' in line for line in made) * strategy.ranks:,} operations; at most "
                    f"{MOST_OPERATIONS:,} are written (fewer GPUs, layers or microbatches)"
                )
            lines[mine] = "\n".join(made)
        named: dict[str, int] = {}
        for u, (group, place) in enumerate(zip(groups, places, strict=True)):
            row, here = divmod(int(place[r]), group.shape[1])
            turned = np.roll(group[row], -here).tolist()
            named |= {f"{u}+{i}": other for i, other in enumerate(turned)}
        yield f"\nrank {r} {{\n{lines[mine] % named}\n}}\n"


def _rank(script: Script, members: list[int], scale: float) -> list[str]:
    """The lines of a rank that computes `scale` times as long; `members`: of a group, by use."""
    rank, gathered = _Rank(scale), {}

    def gather(k: int) -> None:
        if send := script.pieces[k].gather:
            rank.sharding = _send(script, rank, members, send, k * TAGS, rank.sharding + rank.main)
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
            _act(script, rank, members, action, k * TAGS + i)
        for i, send in enumerate(piece.reduce, len(piece.actions) + 1):
            rank.sharding = _send(script, rank, members, send, k * TAGS + i, rank.sharding + rank.main)
    return rank.lines


def _act(script: Script, rank: _Rank, members: list[int], action: Action, tag: int) -> None:
    if isinstance(action, Work):
        rank.main = (rank.calc(action.seconds, rank.main),)
    elif isinstance(action, Send):
        rank.main = _send(script, rank, members, action, tag, rank.main)
    else:
        _rounds(rank, None if action.use < 0 else members[action.use], action, tag)


def _rounds(rank: _Rank, members: int | None, rounds: Rounds, tag: int) -> None:
    """Blocks and hops: the next round requires both."""
    for one in rounds.rounds:
        for _ in range(one.times):
            after = rank.main
            done = [rank.calc(one.seconds, after)]
            if members and one.bytes > 0:
                done.append(_message(rank, rounds.use, 1, one.bytes, tag, after))
                done.append(_receipt(rank, rounds.use, members - 1, one.bytes, tag, after))
            rank.main = tuple(done)


def _send(
    script: Script, rank: _Rank, members: list[int], send: Send, tag: int, after: tuple[int, ...]
) -> tuple[int, ...]:
    """The messages of a collective; their labels."""
    count, op, use = members[send.use], script.uses[send.use].op, send.use
    if op == "all_to_all":
        size, others = send.bytes / count, range(1, count)
        sent = [_message(rank, use, other, size, tag, after) for other in others]
        return (*sent, *(_receipt(rank, use, other, size, tag, after) for other in others))
    if op in ("chain", "tree"):
        raise InputError(f"ssd_pass={op} is not written as GOAL; legal: gather")
    times = 1.0 if op == "send" else (count - 1) / count * (2 if op == "all_reduce" else 1)
    size = send.bytes * times
    return _message(rank, use, 1, size, tag, after), _receipt(rank, use, count - 1, size, tag, after)


def _message(rank: _Rank, use: int, to: int, size: float, tag: int, after: tuple[int, ...]) -> int:
    return rank.add(f"send {max(1, round(size))}b to %({use}+{to})d tag {tag} cpu 0 nic 0", after)


def _receipt(rank: _Rank, use: int, source: int, size: float, tag: int, after: tuple[int, ...]) -> int:
    return rank.add(f"recv {max(1, round(size))}b from %({use}+{source})d tag {tag} cpu 0 nic 0", after)
