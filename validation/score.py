"""Every row predicted and compared with its measurement; files and sweeps summed up.

    predicted   the price under its framework            neutral   under this project's executor (as a plan is priced)
    memory      at the level that a row prints: allocated (`peak_mem_gb`), reserved by the allocator
                (`reserved_mem_gb`), or used on the device as nvidia-smi has it (`device_mem_gb`)

Rows that only rank take part in sweeps, not in errors. Rows that cannot be read are listed by reason and counted; the
memory of those that print no step's time judges all the same.

Some rows carry the prediction of the simulator that measured them (`peer_ms`, and `peer_mem_gb` at the peak). SimuMax
reads the time of each product and attention from a table of exactly these shapes, measured on the same machine; here
both come from curves that other sources shaped, and only the board's power limit and the gap of an eager operator from
its tables.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cost_models.bands import Band, band_of
from cost_models.basis import Basis
from cost_models.certificate import certificate
from cost_models.cost import StepCost
from cost_models.errors import InputError
from cost_models.framework import OURS
from cost_models.timing.impossible import refuse_flops
from validation.cases import GIB, Case, Refused, price_of
from validation.longest import Ending, Limit, ending_of, limit_of, outcome_of
from validation.operator_time import operator_s
from validation.operators import OperatorCase, operator_case
from validation.rows import Row, Score, read
from validation.standard import case_of, untimed_case
from validation.statistics import Errors, Ranking, error, ranking

PEAKS = {"allocated": "peak_mem_gb", "reserved": "reserved_mem_gb", "device": "device_mem_gb"}
"""Levels of memory, and the column of each."""


@dataclass(frozen=True, kw_only=True)
class Peak:
    """One row's memory."""

    file: str
    row: str
    score: Score
    label: str
    framework: str
    peaks: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # (predicted, measured) bytes, where printed
    used_share: float | None = None  # of what the GPU's driver hands out, predicted
    source: str = ""  # who measured
    offloaded: bool = False  # states in host memory

    def memory_error(self, level: str = "allocated") -> float | None:
        return error(*self.peaks.get(level, (None, None)))


@dataclass(frozen=True, kw_only=True)
class Verdict(Peak):
    """One row with its time: seconds predicted, neutral and measured; bytes where they were measured."""

    sweep: str
    measured_s: float
    predicted_s: float
    neutral_s: float
    peer_s: float | None = None  # what another simulator predicted
    peer_bytes: float | None = None
    basis: Basis | None = None  # what the price of a step rests on
    exchanged_s: float = 0.0  # of the price, what exchanges of data ranks show
    twin: str = ""  # all of a step but its attention kernel

    @property
    def error(self) -> float:
        return self.predicted_s / self.measured_s - 1

    @property
    def neutral_error(self) -> float:
        return self.neutral_s / self.measured_s - 1

    @property
    def band(self) -> Band | None:
        """Of a step's price, in seconds."""
        return None if self.basis is None else band_of(self.basis, self.predicted_s, certificate())


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """The rows of a file with what is predicted of each."""

    file: str
    verdicts: tuple[Verdict, ...]
    refused: tuple[Refused, ...]
    limits: tuple[Limit, ...] = ()  # rows that print the longest sequence
    endings: tuple[Ending, ...] = ()  # rows that ran out of memory, or say only that they fit
    untimed: tuple[Peak, ...] = ()  # rows that print memory and no time, which are among `refused`, too

    def scored(self, score: Score = "yes") -> list[Verdict]:
        return [one for one in self.verdicts if one.score == score]

    def ran(self) -> list[Peak]:
        """Rows that ran, with a time or without."""
        return [*self.verdicts, *self.untimed]

    def held(self) -> list[Peak]:
        """Rows whose memory counts."""
        return [one for one in self.ran() if one.score in ("yes", "memory")]

    def errors(self, score: Score = "yes") -> Errors:
        return Errors.of(one.error for one in self.scored(score))

    def neutral_errors(self) -> Errors:
        return Errors.of(one.neutral_error for one in self.scored())

    def memory_errors(self, level: str = "allocated") -> Errors:
        return Errors.of(one.memory_error(level) for one in self.held())

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
        return dict(Counter(one.reason for one in self.refused))


