"""A GOAL schedule: every message is received once, nothing waits for itself, it computes and sends what a step does."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from cost_models.errors import InputError
from cost_models.strategy import Strategy
from planner.simulator import goal as module
from planner.simulator.goal import goal
from planner.simulator.played_program import compute_s
from tests.planner.clusters import layers, step

PROGRAM = step(
    layers(2, 3, exchange=4e6, gather=3e6, hop=9e6),
    layers(2, 3, gather=3e6, scatter=6e6, replicate=1e6, gradient=4e6, name="layer backward"),
    microbatches=2,
)
LAYOUT = Strategy(data=2, ring=2, ulysses=2, shard=4)
LINE = re.compile(r"l(\d+): (calc|send|recv) (\d+)b?(?: (?:to|from) (\d+) tag (\d+))? cpu 0(?: nic 0)?$")


def read(text: str) -> tuple[list[list[re.Match[str]]], list[dict[int, list[int]]]]:
    """Operations of each rank by label, and what each requires."""
    head, *blocks = text.split("\nrank ")
    assert head == f"num_ranks {len(blocks)}\n"
    operations, requires = [], []
    for number, block in enumerate(blocks):
        first, *lines, last = block.strip().splitlines()
        assert (first, last) == (f"{number} {{", "}")
        needs: dict[int, list[int]] = defaultdict(list)
        mine = []
        for line in lines:
            if "requires" in line:
                label, _, other = line.split()
                needs[int(label[1:])].append(int(other[1:]))
            else:
                found = LINE.match(line)
                assert found, line
                mine.append(found)
        operations.append(mine)
        requires.append(needs)
    return operations, requires


def test_every_message_is_received_once_and_nothing_waits_for_itself() -> None:
    operations, requires = read("".join(goal(PROGRAM, np.ones(8), LAYOUT)))
    sent, received = Counter(), Counter()
    for r, mine in enumerate(operations):
        for one in mine:
            label, kind, size, other, tag = one.groups()
            assert all(needed < int(label) for needed in requires[r][int(label)])
            if kind == "send":
                sent[r, int(other), tag, size] += 1
            elif kind == "recv":
                received[int(other), r, tag, size] += 1
    assert sent and sent == received


def test_it_runs_to_its_end() -> None:
    """Played without times: an operation runs when what it requires has run, a receipt when its message was sent."""
    operations, requires = read("".join(goal(PROGRAM, np.ones(8), LAYOUT)))
    done: list[set[int]] = [set() for _ in operations]
    sent: Counter[tuple[int, int, str]] = Counter()
    moved = True
    while moved:
        moved = False
        for r, mine in enumerate(operations):
            for one in mine:
                label, kind, _, other, tag = one.groups()
                if int(label) in done[r] or not done[r].issuperset(requires[r][int(label)]):
                    continue
                if kind == "recv":
                    if not sent[int(other), r, tag]:
                        continue
                    sent[int(other), r, tag] -= 1
                elif kind == "send":
                    sent[r, int(other), tag] += 1
                done[r].add(int(label))
                moved = True
    assert [len(mine) for mine in done] == [len(mine) for mine in operations]


def test_it_computes_as_long_as_the_step() -> None:
    scale = np.array([1, 1, 1, 1, 1, 1, 1, 2.0])
    operations, _ = read("".join(goal(PROGRAM, scale, LAYOUT)))
    computed = [sum(int(one[3]) for one in mine if one[2] == "calc") * 1e-9 for mine in operations]
    assert computed == pytest.approx((compute_s(PROGRAM) * scale).tolist(), rel=1e-6)


def test_too_many_operations_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_OPERATIONS", 10)
    with pytest.raises(InputError, match="at most 10 are written"):
        "".join(goal(PROGRAM, np.ones(8), LAYOUT))
