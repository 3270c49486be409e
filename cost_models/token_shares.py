"""Blocks of unequal size in a ring: how many tokens each position holds, and what its ranks wait for each other.

    tokens of position r = unit x units_r,   sum of units_r = those of the padded row,   units_r ~ shares_r

Zigzag with sizes: position r has two pieces of equal size at mirrored places of the row, so its causal pairs are in
proportion to its tokens: (a + h/2) h + (L - a - h/2) h = h L. Computing a block takes queries x keys / 2, whoever has
them, and blocks go round one after the other: a rank with few queries also gets to see the large blocks, while its
neighbours have small ones. They wait for each other only as far as one hop ahead (`stall`).
Units: tokens. Left out: shares inside a ulysses group, and of rows (a data replica takes as many rows as another).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

import numpy as np

from cost_models.errors import InputError


def check_shares(shares: tuple[int, ...], ring: int, kind: str) -> None:
    """Refuse shares that blocks of a ring of this kind cannot have."""
    if kind != "zigzag":
        raise InputError(f"token_shares with ring_kind={kind}; legal here: zigzag")
    if len(shares) != ring or ring == 1 or min(shares) < 1:
        raise InputError(f"token_shares={list(shares)}: a ring of {ring} needs {ring} whole numbers of at least 1")


def shown(shares: Sequence[int]) -> str:
    """
    >>> shown((5, 5, 9)), shown((2, 1))
    ('2 × 5 : 9', '2 : 1')
    """
    runs = [(share, len(list(alike))) for share, alike in groupby(shares)]
    return " : ".join(f"{many} × {share}" if many > 1 else f"{share}" for share, many in runs)


@lru_cache(maxsize=1024)
def dealt(units: int, shares: tuple[int, ...]) -> tuple[int, ...]:
    """`units` in whole numbers of at least 1 by `shares`, each within 1 of its part where that is above 1.

    >>> dealt(12, (3, 1)), dealt(10, (2, 1, 1)), dealt(4, (97, 1, 1, 1))
    ((9, 3), (5, 3, 2), (1, 1, 1, 1))
    """
    parts = [units * share / sum(shares) for share in shares]
    given = [max(1, int(part)) for part in parts]
    while sum(given) != units:
        short = sum(given) < units
        away = [part - has if short or has > 1 else np.inf for part, has in zip(parts, given, strict=True)]
        at = away.index(max(away)) if short else away.index(min(away))
        given[at] += 1 if short else -1
    return tuple(given)


def stall(tokens: Sequence[int], seconds: Sequence[float]) -> float:
    """Time of a ring over that of its slowest rank alone; `seconds`: of one query with the keys of one token.

    Step k of rank r has the block of rank r - k, and ends when that is computed and the next block is here, whose
    transfer began when both neighbours had begun step k. What transfers take is not in it (`pricing`).

    >>> stall((2, 2, 1, 1), (1, 1, 2, 2)), round(stall((3, 3, 1, 1), (1, 1, 3, 3)), 3)
    (1.0, 1.125)
    """
    held, each = np.array(tokens, dtype=np.float64), np.array(seconds)
    began, ring = np.zeros(len(held)), len(held)
    for step in range(ring):
        ended = began + held * each * np.roll(held, step)
        if step + 1 < ring:
            ended = np.maximum(ended, np.maximum(np.roll(began, 1), np.roll(began, -1)))
        began = ended
    return float(began.max() / (held * each * held.sum()).max())
