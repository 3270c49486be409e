"""Rotary embeddings whose angles follow from how long the row is: dynamic scaling, and longrope's two sets.

    transformers: frequencies = f(1 + the largest position of the call)      here a call has the tokens of one rank

so ranks of one row would turn by different angles. Once a call, all ranks agree on the largest position; it is appended
to the positions that the embedding is given, and cut off its result. A packed row has one largest position, as in one
process. Bytes: 8 a rank and call. Steps of decoding have all new tokens on every rank and agree on nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cost_models.errors import InputError
from executor.mmsp.attention import MmSp

_FOLLOWS = ("dynamic", "longrope")


def see_whole_rows(models: Sequence[nn.Module]) -> None:
    """Make the embeddings of these models, called once for all layers, see the row's largest position."""
    seen: list[nn.Module] = []
    for parent in models:
        for child in filter(_follows, parent.children()):
            row = _Row()
            parent.register_forward_pre_hook(row.agree, with_kwargs=True)
            child.register_forward_pre_hook(row.append, with_kwargs=True)
            child.register_forward_hook(row.cut)
            seen.append(child)
    for part in (part for parent in models for part in parent.modules() if _follows(part)):
        if not any(part is one for one in seen):
            raise InputError(f"rope_type of {type(part).__name__} follows from the tokens of one rank, not of the row")


def _follows(part: nn.Module) -> bool:
    kind = getattr(part, "rope_type", None)
    return any(one in _FOLLOWS for one in (kind.values() if isinstance(kind, dict) else (kind,)))


class _Row:
    """The largest position (1,) of the row whose call is under way; None outside a call over ranks."""

    def __init__(self) -> None:
        self._largest: Tensor | None = None

    def agree(self, parent: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        call, self._largest = given.get("mm_sp"), None
        if isinstance(call, MmSp):
            largest = given["position_ids"].amax().reshape(1)
            for exchange in (call.ulysses, call.ring):
                largest = exchange.all_gather(largest).amax(0)
            self._largest = largest

    def append(self, child: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        if self._largest is None:
            return None
        by_name = "position_ids" in given
        at = given["position_ids"] if by_name else args[1]
        at = torch.cat((at, self._largest.expand(*at.shape[:-1], 1)), dim=-1)
        return (args, given | {"position_ids": at}) if by_name else ((args[0], at, *args[2:]), given)

    def cut(self, child: nn.Module, args: tuple[Any, ...], turned: tuple[Tensor, ...]) -> Any:
        return None if self._largest is None else tuple(part[..., :-1, :] for part in turned)
