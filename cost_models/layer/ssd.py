"""A layer that mixes tokens by a state (Discrete Mamba-2): its operators on one rank, and what it exchanges.

    norm · projection · [x B C a to heads] · [halo] · convolution · scan in chunks · [states] · [y back] · gate · out

Of W = S H tokens times heads, chunks of T, head size P, state N: products 2 W (T N + T P + (2 + 16 / T) P N) FLOP
forward, in float32 as the executor sums them; kernels of `longvila/ssd.py`, one PyTorch operator each, counted as it
runs. So the scan's seconds are an estimate: no published row times this code, and fused kernels (mamba-ssm) are faster.
A rank sends (G ranks of the context group, b bytes a value, 4 a state's):

    heads    S H (P + 2 N + 1) b in, S H P b back, over the context group; mixed: over the ulysses group
    states   H (P N + 1) 4 of each stretch, gathered by all G; mixed: by the R of the ring, of H / U heads
    halo     K - 1 tokens of x, B and C for each stretch, to the next rank

The messages themselves, rank by rank, are in `ssd_messages`. How states are passed on is `timing/passing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np

from cost_models.curves.samples import SCANS, Correction
from cost_models.errors import InputError
from cost_models.layer.operators import (
    Operator,
    Passes,
    Product,
    Table,
    elementwise,
    layer_norm,
    multiplies,
    norm_behind,
    products_s,
    residual,
)
from cost_models.layer.sizes import RankSizes
from cost_models.models.ssd import Ssd
from cost_models.number import Number, both, larger, pick, smaller
from cost_models.program import Exchange, Passed
from cost_models.strategy import Axis, Strategy
from cost_models.timing.kernels import Kernels
from cost_models.workload import Workload

STATE_BYTES = 4
"""Of a number of the scan and of a state: sums are in float32."""
TAP_PASSES = 7
"""Of each earlier tap of the convolution: multiplied (2), masked (2), added (3)."""
SCAN_PASSES = ((10, 34, 50, 26), (11, 29, 57, 38))
"""Bytes read and written of the scan, forward and half of those backward, for each x, B or C of a head (cast, laid out
by chunks), each token of a chunk (differences of decays, their mask and exponential, scores times these), each value of
y (weighed, summed twice, and `SKIP_PASSES`), and each number of a chunk's state (filled up, behind its block, entered
with). `tests/executor/test_ssd_counts.py` counts them."""
SKIP_PASSES = (20, 12)
"""Of those of each y: x times a number of its head is added."""
SCAN_CALLS, LEVEL_CALLS = (52, 76), (18, 28)
"""Operators that the host calls for a scan, and for each level of blocks of chunks above the first."""
TO_HEADS = {"heads": ((8, 6), (6, 4)), "mixed": ((6, 3), (4, 3))}
FROM_HEADS = {"heads": ((4, 4), (4, 2)), "mixed": ((2, 1), (2, 1))}
"""Readings and writings of what an exchange of heads sends, and kernels, forward and backward: gathered, ordered by
members, laid out by heads, and by `heads` put into the row's order. `tests/executor/test_ssd_counts.py` counts them."""
HALO = (4, 3)
"""The same of the gradient of the halo, backward alone: zeros of all channels, and their sum with the convolution's."""
BLOCK = 16
"""Chunks of a block (`longvila/ssd.py`): their states are one product."""


def ssd_operators(sizes: RankSizes) -> Table:
    """The first half of a decoder layer whose tokens are mixed by a state."""
    ssd, hidden = sizes.workload.model.ssd, sizes.workload.model.hidden
    assert ssd is not None
    width, tokens = sizes.width, sizes.tokens
    work = tokens * ssd.heads
    gated = elementwise(
        sizes, "gate", work * ssd.head_size * 7 * width, 3, kept=work * (2 * ssd.head_size + 1) * width, host=(3, 7)
    )
    out = multiplies(sizes, "out", (tokens, hidden, ssd.inner), host=(1, 2))
    wide = ssd.heads * ssd.channels
    qkv = multiplies(sizes, "qkv", (tokens, wide, hidden), (tokens, ssd.columns - wide, hidden), host=(8, 14))
    return (
        layer_norm(sizes, "norm", call="inputs"),
        qkv._replace(kept=work * width, working=_projecting(sizes, ssd)),
        _to_heads(sizes, "heads", work * (ssd.channels + 1) * width, TO_HEADS, work * ssd.channels * width),
        *_mixed(sizes, ssd),
        *_remembered(sizes, ssd),
        _to_heads(sizes, "heads back", work * ssd.head_size * width, FROM_HEADS)._replace(kept=0),
        gated,
        out._replace(kept=work * ssd.head_size * width),
        *norm_behind(sizes, "norm"),
        residual(sizes, "sum", 1),
    )


