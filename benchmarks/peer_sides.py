"""Sharded attention of this executor and of its peers behind one face: which tokens a rank holds, and a call.

    side = make(case, rank)        side.tokens (S,): places of the row, -1 for a pad        side.attend(q, k, v) BSHD

All run on the CPU kernel of `executor.mmsp.kernel`. yunchang and ring-flash-attn reach it through
`flash_attn_on_cpu`, torch's ring is handed it; `all-to-all` is what DeepSpeed's DistributedAttention does, written out.
ring-flash-attn's zigzag of packed rows wants documents that 2 × ranks divides: it gets them padded. A side that cannot
run a case raises `CannotRun` on every rank.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.attention_ranks import Grid
from benchmarks.flash_attn_on_cpu import attend, gradients, install
from cost_models.token_layout import Layout
from executor.groups import make_groups
from executor.mmsp.attention import MmSp


@dataclass(frozen=True, kw_only=True)
class Case:
    """A causal row; `edges` are where its documents start, and its end."""

    q_heads: int
    kv_heads: int
    head_dim: int
    edges: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.edges[-1]

    @property
    def packed(self) -> bool:
        return len(self.edges) > 2


@dataclass(frozen=True, kw_only=True)
class Side:
    tokens: Tensor  # (S,) int64
    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    threads: int = 0  # of this process; 0: those it was started with


class CannotRun(Exception):
    """Why a peer has no such case."""


Make = Callable[[Case, int], Side]


def sides(ranks: int, cores: int) -> dict[str, tuple[Make, str]]:
    """By name: how to make it, and the side of this executor that it is compared with."""
    found: dict[str, tuple[Make, str]] = {}
    for ulysses in range(1, ranks + 1):
        ring, left = divmod(ranks, ulysses)
        if left:
            continue
        ours = f"mm_sp {ulysses} × {ring}"
        found[ours] = (_ours(ulysses, ring), ours)
        found[f"yunchang {ulysses} × {ring}"] = (_yunchang(ulysses, ring), ours)
    ring_only, ulysses_only = f"mm_sp 1 × {ranks}", f"mm_sp {ranks} × 1"
    found["ring-flash-attn zigzag"] = (_ring_flash_attn, ring_only)
    found["ring-flash-attn llama3"] = (_llama3, ring_only)
    found["torch ring"] = (_torch_ring, ring_only)
    found["all-to-all"] = (_all_to_all, ulysses_only)
    found["one process"] = (_alone(cores), ring_only)
    return found


def by_document(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of all tokens of a row, BSHD, document by document."""
    scale = case.head_dim**-0.5
    found: Tensor = _Documents.apply(q, k, v, case.edges, scale)
    return found


class _Documents(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, edges: tuple[int, ...], scale: float) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        parts = [attend(*(x[:, :, start:stop] for x in (q, k, v)), scale, True) for start, stop in pairwise(edges)]
        out, lse = (torch.cat([part[place] for part in parts], 2) for place in (0, 1))
        ctx.edges, ctx.scale = edges, scale
        ctx.save_for_backward(q, k, v, out, lse)
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        every = (dout.transpose(1, 2), *ctx.saved_tensors)
        parts = [
            gradients(*(x[:, :, start:stop] for x in every), ctx.scale, True) for start, stop in pairwise(ctx.edges)
        ]
        found = (torch.cat([part[place] for part in parts], 2).transpose(1, 2) for place in range(3))
        return (*found, None, None)


def _ours(ulysses: int, ring: int) -> Make:
    def make(case: Case, rank: int) -> Side:
        rows = torch.arange(ulysses * ring).reshape(ring, ulysses).tolist()
        groups = make_groups(Grid(name="", process=tuple(map(tuple, rows))).groups(), rank)
        if ulysses > case.q_heads:
            raise CannotRun(f"{case.q_heads} query heads")
        kind = "balanced" if case.packed else "zigzag"
        layout = Layout(tokens=case.tokens, ulysses=ulysses, ring=ring, kind=kind, documents=case.edges[:-1])
        operator = MmSp(layout=layout, ulysses=groups.ulysses.exchange(), ring=groups.ring.exchange())
        tokens = torch.from_numpy(layout.index(groups.ring.index, groups.ulysses.index))

        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return operator.attend(*(x.transpose(1, 2) for x in (q, k, v)), case.head_dim**-0.5)

        return Side(tokens=torch.where(tokens < case.tokens, tokens, -1), attend=call)

    return make


def _needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise CannotRun(f"not installed: pip install --no-deps {package.replace('_', '-')}")
    install()


def _dense_only(case: Case) -> None:
    if case.packed:
        raise CannotRun("no packed rows")


def _divided(case: Case, ranks: int) -> None:
    if case.tokens % (2 * ranks):
        raise CannotRun(f"{case.tokens} tokens: {2 * ranks} does not divide them")


def _zigzag(edges: tuple[int, ...], rank: int, ranks: int) -> Tensor:
    """Of every document, cut in 2 × ranks chunks, chunk `rank` and its mirror."""
    chunks = []
    for start, stop in pairwise(edges):
        size = (stop - start) // (2 * ranks)
        chunks += [torch.arange(start + at * size, start + (at + 1) * size) for at in (rank, 2 * ranks - 1 - rank)]
    return torch.cat(chunks)


