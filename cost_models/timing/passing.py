"""Seconds in which states of a row's stretches are handed on through a group (`program.Passed`) and joined, one way.

    gather   all summaries to all ranks, as an all-gather; on gloo as ranks - 1 transfers around the group
    chain    stretches - 1 messages of a state, one after another; D domains are entered D - 1 times, or twice as often
             where the row goes up through the ranks and back
    tree     step s: stretch i sends its summary to stretch i + 2^s, until 2^s reaches all

Of a tree's step each domain sends out min(2^s, stretches that it has of one way through the ranks), twice that where
both ways pass a domain with neighbours on both sides; `send_s_per_byte` is of one message a group, and an all-to-all's
load tells what all members' messages make of shared cards. Where NCCL does not queue them, a rank that has nothing more
to receive sends all its later steps at once, and what others wait for shares the card with them (`ready`): of two nodes
with four stretches, three messages one after another instead of two, as measured over sockets. `ssd_messages` has the
messages themselves. Left out: trunks above the cards in a tree's rounds, blocks of ulysses ranks that straddle domains.
"""

from __future__ import annotations

import math

import numpy as np

from cost_models.number import Number, both, larger, pick, smaller
from cost_models.program import Passed
from cost_models.strategy import SsdPass
from cost_models.timing.paths import Path, Paths, start_s


def passed_s(phase: Passed, paths: Paths) -> Number:
    """Of all states one way; 0 in a group of one."""
    seconds: Number = math.inf
    ranks = paths.axes[phase.axis].ranks
    for way in phase.ways:
        joined = joined_s(phase, way, ranks)
        if way == "gather":
            taken = _gather_s(phase, paths, ranks)
        elif way == "chain":
            taken = pick(phase.chained, _chain_s(phase, paths), math.inf if phase.way == "least" else 0.0)
        else:
            taken = _tree_s(phase, paths)
        seconds = smaller(seconds, taken + joined * paths.pace)
    return pick(ranks > 1, seconds, 0.0)


def _gather_s(phase: Passed, paths: Paths, ranks: Number) -> Number:
    sent = phase.handed if phase.by_transfers else phase.gathered(ranks)
    return (ranks - 1 if phase.by_transfers else 1) * paths.exchange_s(sent.axis, sent.op, sent.bytes)


def joined_s(phase: Passed, way: SsdPass, ranks: Number) -> Number:
    """Seconds of ranks' memory, by readings and writings of a summary, those that others wait for one after another.

    States are laid end to end with their decays (2), all gathered ones read, two joined (3), of a rank with several
    stretches buffers filled up or laid end to end; backward the gradients of the decays are summed (4).
    `tests/executor/test_ssd_counts.py` counts them.
    """
    several = phase.slots > 1
    if way == "gather":
        passes = (2 + ranks + 1) * phase.slots + pick(several, 3, 0)
    elif way == "chain":
        passes = 1 + 3 * (phase.stretches - 1)
    else:
        steps = np.ceil(np.log2(larger(phase.reach, 1)))
        passes = (2 + 6 * larger(steps - 1, 0)) * phase.slots + pick(several, 2 * phase.slots, 0)
    return (passes + (4 * phase.slots if phase.back else 0)) * phase.pass_s


def ready(stretch: int, step: int) -> int:
    """The round in which the message of a tree's step can be sent: `stretch` has received all before it by then.

    >>> [ready(0, 2), ready(1, 2), ready(3, 2), ready(4, 2)]
    [0, 1, 2, 2]
    """
    return min(step, stretch.bit_length())


def _inside_s(path: Path, paths: Paths, size: Number) -> Number:
    return larger(paths.inside_s("send", path, size), size * path.bus_send_s_per_byte)


def _chain_s(phase: Passed, paths: Paths) -> Number:
    path = paths.axes[phase.axis]
    hops = phase.stretches - 1
    out = smaller(larger(path.hops_out - 1, 0) * pick(phase.turns, 2, 1), hops)
    return out * paths.exchange_s(phase.axis, "send", phase.state_bytes) + (hops - out) * _inside_s(
        path, paths, phase.state_bytes
    )


def _tree_s(phase: Passed, paths: Paths) -> Number:
    path, size = paths.axes[phase.axis], phase.summary_bytes
    inside = _inside_s(path, paths, phase.slots * size)
    away = larger(path.ranks - path.local, 1)
    all_s_per_byte = path.all_to_all_s_per_byte * path.ranks / away
    seconds: Number = 0.0
    for step in range(_steps(phase)):
        out = _leaving(phase, path, step) / path.local
        crossing = size * larger(path.send_s_per_byte, all_s_per_byte * out) + start_s("send", path)
        taken = larger(inside, pick(path.hops_out > 0, crossing, 0.0))
        seconds = seconds + pick(2**step < phase.reach, taken, 0.0)
    return seconds


def _steps(phase: Passed) -> int:
    """Rounds of a tree, of the candidate that has most."""
    return math.ceil(math.log2(max(np.max(phase.reach), 1)))


def _leaving(phase: Passed, path: Path, number: int) -> Number:
    """The most messages of a tree's round that leave a domain: the first one may send those of later steps."""
    ways = pick(phase.turns, 2, 1)
    held = path.local * phase.stretches / larger(path.ranks, 1) / ways  # stretches of one way
    of_step = smaller(2**number, held) * pick(path.hops_out > 2, ways, 1)
    first: Number = 0
    for step in range(number, _steps(phase)):
        for stretch in range(math.ceil(np.max(held))):
            if ready(stretch, step) == number:
                to = stretch + 2**step
                leaves = both(both(stretch < held, to >= held), both(to < phase.stretches, 2**step < phase.reach))
                first = first + pick(leaves, 1, 0)
    return pick(path.protocols > 0, of_step, larger(of_step, first))
