"""`plan --lengths histogram.csv`: which question is planned, and what the screen says of one layout and of groups.

    --ctx     no document is longer: longer ones are cut [the longest of the file]
    --batch   rows of so many tokens in a step [as many as make 4M tokens]
    --fix     data, ring, ulysses and recompute of the one layout; groups are free

The plan that is written is the one layout on a typical row, packed; the executor runs it. Groups of any size are
planned and priced alone: no program here forms new groups from batch to batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cost_models.errors import InputError
from cost_models.units import parse_tokens, show_seconds, show_tokens
from planner.lengths.histogram import Histogram
from planner.lengths.verdict import WINS, Border, Verdict, verdict
from planner.question.options import Question
from planner.search.space import check_plannable

STEP_TOKENS = 4 * 2**20
LEAST = 1024
LEGAL_PINS = ("data", "ring", "ulysses", "recompute")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What to plan, and what there is to say beside the plan."""

    asked: Question
    fixed: dict[str, Any]
    verdict: Verdict
    histogram: Histogram

    @property
    def lines(self) -> list[str]:
        found = self.verdict
        cut = ", longer ones cut" if found.limit < self.histogram.longest else ""
        sizes = ", ".join(f"{count} × {size} GPU{'s' * (size > 1)}" for size, count in found.groups.items())
        packed, alone, in_order, groups, bound, priced = map(
            show_seconds,
            (
                found.layout_s, found.unpacked_s, found.in_order_s, found.dynamic_s, found.bound_s, found.priced_s,
            ),
        )  # fmt: skip
        head = f"{found.documents:,} documents of at most {show_tokens(found.longest)} tokens{cut}"
        return [
            f"Lengths   a step of {show_tokens(found.tokens)} tokens: {head}",
            f"Packed    {packed} by one layout; with a document a row {alone}",
            f"          {in_order} if rows are packed in the order of the data, as the executor does",
            f"Groups    {groups} with groups of any size for each batch ({sizes}); no groups below {bound}",
            f"          {self._verdict()}",
            *self._border(),
            f"Row       {priced} if all rows were as the slowest, which the plan below is for",
            "",
        ]

    def _verdict(self) -> str:
        found = self.verdict
        most = max(0.0, found.layout_s / found.bound_s - 1)
        if found.suffices:
            return f"one layout suffices: whatever the groups, at most {most:.1%} could be gained"
        gain = found.layout_s / found.dynamic_s - 1
        return (
            f"groups of any size win: one layout takes {gain:.1%} longer (at most {most:.1%}); "
            "the executor runs one layout, so that what is planned is the best one"
        )

    def _border(self) -> list[str]:
        borders = self.verdict.borders
        first = next(
            (one for one in borders if one.wins and all(b.wins for b in borders if b.limit >= one.limit)), None
        )
        told = "; ".join(f"{show_tokens(one.limit)} {one.layout_s / one.dynamic_s - 1:.1%}" for one in borders)
        if first is None:
            words = f"none up to {show_tokens(borders[-1].limit)} tokens a document" if borders else "none"
        else:
            words = f"from documents of {show_tokens(first.limit)} tokens on groups win by more than {WINS:.0%}"
        return [f"Border    {words} (one layout over groups: {told})"]

    @property
    def as_dict(self) -> dict[str, object]:
        found = self.verdict
        return {
            "tokens": found.tokens,
            "documents": found.documents,
            "longest": found.longest,
            "priced_s": found.priced_s,
            "one_layout_s": found.layout_s,
            "in_order_s": found.in_order_s,
            "unpacked_s": found.unpacked_s,
            "groups_s": found.dynamic_s,
            "groups": {str(size): count for size, count in found.groups.items()},
            "bound_s": found.bound_s,
            "one_layout_suffices": found.suffices,
            "borders": [_border_dict(one) for one in found.borders],
        }


def _border_dict(one: Border) -> dict[str, object]:
    return {
        "limit": one.limit, "one_layout_s": one.layout_s, "groups_s": one.dynamic_s, "bound_s": one.bound_s,
        "groups_win": one.wins,
    }  # fmt: skip


def answer(
    given: Mapping[str, Any],
    asked: Question,
    fixed: dict[str, Any],
    batch_is_given: bool,
    on_step: Callable[[str], None] = lambda what: None,
) -> Answer:
    """Reads the file and plans its lengths; every mistake is an InputError."""
    work = asked.workload
    check_plannable(work.model)
    if given["target"] != "mmsp":
        raise InputError(f"--for {given['target']} with --lengths; legal: mmsp")
    if work.lengths:
        raise InputError("--documents with --lengths, which draws the documents itself; leave it out")
    if work.mode != "train":
        raise InputError(f"--mode {work.mode} with --lengths; legal: train")
    if work.frames:
        raise InputError(f"--frames {work.frames} with --lengths, whose tokens are all alike; leave it out")
    for name in fixed:
        if name not in LEGAL_PINS:
            raise InputError(f"--fix {name} with --lengths; legal: {', '.join(LEGAL_PINS)}")
    histogram = Histogram.load(given["lengths"])
    limit = histogram.longest if given["ctx"] is None else parse_tokens(given["ctx"])
    limit = max(LEAST, min(limit, histogram.longest)) if limit >= LEAST else limit
    if limit < LEAST:
        raise InputError(f"--ctx {given['ctx']} with --lengths; legal: at least {LEAST} tokens")
    tokens = work.global_batch * limit if batch_is_given else max(STEP_TOKENS, limit)
    least = 64 * asked.cluster.gpus
    if not max(least, limit) <= tokens <= 2**31:
        legal = f"{max(least, limit)} to {2**31} tokens on {asked.cluster.gpus} GPUs"
        raise InputError(f"--batch {work.global_batch} of {limit} tokens is a step of {tokens}; legal: {legal}")
    found = verdict(asked, histogram, limit, tokens, fixed, on_step)
    pinned = {name: getattr(found.strategy, name) for name in ("data", "ring", "ulysses")}
    planned = replace(asked, workload=found.workload)
    return Answer(asked=planned, fixed={**fixed, **pinned}, verdict=found, histogram=histogram)
