"""Which layers stand where in a pipeline.

A model whose layers are all of one kind gives every stage an equal share of each range. Where kinds differ (leading
dense layers before experts) layers are laid in order, layers / stages on each. Then the last stage, which has the head
and the most experts, sets the pace:

    step = microbatches x the last stage + one microbatch's way through all others

Left out: stages of unequal length, as a user may choose them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from cost_models.layer.sizes import RankSizes, Stage
from cost_models.models.model import LayerKind, Model
from cost_models.number import Number
from cost_models.strategy import LayerRange


class Run(NamedTuple):
    """Equal layers: how many stand on the stage that sets the pace, and on all others together.

    `elsewhere` None means that each stage has as many.
    """

    part: LayerRange
    kind: LayerKind
    here: Number
    elsewhere: Number | None = None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Neighbours of one range and one kind."""

    part: LayerRange
    kind: LayerKind
    count: float


def is_mixed(model: Model) -> bool:
    return len(set(model.layer_kinds)) > 1


def runs(model: Model, ranges: tuple[LayerRange, ...], stages: Number) -> tuple[Run, ...]:
    """The layers of one microbatch in order of the forward pass."""
    if not is_mixed(model):
        return tuple(Run(part, model.layer_kinds[0], part.count / stages) for part in ranges)
    start = model.layers - model.layers / stages
    found, before = [], 0.0
    for piece in pieces(model, ranges):
        here = max(0.0, before + piece.count - max(before, start))
        found.append(Run(piece.part, piece.kind, here, piece.count - here))
        before += piece.count
    return tuple(found)


def stage(model: Model, ranges: tuple[LayerRange, ...], stages: int, index: int) -> tuple[Piece, ...]:
    """The layers of one stage, first layer first."""
    share, found, before = model.layers / stages, [], 0.0
    for piece in pieces(model, ranges):
        count = min(before + piece.count, (index + 1) * share) - max(before, index * share)
        if count > 0:
            found.append(replace(piece, count=count))
        before += piece.count
    return tuple(found)


def at_stage(shape: RankSizes, ranges: tuple[LayerRange, ...], index: int) -> RankSizes:
    """The rank as one of this stage."""
    model, stages = shape.workload.model, shape.degrees.pipeline
    layers = tuple((piece.kind, piece.count) for piece in stage(model, ranges, stages, index))
    return replace(shape, stage=Stage(layers=layers, first=index == 0, last=index == stages - 1))


def pieces(model: Model, ranges: tuple[LayerRange, ...]) -> list[Piece]:
    """Neighbours of one range and one kind, first layer first."""
    policies = [part for part in ranges for _ in range(part.count)]
    found: list[Piece] = []
    for part, kind in zip(policies, model.layer_kinds, strict=True):
        if found and (found[-1].part, found[-1].kind) == (part, kind):
            found[-1] = replace(found[-1], count=found[-1].count + 1)
        else:
            found.append(Piece(part=part, kind=kind, count=1))
    return found
