"""The longest row that a strategy can hold: bisection on the memory model, which never falls with tokens.

    largest context_tokens, a multiple of 2 x context (both zigzag chunks full), with `price`'s memory within the GPU

Reserve and communication buffers count, as in `fits`. Left out: time, and packed lengths (memory does not see them).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cost_models.errors import InputError
from cost_models.framework import OURS, Framework
from cost_models.hardware.cluster import Cluster
from cost_models.pricing import price
from cost_models.room import AS_PRICED, Room
from cost_models.strategy import Strategy
from cost_models.workload import Workload

MOST_TOKENS = 2**32
"""Beyond any row that is trained; what fits more than this is refused."""


def longest_tokens(
    cluster: Cluster, workload: Workload, strategy: Strategy, framework: Framework = OURS, room: Room = AS_PRICED
) -> int:
    """Tokens of the longest row that fits; 0 if not even the shortest does. Frames stay, text fills the row.

    >>> from cost_models import Cluster, Model, Strategy, Workload
    >>> work = Workload(Model.load("longvila-8b"), context_tokens=2**20)
    >>> strategy = Strategy(ring=32, ulysses=8, shard=256)
    >>> 2**20 < longest_tokens(Cluster.load("dgx-h100", gpus=256), work, strategy) < 2**22
    True
    """
    unit, fewest = 2 * strategy.context, shortest_tokens(workload, strategy)

    def fits(tokens: int) -> bool:
        row = replace(workload, context_tokens=tokens, text_tokens=None, lengths=())
        return room.holds(price(cluster, row, strategy, framework=framework))

    return most_tokens(fits, unit, fewest // unit)


def shortest_tokens(workload: Workload, strategy: Strategy) -> int:
    """The shortest row that is tried: both zigzag chunks of every rank, and room for the frames."""
    unit = 2 * strategy.context
    return unit * max(1, -(-workload.vision_tokens // unit))


def most_tokens(fits: Callable[[int], bool], unit: int, fewest: int = 1) -> int:
    """The largest multiple of `unit` tokens, from `fewest` units on, that fits; 0 if not even the least does.

    >>> most_tokens(lambda tokens: tokens <= 375, unit=10), most_tokens(lambda tokens: False, unit=10)
    (370, 0)
    """
    if not fits(fewest * unit):
        return 0
    low, high = fewest, 2 * fewest
    while fits(high * unit):
        low, high = high, 2 * high
        if high * unit > MOST_TOKENS:
            raise InputError(f"a row of {low * unit} tokens fits still; give a workload whose memory grows with tokens")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * unit) else (low, middle)
    return low * unit
