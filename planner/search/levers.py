"""Levers of memory beside recompute, as decisions of the search: what each may be, and bundles of them.

    inputs    a layer's input waits in host memory, by layer, where recompute keeps it alone
    slices    MLP (and norms) over slices of the tokens                    mlp_chunk_tokens        16384, 4096
    loss      a smaller slice of the loss                                  loss_chunk_tokens       128, 16
    heads     with slices, heads exchanged and attended piece by piece     attention_head_chunks   2, 4, 8, 16
    rows      attention by chunks of the row, on ulysses alone             attention_chunk_tokens  65536
    optimizer, states    in host memory                                    offload_states          optimizer, all

A target lists the levers that its program has. Every lever costs time and none saves any, so what a bundle costs where
memory has no end is at least what each of its levers costs: one that is too slow alone is cut with every bundle that
has it. Left out: other sizes of slices (they can be pinned), pinned levers (they are held).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

Lever = Literal["inputs", "slices", "loss", "heads", "rows", "states", "optimizer"]
VALUES: Mapping[Lever, tuple[tuple[str, Any], ...]] = {
    "inputs": (("inputs", True),),
    "slices": (("mlp_chunk_tokens", 16384), ("mlp_chunk_tokens", 4096)),
    "loss": (("loss_chunk_tokens", 128), ("loss_chunk_tokens", 16)),
    "heads": tuple(("attention_head_chunks", chunks) for chunks in (2, 4, 8, 16)),
    "rows": (("attention_chunk_tokens", 65536),),
    "optimizer": (("offload_states", "optimizer"),),
    "states": (("offload_states", "all"),),
}
"""Of each lever the choices, mildest first: (what of a strategy, its value); `inputs` is a choice of layers."""
FIELDS = tuple(dict.fromkeys(field for choices in VALUES.values() for field, _ in choices if field != "inputs"))
WORTH = 0.02
"""Share of the best layout's step below which recompute is not worth a lever. The bound then speaks of no levers."""


class Bundle(Struct, frozen=True, kw_only=True):
    """Some levers at once.

    >>> Bundle(chosen=(("mlp_chunk_tokens", 4096), ("inputs", True))).fields
    {'mlp_chunk_tokens': 4096}
    """

    chosen: tuple[tuple[str, Any], ...] = ()

    @property
    def fields(self) -> dict[str, Any]:
        """Of a strategy."""
        return {field: value for field, value in self.chosen if field != "inputs"}

    @property
    def inputs(self) -> bool:
        return ("inputs", True) in self.chosen

    @property
    def uses_host(self) -> bool:
        return any(field in ("inputs", "offload_states", "attention_chunk_tokens") for field, _ in self.chosen)

    @property
    def alone(self) -> tuple[Bundle, ...]:
        """Each of its choices by itself."""
        return tuple(Bundle(chosen=(one,)) for one in self.chosen)


NONE = Bundle()


def choices(levers: Sequence[Lever], pinned: Mapping[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    """What each field may be beside its default: a field that is pinned, and what cannot stand beside it, never."""
    found: dict[str, list[tuple[str, Any]]] = {}
    for lever in (one for one in VALUES if one in levers):
        for field, value in VALUES[lever]:
            if field in pinned or (field == "inputs" and pinned.get("recompute") in ("none", "mlp", "core_attention")):
                continue
            found.setdefault(field, []).append((field, value))
    return found


def bundles(levers: Sequence[Lever], pinned: Mapping[str, Any]) -> Iterator[Bundle]:
    """Every bundle but the empty one; chunks of heads and of the row exclude each other."""
    several = choices(levers, pinned)
    for chosen in itertools.product(*([None, *values] for values in several.values())):
        bundle = Bundle(chosen=tuple(one for one in chosen if one is not None))
        if bundle.chosen and _possible(bundle, pinned):
            yield bundle


def strongest(levers: Sequence[Lever], pinned: Mapping[str, Any]) -> list[Bundle]:
    """Bundles of which one needs the least memory: every lever at its last choice, any chunks of heads or rows, and
    states in host memory or not, which may not hold them."""
    several = choices(levers, pinned)
    free = ("attention_head_chunks", "attention_chunk_tokens", "offload_states")
    parts = [values[-1:] if field not in free else [None, *values] for field, values in several.items()]
    made = (Bundle(chosen=tuple(one for one in chosen if one is not None)) for chosen in itertools.product(*parts))
    return [bundle for bundle in made if bundle.chosen and _possible(bundle, pinned)]


def _possible(bundle: Bundle, pinned: Mapping[str, Any]) -> bool:
    fields = {**pinned, **bundle.fields}
    if "attention_head_chunks" in bundle.fields and fields.get("mlp_chunk_tokens") is None:
        return False  # the MLP is then the highest moment
    by_rows = fields.get("attention_chunk_tokens") is not None
    if by_rows and (fields.get("attention_head_chunks", 1) > 1 or fields.get("tensor", 1) > 1):
        return False
    if by_rows and pinned.get("recompute") in ("all_but_attention", "core_attention"):
        return False
    return not (fields.get("offload_states") == "all" and pinned.get("zero", 3) != 3)
