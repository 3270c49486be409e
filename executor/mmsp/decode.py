"""Decoding one token at a time over a key-value cache that is sharded over the context group.

    prefill   every rank stores the keys and values of its tokens (all KV heads, as projected; padding dropped)
    step      the new token's q, k, v are computed by all; the rank with the fewest tokens stores k, v;
              each attends to its shard -> (out_i, lse_i); all ranks merge the same gathered parts:
              lse = log sum_i exp lse_i        out = sum_i out_i exp(lse_i - lse)

Bytes per layer and step: every rank sends H * (D + 1) * 4 to each of the others; memory: tokens / N per rank, counts
differ by at most one once growth has evened them out. Merging in float32 (float64 for float64) in member order, so
all ranks get the same bits. Leaves out: several new tokens at once, several prefills, beams.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from cost_models.errors import InputError
from executor.mmsp import kernel
from executor.mmsp.exchange import Exchange

_SPARE = 64  # tokens by which a full shard grows at least; else an eighth


@dataclass(frozen=True, kw_only=True)
class DecodeStep:
    """The attention of one new token, replicated on the context group, with the shards of the cache."""

    context: Exchange

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, *, window: int = 0, sinks: Tensor | None = None
    ) -> Tensor:
        """q (B, H, 1, D), this rank's k and v (B, K, n, D), n may be 0 -> (B, 1, H, D), the same on all ranks."""
        if window:
            raise InputError(
                f"tokens are not generated with a window of {window} keys: a shard of the cache has no places"
            )
        wide = torch.promote_types(q.dtype, torch.float32)
        if k.shape[2]:
            block = kernel.forward(q, k, v, block=kernel.Block(causal=False), scale=scale)
            part = torch.cat((block.out.to(wide), block.lse.to(wide).unsqueeze(-1)), dim=-1)
        else:
            part = torch.zeros((*q.shape[:-1], q.shape[-1] + 1), dtype=wide, device=q.device)
            part[..., -1] = -torch.inf
        parts = self.context.all_gather(part)
        lse = parts[..., -1:]
        whole = lse.logsumexp(0)
        if sinks is not None:
            whole = torch.logaddexp(whole, sinks.to(wide)[:, None, None].expand_as(whole))
        return (parts[..., :-1] * torch.exp(lse - whole)).sum(0).to(q.dtype).transpose(1, 2)


class ShardedLayer(DynamicLayer):
    """One layer's shard; `counts` gives the real tokens that each member got at the prefill, `member` is this one."""

    is_croppable = False

    def __init__(self, counts: Callable[[], tuple[int, ...]], member: int) -> None:
        super().__init__()
        self._prefill_counts, self._member = counts, member
        self._counts: list[int] = []
        self._store: Tensor | None = None  # (2, B, K, capacity, D); only the first counts[member] tokens are real

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store what belongs to this rank. Returns what attention needs: the tensors of the prefill, or the shard."""
        if self._store is None:
            return self._prefill(key_states, value_states)
        if key_states.shape[2] != 1:
            raise InputError(f"a sharded cache grows by one token at a time, not {key_states.shape[2]}")
        owner = self._counts.index(min(self._counts))
        if owner == self._member:
            self._append(key_states, value_states)
        self._counts[owner] += 1
        return self._view()

    def get_seq_length(self) -> int:
        """Tokens of the row so far, summed over all ranks."""
        return sum(self._counts)

    def reset(self) -> None:
        self._counts, self._store = [], None
        super().reset()

    def _prefill(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        self._counts = list(self._prefill_counts())
        self.lazy_initialization(key_states, value_states)
        filled = self._counts[self._member]
        self._store = torch.stack((key_states[:, :, :filled], value_states[:, :, :filled]))
        self._view()
        return key_states, value_states

    def _append(self, key_states: Tensor, value_states: Tensor) -> None:
        filled, store = self._counts[self._member], self._store
        assert store is not None
        if filled == store.shape[3]:
            batch, heads, dim = store.shape[1], store.shape[2], store.shape[4]
            spare = store.new_empty((2, batch, heads, max(_SPARE, filled // 8), dim))
            self._store = store = torch.cat((store, spare), dim=3)
        store[:, :, :, filled] = torch.stack((key_states[:, :, 0], value_states[:, :, 0]))

    def _view(self) -> tuple[Tensor, Tensor]:
        assert self._store is not None
        keys, values = self._store[:, :, :, : self._counts[self._member]]
        self.keys, self.values = keys, values
        return keys, values


class ShardedCache(Cache):
    """The `past_key_values` of a Hugging Face model that generates over a context group."""

    def __init__(self, counts: Callable[[], tuple[int, ...]], member: int) -> None:
        new_layer: Any = partial(ShardedLayer, counts, member)  # called as a class is, one for each layer
        super().__init__(layer_class_to_replicate=new_layer)
