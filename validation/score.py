"""Every row predicted and compared with its measurement; files and sweeps summed up.

    predicted   the price under its framework            neutral   under this project's executor (as a plan is priced)
    reserved    what PyTorch's allocator held (`reserved_gib` in `metric_other`), where it is printed

Rows that only rank take part in sweeps, not in errors. Rows that cannot be read are listed by reason and counted.

Some rows carry the prediction of the simulator that measured them, in `metric_other`: simumax_pred_ms, milliseconds of
the step, and simumax_pred_alloc_gib, the allocator's peak. SimuMax reads the time of each product and attention from a
table of exactly these shapes, measured on the same machine; here both come from curves that other sources shaped, and
only the board's power limit and the gap of an eager operator from its tables.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cost_models.errors import InputError
from cost_models.framework import OURS
from validation.cases import GIB, Case, Refused
from validation.longest import Ending, Limit, ending_of, limit_of
from validation.operator_time import operator_s
from validation.operators import OperatorCase, inferred_reading, operator_case
from validation.row_price import allocated_bytes, price_of, reserved_bytes
from validation.rows import Row, Score, read
from validation.standard import case_of
from validation.statistics import Errors, Ranking, ranking


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One row: seconds predicted, neutral and measured; bytes where they were measured."""

    file: str
    row: str
    score: Score
    label: str
    framework: str
    sweep: str
    measured_s: float
    predicted_s: float
    neutral_s: float
    measured_bytes: float | None = None
    predicted_bytes: float | None = None
    inferred_s: float | None = None  # predicted as the row seems to have run, where that is not as transcribed
    peer_s: float | None = None  # what another simulator predicted
    peer_bytes: float | None = None
    measured_reserved_bytes: float | None = None  # what the allocator held, not all of it in use
    predicted_reserved_bytes: float | None = None

    @property
    def error(self) -> float:
        return self.predicted_s / self.measured_s - 1

    @property
    def memory_error(self) -> float | None:
        if self.measured_bytes is None or self.predicted_bytes is None:
            return None
        return self.predicted_bytes / self.measured_bytes - 1

    @property
    def reserved_error(self) -> float | None:
        if self.measured_reserved_bytes is None or self.predicted_reserved_bytes is None:
            return None
        return self.predicted_reserved_bytes / self.measured_reserved_bytes - 1


@dataclass(frozen=True, kw_only=True)
class FileReport:
    file: str
    verdicts: tuple[Verdict, ...]
    refused: tuple[Refused, ...]
    limits: tuple[Limit, ...] = ()  # rows that print the longest sequence
    endings: tuple[Ending, ...] = ()  # rows that ran out of memory, or say only that they fit

    def scored(self, score: Score = "yes") -> list[Verdict]:
        return [one for one in self.verdicts if one.score == score]

    def errors(self, score: Score = "yes") -> Errors:
        return Errors.of([one.error for one in self.scored(score)])

    def neutral_errors(self) -> Errors:
        return Errors.of([one.neutral_s / one.measured_s - 1 for one in self.scored()])

    def inferred_errors(self) -> Errors:
        """Of all scored rows, those with an inferred reading by it; no rows where no row has one."""
        scored = self.scored()
        if all(one.inferred_s is None for one in scored):
            return Errors.of([])
        return Errors.of([(one.inferred_s or one.predicted_s) / one.measured_s - 1 for one in scored])

    def memory_errors(self) -> Errors:
        return Errors.of([error for one in self.scored() if (error := one.memory_error) is not None])

    def reserved_errors(self) -> Errors:
        return Errors.of([error for one in self.scored() if (error := one.reserved_error) is not None])

    def rankings(self) -> list[Ranking]:
        """Sweeps of at least two rows."""
        sweeps: dict[str, list[Verdict]] = defaultdict(list)
        for one in self.verdicts:
            if one.sweep:
                sweeps[one.sweep].append(one)
        return [
            ranking(name, [one.predicted_s for one in rows], [one.measured_s for one in rows])
            for name, rows in sweeps.items()
            if len(rows) >= 2
        ]

    def reasons(self) -> dict[str, int]:
        """Rows without a prediction, by reason."""
        counted: dict[str, int] = defaultdict(int)
        for one in self.refused:
            counted[one.reason] += 1
        return dict(counted)


