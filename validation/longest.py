"""The longest sequence of printed rows, predicted; and rows that only say that they fitted or ran out of memory.

    predicted maximum = most tokens whose predicted memory (allocated, buffers, reserve; under its framework) fits
    met               0.9 L <= predicted maximum < 1.05 x 2 L

A source that doubles lengths and prints L as its longest row ran L and not 2 L, so the true maximum lies in [L, 2 L).
What lies in host memory as the row says (optimizer, parameters) is not on the GPU. Left out: time, and the host's
memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from cost_models.errors import InputError
from cost_models.layer.sizes import RankSizes
from cost_models.longest import most_tokens
from validation.cases import Case, Refused, price_of
from validation.operator_time import Call
from validation.operators import call_of
from validation.rows import Row
from validation.standard import untimed_case

BELOW, ABOVE = 0.10, 0.05
"""How far a predicted maximum may lie under the lengths that are possible, and over them."""
Outcome = Literal["ran out", "fits"]


@dataclass(frozen=True, kw_only=True)
class Printed:
    """A row that prints an end of memory."""

    file: str
    row: str
    label: str
    reason: str = ""  # why nothing is predicted


@dataclass(frozen=True, kw_only=True)
class Limit(Printed):
    """One configuration's longest row, printed and predicted."""

    printed_tokens: int
    predicted_tokens: int | None = None

    @property
    def ratio(self) -> float | None:
        return None if self.predicted_tokens is None else self.predicted_tokens / self.printed_tokens

    @property
    def met(self) -> bool:
        """Within what doubling leaves open, and the tolerance."""
        return self.ratio is not None and 1 - BELOW <= self.ratio < 2 * (1 + ABOVE)

    @property
    def close(self) -> bool:
        """As near to the printed length itself."""
        return self.ratio is not None and 1 - BELOW <= self.ratio <= 1 + ABOVE


@dataclass(frozen=True, kw_only=True)
class Ending(Printed):
    """A row without a time: it ran out of memory, or is only said to fit."""

    printed: Outcome
    fits: bool | None = None
    used_share: float | None = None  # predicted memory over the GPU's

    @property
    def agrees(self) -> bool | None:
        return None if self.fits is None else self.fits == (self.printed == "fits")


def limit_of(row: Row) -> Limit | None:
    """The row's longest sequence, if it prints one that it ran."""
    printed = row.cell("max_seq_len")
    if not printed or row.score == "no" or outcome_of(row) is not None:
        return None
    tokens = row.count("max_seq_len")
    stated = row if row.cell("seq_len") else replace(row, cells={**row.cells, "seq_len": printed})
    blank = Limit(file=row.file, row=row.number, label=_words(row), printed_tokens=tokens)
    try:
        case = untimed_case(stated)
        if isinstance(case, Refused):
            return replace(blank, reason=case.reason)
        return replace(blank, label=_label(case), predicted_tokens=longest(case))
    except InputError as error:
        return replace(blank, reason=str(error))


def longest(case: Case) -> int:
    """Tokens of the longest row that fits the case's GPUs."""

    def fits(tokens: int) -> bool:
        work = replace(case.workload, context_tokens=tokens, text_tokens=None, lengths=())
        return _share(replace(case, workload=work)) <= 1

    return most_tokens(fits, 2 * case.strategy.context * case.strategy.tensor)


def ending_of(row: Row) -> Ending | None:
    """What is predicted for a row that fitted or ran out; None for a row that did neither."""
    outcome = outcome_of(row)
    if outcome is None:
        return None
    blank = Ending(file=row.file, row=row.number, label=_words(row), printed=outcome)
    if row.score == "no":
        return replace(blank, reason="configuration incomplete in the source: never scored")
    try:
        if row.file.startswith("op_"):
            call = call_of(row)
            share = operator_bytes(call) / call.cluster.runs[0].node.device.allocatable_bytes
            return replace(blank, fits=share <= 1, used_share=share)
        case = untimed_case(row)
        if isinstance(case, Refused):
            return replace(blank, reason=case.reason)
        share = _share(case)
        return replace(blank, label=_label(case), fits=share <= 1, used_share=share)
    except InputError as error:
        return replace(blank, reason=str(error))


def outcome_of(row: Row) -> Outcome | None:
    """
    >>> cells = {"outcome": "OOM"}
    >>> outcome_of(Row(file="", number="", score="yes", cells=cells))
    'ran out'
    """
    text = row.cell("outcome").lower()
    if re.search(r"\boom\b|out of memory", text):
        return "ran out"
    return "fits" if text.startswith("fit") else None


def _share(case: Case) -> float:
    """Predicted memory of the fullest GPU over what it has."""
    cost = price_of(case)
    return cost.memory_bytes / cost.capacity_bytes


def operator_bytes(call: Call) -> float:
    """Tensors of one rank: q, k, v as given and exchanged, two travelling blocks, output and its fp32 sum and merge."""
    shape = RankSizes(call.workload, call.strategy)
    model, tokens = call.workload.model, shape.ring_tokens * shape.rows
    queries, keys = (float(tokens * heads * model.head_dim) for heads in (shape.heads, shape.kv_heads))
    width = float(shape.width)
    return 2 * (queries + 2 * keys) * width + 4 * keys * width + queries * (width + 3 * 4)


def _label(case: Case) -> str:
    return f"{case.cluster.gpus} × {case.cluster.runs[0].node.device.name}, {case.label}"


def _words(row: Row) -> str:
    """What the row itself says, where there is no case."""
    names = ("model", "gpu", "other", "ring_impl", "api", "seq_len")
    return f"{row.cell('n_gpus') or '?'} GPUs, " + ", ".join(filter(None, map(row.cell, names)))
