"""Discrete Mamba-2, a layer that mixes tokens by a state instead of attention: one scan, cost linear in the tokens.

    [x|B|C], z, a = in_proj(h)          [x|B|C] = causal depthwise convolution of the last K tokens
    y_i = sum_{j<=i} (C_i . B_j) exp(-sum_{k=j+1..i} softplus(a_k)) x_j + D x_i          out = out_proj(y silu(z + b))

The scan works in chunks of `chunk` tokens: a matrix inside each, a state [P, N] from one to the next. What precedes a
stretch of tokens reaches it through that state alone: end = decay * entry + own. So a `carry` that finds the entries
of several stretches from their (own, decay) is all that a row split over ranks needs, beside K - 1 tokens before each
stretch for the convolution. Nothing crosses a document's first token, which has position 0.
Sums are in float32 (float64 for float64). Layer and matrix as in github.com/goombalab/phi-mamba,
`modules/mixers/discrete_mamba2.py` (arXiv 2408.10189); transformers' `mamba2_chunk_scan` computes in float32 alone.
Leaves out: a norm before out_proj, fused kernels. Shapes: B rows, S tokens, H heads, P head size, N state, K taps,
W = P + 2N channels of a head, G stretches, C chunks, T tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from longvila.loss import wide_dtype

Carry = Callable[[Tensor, Tensor], Tensor]
"""(own end states [G, B, H, P, N], decays [G, B, H]) of the stretches -> the states that they are entered with."""
UNIT_GATE = 1.2784645427610738
"""silu of this is 1: a gate that does nothing."""
BLOCK = 16
"""Chunks whose states are found by one product. More: more products for each; fewer: more levels of blocks."""


@dataclass(frozen=True, kw_only=True)
class Inner:
    """What lies between the two projections: channels before the convolution and its weights, by head."""

    channels_BSHW: Tensor  # x, B, C of each head end to end
    a_BSH: Tensor
    taps_HWK: Tensor
    skip_H: Tensor  # D
    state: int
    chunk: int

    @property
    def head_size(self) -> int:
        return self.channels_BSHW.shape[-1] - 2 * self.state


class Split(Protocol):
    """The keyword argument `ssd` of a model call: the tokens of a row lie on several ranks."""

    def mix(self, inner: Inner, layer: int, cache: Cache | None) -> Tensor:
        """`inner` of this rank's tokens -> y [B, S, H, P] of them, as `mix` gives it for the whole row.

        The states that documents end with stay in the `cache`, where there is one."""


def scan(
    x_BSHP: Tensor,
    b_BSHN: Tensor,
    c_BSHN: Tensor,
    log_decay_BSH: Tensor,
    *,
    documents: Tensor | None = None,
    chunk: int = 128,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y [B, S, H, P] and the state [B, H, P, N] after the last token, in float32 or wider.

    `documents` [S] or [B, S]: tokens of different numbers do not see each other; `state` is that before the first
    token, of the same document.
    """
    first = torch.zeros_like(log_decay_BSH[..., 0], dtype=torch.bool)
    if documents is not None:
        first[:, 1:] = documents[..., 1:] != documents[..., :-1]
    y_BSHP, ends = scan_stretches(
        x_BSHP, b_BSHN, c_BSHN, log_decay_BSH, first,
        lengths=(x_BSHP.shape[1],), chunk=chunk, carry=entered_with(state),
    )  # fmt: skip
    return y_BSHP, ends[0]


def entered_with(state: Tensor | None) -> Carry:
    """The carry of one stretch that `state` precedes."""
    return lambda own, decay: torch.zeros_like(own) if state is None else state[None].to(own)


