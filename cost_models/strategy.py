"""The parallel layout of a step as one frozen value: degrees, sharding, and a policy for every layer.

    ranks = pipeline x data x ring x ulysses x tensor      context = ring x ulysses
    shard divides data x context (FSDP/ZeRO: how many ranks share one copy); replicate = data x context / shard
    expert divides data x context x tensor: how many ranks share one copy of a layer's experts, each a part of them;
    with expert = 1 every rank has all of them, cut by `tensor` as other weights are

Pipeline schedules (arXiv 2104.04473, section 2.2): gpipe runs all microbatches forward, then all backward; 1f1b keeps
at most `pipeline` in flight; interleaved gives every stage `virtual` chunks of layers. All idle (pipeline - 1) /
virtual microbatches' worth of a stage.

The order of ranks is one reshaped array, `rank_grid`: tensor varies fastest, then ulysses, ring, data, pipeline.
A degree may also be an array with one entry for each of many strategies (`varied`, `stacked`).
Checks against a model (heads, layers) are in `check`; what an executor can run is the executor's business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cost_models import strict
from cost_models.errors import InputError
from cost_models.models.model import Model
from cost_models.number import Number, larger, pick, somewhere
from cost_models.token_shares import check_shares, shown

Recompute = Literal[
    "none", "mlp", "all_but_attention", "full", "core_attention", "other_products", "mixture", "elementwise"
]
Offload = Literal["none", "activations"]
OffloadStates = Literal["none", "optimizer", "all"]
RingDtype = Literal["fp32", "bf16"]
SsdSplit = Literal["states", "mixed", "heads"]
SsdPass = Literal["gather", "chain", "tree", "least"]
RingKind = Literal["zigzag", "contiguous", "balanced", "striped", "all_gather", "double"]
Schedule = Literal["1f1b", "interleaved", "gpipe"]
RECOMPUTES: tuple[Recompute, ...] = get_args(Recompute)
Axis = Literal[
    "ulysses", "ring", "context", "shard", "replicate", "gradient", "tensor", "pipeline", "data",
    "expert", "expert_shard", "expert_replicate",
]  # fmt: skip
Pattern = Literal["all_to_all", "send", "gather"]
AXES: tuple[Axis, ...] = ("pipeline", "data", "ring", "ulysses", "tensor")
"""Axes of the device mesh, slowest first."""


@dataclass(frozen=True)
class AxisGroups:
    """How an axis groups the ranks, and what is sent in a group: its members are as many ranks as the degree of that
    name says, and lie the product of the degrees `inner` apart."""

    inner: tuple[str, ...]
    patterns: tuple[Pattern, ...]


AXIS_GROUPS: Mapping[Axis, AxisGroups] = {
    "ulysses": AxisGroups(("tensor",), ("all_to_all",)),
    "ring": AxisGroups(("ulysses", "tensor"), ("send", "gather", "all_to_all")),
    "context": AxisGroups(("tensor",), ("all_to_all", "gather", "send")),
    "shard": AxisGroups(("tensor",), ("gather",)),
    "replicate": AxisGroups(("shard", "tensor"), ("gather",)),
    "gradient": AxisGroups(("tensor",), ("gather",)),
    "tensor": AxisGroups((), ("gather",)),
    "pipeline": AxisGroups(("data", "ring", "ulysses", "tensor"), ("send",)),
    "data": AxisGroups(("ring", "ulysses", "tensor"), ()),
    "expert": AxisGroups((), ("all_to_all",)),
    "expert_shard": AxisGroups(("expert",), ("gather",)),
    "expert_replicate": AxisGroups(("expert_shard", "expert"), ("gather",)),
}
"""Every axis that a rank belongs to. The `expert` axes cut the ranks of `data`, `context` and `tensor` once more."""
EXPERT_AXES: tuple[Axis, ...] = ("expert", "expert_shard", "expert_replicate")
"""Axes over which a step sends only if experts are shared."""
LISTED_AXES: tuple[Axis, ...] = (*AXES, "context", "shard", "replicate")
"""Axes whose groups a plan lists."""


@dataclass(frozen=True, kw_only=True)
class LayerRange:
    """`count` layers in a row that keep the same activations."""

    recompute: Recompute = "none"
    offload: Offload = "none"
    count: int

    def __post_init__(self) -> None:
        if self.recompute not in RECOMPUTES:
            raise InputError(f"recompute={self.recompute!r} is unknown; legal: {', '.join(RECOMPUTES)}")
        if self.offload not in get_args(Offload):
            raise InputError(f"offload={self.offload!r} is unknown; legal: {', '.join(get_args(Offload))}")
        if self.count < 1:
            raise InputError(f"a layer range of {self.count} layers; at least 1")


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """How a step is laid out over ranks. InputError: degrees, kinds and levers that cannot be together."""

    data: int = 1
    ring: int = 1
    ulysses: int = 1
    tensor: int = 1
    pipeline: int = 1
    schedule: Schedule = "1f1b"
    virtual: int = 1  # model chunks per pipeline stage (interleaved schedule)
    shard: int = 1
    zero: int = 3
    microbatches: int = 1  # per data replica and optimizer step
    layers: tuple[LayerRange, ...] = ()  # () = keep everything in every layer
    ring_kind: RingKind = "zigzag"
    grad_ring_dtype: RingDtype = "fp32"
    loss_chunk_tokens: int | None = 1024  # None = all logits at once
    expert: int = field(default=1, metadata=strict.OPTIONAL)
    mlp_chunk_tokens: int | None = field(default=None, metadata=strict.OPTIONAL)
    """Tokens of a rank that go through an MLP at one time, computed again in backward. `None` means all at once."""
    attention_chunk_tokens: int | None = field(default=None, metadata=strict.OPTIONAL)
    """Tokens of a row that attention takes at one time; others' keys wait on the host or the GPU. `None`: all."""
    attention_head_chunks: int = field(default=1, metadata=strict.OPTIONAL)
    """A rank's query heads are exchanged and attended in so many pieces, one after the other; backward exchanges them
    again (Untied Ulysses, arXiv 2602.21196, without its projections)."""
    cache_context: int = field(default=1, metadata=strict.OPTIONAL)
    """Of the tensor ranks with the same KV heads so many cut a cache by tokens (prefill and decode)."""
    offload_states: OffloadStates = field(default="none", metadata=strict.OPTIONAL)
    """Master weights and optimizer in host memory, updated by the CPU; all: the sharded weights, too (ZeRO-3)."""
    ssd: SsdSplit = field(default="states", metadata=strict.OPTIONAL)
    """State-space layers: each rank scans its tokens and states are passed; heads over the context group; or mixed:
    heads over ulysses, states over the ring."""
    token_shares: tuple[int, ...] = field(default=(), metadata=strict.OPTIONAL)
    """Of a row, for each position of the ring, relative to each other; () is equal ones (`token_shares`)."""
    ssd_pass: SsdPass = field(default="gather", metadata=strict.OPTIONAL)
    """How states are passed: every rank gets all, rank to rank, or in log2 steps; least: the search's, before it
    names one of them."""

    def __post_init__(self) -> None:
        for name in (*AXES, "virtual", "shard", "microbatches", "expert", "attention_head_chunks", "cache_context"):
            if somewhere(getattr(self, name) < 1):
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        for name, legal in (
            ("ring_kind", RingKind),
            ("schedule", Schedule),
            ("offload_states", OffloadStates),
            ("grad_ring_dtype", RingDtype),
            ("ssd", SsdSplit),
            ("ssd_pass", SsdPass),
        ):
            if getattr(self, name) not in get_args(legal):
                raise InputError(f"{name}={getattr(self, name)!r} is unknown; legal: {', '.join(get_args(legal))}")
        if somewhere((self.zero < 0) | (self.zero > 3)):
            raise InputError(f"zero={self.zero} is unknown; legal: 0, 1, 2, 3")
        if isinstance(self.shard, int) and isinstance(self.zero, int):
            check_sharded(self.zero, self.shard)
        if self.virtual > 1 and self.schedule != "interleaved":
            raise InputError(f"virtual={self.virtual} needs schedule=interleaved, not {self.schedule}; legal here: 1")
        if self.offload_states == "all" and somewhere(self.zero != 3):
            raise InputError(f"offload_states=all with zero={self.zero}; legal here: none, optimizer (or zero=3)")
        if isinstance(self.shard, int) and (self.data * self.context) % self.shard:
            raise InputError(f"shard={self.shard} does not divide data x context = {self.data * self.context}")
        ranks = self.data * self.context * self.tensor
        if somewhere(ranks % self.expert > 0):
            raise InputError(f"expert={self.expert} does not divide data x context x tensor = {ranks}")
        for name in ("loss_chunk_tokens", "mlp_chunk_tokens", "attention_chunk_tokens"):
            chunk = getattr(self, name)
            if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
                raise InputError(f"{name}={chunk} must be a whole number of at least 1 (or none)")
        if self.attention_chunk_tokens is not None:
            self._check_chunks()
        if self.token_shares:
            self._check_shares()

    def _check_shares(self) -> None:
        """Unequal blocks: a zigzag of a given ring, all of whose positions hold whole layers."""
        check_shares(self.token_shares, self.ring, self.ring_kind)
        for axis in ("tensor", "pipeline"):
            if getattr(self, axis) > 1:
                raise InputError(f"token_shares with {axis}={getattr(self, axis)}; legal here: {axis}=1")

    def _check_chunks(self) -> None:
        """Attention in chunks stands on ulysses alone, and has no output on the GPU that a layer could keep."""
        if self.attention_head_chunks > 1:
            raise InputError(
                f"attention_chunk_tokens with attention_head_chunks={self.attention_head_chunks}; legal: 1"
            )
        for axis in ("ring", "tensor"):
            if somewhere(getattr(self, axis) > 1):
                raise InputError(f"attention_chunk_tokens with {axis}={getattr(self, axis)}; legal here: {axis}=1")
        for part in self.layers:
            if part.recompute not in ("none", "mlp", "full"):
                raise InputError(f"attention_chunk_tokens with recompute={part.recompute}; legal here: none, mlp, full")

    @property
    def context(self) -> int:
        return self.ring * self.ulysses

    @property
    def ranks(self) -> int:
        return self.pipeline * self.data * self.context * self.tensor

    @property
    def replicate(self) -> int:
        return self.data * self.context // self.shard

    @property
    def gradient(self) -> int:
        """Ranks that hold the same weights before sharding: their gradients are summed."""
        return self.data * self.context

    @property
    def expert_shard(self) -> int:
        """Ranks that share the states of the same experts under ZeRO: those of a shard group that hold them."""
        shared, copies = larger(1, self.shard * self.tensor // self.expert), self._expert_copies
        numbers = isinstance(shared, int) and isinstance(copies, int)
        return math.gcd(shared, copies) if numbers else np.gcd(shared, copies)

    @property
    def expert_replicate(self) -> int:
        return self._expert_copies // self.expert_shard

    @property
    def _expert_copies(self) -> int:
        return self.data * self.context * self.tensor // self.expert

    @property
    def ssd_slots(self) -> Number:
        """Stretches of neighbouring tokens of a row of one document that a rank scans: two chunks of a zigzag, or a
        half of one of them where ulysses cuts the block; an odd cut leaves both ends to one rank."""
        if self.ssd == "heads" or self.ring_kind == "contiguous":
            return 1 + 0 * self.ring
        chunks = pick(self.ring > 1, 2, 1)
        return chunks if self.ssd == "mixed" else pick(self.ulysses % 2 == 0, 1, chunks)

    def varied(self, **degrees: Any) -> Strategy:
        """Many strategies as one: the named degrees are arrays with one entry for each, all else is the same.

        Costs of the result are arrays, too. A bound may ask for a shard that divides some entries only.
        """
        return replace(self, **degrees)

    def layer_ranges(self, layers: int) -> tuple[LayerRange, ...]:
        """The ranges for a model of `layers` layers; an empty `layers` keeps everything everywhere."""
        ranges = self.layers or (LayerRange(count=layers),)
        if sum(part.count for part in ranges) != layers:
            raise InputError(f"layer ranges cover {sum(p.count for p in ranges)} layers; the model has {layers}")
        return ranges

    def check(self, model: Model) -> None:
        """Refuse a layout that this model cannot have."""
        if self.tensor > model.heads:
            raise InputError(f"tensor={self.tensor} exceeds the model's {model.heads} query heads")
        if self.ulysses * self.tensor > model.heads:
            most = model.heads // self.tensor
            raise InputError(f"ulysses={self.ulysses} exceeds the model's {model.heads} query heads; at most {most}")
        if model.heads % self.tensor:
            raise InputError(f"tensor={self.tensor} does not divide the model's {model.heads} query heads")
        copies = max(1, self.tensor // model.kv_heads)
        if copies % self.cache_context:
            raise InputError(
                f"cache_context={self.cache_context}: each KV head is on {copies} tensor ranks; legal: divisors of that"
            )
        if self.pipeline * self.virtual > model.layers:
            raise InputError(f"pipeline={self.pipeline} x virtual={self.virtual} exceeds the {model.layers} layers")
        if self.expert > 1 and (model.experts is None or model.experts.count % self.expert):
            legal = "1" if model.experts is None else f"divisors of its {model.experts.count} experts"
            raise InputError(f"expert={self.expert} is not possible for {model.name}; legal: {legal}")
        if self.mlp_chunk_tokens is not None and model.experts is not None:
            raise InputError(f"mlp_chunk_tokens={self.mlp_chunk_tokens} is not priced for experts; legal here: none")
        if self.attention_chunk_tokens is not None and model.latent is not None:
            raise InputError(f"attention_chunk_tokens is not priced for {model.name}'s latent attention; legal: none")
        if self.attention_head_chunks > 1:
            if model.latent is not None:
                raise InputError(f"attention_head_chunks is not priced for {model.name}'s latent attention; legal: 1")
            most = model.heads // (self.tensor * self.ulysses)
            if self.attention_head_chunks > most:
                raise InputError(
                    f"attention_head_chunks={self.attention_head_chunks} exceeds the {most} query heads of a rank; at "
                    f"most {most}"
                )
        if model.ssd is not None:
            if self.token_shares:
                raise InputError("token_shares is not priced for state-space layers, whose stretches are equal")
            if self.attention_chunk_tokens is not None:
                raise InputError("attention_chunk_tokens is not priced for state-space layers; legal: none")
            if self.tensor > 1:
                raise InputError(f"tensor={self.tensor} is not priced for state-space layers; legal: 1")
            dealt = {"states": 1, "mixed": self.ulysses, "heads": self.context}[self.ssd]
            if model.ssd.heads % dealt:
                raise InputError(
                    f"ssd={self.ssd} deals the {model.ssd.heads} heads of a state-space layer to {dealt} ranks; legal: "
                    "ranks that divide them"
                )
            if self.ssd_pass == "chain" and self.ssd_slots > 1:
                raise InputError(
                    f"ssd_pass=chain needs one stretch of the row on each rank, ssd={self.ssd} over {self.ring_kind} "
                    f"rings has {self.ssd_slots}; legal: gather, tree, or ring_kind=contiguous"
                )
            if self.ssd_pass == "least":
                raise InputError("ssd_pass=least is what a search asks; legal: gather, chain, tree")
        self.layer_ranges(model.layers)

    def describe(self) -> str:
        """
        >>> Strategy(ring=32, ulysses=8, shard=256).describe()
        'data 1 × ring 32 × ulysses 8, zero-3 over 256'
        >>> Strategy(offload_states="all").describe()
        'data 1 × ring 1 × ulysses 1, zero-3 over 1, states on the host'
        >>> Strategy(data=2).describe(), Strategy(data=2, zero=0).describe()
        ('data 2 × ring 1 × ulysses 1, zero-3 over 1', 'data 2 × ring 1 × ulysses 1, unsharded')
        """
        parts = [
            f"{name} {getattr(self, name)}" for name in ("pipeline", "virtual", "tensor") if getattr(self, name) > 1
        ]
        parts += [f"data {self.data}", f"ring {self.ring}", f"ulysses {self.ulysses}"]
        parts += [f"expert {self.expert}"] if self.expert > 1 else []
        tail = f" of {self.microbatches} microbatches" if self.pipeline > 1 else ""
        if self.shard > 1 or self.offload_states == "all" or (self.zero and self.data * self.context > 1):
            tail += f", zero-{self.zero} over {self.shard}"
        else:
            tail += ", unsharded"
        tail += f", tokens {shown(self.token_shares)}" if self.token_shares else ""
        tail += f", cache by {self.cache_context}" if self.cache_context > 1 else ""
        tail += f", MLP by {self.mlp_chunk_tokens} tokens" if self.mlp_chunk_tokens is not None else ""
        tail += f", heads in {self.attention_head_chunks} chunks" if self.attention_head_chunks > 1 else ""
        tail += f", attention by {self.attention_chunk_tokens}" if self.attention_chunk_tokens is not None else ""
        tail += {"none": "", "optimizer": ", optimizer on the host", "all": ", states on the host"}[self.offload_states]
        return " × ".join(parts) + tail


def check_sharded(zero: int, shard: int) -> None:
    """InputError for a group of ranks that are to share what ZeRO's stage 0 leaves whole."""
    if zero == 0 and shard > 1:
        raise InputError(f"zero=0 shards nothing, but shard={shard}; legal: shard=1, or zero 1, 2, 3")


PINS = (*(one.name for one in fields(Strategy) if one.name not in ("layers", "token_shares")), "recompute")
"""What a user may fix, by name."""
VARIED = ("data", "ring", "ulysses", "shard", "zero", "microbatches")
"""Degrees that may differ between the strategies that are priced as one."""


def stacked(strategies: Sequence[Strategy]) -> Strategy:
    """Strategies that differ in the degrees `VARIED` alone, as one strategy of arrays.

    >>> stacked([Strategy(ring=2), Strategy(ulysses=4)]).context.tolist()
    [2, 4]
    """
    return strategies[0].varied(**{name: np.array([getattr(one, name) for one in strategies]) for name in VARIED})


def rank_grid(strategy: Strategy) -> NDArray[np.int64]:
    """Ranks as an array of shape (pipeline, data, ring, ulysses, tensor)."""
    return np.arange(strategy.ranks).reshape([getattr(strategy, axis) for axis in AXES])


def axis_stride(strategy: Strategy, axis: Axis) -> tuple[int, int]:
    """(stride, size) of an axis: the members of a group are `size` ranks, `stride` apart.

    >>> axis_stride(Strategy(ring=2, ulysses=4), "ring"), axis_stride(Strategy(data=2, ulysses=4, shard=4), "replicate")
    ((4, 2), (4, 2))
    """
    return math.prod(getattr(strategy, inner) for inner in AXIS_GROUPS[axis].inner), getattr(strategy, axis)


def rank_groups(strategy: Strategy, axis: Axis) -> NDArray[np.int64]:
    """Groups of one axis, shape (groups, members).

    Members of a shard group are neighbours in (data, ring, ulysses) order, so that a small shard stays in a node.

    >>> rank_groups(Strategy(ring=2, ulysses=2), "ring").tolist()
    [[0, 2], [1, 3]]
    """
    stride, size = axis_stride(strategy, axis)
    blocks = np.arange(strategy.ranks).reshape(-1, size, stride)
    return np.ascontiguousarray(blocks.swapaxes(1, 2).reshape(-1, size))


def sent_patterns(strategy: Strategy, sums_gradients: bool = False) -> dict[Axis, tuple[Pattern, ...]]:
    """Every axis that a step sends over, with the patterns of its traffic.

    `sums_gradients`: a framework all-reduces gradients over all ranks with the same weights, whatever the sharding.
    """
    skipped: list[Axis] = [] if strategy.expert > 1 else [*EXPERT_AXES]
    skipped += [] if sums_gradients else ["gradient"]
    return {axis: of.patterns for axis, of in AXIS_GROUPS.items() if of.patterns and axis not in skipped}