def _projecting(sizes: RankSizes, ssd: Ssd) -> tuple[Number, Number]:
    """Bytes alive beside the layer's tensors: z and a; their gradients, the input's and the channels', but that these
    lie where the channels lay if heads are scanned in pieces."""
    work, degrees = sizes.tokens * ssd.heads * sizes.width, sizes.degrees
    rest = work * (ssd.head_size + 1)
    in_place = degrees.ssd == "states" and degrees.attention_head_chunks > 1 and sizes.workload.mode == "train"
    return rest, rest + sizes.row_bytes + (0 if in_place else work * ssd.channels)


def _dealt(sizes: RankSizes) -> tuple[Axis, Number]:
    """The axis over which heads are dealt out, and to how many ranks."""
    degrees = sizes.degrees
    if degrees.ssd == "states":
        return "ulysses", 1
    return ("context", degrees.context) if degrees.ssd == "heads" else ("ulysses", degrees.ulysses)


def _to_heads(
    sizes: RankSizes,
    name: str,
    moved: Number,
    copied: Mapping[str, tuple[tuple[int, int], ...]],
    halo: Number | None = None,
) -> Operator:
    """An all-to-all of so many bytes with the copies that order them before and after, and the gradient of a halo."""
    axis, ranks = _dealt(sizes)
    degrees = sizes.degrees
    halo_back = Passes() if halo is None or degrees.ssd == "heads" else Passes(HALO[0] * halo, HALO[1])
    if degrees.ssd == "states":
        return Operator(name, passes=(Passes(), halo_back), active=degrees.context > 1)
    sent = (Exchange(part="all_to_all", axis=axis, op="all_to_all", bytes=moved),)
    forward, backward = (Passes(times * moved, kernels) for times, kernels in copied[degrees.ssd])
    return Operator(
        name, passes=(forward, backward.plus(halo_back)), exchanges=(sent, sent), active=ranks > 1,
        kept=pick(ranks > 1, moved, 0),
    )  # fmt: skip


def _passing(sizes: RankSizes) -> Axis:
    """The axis whose ranks have the stretches of a row."""
    return "context" if sizes.degrees.ssd == "states" else "ring"


def _mixed(sizes: RankSizes, ssd: Ssd) -> Table:
    """Convolution and scan; in training for so many heads at a time as attention takes. Kept is then what enters them,
    and backward makes a piece again, with the states that were passed on (`executor/mmsp/scan_pieces.py`)."""
    (convolution,), (scan,) = _convolution(sizes, ssd), _scan(sizes, ssd)
    chunks = sizes.degrees.attention_head_chunks
    (_, ranks), entering = _dealt(sizes), sizes.tokens * ssd.heads * ssd.channels * sizes.width
    if chunks == 1 or sizes.workload.mode != "train":
        return convolution._replace(kept=convolution.kept - pick(ranks > 1, entering, 0)), scan  # kept by the exchange
    heads = ssd.heads / ranks
    pieces = smaller(chunks, heads)
    largest = np.ceil(heads / pieces) / heads
    made = (convolution.kept - entering + scan.kept) * largest
    work, p, states = sizes.tokens * ssd.heads, ssd.head_size, ssd.head_size * ssd.state / ssd.chunk
    back = STATE_BYTES * larger(3 * p + states, 2 * ssd.chunk) * work * largest  # y's parts, or gradients in chunks
    waiting = 2 * work * p * sizes.width  # gradients of y and of z
    working = made + scan.working[0] * largest, made + back + waiting
    passed = tuple(tuple(_part(one, chunks) for one in way) * chunks for way in scan.exchanges)
    return (
        Operator("halo", exchanges=convolution.exchanges),
        # the channels' gradients take their place
        _piecewise(convolution, pieces)._replace(kept=entering if sizes.degrees.ssd == "states" else 0, freed=0),
        _piecewise(scan, pieces)._replace(working=working),
        Operator("states", exchanges=(passed[0], passed[1])),
    )