def scan_stretches(
    x_BSHP: Tensor,
    b_BSHN: Tensor,
    c_BSHN: Tensor,
    log_decay_BSH: Tensor,
    first_BS: Tensor,
    *,
    lengths: Sequence[int],
    chunk: int,
    carry: Carry,
) -> tuple[Tensor, Tensor]:
    """The scan over stretches of `lengths` tokens that need not follow each other: y, and the end state of each.

    `first_BS`: whether a token is its document's first, so that it sees nothing before it.
    """
    wide, size = wide_dtype(x_BSHP.dtype), min(chunk, max(lengths))
    counts = [-(-length // size) for length in lengths]

    def by_chunk(of_BSHX: Tensor) -> Tensor:
        """[B, S, H, X] -> [B, H, C, T, X], each stretch filled up with zeros: they add nothing and decay nothing."""
        parts = [_filled(part, -part.shape[1] % size) for part in of_BSHX.split(list(lengths), 1)]
        return _joined(parts, 1).unflatten(1, (-1, size)).permute(0, 3, 1, 2, 4).contiguous()

    x, b, c = (by_chunk(one.to(wide)) for one in (x_BSHP, b_BSHN, c_BSHN))
    # A document's first token is told apart by masks: its decay is left out of the sums, so that none is infinite.
    decays = by_chunk(log_decay_BSH.to(wide).masked_fill(first_BS[..., None], 0)[..., None])[..., 0].cumsum(-1)
    document = by_chunk(first_BS.long()[..., None, None])[..., 0].cumsum(-1)  # counted from the chunk's start
    total, last = decays[..., -1:], document[..., -1:]

    seen = (document[..., :, None] == document[..., None, :]).tril()
    inside = (decays[..., :, None] - decays[..., None, :]).masked_fill(~seen, -torch.inf).exp()
    y = (c @ b.transpose(-1, -2) * inside) @ x
    kept = torch.exp(total - decays) * (document == last)
    own = (x * kept[..., None]).transpose(-1, -2) @ b  # [B, H, C, P, N]
    through = total[..., 0].masked_fill(last[..., 0] > 0, -torch.inf)  # log decay of a chunk
    chunks = [
        (*_between(of, log), _products(log))
        for of, log in zip(own.split(counts, 2), through.split(counts, 2), strict=True)
    ]
    ends = torch.stack([end for _, end, _ in chunks])
    entries = carry(ends, torch.stack([products[..., -1] for _, _, products in chunks]))
    stretches = list(zip(chunks, entries, strict=True))
    before = _joined([_added(one, many[..., :-1], entry[:, :, None]) for (one, _, many), entry in stretches], 2)
    finals = [_added(end, many[..., -1], entry) for (_, end, many), entry in stretches]
    reached = torch.exp(decays) * (document == 0)
    y = y + (c @ before.transpose(-1, -2)) * reached[..., None]
    parts = y.permute(0, 2, 3, 1, 4).flatten(1, 2).split([count * size for count in counts], 1)
    joined = _joined([part[:, :length] for part, length in zip(parts, lengths, strict=True)], 1)
    return joined.to(x_BSHP.dtype), torch.stack(finals)


def _between(own_BHCPN: Tensor, log_BHC: Tensor) -> tuple[Tensor, Tensor]:
    """The states before each chunk of a stretch that nothing precedes, and that after the last.

    Blocks of chunks by a matrix of decays, as tokens inside a chunk, and the blocks' own ends likewise.
    """
    count = own_BHCPN.shape[2]
    size = min(BLOCK, count)
    own, log = (_filled(one, -count % size, 2).unflatten(2, (-1, size)) for one in (own_BHCPN, log_BHC))
    # Row i + 1, column j: the logs of the chunks between j and i inclusive of i. No differences of long sums.
    later = torch.ones(size, size, dtype=torch.bool, device=log.device).tril()
    spans = log[..., :, None].masked_fill(~later.tril(-1), 0).cumsum(-2).masked_fill(~later, -torch.inf)
    states = (F.pad(spans.exp(), (0, 0, 1, 0)) @ own.flatten(-2)).unflatten(-1, own.shape[-2:])  # after 0 … M chunks
    if states.shape[2] == 1:
        return states[:, :, 0, :count], states[:, :, 0, count]
    entries, end = _between(states[:, :, :, -1], log.sum(-1))
    states = _added(states[:, :, :, :-1], _products(log)[..., :-1], entries[:, :, :, None])
    return states.flatten(2, 3)[:, :, :count], end


def _products(log: Tensor) -> Tensor:
    """Decays over the first 0, 1, … of them."""
    return F.pad(log.cumsum(-1), (1, 0)).exp()


def _added(own: Tensor, decay: Tensor, entry: Tensor) -> Tensor:
    return torch.addcmul(own, decay[..., None, None], entry)


def _joined(parts: Sequence[Tensor], axis: int) -> Tensor:
    return torch.cat(list(parts), axis) if len(parts) > 1 else parts[0]


def _filled(of: Tensor, more: int, axis: int = 1) -> Tensor:
    """With so many zeros behind."""
    return torch.cat((of, of.new_zeros((*of.shape[:axis], more, *of.shape[axis + 1 :]))), axis) if more else of


def convolve(
    channels_BSHW: Tensor, taps_HWK: Tensor, positions_BS: Tensor, lengths: Sequence[int], before: Sequence[Tensor]
) -> Tensor:
    """The causal convolution inside documents; `before` [B, K - 1, H, W] are the tokens before each stretch."""
    reach, made = taps_HWK.shape[-1] - 1, []
    positions = positions_BS[..., None, None].split(list(lengths), 1)
    for part, place, halo in zip(channels_BSHW.split(list(lengths), 1), positions, before, strict=True):
        seen, total = torch.cat((halo.to(part), part), 1), part * taps_HWK[..., -1]
        for back in range(1, reach + 1):
            earlier = seen[:, reach - back : reach - back + part.shape[1]]
            total = total + (earlier * taps_HWK[..., reach - back]).masked_fill(place < back, 0)
        made.append(total)
    return _joined(made, 1)


def mix(
    inner: Inner, positions_BS: Tensor, lengths: Sequence[int], before: Sequence[Tensor], carry: Carry
) -> tuple[Tensor, Tensor]:
    """Convolution, scan and skip over stretches: y [B, S, H, P], and the end states [G, B, H, P, N]."""
    channels = convolve(inner.channels_BSHW, inner.taps_HWK, positions_BS, lengths, before)
    x, b, c = channels.split((inner.head_size, inner.state, inner.state), -1)
    log_decay = -F.softplus(inner.a_BSH.to(wide_dtype(inner.a_BSH.dtype)))
    y, ends = scan_stretches(x, b, c, log_decay, positions_BS == 0, lengths=lengths, chunk=inner.chunk, carry=carry)
    return y + x * inner.skip_H[:, None], ends


class StateLayer(CacheLayerMixin):
    """What a layer remembers while tokens are generated: its state and the last K - 1 tokens' channels.

    transformers' caches have methods for keys and values; who calls those here has taken the layer for attention."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0
        self.state: Tensor | None = None  # [B, H, P, N]
        self.channels: Tensor | None = None  # [B, K - 1, H, W]

    @property
    def known(self) -> tuple[Tensor, Tensor]:
        """State and channels of a layer that has seen tokens."""
        assert self.state is not None and self.channels is not None
        return self.state, self.channels

    def advance(self, tokens: int, state: Tensor, channels: Tensor) -> None:
        self.tokens, self.state, self.channels = self.tokens + tokens, state, channels

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise TypeError("a state-space layer's cache was asked to hold keys and values: the layer is no attention")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise TypeError("a state-space layer's cache was asked to hold keys and values: the layer is no attention")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.tokens + query_length, 0

    def get_seq_length(self) -> int:
        return self.tokens

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.tokens, self.state, self.channels = 0, None, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        state, channels = self.known
        self.state, self.channels = state[beam_idx], channels[beam_idx]


def state_of(cache: Cache, layer: int) -> StateLayer:
    """The layer's place in a cache; it takes the place that transformers made for keys and values."""
    while len(cache.layers) <= layer:
        cache.layers.append(DynamicLayer())
    held = cache.layers[layer]
    if not isinstance(held, StateLayer):
        held = cache.layers[layer] = StateLayer()
    return held


class DiscreteMamba2(nn.Module):
    """Stands where a decoder layer has `self_attn`; as many heads for B and C as for x."""

    is_causal = True

    def __init__(
        self, hidden: int, heads: int, head_size: int, state: int, conv: int = 4, chunk: int = 128, layer: int = 0
    ) -> None:
        super().__init__()
        self.heads, self.head_size, self.state, self.chunk, self.layer = heads, head_size, state, chunk, layer
        width, inner = heads * (head_size + 2 * state), heads * head_size
        self.in_proj = nn.Linear(hidden, width + inner + heads, bias=False)
        self.conv1d = nn.Conv1d(width, width, conv, groups=width, bias=False)
        self.z_bias = nn.Parameter(torch.empty(inner))
        self.D = nn.Parameter(torch.empty(heads))
        self.out_proj = nn.Linear(inner, hidden, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The convolution passes its token on, the gate is 1 where z is 0, nothing is skipped."""
        self.conv1d.weight.zero_()
        self.conv1d.weight[..., -1] = 1
        self.z_bias.fill_(UNIT_GATE)
        self.D.zero_()

    def forward(
        self,
        hidden_states: Tensor,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        ssd: Split | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """[B, S, hidden] -> ([B, S, hidden], None), as a layer of transformers asks its attention."""
        inner, z_BSI = self._inner(hidden_states)
        if ssd is not None:
            y_BSHP = ssd.mix(inner, self.layer, past_key_values)
        else:
            held = None if past_key_values is None else state_of(past_key_values, self.layer)
            y_BSHP = self._alone(inner, _positions(hidden_states, position_ids), held)
        gated: Tensor = self.out_proj(_Gated.apply(y_BSHP.flatten(2), z_BSI, self.z_bias))
        return gated, None

    def matrix(self, hidden_states: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """The layer as attention would hold it, [B, H, S, S]: y_i = sum_j matrix_ij x_j. Memory grows with S^2."""
        inner, _ = self._inner(hidden_states)
        positions = _positions(hidden_states, position_ids)
        lengths, before = (hidden_states.shape[1],), [self._nothing(inner)]
        channels = convolve(inner.channels_BSHW, inner.taps_HWK, positions, lengths, before)
        _, b, c = channels.transpose(1, 2).split((self.head_size, self.state, self.state), -1)
        first = positions == 0
        decays = (-F.softplus(inner.a_BSH)).masked_fill(first[..., None], 0).transpose(1, 2).cumsum(-1)
        document = first.long().cumsum(-1)[:, None]
        seen = (document[..., :, None] == document[..., None, :]).tril()
        weights = (decays[..., :, None] - decays[..., None, :]).masked_fill(~seen, -torch.inf).exp()
        return c @ b.transpose(-1, -2) * weights + torch.diag_embed(self.D[:, None].expand(-1, hidden_states.shape[1]))

    def _inner(self, hidden_states: Tensor) -> tuple[Inner, Tensor]:
        heads, p, n = self.heads, self.head_size, self.state
        channels_BSHW, rest = _Projected.apply(hidden_states, self.in_proj.weight, heads, (p, n, n))
        z_BSI, a_BSH = rest.split((heads * p, heads), -1)
        of_parts = self.conv1d.weight[:, 0].split((heads * p, heads * n, heads * n))
        taps = [one.unflatten(0, (heads, -1)) for one in of_parts]
        inner = Inner(
            channels_BSHW=channels_BSHW, a_BSH=a_BSH.contiguous(), taps_HWK=torch.cat(taps, 1), skip_H=self.D, state=n,
            chunk=self.chunk,
        )  # fmt: skip  # a is copied, so that backward holds nothing of what it is cut from
        return inner, z_BSI

    def _alone(self, inner: Inner, positions_BS: Tensor, held: StateLayer | None) -> Tensor:
        """In one process; `held` is read and advanced."""
        channels, tokens = inner.channels_BSHW, positions_BS.shape[1]
        state, before = (None, self._nothing(inner)) if held is None or not held.tokens else held.known
        y_BSHP, ends = mix(inner, positions_BS, (tokens,), [before], entered_with(state))
        if held is not None:
            last = torch.cat((before, channels), 1)[:, tokens:].clone()  # a view would hold all tokens'
            held.advance(tokens, ends[0].clone(), last)
        return y_BSHP

    @staticmethod
    def _nothing(inner: Inner) -> Tensor:
        channels, taps = inner.channels_BSHW, inner.taps_HWK
        return channels.new_zeros((channels.shape[0], taps.shape[-1] - 1, *channels.shape[2:]))


class _Gated(torch.autograd.Function):
    """y silu(z + bias), of which y and z are kept; what lies between is made again by the operators of autograd."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(y, z, bias)
        return y * F.silu(z + bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, z, bias = ctx.saved_tensors
        biased, (wants_y, *wants_z) = z + bias, ctx.needs_input_grad
        of_y = grad * F.silu(biased) if wants_y else None
        if not any(wants_z):
            return of_y, None, None
        of_z = torch.ops.aten.silu_backward(grad * y, biased)
        return of_y, of_z, of_z.flatten(0, -2).sum(0)


class _Projected(torch.autograd.Function):
    """hidden [B, S, D] -> x, B and C of each head end to end [B, S, H, W], and z and a [B, S, H P + H].

    The weight's rows are put into the order of heads, not what they make: at no moment is a copy of all channels, or
    of their gradient, alive beside them.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, heads: int, parts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        ctx.heads, ctx.parts = heads, parts
        ctx.save_for_backward(hidden, weight)
        width = heads * sum(parts)
        channels = F.linear(hidden, _by_heads(weight[:width], heads, parts))
        return channels.unflatten(-1, (heads, -1)), F.linear(hidden, weight[width:])

    @staticmethod
    def backward(ctx: Any, of_channels: Tensor, of_rest: Tensor) -> tuple[Tensor | None, ...]:
        (hidden, weight), heads = ctx.saved_tensors, ctx.heads
        channels, rest, width = of_channels.flatten(2).flatten(0, 1), of_rest.flatten(0, 1), heads * sum(ctx.parts)
        of_hidden = of_weight = None
        if ctx.needs_input_grad[0]:
            of_hidden = (rest @ weight[width:]).addmm_(channels, _by_heads(weight[:width], heads, ctx.parts))
            of_hidden = of_hidden.view_as(hidden)
        if ctx.needs_input_grad[1]:
            rows = hidden.flatten(0, 1)
            of_heads = (channels.t() @ rows).unflatten(0, (heads, -1)).split(ctx.parts, 1)
            of_weight = torch.cat([*(one.flatten(0, 1) for one in of_heads), rest.t() @ rows])
        return of_hidden, of_weight, None, None


def _by_heads(rows: Tensor, heads: int, parts: tuple[int, ...]) -> Tensor:
    """Rows of x of all heads, then of B, then of C -> those of each head end to end."""
    of_parts = rows.split([heads * part for part in parts])
    return torch.cat([one.unflatten(0, (heads, -1)) for one in of_parts], 1).flatten(0, 1)


def _positions(hidden_states: Tensor, position_ids: Tensor | None) -> Tensor:
    """[B, S]; tokens stand in their documents from 0 on."""
    batch, tokens = hidden_states.shape[:2]
    if position_ids is None:
        position_ids = torch.arange(tokens, device=hidden_states.device)[None]
    return position_ids.expand(batch, tokens)
