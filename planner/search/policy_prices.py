"""Linear prices of many layouts at once, by kind of layer and recompute policy: the integer program's columns.

    choice  = (kind, policy), kind by kind; a kind has as many layers as the model gives it
    step_s  = other_s + sum over choices of layers x layer_s[choice]            (linear in the layer counts)
    memory  = base + sum of layers x kept[choice] + the largest transient of a choice in use
              on the first or the last stage of a pipeline, whichever needs more
    host    = host_base + sum of layers x host_kept[choice]     of a rank, within its share of a node's host memory

A policy is a recompute policy, or a `LayerRange` of one layer whose input waits on the host.

Arrays have one entry for each layout and placement, priced by `layout_prices.py`. Times in seconds per step, memory in
bytes per GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from cost_models.models.model import LayerKind
from cost_models.strategy import LayerRange, Offload, Recompute

Floats = NDArray[np.float64]
Policy = Recompute | LayerRange
Choice = tuple[LayerKind, Policy]
_ARRAYS = ("other_s", "layer_s", "base_bytes", "kept_bytes", "again_bytes", "host_base", "host_kept", "host_limit")
EQUAL = 1e-12
"""Relative difference below which two values are the same; the policy that recomputes less is then taken."""

AT_ONCE = 2048
"""Columns whose mixes are looked at at one time: some hundreds of each, of hybrids."""


class Mix(NamedTuple):
    """One choice for the layers of every kind, but two for those of one kind."""

    fixed: tuple[tuple[int, int], ...]  # (choice, layers) of the other kinds
    more: int  # the choice that comes first
    less: int
    layers: int  # of the kind that has both


class Mixes(NamedTuple):
    """Several mixes as arrays."""

    fixed: list[tuple[NDArray[np.int64], NDArray[np.int64]]]  # of each other kind (choice, layers)
    more: NDArray[np.int64]
    less: NDArray[np.int64]
    layers: NDArray[np.int64]


class PolicyPrices(Struct, frozen=True, kw_only=True, eq=False, dict=True):
    """Prices of many layouts; the choice is the last axis of `layer_s`, `kept_bytes` and `again_bytes`.

    Bytes are those of the first and the last stage of a pipeline, each with an equal share of every choice's layers.
    """

    policies: tuple[Policy, ...]
    layer_kinds: tuple[LayerKind, ...]  # of every layer of the model
    other_s: Floats
    layer_s: Floats  # (..., choices), of one layer in every microbatch; (..., kinds) if all policies are as fast
    base_bytes: Floats  # (..., stages)
    kept_bytes: Floats  # (..., stages, choices), of one layer of the model
    again_bytes: Floats  # (..., stages, choices), transient while a layer of that choice is recomputed
    host_base: Floats  # (...), in host memory, of a rank
    host_kept: Floats  # (..., choices), there, of one layer
    host_limit: Floats  # (...), a rank's share; infinite where it is not known

    @cached_property
    def layers_of(self) -> dict[LayerKind, int]:
        """Layers of each kind, kinds in order of the model."""
        return {kind: self.layer_kinds.count(kind) for kind in dict.fromkeys(self.layer_kinds)}

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        return tuple(itertools.product(self.layers_of, self.policies))

    @cached_property
    def choices_of(self) -> list[tuple[range, int]]:
        """For each kind its choices and its layers."""
        count = len(self.policies)
        return [(range(i * count, (i + 1) * count), many) for i, many in enumerate(self.layers_of.values())]

    @cached_property
    def uniform(self) -> NDArray[np.int64]:
        """Layers by choice where each kind has one policy, shape (assignments, choices)."""
        several = list(itertools.product(*(choices for choices, _ in self.choices_of)))
        counts = np.zeros((len(several), len(self.choices)), dtype=np.int64)
        for row, chosen in enumerate(several):
            counts[row, list(chosen)] = list(self.layers_of.values())
        return counts

    @cached_property
    def mixes(self) -> list[Mix]:
        """Every mix: the optimum of the relaxed program, which has one row besides those of the kinds, is one."""
        found = []
        for index, (choices, many) in enumerate(self.choices_of):
            others = [one for place, one in enumerate(self.choices_of) if place != index]
            for fixed in itertools.product(*([(choice, layers) for choice in each] for each, layers in others)):
                found += [Mix(fixed, more, less, many) for more, less in itertools.product(choices, choices)]
        return found

    def take(self, where: Any) -> PolicyPrices:
        """Some of the columns, by index or mask."""
        return structs.replace(self, **{name: getattr(self, name)[where] for name in _ARRAYS})

    @classmethod
    def joined(cls, parts: Sequence[PolicyPrices]) -> PolicyPrices:
        """The columns of all parts, in order."""
        arrays: dict[str, Any] = {name: np.concatenate([getattr(one, name) for one in parts]) for name in _ARRAYS}
        return structs.replace(parts[0], **arrays)

    @cached_property
    def uses_host(self) -> bool:
        """Whether host memory may decide anything."""
        return bool(np.isfinite(self.host_limit).any()) and bool(
            (self.host_base > 0).any() or (self.host_kept > 0).any()
        )

    def uniform_fits_host(self) -> Any:
        """Whether the host holds each row of `uniform`, shape (..., assignments); True where it decides nothing."""
        if not self.uses_host:
            return True
        used = self.host_base[..., None] + self.host_kept @ self.uniform.T
        return used <= self.host_limit[..., None]

    def uniform_bytes(self) -> Floats:
        """Memory of each row of `uniform`, shape (..., stages, assignments)."""
        if len(self.layers_of) == 1:
            return self.base_bytes[..., None] + len(self.layer_kinds) * self.kept_bytes + self.again_bytes
        again = np.where(self.uniform > 0, self.again_bytes[..., None, :], 0.0).max(axis=-1)
        used: Floats = self.base_bytes[..., None] + self.kept_bytes @ self.uniform.T + again
        return used

    def least_bytes(self) -> Floats:
        """Memory that no choice of policies for the layers goes below."""
        least: Floats = self.uniform_bytes().min(axis=-1).max(axis=-1)
        if self.uses_host:
            least = np.where(self.host_base <= self.host_limit, least, np.inf)
        return least

    def relaxed_s(self, capacity_bytes: Any) -> Floats:
        """A lower bound on the step: fractional layers, no transients; infinite where nothing fits."""
        fits, seconds = self.least_bytes() <= capacity_bytes, self.layer_s
        if seconds.shape[-1] < len(self.choices):
            return np.where(fits, self.other_s + seconds @ np.array([*self.layers_of.values()], dtype=float), np.inf)
        more, less, many = (np.array([getattr(mix, name) for mix in self.mixes]) for name in ("more", "less", "layers"))
        room = (np.asarray(capacity_bytes)[..., None] - self.base_bytes)[..., None]
        fixed: Any = 0.0
        if len(self.layers_of) > 1:
            counts = np.zeros((len(self.mixes), len(self.choices)))
            for row, mix in enumerate(self.mixes):
                for choice, layers in mix.fixed:
                    counts[row, choice] = layers
            room = room - self.kept_bytes @ counts.T
            fixed = (seconds @ counts.T)[..., None, :]
        kept_more, kept_less, room = self.kept_bytes[..., more], self.kept_bytes[..., less], room / many
        share = np.minimum(np.maximum(_divide(room - kept_less, kept_more - kept_less), 0.0), 1.0)
        possible = (kept_less <= room) & (kept_more >= kept_less)
        share = np.where(kept_more <= room, 1.0, share)
        seconds = seconds[..., None, :]
        mixed = fixed + many * (share * seconds[..., more] + (1 - share) * seconds[..., less])
        best = np.where(possible, mixed, np.inf).min(axis=-1).max(axis=-1)  # no stage allows less
        return np.where(fits, self.other_s + best, np.inf)

    def mixed(self, capacity_bytes: Any) -> tuple[Floats, NDArray[np.int64]]:
        """A good answer in entire layers for each column: seconds (infinite if none) and layers (columns, choices).

        Tries every mix with as many layers of its first choice as fit, transients counted.
        """
        found = [self.take(slice(at, at + AT_ONCE))._mixed(capacity_bytes[at : at + AT_ONCE])
                 for at in range(0, max(1, len(self.other_s)), AT_ONCE)]  # fmt: skip
        return np.concatenate([best for best, _ in found]), np.concatenate([layers for _, layers in found])

    def _mixed(self, capacity_bytes: Floats) -> tuple[Floats, NDArray[np.int64]]:
        mixes = self._arrays
        many = self._most_layers(mixes, capacity_bytes)
        seconds = self.other_s[:, None] + many * self.layer_s[:, mixes.more]
        seconds = seconds + (mixes.layers - many) * self.layer_s[:, mixes.less]
        for choice, count in mixes.fixed:
            seconds = seconds + count * self.layer_s[:, choice]
        seconds = np.where(many >= 0, seconds, np.inf)
        best, which = np.full(len(many), np.inf), np.zeros(len(many), dtype=np.int64)
        for place in np.flatnonzero(np.isfinite(seconds).any(axis=0)).tolist():
            better = seconds[:, place] < best * (1 - EQUAL)
            best, which = np.where(better, seconds[:, place], best), np.where(better, place, which)
        rows, layers = np.arange(len(many)), np.zeros((len(many), len(self.choices)), dtype=np.int64)
        many = many[rows, which]
        fixed = [(choice, count[which]) for choice, count in mixes.fixed]
        for choice, count in [(mixes.more, many), (mixes.less, mixes.layers[which] - many), *fixed]:
            layers[rows, choice[which]] += count
        return best, np.where(np.isfinite(best)[:, None], layers, 0)

    @cached_property
    def _arrays(self) -> Mixes:
        """Every mix, along one axis."""
        fixed = [
            (
                np.array([mix.fixed[other][0] for mix in self.mixes]),
                np.array([mix.fixed[other][1] for mix in self.mixes]),
            )
            for other in range(len(self.layers_of) - 1)
        ]
        more, less, layers = (
            np.array([getattr(mix, name) for mix in self.mixes]) for name in ("more", "less", "layers")
        )
        return Mixes(fixed=fixed, more=more, less=less, layers=layers)

    def _most_layers(self, mixes: Mixes, capacity_bytes: Floats) -> NDArray[np.int64]:
        """Most layers of a mix's first choice, the others of its second, that fit; -1 if no number does.
        Shape (columns, mixes); within, stages are the middle axis."""
        a, b, total = mixes.more, mixes.less, mixes.layers
        low, high = self._host_range(mixes)
        free, rest = (capacity_bytes[:, None] - self.base_bytes)[..., None], np.zeros((*self.base_bytes.shape, 1))
        for choice, count in mixes.fixed:
            free, rest = free - count * self.kept_bytes[..., choice], np.maximum(rest, self.again_bytes[..., choice])
        kept_a, kept_b, again_a = self.kept_bytes[..., a], self.kept_bytes[..., b], self.again_bytes[..., a]
        again = np.maximum(again_a, self.again_bytes[..., b])
        room = free - np.maximum(again, rest) - total * kept_b
        extra = kept_a - kept_b
        many = np.where(extra > 0, np.floor(_divide(room, extra)), np.where(room >= 0, total, -1.0))
        many = np.where((room < 0) & (extra >= 0), -1.0, np.minimum(many, total))
        alone = free - np.maximum(again_a, rest) - total * kept_a >= 0
        held = np.where(alone.all(axis=1), total, many.min(axis=1))
        most = np.minimum(held, high)
        # Fewer than the GPU would hold, for the host's sake: the others may keep more, or make more again.
        first, second = most[:, None], (total - most)[:, None]
        again = np.maximum(np.where(first > 0, again_a, 0), self.again_bytes[..., b])
        kept = first * kept_a + second * kept_b
        fits = (free - np.maximum(again, rest) - kept >= 0).all(axis=1)
        return np.where((most < low) | ((most < held) & ~fits), -1, most).astype(np.int64)

    def _host_range(self, mixes: Mixes) -> tuple[Any, Any]:
        """The fewest and the most layers of a mix's first choice that the host's memory allows."""
        a, b, total = mixes.more, mixes.less, mixes.layers
        if not self.uses_host:
            return 0, total
        room = (self.host_limit - self.host_base)[:, None] - total * self.host_kept[:, b]
        for choice, count in mixes.fixed:
            room = room - count * self.host_kept[:, choice]
        each = self.host_kept[:, a] - self.host_kept[:, b]
        bound = _divide(room, each)
        low = np.where(each < 0, np.maximum(np.ceil(bound), 0), np.where((each == 0) & (room < 0), total + 1, 0))
        high = np.where(each > 0, np.floor(np.minimum(bound, total)), total)
        return low, high

    def fits_host(self, layers: NDArray[np.int64]) -> Any:
        """Whether the host holds layers by choice, shape (columns, choices)."""
        if not self.uses_host:
            return np.ones(self.host_base.shape, dtype=bool)
        return self.host_base + (layers * self.host_kept).sum(axis=-1) <= self.host_limit

    def ranges(self, layers: Sequence[int]) -> tuple[LayerRange, ...]:
        """The layers of each choice in the model's order; of a kind those that recompute most come first, so that the
        last ones are freed first."""
        left = {
            kind: [policy for choice in reversed(choices) for policy in (self.choices[choice][1],) * layers[choice]]
            for kind, (choices, _) in zip(self.layers_of, self.choices_of, strict=True)
        }
        order = [left[kind].pop(0) for kind in self.layer_kinds]
        runs = [(*parts_of(policy), len([*same])) for policy, same in itertools.groupby(order)]
        return tuple(LayerRange(recompute=again, offload=offload, count=count) for again, offload, count in runs)

    def seconds_of(self, layers: NDArray[np.int64]) -> Floats:
        """Step seconds for layers by choice, shape (columns, choices)."""
        seconds: Floats = self.other_s + (layers * self.layer_s).sum(axis=-1)
        return seconds

    def bytes_of(self, layers: NDArray[np.int64]) -> Floats:
        """Memory for layers by choice, shape (columns, choices)."""
        counts = layers[..., None, :]
        again = np.where(counts > 0, self.again_bytes, 0.0).max(axis=-1)
        used: Floats = (self.base_bytes + (counts * self.kept_bytes).sum(axis=-1) + again).max(axis=-1)
        return used


def parts_of(policy: Policy) -> tuple[Recompute, Offload]:
    """(recompute, offload) of a policy."""
    return (policy.recompute, policy.offload) if isinstance(policy, LayerRange) else (policy, "none")


def _divide(above: Any, below: Any) -> Any:
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=np.asarray(below) != 0)
