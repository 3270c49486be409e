"""A step whose ring positions hold unequal shares of the row: a program for each, and what all of them wait for.

    position r: its tokens on its slowest device -> step program r        played and priced: phase by phase the slowest

Ranks meet in every ring and around every layer (its weights are gathered, its gradients reduced), so a phase lasts as
long as on the position where it takes longest (a ring as a whole). Positions with the same tokens on the same devices
are one. A ring also waits where large blocks meet few queries (`token_shares.stall`). Left out: that a position may run
ahead by a hop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from cost_models.errors import InputError
from cost_models.framework import Framework
from cost_models.hardware.device import Device
from cost_models.hardware.placement import Placement
from cost_models.layer.operators import attention_call_s
from cost_models.layer.sizes import Block, RankSizes
from cost_models.number import distinct
from cost_models.program import Ring, StepProgram
from cost_models.step.assembly import step_program
from cost_models.strategy import Strategy, rank_grid
from cost_models.timing.cluster_costs import ClusterCosts
from cost_models.timing.kernels import Kernels
from cost_models.token_layout import Layout
from cost_models.token_shares import stall
from cost_models.workload import Workload


@dataclass(frozen=True, kw_only=True, eq=False)
class Position:
    """One position of the ring, or several that are alike."""

    rings: tuple[int, ...]
    sizes: RankSizes
    kernels: Kernels
    device: Device  # the one with least memory

    def program(self) -> StepProgram:
        return step_program(self.sizes, self.kernels, self.sizes.degrees.layer_ranges(self.sizes.workload.model.layers))


def check_unequal(workload: Workload, strategy: Strategy) -> None:
    """Refuse what no price covers with unequal shares."""
    if workload.mode != "train":
        raise InputError(f"token_shares with mode={workload.mode} is not priced; legal: train")
    if workload.lengths:
        raise InputError("token_shares with packed documents is not priced; legal: none, with ring_kind=balanced")
    if strategy.tensor > 1 or strategy.pipeline > 1:
        raise InputError("token_shares is priced with tensor=1 and pipeline=1")


def positions(
    costs: ClusterCosts, workload: Workload, strategy: Strategy, placement: Placement | None, framework: Framework
) -> tuple[Position, ...]:
    """What every position of the ring holds and computes on; those that are alike once."""
    check_unequal(workload, strategy)
    placement = placement or Placement.in_order(costs.cluster, strategy.ranks)
    held = Layout(
        tokens=workload.context_tokens, ring=strategy.ring, ulysses=strategy.ulysses, shares=strategy.token_shares
    ).held
    runs = _runs(costs, placement, strategy)
    attention = framework.measured_attention(workload)
    alone = RankSizes(workload, replace(strategy, token_shares=()), framework.on(costs.devices(runs[0])[0]))
    mean = sum(held) // len(held)
    each = {one: float(attention_call_s(alone, costs.kernels(one, attention), mean, mean, False, False))
            for one in dict.fromkeys(runs)}  # fmt: skip
    waits = stall(held, [each[one] for one in runs])
    alike: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for ring, key in enumerate(zip(runs, held, strict=True)):
        alike.setdefault(key, []).append(ring)
    found = []
    for (used, tokens), rings in alike.items():
        devices = costs.devices(used)
        others = [size for ring, size in enumerate(held) if ring != rings[0]]
        block = Block(tokens, sum(others) / len(others), max(held), waits)
        found.append(
            Position(
                rings=tuple(rings),
                sizes=RankSizes(workload, strategy, framework.on(devices[0]), block=block),
                kernels=costs.kernels(used, attention),
                device=min(devices, key=lambda device: device.allocatable_bytes),
            )
        )
    return tuple(found)


def _runs(costs: ClusterCosts, placement: Placement, strategy: Strategy) -> list[tuple[int, ...]]:
    """Runs of nodes that each position lies on; the first of those with one kind of device stands for all."""
    run = costs.first_alike[costs.cluster.run_of_slot[placement.slot_of_rank][rank_grid(strategy)]]
    return [tuple(distinct(run[:, :, ring].reshape(-1)).tolist()) for ring in range(strategy.ring)]


def slowest(programs: Sequence[StepProgram]) -> StepProgram:
    """Phase by phase the most of any; the programs differ in numbers alone."""
    merged = _most(programs)
    assert isinstance(merged, StepProgram)
    return merged


def _most(values: Sequence[object]) -> object:
    first = values[0]
    if all(one is first for one in values) or isinstance(first, bool | str):
        return first
    if isinstance(first, int | float | np.number):
        return max(values)  # type: ignore[type-var]
    if isinstance(first, Ring):  # a whole turn: the first block of one rank and later ones of another never add up
        rings = [one for one in values if isinstance(one, Ring)]
        longest = max(rings, key=lambda ring: ring.first_s + (ring.pieces - 1) * ring.piece_s)
        hop, gradient = max(ring.hop_bytes for ring in rings), max(ring.gradient_bytes for ring in rings)
        return longest._replace(hop_bytes=hop, gradient_bytes=gradient)
    if isinstance(first, tuple):
        several = [one for one in values if isinstance(one, tuple)]
        parts: list[Any] = [_most(those) for those in zip(*several, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    assert isinstance(first, StepProgram), first
    changed: dict[str, Any] = {one.name: _most([getattr(v, one.name) for v in values]) for one in fields(first)}
    return replace(first, **changed)