def score(names: Sequence[str], folder: Path) -> tuple[FileReport, ...]:
    """Reports of the files `names`."""
    reports = []
    for name in names:
        rows = read(name, folder)
        verdicts, limits, endings = [verdict(row) for row in rows], map(limit_of, rows), map(ending_of, rows)
        untimed = [peak_of(one.row) for one in verdicts if isinstance(one, Refused)]
        reports.append(
            FileReport(
                file=name,
                verdicts=tuple(one for one in verdicts if isinstance(one, Verdict)),
                refused=tuple(one for one in verdicts if isinstance(one, Refused)),
                limits=tuple(one for one in limits if one is not None),
                endings=tuple(one for one in endings if one is not None),
                untimed=tuple(one for one in untimed if one is not None),
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
    except InputError as fault:
        return Refused(row=row, reason=str(fault))


def peak_of(row: Row) -> Peak | None:
    """The memory that a row without a time prints; None where it prints none, ran out, or cannot be read."""
    if row.file.startswith("op_") or not any(map(row.cell, PEAKS.values())) or outcome_of(row) is not None:
        return None
    try:
        case = untimed_case(row)
        return None if isinstance(case, Refused) else _peak(case, price_of(case))
    except InputError:
        return None


def _step(case: Case) -> Verdict:
    predicted, row = price_of(case), case.row
    here = case.cluster.runs[0].node.device
    dtype = case.framework.product_dtype or case.workload.precision.param
    what = f"measured, {case.cluster.gpus} GPUs"
    refuse_flops(what, predicted.model_flops / predicted.ranks, case.measured_s, here, dtype)
    return Verdict(
        **vars(_peak(case, predicted)),
        sweep=case.sweep,
        measured_s=case.measured_s,
        predicted_s=predicted.step_s,
        neutral_s=price_of(case, OURS).step_s,
        peer_s=row.quantity("peer_ms", 1e-3),
        peer_bytes=row.quantity("peer_mem_gb", GIB),
        basis=predicted.basis,
        exchanged_s=predicted.seconds["sharding"],
        twin=_twin(case),
    )


def _twin(case: Case) -> str:
    """Equal of rows by one source that differ in the attention kernel alone."""
    rest = replace(case.framework, name="", title="", reasons={}, attention="newest")
    return repr((case.row.source, case.cluster.runs, case.workload, case.strategy, rest))


def _peak(case: Case, predicted: StepCost) -> Peak:
    row, memory = case.row, predicted.memory
    found = {"allocated": memory.allocated_bytes, "reserved": memory.reserved_bytes, "device": memory.device_bytes}
    measured = {level: row.quantity(column, GIB) for level, column in PEAKS.items()}
    return Peak(
        file=row.file,
        row=row.number,
        score=row.score,
        label=f"{case.cluster.gpus} × {case.cluster.runs[0].node.device.name}, {case.label}",
        framework=case.framework.title,
        peaks={level: (float(found[level]), size) for level, size in measured.items() if size is not None},
        used_share=predicted.memory_bytes / predicted.capacity_bytes,
        source=row.source,
        offloaded=case.strategy.offload_states != "none",
    )


def _operator(case: OperatorCase) -> Verdict:
    framework, cluster = case.framework, case.call.cluster
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
    )


def against_ours(reports: Sequence[FileReport]) -> dict[str, tuple[Errors, Errors]]:
    """By framework: errors of its rows, and of the same rows priced as this executor would run them."""
    rows: dict[str, list[Verdict]] = defaultdict(list)
    for report in reports:
        for one in report.scored():
            rows[one.framework].append(one)
    return {
        name: (Errors.of(one.error for one in found), Errors.of(one.neutral_error for one in found))
        for name, found in sorted(rows.items())
    }


def against_peer(verdicts: Sequence[Verdict]) -> list[tuple[str, Errors, Errors]]:
    """(what, errors here, errors of the peer) over the rows that have both."""
    timed = [one for one in verdicts if one.peer_s is not None]
    held = [one for one in verdicts if one.peer_bytes is not None and "allocated" in one.peaks]
    found = (
        (
            "step time",
            Errors.of(one.error for one in timed),
            Errors.of(error(one.peer_s, one.measured_s) for one in timed),
        ),
        (
            "peak memory",
            Errors.of(one.memory_error() for one in held),
            Errors.of(error(one.peer_bytes, one.peaks["allocated"][1]) for one in held),
        ),
    )
    return [one for one in found if one[1].rows]
