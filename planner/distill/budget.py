"""Which layers keep attention under a budget, on a layout that holds the answer.

Prices of all hybrids are taken on one layout: the best with attention everywhere. Layers of kind `ssd` keep more for
the backward pass, so where that layout does not hold the answer it is laid out anew for the answer's own model, and
chosen again; at last for the model without any attention. Seconds, and bytes of the fullest GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from msgspec import Struct
from msgspec.structs import replace as replace_in

from cost_models.cost import StepCost
from cost_models.errors import InputError
from cost_models.pricing import price
from cost_models.room import Room
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.units import show_bytes, show_seconds
from planner.distill.keep import Limits, choose_layers
from planner.question.options import Question
from planner.reverse.keep_attention import hybrid
from planner.solve import solve


class Wanted(Struct, frozen=True, kw_only=True):
    """The limits as the user gave them; `None` is no limit."""

    count: int | None = None
    step_s: float | None = None
    held_bytes: float | None = None
    spacing: int | None = None


class Budget:
    """Prices of hybrids on the layout that is best for the one with these layers' attention."""

    def __init__(self, asked: Question, wanted: Wanted, keep: Sequence[int]) -> None:
        self.asked, self.wanted = asked, wanted
        self.room = asked.room
        if wanted.held_bytes is not None:
            capacity = cluster_costs(asked.cluster, asked.profile).devices((0,))[0].allocatable_bytes
            free = capacity - min(wanted.held_bytes, asked.room.limit_bytes(capacity))
            self.room = Room(headroom_bytes=int(max(0.0, free)))
        work = replace(asked.workload, model=hybrid(asked.workload.model, tuple(keep)))
        best = solve(asked.cluster, work, profile=asked.profile, room=self.room).best[0]
        self._strategy, self._placement = best.strategy, best.placement
        self.described = best.strategy.describe()

    def price(self, keep: Sequence[int]) -> StepCost:
        asked = self.asked
        work = replace(asked.workload, model=hybrid(asked.workload.model, tuple(keep)))
        return price(asked.cluster, work, self._strategy, self._placement, asked.profile)

    def choice(self, distances: Sequence[float]) -> tuple[int, ...] | None:
        """The layers that keep attention, on this layout; None where it does not hold them. InputError: no choice."""
        none = self.price(())
        if self.wanted.held_bytes is not None and none.memory_bytes > self.wanted.held_bytes:
            return None
        limits = self._limits(none)
        while (over_s := self._over_s(kept := choose_layers(distances, limits))) > 0:  # seconds add up only roughly
            limits = replace_in(limits, room_s=(limits.room_s or 0.0) - over_s)
        return kept if self.room.holds(self.price(kept)) else None

    def _over_s(self, keep: Sequence[int]) -> float:
        """Seconds beyond the step that is wanted, by more than rounding."""
        wanted_s = self.wanted.step_s
        over_s = 0.0 if wanted_s is None else self.price(keep).step_s - wanted_s
        return over_s if wanted_s is not None and over_s > 1e-9 * wanted_s else 0.0

    def _limits(self, none: StepCost) -> Limits:
        """What each layer's attention adds, by its kind, and the room that is left for it."""
        kinds, wanted = self.asked.workload.model.layer_kinds, self.wanted
        more: dict[str, tuple[float, float]] = {}
        for kind in dict.fromkeys(kinds):
            those = [layer for layer, its in enumerate(kinds) if its == kind]
            cost = self.price(those)
            more[kind] = (
                (cost.step_s - none.step_s) / len(those),
                max(0.0, float(cost.memory_bytes - none.memory_bytes)) / len(those),
            )
        if wanted.step_s is not None and wanted.step_s < none.step_s:
            least = show_seconds(none.step_s)
            raise InputError(f"--step-seconds {wanted.step_s:g} is below what it takes without any attention, {least}")
        return Limits(
            count=wanted.count, spacing=wanted.spacing,
            seconds=tuple(more[kind][0] for kind in kinds),
            room_s=None if wanted.step_s is None else wanted.step_s - none.step_s,
            held=tuple(more[kind][1] for kind in kinds),
            room_bytes=None if wanted.held_bytes is None else wanted.held_bytes - none.memory_bytes,
        )  # fmt: skip


def chosen(
    asked: Question, wanted: Wanted, distances: Sequence[float], say: Callable[[str], None]
) -> tuple[tuple[int, ...], Budget]:
    """The layers that keep attention, and the layout that they were priced on. InputError: no choice keeps to all."""
    every, none = tuple(range(asked.workload.model.layers)), ()
    say("planning with attention in every layer")
    budget = Budget(asked, wanted, every)
    kept = budget.choice(distances)
    if kept is None and wanted.count is not None:
        say("planning the answer")
        budget = Budget(asked, wanted, choose_layers(distances, Limits(count=wanted.count, spacing=wanted.spacing)))
        kept = budget.choice(distances)
    if kept is None:
        say("planning without attention")
        budget = Budget(asked, wanted, none)
        kept = budget.choice(distances)
    if kept is None:
        most = wanted.held_bytes if wanted.held_bytes is not None else budget.price(none).capacity_bytes
        raise InputError(
            f"no choice of layers was found within {show_bytes(most)} a GPU: give more GPUs, or a shorter --ctx"
        )
    return kept, budget