def _yunchang(ulysses: int, ring: int) -> Make:
    def make(case: Case, rank: int) -> Side:
        _needs("yunchang")
        _dense_only(case)
        if ring == 1:
            raise CannotRun("a ring of one sends to itself, which gloo refuses")
        _divided(case, ulysses * ring)
        if case.kv_heads % ulysses:
            raise CannotRun(f"{case.kv_heads} KV heads over {ulysses} ranks")
        import yunchang
        from yunchang.kernels import AttnType

        yunchang.set_seq_parallel_pg(ulysses, ring, rank, ulysses * ring)
        attention = yunchang.LongContextAttention(ring_impl_type="zigzag", attn_type=AttnType.FA)
        block = _zigzag(case.edges, rank // ulysses, ring).chunk(ulysses)[rank % ulysses]
        return Side(tokens=block, attend=lambda q, k, v: attention(q, k, v, causal=True))

    return make


def _ring_flash_attn(case: Case, rank: int) -> Side:
    _needs("ring_flash_attn")
    import ring_flash_attn

    ranks = dist.get_world_size()
    if not case.packed:
        _divided(case, ranks)
        tokens = _zigzag(case.edges, rank, ranks)
        return Side(
            tokens=tokens, attend=lambda q, k, v: ring_flash_attn.zigzag_ring_flash_attn_func(q, k, v, causal=True)
        )
    places, edges = [], [0]
    for start, stop in pairwise(case.edges):
        pads = (start - stop) % (2 * ranks)
        places += [torch.arange(start, stop), torch.full((pads,), -1)]
        edges.append(edges[-1] + stop - start + pads)
    tokens = torch.cat(places)[_zigzag(tuple(edges), rank, ranks)]
    lengths = torch.tensor(edges, dtype=torch.int32) // ranks
    longest = int(lengths.diff().max())

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        packed = (x.squeeze(0) for x in (q, k, v))
        return ring_flash_attn.zigzag_ring_flash_attn_varlen_func(*packed, lengths, longest, causal=True).unsqueeze(0)

    return Side(tokens=tokens, attend=call)


def _llama3(case: Case, rank: int) -> Side:
    _needs("ring_flash_attn")
    import ring_flash_attn

    ranks = dist.get_world_size()
    _divided(case, ranks)
    edges = torch.tensor(case.edges, dtype=torch.int32)
    parts = ring_flash_attn.llama3_flash_attn_prepare_cu_seqlens(edges, True, rank, ranks)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        packed = (x.squeeze(0) for x in (q, k, v))
        lengths, keys = parts[:4], parts[4]
        found = ring_flash_attn.llama3_flash_attn_varlen_func(
            *packed, *lengths, heads_k_stride=1, local_k_slice=keys, causal=True, group=dist.group.WORLD
        )
        return found.unsqueeze(0)

    return Side(tokens=torch.arange(case.tokens).chunk(ranks)[rank], attend=call)


class _TorchRing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.distributed.tensor.experimental._context_parallel import _attention as ring

        def op(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
            return attend(query, key, value, query.shape[-1] ** -0.5, is_causal)

        out, lse, *_ = ring._templated_ring_attention(dist.group.WORLD, 2, op, q, k, v, is_causal=True)
        ctx.save_for_backward(q, k, v, out.to(q.dtype), lse.squeeze(-1) if lse.dim() == 4 else lse)
        return out.to(q.dtype)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, ...]:
        from torch.distributed.tensor.experimental._context_parallel import _attention as ring

        def op(
            query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor, is_causal: bool, dout: Tensor
        ) -> tuple[Tensor, ...]:
            return gradients(dout, query, key, value, out, logsumexp, query.shape[-1] ** -0.5, is_causal)

        q, k, v, out, lse = ctx.saved_tensors
        return ring._templated_ring_attention_backward(
            dist.group.WORLD, 2, op, dout.contiguous(), "dout", q, k, v, out, lse, True
        )[:3]


def _torch_ring(case: Case, rank: int) -> Side:
    from torch.distributed.tensor.experimental._context_parallel import _attention as ring

    _dense_only(case)
    ranks = dist.get_world_size()
    _divided(case, ranks)
    ring._cp_options.rotate_method = ring._RotateMethod.ALL_TO_ALL

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _TorchRing.apply(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    return Side(tokens=_zigzag(case.edges, rank, ranks), attend=call)


class _Exchange(torch.autograd.Function):
    """(1, S, H, D) of some tokens -> (1, S × ranks, H / ranks, D) of some heads, or back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, to_heads: bool) -> Tensor:
        ctx.to_heads, ranks = to_heads, dist.get_world_size()
        sent = torch.stack(x.chunk(ranks, 2 if to_heads else 1)).contiguous()
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        return torch.cat(received.unbind(), 1 if to_heads else 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Exchange.apply(grad, not ctx.to_heads), None


def _all_to_all(case: Case, rank: int) -> Side:
    ranks = dist.get_world_size()
    _divided(case, ranks)
    if case.q_heads % ranks or case.kv_heads % ranks:
        raise CannotRun(f"{case.kv_heads} KV heads over {ranks} ranks")

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _Exchange.apply(by_document(case, *(_Exchange.apply(x, True) for x in (q, k, v))), False)

    return Side(tokens=torch.arange(case.tokens).chunk(ranks)[rank], attend=call)


def _alone(cores: int) -> Make:
    def make(case: Case, rank: int) -> Side:
        if rank:
            return Side(tokens=torch.zeros(0, dtype=torch.int64), attend=lambda q, k, v: q)
        return Side(tokens=torch.arange(case.tokens), attend=lambda q, k, v: by_document(case, q, k, v), threads=cores)

    return make
