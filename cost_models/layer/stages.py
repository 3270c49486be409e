"""Which layers stand where in a pipeline.

A model whose layers are all of one kind gives every stage an equal share of each range. Where kinds differ (leading
dense layers before experts) layers lie in order, layers / stages on each. Then the last stage, which has the head and
the most experts, sets the pace:

    step = microbatches x the last stage + one microbatch's way through all others

A framework may cut a list of modules (embedding, layers, head, perhaps the last norm) into stages whose lengths differ
by one at most, the longer ones first (`cuts_ends`): the last stage, which has the head, then has fewer layers than
others, and where a stage without it takes longer, that one sets the pace. Left out: stages as a user may choose them.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from cost_models.layer.sizes import RankSizes, Stage
from cost_models.models.model import LayerKind, Model
from cost_models.number import Number, larger, smaller, somewhere
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
    """Whether layers differ in kind."""
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


def runs(sizes: RankSizes, ranges: tuple[LayerRange, ...]) -> list[Run]:
    """The layers of one microbatch on the last stage, in order of the forward pass."""
    model, stages = sizes.workload.model, sizes.degrees.pipeline
    if not is_mixed(model) and not sizes.framework.cuts_ends:
        return [Run(part, model.layer_kinds[0], part.count / stages) for part in ranges]
    here = _shares(sizes, ranges, stages - 1)
    return [run._replace(layers=count, elsewhere=run.layers - count) for run, count in here]


def stage(sizes: RankSizes, ranges: tuple[LayerRange, ...], index: int) -> list[Run]:
    """The layers of one stage, first layer first; of a model whose layers are alike its share of each range."""
    if not is_mixed(sizes.workload.model) and not sizes.framework.cuts_ends:
        return runs(sizes, ranges)
    return [run._replace(layers=count) for run, count in _shares(sizes, ranges, index) if somewhere(count > 0)]


def longest(sizes: RankSizes) -> Number:
    """Share of all layers that the longest stage has, where stages are unlike; else 0.

    >>> from cost_models import Model, Strategy, Workload
    >>> from cost_models.framework import Framework
    >>> work = Workload(Model.load("longvila-8b"), context_tokens=8192)  # 32 layers: 35 modules are 9, 9, 9 and 8
    >>> longest(RankSizes(work, Strategy(pipeline=4), Framework.load("aleph-alpha")))
    0.28125
    """
    stages = sizes.degrees.pipeline
    if not sizes.framework.cuts_ends or not somewhere(stages > 1):
        return 0.0
    ends = [_bounds(sizes, index) for index in (0, smaller(1, stages - 1), stages - 1)]
    counts = [end - begin for begin, end in ends]
    return larger(larger(counts[0], counts[1]), counts[2]) / (stages * sizes.workload.model.layers)


def _bounds(sizes: RankSizes, index: Number) -> tuple[Number, Number]:
    """First layer of a stage and of the next one, in parts of a layer, `stages` to each."""
    layers, stages = sizes.workload.model.layers, sizes.degrees.pipeline
    if not sizes.framework.cuts_ends:
        return index * layers, (index + 1) * layers
    modules = layers + sizes.framework.cuts_ends
    each, more = modules // stages, modules % stages
    starts = (one * each + smaller(one, more) - 1 for one in (index, index + 1))
    begin, end = (larger(smaller(one, layers), 0) * stages for one in starts)
    return begin, end


def _shares(sizes: RankSizes, ranges: tuple[LayerRange, ...], index: Number) -> list[tuple[Run, Number]]:
    """All runs of the model with how many layers of each stand on one stage; counted in parts of a layer, exactly."""
    model, stages = sizes.workload.model, sizes.degrees.pipeline
    first, last = _bounds(sizes, index)
    if not is_mixed(model):  # a stage has its share of each range
        share = (last - first) / (stages * model.layers)
        return [(run, run.layers * share) for run in all_runs(model, ranges)]
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
    stages = sizes.degrees.pipeline
    counts: dict[LayerKind, Number] = {}
    for run in stage(sizes, ranges, index):
        counts[run.kind] = counts.get(run.kind, 0) + run.layers
    return replace(sizes, stage=Stage(layers=tuple(counts.items()), first=index == 0, last=index == stages - 1))
