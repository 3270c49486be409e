"""The sizes of one rank's work that every cost is made of: tokens, heads and columns, for one or many candidates.

Degrees of the `Strategy` may be numpy arrays with one entry for each candidate: every number below is then an array of
the same length. Tokens are rounded up as the executor pads them (`token_layout.row_granule`).

    S = tokens per rank and microbatch = rows x ceil(L / g) x g / (R U), g = R lcm(2, U)       N = S x U: in the ring

How many weights the rank holds is in `weights.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, wraps
from typing import Any, NamedTuple, TypeVar

import numpy as np

from cost_models.errors import InputError
from cost_models.framework import OURS, Framework
from cost_models.layer.frames import busiest
from cost_models.layer.heads import HeadSplit, head_split
from cost_models.models.experts import Experts
from cost_models.models.model import LAYER_KINDS, LayerKind, LayerParts
from cost_models.number import Number, larger, pick, somewhere
from cost_models.strategy import Strategy
from cost_models.token_layout import RING_LAYOUTS, Layout, row_chunks, row_granule
from cost_models.workload import DTYPE_BYTES, Workload

PARTS_AGAIN = 4
"""Frames that are computed again go in chunks of this part of those that may go at once."""
Made = TypeVar("Made")


def _by_degree(function: Callable[[int], int], degrees: Number) -> Number:
    """`function` of each integer in a scalar or array."""
    if not isinstance(degrees, np.ndarray):
        return function(int(degrees))
    values, where = np.unique(degrees, return_inverse=True)
    return np.array([function(int(value)) for value in values])[where]


def _by_pair(function: Callable[[int, int], int], left: Number, right: Number) -> Number:
    """`function` of two integers, or of the pairs of two arrays."""
    if not isinstance(left, np.ndarray) and not isinstance(right, np.ndarray):
        return function(int(left), int(right))
    pairs = np.stack(np.broadcast_arrays(left, right), axis=-1)
    values, where = np.unique(pairs.reshape(-1, 2), axis=0, return_inverse=True)
    return np.array([function(int(a), int(b)) for a, b in values])[where.reshape(pairs.shape[:-1])]


class RingShares(NamedTuple):
    """Of packed documents in a ring, over what one document in zigzag takes with its pairs reduced to theirs."""

    first: Number  # pairs with a rank's own keys, of the rank that has most in all
    piece: Number  # its pairs in each further round, averaged
    sent: Number  # tokens that the busiest rank sends on, averaged over the hops
    hops: Number


@lru_cache(maxsize=4096)
def _ring_shares(work: Workload, ring: int, ulysses: int, kind: str) -> RingShares:
    row = Layout(tokens=work.context_tokens, ring=ring, ulysses=ulysses, kind=kind, documents=work.documents)
    did, block = row.ring_work(), row.block_tokens
    half = block * (block + 1) / 2 * work.attended_fraction
    return RingShares(did.own / half, did.others / max(did.hops, 1) / half, did.sent / block, did.hops)


class Block(NamedTuple):
    """Of unequal blocks in a ring, all ulysses ranks together."""

    tokens: int  # of this rank's
    others: float  # … of the others', averaged over the hops
    largest: int  # … of any
    stall: float  # time of the ring's blocks over that of the slowest rank's


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One pipeline stage of a model whose layers differ."""

    layers: tuple[tuple[LayerKind, Number], ...]
    first: bool
    last: bool