def _remembered(sizes: RankSizes, ssd: Ssd) -> Table:
    """A prefill gives every rank the state that each document ends with, all heads of it."""
    if sizes.workload.mode != "prefill":
        return ()
    degrees, state = sizes.degrees, sizes.rows * ssd.heads * ssd.head_size * ssd.state * STATE_BYTES
    size = {"states": degrees.context * state, "mixed": (degrees.ring / degrees.ulysses + 1) * state, "heads": state}
    sent = Exchange(part="ring", axis="context", op="all_gather", bytes=size[degrees.ssd])
    return (Operator("remembered", exchanges=((sent,), ())),)


def _piecewise(one: Operator, pieces: Number) -> Operator:
    """Of some heads at a time: nothing of it is kept, and backward runs it again."""
    forward, back = (passes._replace(moved=passes.moved / pieces) for passes in one.passes)
    return one._replace(
        products=tuple(product._replace(rows=product.rows / pieces) for product in one.products),
        passes=(forward, back),
        times=pieces,
        host=(one.host[0] * pieces, (one.host[0] + one.host[1]) * pieces),
        exchanges=((), ()),
        reruns=True,
        kept=0,
        working=(0, 0),
    )


def _part(sent: Exchange | Passed, pieces: int) -> Exchange | Passed:
    """Of the heads of one piece."""
    if isinstance(sent, Exchange):
        return sent._replace(bytes=sent.bytes / pieces)
    return sent._replace(state_bytes=sent.state_bytes / pieces, summary_bytes=sent.summary_bytes / pieces)


def _convolution(sizes: RankSizes, ssd: Ssd) -> Table:
    """The halo of each stretch, then the taps. What enters is kept as it came and behind its halo, and what comes
    out; the masks are a byte a tap and token that the rank's heads see."""
    moved = sizes.tokens * ssd.heads * ssd.channels * sizes.width
    taps = ssd.conv - 1
    sent: tuple[Exchange, ...] = ()
    _, ranks = _dealt(sizes)
    if sizes.degrees.ssd != "heads":
        halo = taps * ssd.heads / ranks * ssd.channels * sizes.width * sizes.degrees.ssd_slots * sizes.rows
        sent = (Exchange(part="ring", axis=_passing(sizes), op="send", bytes=halo),)
    kept = 3 * moved + sizes.tokens * ranks * taps
    made = elementwise(
        sizes, "convolution", moved * (TAP_PASSES * taps + 2), 3 * taps + 2, kept=kept,
        host=(3 * taps + 4, 5 * taps + 4),
    )  # fmt: skip

    def with_scan(kernels: Kernels, grad: bool) -> Number | None:
        return 0.0 * sizes.tokens if kernels.scans else None

    return (made._replace(exchanges=(sent, sent), working=(2 * moved, 2 * moved), timed=with_scan),)


def _scan(sizes: RankSizes, ssd: Ssd) -> Table:
    """Products inside chunks and with their states, all the passes between them, and the states of all stretches."""
    _, ranks = _dealt(sizes)
    decode, trained = sizes.workload.mode == "decode", sizes.workload.mode == "train"
    work, t, p, n = sizes.tokens * ssd.heads, 1 if decode else ssd.chunk, ssd.head_size, ssd.state
    chunks = sizes.tokens * ranks / t
    read, back = (one[0] * ssd.channels + one[1] * t + one[2] * p + one[3] * p * n / t for one in SCAN_PASSES)
    products = tuple(
        Product(rows, out, inside, trained, dtype="fp32")
        for rows, out, inside in (
            (work, t, n), (work, p, t), (work * p / t, n, t), (work / t, p * n, smaller(BLOCK, chunks)), (work, p, n)
        )
    )  # fmt: skip
    states = p * n / t * (3 + 2 / BLOCK)  # and those of blocks
    decays = 4  # in four sums
    kept = work * STATE_BYTES * (ssd.channels + 3 * t + 2 * p + states + decays) + sizes.tokens * ranks * t
    scanned = elementwise(sizes, "scan", work * read, SCAN_CALLS[0], back=2 * work * back, kept=kept, host=(0, 0))
    levels = _levels(chunks) - 1
    passed = _passed(sizes, ssd)
    return (
        scanned._replace(
            products=products,
            exchanges=(passed, passed),
            host=(SCAN_CALLS[0] + LEVEL_CALLS[0] * levels, SCAN_CALLS[1] + LEVEL_CALLS[1] * levels),
            working=(
                work * STATE_BYTES * 2 * t + (0 if trained else kept),
                work * (STATE_BYTES * (3 * t + 2 * p) + sizes.width * p),
            ),
            timed=lambda kernels, grad: _measured_s(sizes, kernels, grad),
        ),
    )


