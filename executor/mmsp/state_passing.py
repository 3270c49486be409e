"""The states that a row's stretches are entered with, where ranks hold stretches of it in any order.

    entry_0 = 0        entry_{i+1} = decay_i * entry_i + own_i        i in the row's order, whatever rank holds i

gather  every rank gets all summaries (own, decay) and goes through them itself: one step, G - 1 buffers received
chain   rank to rank in the row's order, a state each, G - 1 steps: only where each rank holds one stretch
tree    at step s stretch i joins what i - 2^s has seen to its own: ceil(log2 of the stretches) steps

Gradients take the same way from the last stretch to the first: with g_i that of entry_i, r_{i-1} = decay_i r_i + g_i,
then d own_i = r_i and d decay_i = <r_i, entry_i>. A summary is H (P N + 1) numbers for each row of the batch.
Shapes: G stretches of this rank, B rows, H heads, P head size, N state. Leaves out: overlap with computation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cost_models.ssd_messages import check_passing, in_order
from cost_models.tiles import Span
from executor.mmsp.exchange import Exchange


@dataclass(frozen=True, kw_only=True)
class Passing:
    """How one group passes states on; a `carry` of `longvila.ssd`."""

    exchange: Exchange
    stretches: tuple[tuple[Span, ...], ...]  # of each member, ascending; together they are the row
    way: str = "gather"

    def __post_init__(self) -> None:
        check_passing(self.way, self.stretches)

    @cached_property
    def slots(self) -> int:
        """The most stretches of a member."""
        return max(len(mine) for mine in self.stretches)

    @cached_property
    def order(self) -> tuple[tuple[int, int], ...]:
        """(member, its stretch) in the row's order."""
        return in_order(self.stretches)

    def __call__(self, own: Tensor, decay: Tensor) -> Tensor:
        """own [G, B, H, P, N], decay [G, B, H] of this rank's stretches -> their entries, differentiable."""
        return self.again(own, decay, self.entries(own.detach(), decay.detach()))

    def again(self, own: Tensor, decay: Tensor, entries: Tensor) -> Tensor:
        """The same where they are known: nothing is sent but gradients."""
        known: Tensor = _Passed.apply(own, decay, entries, self)
        return known

    def entries(self, own: Tensor, decay: Tensor, *, backwards: bool = False) -> Tensor:
        """The recurrence over all stretches, in the row's order or from its end."""
        order = self.order[::-1] if backwards else self.order
        if len(order) == 1:
            return torch.zeros_like(own)
        if self.way == "chain":
            return self._chain(own, decay, [member for member, _ in order])
        values = torch.cat((own.flatten(-2), decay[..., None]), -1)
        entries = self._gather(values, order) if self.way == "gather" else self._tree(values, order)
        return entries[..., :-1].unflatten(-1, own.shape[-2:])

    def _gather(self, values: Tensor, order: Sequence[tuple[int, int]]) -> Tensor:
        missing = self.slots - len(values)
        buffer = torch.cat((values, values.new_zeros((missing, *values.shape[1:])))) if missing else values
        of_all, me = self.exchange.all_gather(buffer).flatten(0, 1), self.exchange.index
        held = [member * self.slots + slot for member, slot in order]
        decays, weights = of_all[..., -1][held], of_all.new_zeros((len(values), *of_all.shape[:-1]))
        for place, (member, slot) in enumerate(order):
            if member == me and place:
                later = decays[1:place].flip(0).cumprod(0).flip(0)  # what a state loses on its way here
                weights[slot, held[:place]] = torch.cat((later, torch.ones_like(decays[:1])))
        return torch.einsum("egbh,gbhw->ebhw", weights, of_all)

    def _chain(self, own: Tensor, decay: Tensor, order: Sequence[int]) -> Tensor:
        place, entry = order.index(self.exchange.index), torch.zeros_like(own[0])
        if place > 0:
            (entry,) = self.exchange.start_transfer([], [(order[place - 1], entry)]).wait()
        if place + 1 < len(order):
            state = torch.addcmul(own[0], decay[0, ..., None, None], entry)
            self.exchange.start_transfer([(order[place + 1], state.contiguous())], []).wait()
        return entry[None]

    def _tree(self, values: Tensor, order: Sequence[tuple[int, int]]) -> Tensor:
        me, entries = self.exchange.index, dict[int, Tensor]()
        slots = {place: slot for place, (member, slot) in enumerate(order) if member == me}
        seen = {place: values[slot] for place, slot in slots.items()}
        for step in (2**power for power in range((len(order) - 1).bit_length())):
            came = {place: seen[place - step] for place in slots if place - step in slots}
            sent, wanted = dict[int, list[Tensor]](), dict[int, list[int]]()  # by member, in order of place
            for place in slots:
                if place + step < len(order) and (to := order[place + step][0]) != me:
                    sent.setdefault(to, []).append(seen[place])
                if place >= step and place not in came:
                    wanted.setdefault(order[place - step][0], []).append(place)
            arrived = {by: values.new_empty((len(places), *values.shape[1:])) for by, places in wanted.items()}
            given = [(to, _end_to_end(parts)) for to, parts in sent.items()]
            self.exchange.start_transfer(given, [*arrived.items()]).wait()
            for by, places in wanted.items():
                came |= zip(places, arrived[by], strict=True)
            for place, earlier in came.items():
                # It spans the `step` stretches before; entries so far span the step - 1 that follow them.
                entries[place] = earlier if step == 1 else _joined(earlier, entries[place])
            seen |= {place: _joined(one, seen[place]) for place, one in came.items() if place + 2 * step < len(order)}
        if 0 in slots:
            entries[0] = torch.zeros_like(values[0])
        return _end_to_end([entries[place] for place in sorted(slots, key=lambda place: slots[place])])


def _end_to_end(parts: Sequence[Tensor]) -> Tensor:
    """Along a new first axis; one alone is not copied."""
    return torch.stack(list(parts)) if len(parts) > 1 else parts[0][None]


def _joined(earlier: Tensor, later: Tensor) -> Tensor:
    """(state, decay) of two neighbours as one stretch; the decay is the last number."""
    joined, decay = torch.empty_like(later), later[..., -1:]
    torch.addcmul(later[..., :-1], decay, earlier[..., :-1], out=joined[..., :-1])
    torch.mul(decay, earlier[..., -1:], out=joined[..., -1:])
    return joined


class _Passed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, decay: Tensor, entries: Tensor, passing: Passing) -> Tensor:
        ctx.passing = passing
        ctx.save_for_backward(decay, entries)
        return entries.view_as(entries)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        decay, entries = ctx.saved_tensors
        later = ctx.passing.entries(grad, decay, backwards=True)
        return later, (later * entries).sum((-1, -2)), None, None
