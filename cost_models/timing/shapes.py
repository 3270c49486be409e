"""What a kernel's shape costs: tiles that are not full, rows that are not aligned, pairs that a mask leaves.

    product     n and k in tiles of TILE values; rows that do not start at 16 bytes take UNALIGNED times as long
    attention   pairs of a causal block = seen (keys - (seen - 1) / 2), seen = min(queries, keys); head dims padded to
                HEAD_DIM_TILE; queries in tiles of QUERY_TILE

Values, tokens, shares. Left out: tiles of rows (m), which the measured grids have.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cost_models.errors import InputError
from cost_models.hardware.device import DTYPE_BYTES
from cost_models.number import Number, pick

Larger = Callable[[Number, Number], Number]
TILE = 64
"""Values of n and of k that a product's tiles cover at once, at least."""
UNALIGNED = 1.8
"""Padding GPT-2's vocabulary from 50,257 to 50,304 made nanoGPT's step 1.25 times as fast (Karpathy, on A100); its head
has 31% of the FLOPs, so the odd product took 1.8 times as long."""
QUERY_TILE = 128
HEAD_DIM_TILE = 32
MOST_HEAD_DIM = 512


def attention_pairs(q_tokens: Number, kv_tokens: Number, causal: bool) -> Number:
    """Query-key pairs of one head; causal is aligned at the end.

    >>> attention_pairs(4, 4, True), attention_pairs(2, 4, True), attention_pairs(4, 2, True)
    (10.0, 7.0, 3.0)
    """
    if not causal:
        return q_tokens * kv_tokens * 1.0
    seen = np.minimum(q_tokens, kv_tokens) if isinstance(q_tokens + kv_tokens, np.ndarray) else min(q_tokens, kv_tokens)
    return seen * (kv_tokens - (seen - 1) / 2.0)


def tiled(size: Number) -> Number:
    """A dimension as a product's tiles cover it; below one tile as it is.

    >>> tiled(160), tiled(128), tiled(20)
    (192, 128, 20)
    """
    return pick(size < TILE, size, -(-size // TILE) * TILE)


def unaligned(n: Number, dtype: str) -> Number:
    """What rows of n values cost that do not start at 16 bytes; a fraction of a value is a share that is padded.

    >>> unaligned(50257, "bf16"), unaligned(50264, "bf16")
    (1.8, 1.0)
    """
    rest = n % (16 // DTYPE_BYTES[dtype])
    return pick((rest > 0) & (rest % 1 == 0), UNALIGNED, 1.0)


def padded_dim(head_dim: int) -> int:
    """
    >>> padded_dim(72), padded_dim(128)
    (96, 128)
    """
    if not 0 < head_dim <= MOST_HEAD_DIM:
        raise InputError(f"head_dim={head_dim}; legal: 1 to {MOST_HEAD_DIM}")
    return -(-head_dim // HEAD_DIM_TILE) * HEAD_DIM_TILE


def unmasked_share(q_tokens: Number, kv_tokens: Number, pairs: Number, larger: Larger) -> Number:
    """0 for a causal square, 1 where every query sees every key."""
    return larger(2.0 * pairs / larger(q_tokens * kv_tokens, 1.0) - 1.0, 0.0)