def _measured_s(sizes: RankSizes, kernels: Kernels, grad: bool) -> Number | None:
    """Seconds of convolution and scan by a profile's samples: their estimate, moved onto these."""
    if not kernels.scans:
        return None
    plain = kernels.measured
    estimate_s = _estimate_s(sizes, plain, grad)
    slower_s = estimate_s if kernels is plain else _estimate_s(sizes, kernels, grad)
    return slower_s * _correction(plain, sizes.workload, grad).factor(estimate_s)


def _estimate_s(sizes: RankSizes, kernels: Kernels, grad: bool) -> Number:
    ssd = sizes.workload.model.ssd
    assert ssd is not None
    seconds: Number = 0.0
    for row in (*_convolution(sizes, ssd), *_scan(sizes, ssd)):
        passes = row.passes[grad]
        taken = kernels.memory_bound_s(passes.moved, passes.launches) + products_s(sizes, kernels, row, grad)
        seconds = seconds + taken + passes.idle_s
    return seconds


@lru_cache(maxsize=32)
def _correction(kernels: Kernels, work: Workload, grad: bool) -> Correction:
    """What was measured over the estimate, by the estimate; of scans with the model's sizes, where there are some."""
    every, ssd = [one for one in kernels.scans if one.op == SCANS[grad]], work.model.ssd
    if not every:
        raise InputError(f"a profile with scans of states needs {' and '.join(SCANS)}")
    assert ssd is not None
    sizes_ = (ssd.head_size, ssd.state, ssd.conv, ssd.chunk)
    rows = [one for one in every if one.shape[2:] == sizes_] or every
    base_s = []
    for row in rows:
        tokens, heads, size, state, conv, chunk = row.shape
        scanned = Ssd(heads=heads, head_size=size, state=state, conv=conv, chunk=chunk)
        model = replace(work.model, layers=1, layer_kinds=("ssd",), ssd=scanned)
        alone = replace(work, model=model, context_tokens=tokens, global_batch=1, lengths=(), text_tokens=None)
        base_s.append(float(_estimate_s(RankSizes(alone, Strategy(), kind="ssd"), kernels, grad)))
    return Correction(work=base_s, base_s=base_s, measured_s=[row.median_s for row in rows])


def _levels(chunks: Number) -> Number:
    """How often blocks are made of blocks.

    >>> [int(_levels(chunks)) for chunks in (1, 16, 17, 257)]
    [1, 1, 2, 3]
    """
    levels: Number = np.ceil(np.log(larger(chunks, 1)) / np.log(BLOCK) - 1e-9)
    return larger(1, levels)


def _passed(sizes: RankSizes, ssd: Ssd) -> tuple[Passed, ...]:
    """The summaries of all stretches, gathered or handed on; backward those of their gradients.

    Each rank has one stretch of any row in contiguous blocks and without a ring; of a row of one document, too, where
    a zigzag is cut by an even ulysses. A search leaves chains to the former, as rows may be packed."""
    degrees = sizes.degrees
    if degrees.ssd == "heads":
        return ()
    axis, mixed, slots = _passing(sizes), degrees.ssd == "mixed", sizes.degrees.ssd_slots
    members = degrees.ring if mixed else degrees.context
    state = sizes.rows * ssd.heads / (degrees.ulysses if mixed else 1) * ssd.head_size * ssd.state * STATE_BYTES
    summary = state * (1 + 1 / (ssd.head_size * ssd.state))
    straight = degrees.ring_kind == "contiguous"
    turns = both(degrees.ring > 1, not straight)
    apart = degrees.ring * (2 if mixed else degrees.ulysses + degrees.ulysses % 2) - pick(slots > 1, 1, 0)
    meet = True if mixed else degrees.ulysses == 1  # the row's ends lie on one rank
    stretches = pick(turns, apart, members)
    packed = both(degrees.ring > 1, degrees.ring_kind == "balanced")
    return (
        Passed(
            part="ring", axis=axis, way=degrees.ssd_pass, state_bytes=state, summary_bytes=summary, slots=slots,
            stretches=stretches, reach=stretches - pick(both(turns, meet), 1, 0), turns=turns,
            chained=both(slots == 1, packed == 0),
        ),
    )  # fmt: skip
