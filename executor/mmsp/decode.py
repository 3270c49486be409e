"""Decoding: one new token for each of several sequences, over key-value caches sharded over the context group.

    prefill   every rank stores the keys and values of its tokens (all KV heads, as projected; padding dropped), apart
              for each document of the row: each is a sequence that is answered
    step      the new tokens' q, k, v are computed by all; of each sequence the rank with the fewest tokens stores k, v;
              each attends to its shards -> (out_i, lse_i); all ranks merge the same gathered parts:
              lse = log sum_i exp lse_i        out = sum_i out_i exp(lse_i - lse)

A rank's tokens of a sequence stand in ascending order, so a window sees the last of them, and no mask is needed.
Sequences of one step may come from different prefills and differ in length: nothing is padded. Bytes per layer and
step: every rank sends B * H * (D + 1) * 4 to each of the others; memory: tokens / N per rank, counts of a sequence
differ by at most one once growth has evened them out. Merging in float32 (float64 for float64) in member order, so
all ranks get the same bits. A state-space layer's state is on every rank, and each goes on with it by itself: H P N
numbers a sequence, nothing sent. Leaves out: several new tokens of one sequence, beams, and dropping keys that no
window reaches any more. One kernel call for each sequence.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from cost_models.errors import InputError
from cost_models.token_layout import Layout
from executor.mmsp import kernel
from executor.mmsp.exchange import Exchange
from longvila.ssd import Inner, StateLayer, entered_with, mix

_SPARE = 64  # tokens by which a full shard grows at least; else an eighth


@dataclass(kw_only=True)
class Shard:
    """What this rank holds of one sequence: the places of its tokens in the sequence, and each layer's keys, values."""

    counts: list[int]  # tokens of each member of the context group
    places: list[int]  # of this rank's tokens, ascending
    _stores: dict[int, Tensor] = field(default_factory=dict)  # (2, K, capacity, D), of which len(places) are real
    states: dict[int, StateLayer] = field(default_factory=dict)  # of state-space layers, whole on every member

    @property
    def tokens(self) -> int:
        """Of the sequence so far, on all ranks."""
        return sum(self.counts)

    def grow(self, member: int) -> bool:
        """Count one more token of the sequence; whether this member has to store it."""
        place, owner = self.tokens, self.counts.index(min(self.counts))
        self.counts[owner] += 1
        if owner == member:
            self.places.append(place)
        return owner == member

    def fill(self, layer: int, kv_2KSD: Tensor) -> None:
        self._stores[layer] = kv_2KSD.clone()

    def append(self, layer: int, kv_2KD: Tensor) -> None:
        store, place = self._stores[layer], len(self.places) - 1
        if place == store.shape[2]:
            spare = store.new_empty((*store.shape[:2], max(_SPARE, place // 8), store.shape[3]))
            self._stores[layer] = store = torch.cat((store, spare), dim=2)
        store[:, :, place] = kv_2KD

    def seen(self, layer: int, window: int) -> tuple[Tensor, Tensor]:
        """Keys and values (1, K, n, D) that the sequence's last token sees of this rank's; n may be 0."""
        first = bisect_left(self.places, self.tokens - window) if window else 0
        keys, values = self._stores[layer][:, None, :, first : len(self.places)]
        return keys, values


def row_shards(layout: Layout, places: Sequence[tuple[int, int]], member: int) -> list[tuple[slice, Shard]]:
    """For each document of a row: which of this member's tokens it has, and its shard, still without numbers.

    `places` are the (ring, ulysses) indices of the members.

    >>> [(part, shard.counts) for part, shard in row_shards(Layout(tokens=5, documents=(0, 3)), [(0, 0)], 0)]
    [(slice(0, 3, None), [3]), (slice(3, 5, None), [2])]
    """
    starts = np.array([*(layout.documents or (0,)), layout.tokens])
    index = [layout.index(*place)[: layout.real_tokens(*place)] for place in places]
    edges = [np.searchsorted(one, starts) for one in index]
    shards = []
    for document, start in enumerate(starts[:-1]):
        part = slice(int(edges[member][document]), int(edges[member][document + 1]))
        counts = [int(edge[document + 1] - edge[document]) for edge in edges]
        shards.append((part, Shard(counts=counts, places=(index[member][part] - start).tolist())))
    return shards


class _Shards(Cache):
    """What Hugging Face's code may ask of a cache, and what it may not."""

    shards: Sequence[Shard]

    def __init__(self) -> None:
        super().__init__(layers=[])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the longest sequence so far, on all ranks."""
        return max((shard.tokens for shard in self.shards), default=0)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        raise InputError("beams are not searched over a sharded cache; sample, or take the likeliest token")

    def crop(self, max_length: int) -> None:
        raise InputError("a sharded cache cannot be cut: tokens are generated one by one, without an assistant")


class ShardedCache(_Shards):
    """The `past_key_values` of a Hugging Face model's prefill; its documents are the sequences that go on from it."""

    def __init__(self, row: Callable[[], list[tuple[slice, Shard]]]) -> None:
        """`row` gives the shards of the row that is computed; it is asked once, when they are needed."""
        super().__init__()
        self._row = row

    @cached_property
    def parts(self) -> list[tuple[slice, Shard]]:
        return self._row()

    def copy(self) -> ShardedCache:
        """The same sequences once more, to grow by other tokens."""
        twin = ShardedCache(self._row)
        twin.parts = [(part, deepcopy(shard)) for part, shard in self.parts]
        return twin

    @property
    def shards(self) -> Sequence[Shard]:  # type: ignore[override]
        return [shard for _, shard in self.parts] if "parts" in self.__dict__ else ()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store what belongs to this rank, and hand back all: (1, K, S, D) each."""
        for part, shard in self.parts:
            shard.fill(layer_idx, torch.cat((key_states[:, :, part], value_states[:, :, part])))
        return key_states, value_states


class DecodeStep(_Shards):
    """One step of decoding: `past_key_values` and `mm_sp` of the same call of a Hugging Face model.

    Each layer updates it and then attends. The batch of the call is one new token for each of `shards`, in order.
    """

    def __init__(self, context: Exchange, shards: Sequence[Shard]) -> None:
        super().__init__()
        self._context, self.shards, self._layer = context, shards, 0
        self._stored_here = [shard.grow(context.index) for shard in shards]

    @property
    def attention(self) -> dict[str, Any]:
        """The keyword arguments of the model's call."""
        return {"mm_sp": self, "ssd": self} if any(shard.states for shard in self.shards) else {"mm_sp": self}

    def mix(self, inner: Inner, layer: int, cache: Cache | None) -> Tensor:
        """The state-space layer's part of the step: y (B, 1, H, P) of the new tokens."""
        held = [shard.states[layer] for shard in self.shards]
        states, before = torch.cat([one.known[0] for one in held]), torch.cat([one.known[1] for one in held])
        positions = torch.full((len(held), 1), 1 + before.shape[1], device=before.device)  # what is before is theirs
        y, ends = mix(inner, positions, (1,), [before], entered_with(states))
        after = torch.cat((before, inner.channels_BSHW), 1)[:, 1:]
        for place, one in enumerate(held):
            one.advance(1, ends[0, place : place + 1], after[place : place + 1])
        return y

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store the new tokens' (B, K, 1, D) where they belong."""
        if key_states.shape[2] != 1:
            raise InputError(f"a sharded cache grows by one token at a time, not {key_states.shape[2]}")
        self._layer = layer_idx
        for place, shard in enumerate(self.shards):
            if self._stored_here[place]:
                shard.append(layer_idx, torch.stack((key_states[place, :, 0], value_states[place, :, 0])))
        return key_states, value_states

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, *, window: int = 0, sinks: Tensor | None = None
    ) -> Tensor:
        """q (B, H, 1, D) of the new tokens -> (B, 1, H, D), the same on all ranks; k and v are stored already."""
        wide = torch.promote_types(q.dtype, torch.float32)
        part = torch.zeros((*q.shape[:-1], q.shape[-1] + 1), dtype=wide, device=q.device)
        part[..., -1] = -torch.inf
        for place, shard in enumerate(self.shards):
            keys, values = shard.seen(self._layer, window)
            if keys.shape[2]:
                one = slice(place, place + 1)
                block = kernel.forward(q[one], keys, values, block=kernel.Block(causal=False), scale=scale)
                part[one, ..., :-1], part[one, ..., -1] = block.out, block.lse
        parts = self._context.all_gather(part)
        lse = parts[..., -1:]
        whole = lse.logsumexp(0)
        if sinks is not None:
            whole = torch.logaddexp(whole, sinks.to(wide)[:, None, None].expand_as(whole))
        return (parts[..., :-1] * torch.exp(lse - whole)).sum(0).to(q.dtype).transpose(1, 2)