def score(
    names: Sequence[str], folder: Path, progress: Callable[[int], None] = lambda _: None
) -> tuple[FileReport, ...]:
    """Reports of the files `names`; `progress` is called with the rows done at a time."""
    reports = []
    for name in names:
        verdicts: list[Verdict] = []
        refused: list[Refused] = []
        rows = read(name, folder)
        for row in rows:
            found = verdict(row)
            if isinstance(found, Refused):
                refused.append(found)
            else:
                verdicts.append(found)
            progress(1)
        endings = map(ending_of, rows)
        reports.append(
            FileReport(
                file=name,
                verdicts=tuple(verdicts),
                refused=tuple(refused),
                limits=tuple(one for one in map(limit_of, rows) if one is not None),
                endings=tuple(one for one in endings if one is not None),
            )
        )
    return tuple(reports)


def verdict(row: Row) -> Verdict | Refused:
    """One row judged, or why it cannot be."""
    try:
        case = operator_case(row) if row.file.startswith("op_") else case_of(row)
        if isinstance(case, Refused):
            return case
        return _operator(case) if isinstance(case, OperatorCase) else _step(case)
    except InputError as error:
        return Refused(row=row, reason=str(error))


def _step(case: Case) -> Verdict:
    predicted, device = price_of(case), case.cluster.runs[0].node.device
    (peer_s, peer_bytes), reserved = peer_of(case.row), reserved_of(case.row)
    return Verdict(
        file=case.row.file,
        row=case.row.number,
        score=case.row.score,
        label=f"{case.cluster.gpus} × {case.cluster.runs[0].node.device.name}, {case.label}",
        framework=case.framework.title,
        sweep=case.sweep,
        measured_s=case.measured_s,
        predicted_s=predicted.step_s,
        neutral_s=price_of(case, OURS).step_s,
        measured_bytes=case.measured_bytes,
        predicted_bytes=allocated_bytes(predicted) if case.measured_bytes else None,
        peer_s=peer_s,
        peer_bytes=peer_bytes,
        measured_reserved_bytes=reserved,
        predicted_reserved_bytes=reserved_bytes(predicted, device) if reserved else None,
    )


def _operator(case: OperatorCase) -> Verdict:
    framework, cluster, inferred = case.framework, case.call.cluster, inferred_reading(case)
    return Verdict(
        file=case.row.file,
        row=case.row.number,
        score=case.row.score,
        label=f"{cluster.gpus} × {cluster.runs[0].node.device.name}, {case.label}",
        framework=framework.title,
        sweep=case.sweep,
        measured_s=case.measured_s,
        predicted_s=operator_s(case.call, framework),
        neutral_s=operator_s(case.call, OURS),
        inferred_s=operator_s(inferred.call, framework) if inferred else None,
    )


def against_ours(reports: Sequence[FileReport]) -> dict[str, tuple[Errors, Errors]]:
    """By framework: errors of its rows, and of the same rows priced as this executor would run them."""
    rows: dict[str, list[Verdict]] = defaultdict(list)
    for report in reports:
        for one in report.scored():
            rows[one.framework].append(one)
    return {
        name: (
            Errors.of([one.error for one in found]),
            Errors.of([one.neutral_s / one.measured_s - 1 for one in found]),
        )
        for name, found in sorted(rows.items())
    }


def peer_of(row: Row) -> tuple[float | None, float | None]:
    """(seconds, bytes) that another simulator predicted for the row.

    >>> peer_of(Row(file="", number="", score="yes", cells={"metric_other": "a=1;simumax_pred_ms=828.5"}))
    (0.8285, None)
    """
    text = row.cells.get("metric_other", "")
    seconds, size = (re.search(rf"{name}=([\d.]+)", text) for name in ("simumax_pred_ms", "simumax_pred_alloc_gib"))
    return (float(seconds[1]) / 1e3 if seconds else None, float(size[1]) * GIB if size else None)


def reserved_of(row: Row) -> float | None:
    """Bytes that PyTorch's allocator held at most (`max_memory_reserved`): without the CUDA context.

    >>> reserved_of(Row(file="", number="", score="yes", cells={"metric_other": "reserved_gib=70.5;a=1"})) / GIB
    70.5
    """
    found = re.search(r"\breserved_gib=([\d.]+)", row.cells.get("metric_other", ""))
    return float(found[1]) * GIB if found else None


def against_peer(verdicts: Sequence[Verdict]) -> list[tuple[str, Errors, Errors]]:
    """(what, errors here, errors of the peer) over the rows that have both."""
    seconds = [(one.error, one.peer_s / one.measured_s - 1) for one in verdicts if one.peer_s is not None]
    held = [
        (one.memory_error, one.peer_bytes / one.measured_bytes - 1)
        for one in verdicts
        if one.memory_error is not None and one.peer_bytes is not None and one.measured_bytes is not None
    ]
    return [
        (what, Errors.of([ours for ours, _ in pairs]), Errors.of([theirs for _, theirs in pairs]))
        for what, pairs in (("step time", seconds), ("peak memory", held))
        if pairs
    ]