@dataclass(frozen=True, eq=False)
class RankSizes:
    """Tokens, heads and weights of one rank: what every operator, exchange and byte of memory is counted from."""

    workload: Workload
    degrees: Strategy
    framework: Framework = OURS
    kind: LayerKind | None = None  # of the layer whose sizes these are; None means the model's last layer
    stage: Stage | None = None  # None means that every stage has an equal share of all layers
    evenly: bool = False  # a bound over many rings: documents are dealt evenly, and nothing of them travels
    block: Block | None = None  # where those of the ring are unequal
    chunked: bool = False  # heads are those of one of the pieces in which they are attended
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.framework.zero_1_as_2 and somewhere(self.degrees.zero == 1):
            zero = pick(self.degrees.zero == 1, 2, self.degrees.zero)
            object.__setattr__(self, "degrees", replace(self.degrees, zero=zero))
        if self.degrees.token_shares and self.block is None:
            raise InputError("token_shares has a price for each position of a ring (`step.unequal.positions`)")
        if self.framework.whole_loss and self.degrees.loss_chunk_tokens is not None:
            object.__setattr__(self, "degrees", replace(self.degrees, loss_chunk_tokens=None))

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` returns for this key, computed the first time."""
        if key not in self._made:
            self._made[key] = make()
        made: Made = self._made[key]
        return made

    def of(self, kind: LayerKind) -> RankSizes:
        """The same rank at a layer of this kind."""
        return self if kind == self.layer_kind else self.once(("of", kind), lambda: replace(self, kind=kind))

    @cached_property
    def layer_kind(self) -> LayerKind:
        return self.kind or self.workload.model.layer_kinds[-1]

    @cached_property
    def parts(self) -> LayerParts:
        return LAYER_KINDS[self.layer_kind]

    @cached_property
    def window(self) -> int:
        """Keys that a token of this layer sees at most, itself included; 0 means all before it."""
        return self.workload.model.window if self.parts.mixer == "window" else 0

    @cached_property
    def attended_fraction(self) -> float:
        """Share of a full row's causal pairs that this layer's attention works on."""
        if not self.window:
            return self.workload.attended_fraction
        context = self.workload.context_tokens
        return self.workload.causal_pairs(min(self.window, context)) / (context * (context + 1) / 2)

    @cached_property
    def seen(self) -> tuple[float, float]:
        """Keys that a query sees on average, and masked edges, where a window or documents leave fewer than all."""
        context, window = self.workload.context_tokens, self.window
        if window >= context or not window:
            return (self.workload.causal_pairs() / context, 1.0) if self.workload.lengths else (math.inf, 0.0)
        return self.workload.causal_pairs(window) / context, 2.0

    @cached_property
    def ring_shares(self) -> RingShares | None:
        """What the ring does of packed documents where the framework's knows them; `None`: as for one document."""
        work, kind = self.workload, self.degrees.ring_kind
        known = self.framework.document_ring and kind in RING_LAYOUTS and work.mode != "decode"
        if not known or not work.documents or self.window or self.evenly:
            return None

        def of(name: str) -> Number:
            return _by_pair(
                lambda r, u: getattr(_ring_shares(work, r, u, kind), name), self.degrees.ring, self.degrees.ulysses
            )

        return RingShares(*map(of, RingShares._fields))

    @cached_property
    def experts(self) -> Experts | None:
        """The experts of a layer of this kind."""
        return self.workload.model.experts if self.parts.mlp == "experts" else None

    @cached_property
    def rows(self) -> Number:
        """Rows of one microbatch on one data replica."""
        batch, parts = self.workload.global_batch, self.degrees.data * self.degrees.microbatches
        if somewhere(batch % parts != 0):
            raise InputError(f"data x microbatches = {parts} does not divide the global batch of {batch}")
        return batch // parts

    @cached_property
    def ring_tokens(self) -> Number:
        """Tokens of one row on one ring position, all ulysses ranks together, padded as `row_granule` says."""
        degrees, context = self.degrees, self.workload.context_tokens
        if self.block is not None:
            return self.block.tokens
        if self.workload.mode == "decode":
            return -(-context // degrees.context) * degrees.ulysses
        granule = self.row_chunks * row_granule(degrees.ring, degrees.ulysses, degrees.ring_kind)
        return -(-context // granule) * granule // degrees.ring

    @cached_property
    def passing_tokens(self) -> Number:
        """The same of a block that goes round, the largest that comes by."""
        return self.ring_tokens if self.block is None else self.block.largest

    @cached_property
    def row_chunks(self) -> int:
        """Chunks of a row that attention takes one after the other, where it takes them so."""
        return row_chunks(self.workload.context_tokens, self.degrees.attention_chunk_tokens)

    @cached_property
    def by_rows(self) -> bool:
        """Whether a chunk of the row is projected, attended and projected back before the next, keys on the GPU."""
        return self.framework.chunks_on_card and self.row_chunks > 1

    @property
    def staged(self) -> bool:
        """Whether finished chunks of the row wait in host memory."""
        return self.degrees.attention_chunk_tokens is not None and not self.framework.chunks_on_card

    @cached_property
    def cached_tokens(self) -> Number:
        """Tokens of one row in a rank's cache of keys and values."""
        return -(-(self.ring_tokens // self.degrees.ulysses) // self.degrees.cache_context)

    @cached_property
    def tokens(self) -> Number:
        """S: tokens of one rank in one microbatch (outside attention); in decode, one new token for each row."""
        if self.workload.mode == "decode":
            return self.rows
        return self.rows * self.ring_tokens // self.degrees.ulysses

    @cached_property
    def outer_tokens(self) -> Number:
        """Tokens that one rank norms and adds: with sequence-parallel tensor parallelism its share of S."""
        return self.tokens // self.degrees.tensor if self.framework.sequence_parallel else self.tokens

    @cached_property
    def head_chunk(self) -> RankSizes:
        """The same rank with the heads that it exchanges and attends at one time; the most of any piece."""
        return self if self.degrees.attention_head_chunks == 1 else replace(self, chunked=True)

    def _parts(self, ulysses: int) -> tuple[HeadSplit, ...]:
        """How heads lie on the ranks: all of them, or piece by piece."""
        whole = self._split(ulysses)
        return whole.parts(self.degrees.attention_head_chunks) if self.chunked else (whole,)

    def _split(self, ulysses: int) -> HeadSplit:
        model, tensor = self.workload.model, int(np.max(self.degrees.tensor))
        queries, keys = model.heads // tensor, max(1, model.kv_heads // tensor)
        keys = queries if self.framework.repeats_kv else keys
        return head_split(q_heads=queries, kv_heads=keys, ulysses=ulysses)

    @cached_property
    def heads(self) -> Number:
        """Query heads of one rank inside the exchange (the most of any rank)."""
        return _by_degree(lambda ulysses: max(one.most_q_heads for one in self._parts(ulysses)), self.degrees.ulysses)

    @cached_property
    def kv_heads(self) -> Number:
        """KV heads of one rank inside the exchange (the most of any rank)."""
        return _by_degree(lambda ulysses: max(one.most_kv_heads for one in self._parts(ulysses)), self.degrees.ulysses)

    @cached_property
    def sent_kv_heads(self) -> Number:
        """K': KV heads that the exchange carries, repetition included; of a piece the most of any."""
        return _by_degree(lambda ulysses: max(one.sent_kv_heads for one in self._parts(ulysses)), self.degrees.ulysses)

    @cached_property
    def sent_kv_heads_in_chunks(self) -> Number:
        """KV heads that the exchanges of all pieces carry: a piece finds keys that the one before had, if all ranks
        do."""
        chunks = self.head_chunk

        def sent(ulysses: int) -> int:
            several = chunks._parts(ulysses)
            keys = [tuple((share.kv_start, share.kv_stop) for share in one.shares) for one in several]
            fresh = [place for place in range(len(keys)) if not place or keys[place] != keys[place - 1]]
            return sum(several[place].sent_kv_heads for place in fresh)

        return _by_degree(sent, self.degrees.ulysses)

    @cached_property
    def width(self) -> float:
        """Bytes of an activation or gathered weight."""
        return DTYPE_BYTES[self.workload.precision.param]

    @cached_property
    def row_bytes(self) -> Number:
        """A layer's input, or its result."""
        return self.outer_tokens * self.workload.model.hidden * self.width

    @cached_property
    def q_width(self) -> Number:
        """Query columns of one rank outside the exchange."""
        return self.workload.model.heads // self.degrees.tensor * self.workload.model.head_dim

    @cached_property
    def kv_width(self) -> Number:
        heads = larger(1, self.workload.model.kv_heads // self.degrees.tensor)
        return heads * self.workload.model.head_dim

    @cached_property
    def out_width(self) -> Number:
        """Columns of one rank's attention output outside the exchange."""
        return self.workload.model.heads // self.degrees.tensor * self.workload.model.v_dim

    @cached_property
    def sent_kv_width(self) -> Number:
        """Columns of K and V together that the exchange carries."""
        return self.sent_kv_heads * (self.workload.model.head_dim + self.workload.model.v_dim)

    @cached_property
    def ffn(self) -> Number:
        return self.workload.model.ffn // self.degrees.tensor

    def stage_total(self, per_layer: Callable[[RankSizes], Number]) -> Number:
        """Sum over the layers of one pipeline stage of a number of each."""
        if self.stage is None:
            return self.workload.model.layers * per_layer(self) / self.degrees.pipeline
        return sum(per_layer(self.of(kind)) * count for kind, count in self.stage.layers)

    @cached_property
    def frames(self) -> Number:
        """Frames that one rank encodes in a microbatch (the most of any rank)."""
        vision = self.workload.model.vision
        if vision is None:
            return 0 * self.rows
        dealt = vision.frames_pooled * self.rows  # what is one mean stays on one rank
        if self.framework.frame_sharding in ("exchanged", "reduced"):
            return -(-vision.stretches(self.workload.frames) // self.degrees.context) * dealt
        return _by_pair(self._own_frames, self.degrees.ring, self.degrees.ulysses) * dealt

    @cached_property
    def tower_calls(self) -> Number:
        """In how many equal chunks the tower takes the frames of a rank."""
        most = self.framework.frames_per_chunk
        return 1 if most is None else pick(self.frames > most, -(-self.frames * PARTS_AGAIN // most), 1)

    @property
    def tower_runs_again(self) -> Number | bool:
        """Whether its chunks are computed again in backward."""
        return self.tower_calls > 1 if self.trains("tower") else False

    def _own_frames(self, ring: int, ulysses: int) -> int:
        work, vision = self.workload, self.workload.model.vision
        if vision is None:
            return 0
        text = work.text_tokens or 0
        whole = vision.stretches(work.frames)
        return busiest(self.framework.frame_sharding, whole, vision.tokens_per_frame, text, ring, ulysses)

    def trains(self, part: str) -> bool:
        return self.workload.mode == "train" and part in self.workload.trainable


def once_for_each(function: Callable[[RankSizes], Made]) -> Callable[[RankSizes], Made]:
    """`function` of a rank's sizes, computed once for each of them."""

    @wraps(function)
    def computed(sizes: RankSizes) -> Made:
        return sizes.once(function, lambda: function(sizes))

    return computed
