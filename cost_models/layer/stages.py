"""Which layers stand where in a pipeline.

A model whose layers are all of one kind gives every stage an equal share of each range. Where kinds differ (leading
dense layers before experts) layers lie in order, layers / stages on each. Then the last stage, which has the head and
the most experts, sets the pace:

    step = microbatches x the last stage + one microbatch's way through all others

Left out: stages of unequal length, as a user may choose them.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from cost_models.layer.sizes import RankSizes, Stage
from cost_models.models.model import LayerKind, Model
from cost_models.number import Number, larger, smaller
from cost_models.strategy import LayerRange


class Run(NamedTuple):
    """`layers` neighbours of one range and one kind, and how many such layers the other stages have.

    `elsewhere` `None` means that each stage has as many.
    """

    part: LayerRange
    kind: LayerKind
    layers: Number
    elsewhere: Number | None = None


def is_mixed(model: Model) -> bool:
    kinds = model.layer_kinds
    return kinds.count(kinds[0]) < len(kinds)


def all_runs(model: Model, ranges: tuple[LayerRange, ...]) -> list[Run]:
    """Every layer of the model, first layer first."""
    result, start = [], 0
    for part in ranges:
        kinds = groupby(model.layer_kinds[start : start + part.count])
        result += [Run(part, kind, len(list(same))) for kind, same in kinds]
        start += part.count
    return result


def runs(model: Model, ranges: tuple[LayerRange, ...], stages: Number) -> list[Run]:
    """The layers of one microbatch on the stage that sets the pace, in order of the forward pass."""
    if not is_mixed(model):
        return [Run(part, model.layer_kinds[0], part.count / stages) for part in ranges]
    here = _shares(model, ranges, stages, stages - 1)
    return [run._replace(layers=count, elsewhere=run.layers - count) for run, count in here]


def stage(model: Model, ranges: tuple[LayerRange, ...], stages: int, index: int) -> list[Run]:
    """The layers of one stage, first layer first; of a model whose layers are alike its share of each range."""
    if not is_mixed(model):
        return runs(model, ranges, stages)
    here = _shares(model, ranges, stages, index)
    return [run._replace(layers=count) for run, count in here if count > 0]


def _shares(model: Model, ranges: tuple[LayerRange, ...], stages: Number, index: Number) -> list[tuple[Run, Number]]:
    """All runs of the model with how many layers of each stand on one stage; counted in parts of a layer, exactly."""
    first, last = index * model.layers, (index + 1) * model.layers
    result: list[tuple[Run, Number]] = []
    before: Number = 0
    for run in all_runs(model, ranges):
        after = before + run.layers * stages
        result.append((run, larger(0, smaller(after, last) - larger(before, first)) / stages))
        before = after
    return result


def end_stages(stages: int) -> list[int]:
    """The stages that may need most memory: the first holds most microbatches, the last the head and the loss."""
    return sorted({0, stages - 1})


def at_stage(sizes: RankSizes, ranges: tuple[LayerRange, ...], index: int) -> RankSizes:
    """The rank as one of this stage."""
    model, stages = sizes.workload.model, sizes.degrees.pipeline
    counts: dict[LayerKind, Number] = {}
    for run in stage(model, ranges, stages, index):
        counts[run.kind] = counts.get(run.kind, 0) + run.layers
    return replace(sizes, stage=Stage(layers=tuple(counts.items()), first=index == 0, last=index == stages - 1))
