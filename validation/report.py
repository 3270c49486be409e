"""The accuracy report: its tables, as a Markdown page (docs/accuracy.md), and every row as JSON.

Numbers are the same in all; percent with a sign where it is a bias.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import yaml

from validation import limits
from validation import tables as shown
from validation.frameworks import FRAMEWORKS
from validation.judge import FileReport, Verdict, without_habits
from validation.peers import beside
from validation.rows import FOLDER
from validation.statistics import Errors
from validation.tables import Table

WORST = 12


def tables(reports: Sequence[FileReport]) -> list[Table]:
    """Everything that is shown, in reading order."""
    return [
        _files(reports), _inferred(reports), _apart(reports), _memory(reports), _longest(reports), _endings(reports),
        _peers(reports), _sweeps(reports), _habits(reports), _worst(reports), _silent(reports), _notes(reports),
        _reasons(),
    ]  # fmt: skip


def markdown(reports: Sequence[FileReport], folder: str = "measurements") -> str:
    """The report on the rows of `folder`; its picture lies beside it."""
    picture = "accuracy.svg" if folder == "measurements" else f"accuracy-{folder.rpartition('/')[2]}.svg"
    found = (
        "But which habits are named was found by looking at these rows, so rows that were never looked at are the "
        "harder test (docs/accuracy-later.md)."
        if folder == "measurements"
        else "The model was built without these rows; what was added after looking at them is in the notes below."
    )
    asked = "" if folder == "measurements" else f" --measurements {folder}"
    return shown.markdown(
        "Accuracy" if folder == "measurements" else "Accuracy on other rows",
        shown.paragraphs(f"""
            Predicted against measured for the published rows in `{folder}/`. Written by `python -m validation{asked}
            --markdown docs/{picture[:-3]}md --plot docs/{picture}`; run it again to check.

            Kernels and links were fitted to the `kernels_*` files alone (docs/curves.md); no number was fitted to a
            row below. {found} An error is predicted / measured - 1.

            ![predicted over measured]({picture})
        """),
        tables(reports),
    )


def as_json(reports: Sequence[FileReport]) -> str:
    """Files with their statistics, and every row."""
    data = [
        {
            "file": report.file,
            "errors": _plain(report.errors()),
            "neutral": _plain(report.neutral_errors()),
            "apart": _plain(report.errors("apart")),
            "memory": _plain(report.memory_errors()),
            "reserved": _plain(report.reserved_errors()),
            "inferred": _plain(report.inferred_errors()),
            "sweeps": [{key: _finite(value) for key, value in asdict(one).items()} for one in report.rankings()],
            "not_predicted": report.reasons(),
            "longest": [{**asdict(one), "ratio": one.ratio, "met": one.met} for one in report.limits],
            "endings": [{**asdict(one), "agrees": one.agrees} for one in report.endings],
            "rows": [{**asdict(one), "error": one.error, "memory_error": one.memory_error} for one in report.verdicts],
        }
        for report in reports
    ]
    return json.dumps(data, indent=1, ensure_ascii=False)


def median_of_medians(reports: Sequence[FileReport]) -> float:
    found = [one.median for report in reports if (one := report.errors()).rows]
    return Errors.of(found).median


def _files(reports: Sequence[FileReport]) -> Table:
    rows = []
    for report in reports:
        errors, plain = report.errors(), report.neutral_errors()
        if errors.rows:
            rows.append((report.file, str(errors.rows), *_shown(errors), _percent(plain.median), _signed(plain.bias)))
    every = Errors.of([one.error for report in reports for one in report.scored()])
    plain = Errors.of([one.neutral_s / one.measured_s - 1 for report in reports for one in report.scored()])
    rows.append(("all rows", str(every.rows), *_shown(every), _percent(plain.median), _signed(plain.bias)))
    return Table(
        title="Step time",
        text=f"Rows scored `yes`. Median of the files' medians: {_percent(median_of_medians(reports))}. Neutral: the "
        "same price with every framework's habits off, as a plan gets it.",
        columns=("file", "rows", "median", "p90", "worst", "bias", "neutral median", "neutral bias"),
        rows=tuple(rows),
    )


def _inferred(reports: Sequence[FileReport]) -> Table:
    rows = []
    for report in reports:
        if (inferred := report.inferred_errors()).rows:
            changed = sum(one.inferred_s is not None for one in report.scored())
            rows.append((f"{report.file}, as scored", str(inferred.rows), "", *_shown(report.errors())))
            rows.append((f"{report.file}, as inferred", str(inferred.rows), str(changed), *_shown(inferred)))
    return Table(
        title="Inferred readings",
        text="Not in the score: the same files with some rows read as their times say that they ran (see \"Why rows "
        "are off\"): USP's rows up to 32K tokens at head dim 128 instead of the transcribed 32.",
        columns=("file", "rows", "read otherwise", "median", "p90", "worst", "bias"), rows=tuple(rows),
    )  # fmt: skip


def _apart(reports: Sequence[FileReport]) -> Table:
    rows = []
    for report in reports:
        if (errors := report.errors("apart")).rows:
            rows.append((report.file, str(errors.rows), *_shown(errors)))
    return Table(
        title="8- and 4-bit rows", text="Reported apart: their peaks are not in the bf16 grids.",
        columns=("file", "rows", "median", "p90", "worst", "bias"), rows=tuple(rows),
    )  # fmt: skip


def _memory(reports: Sequence[FileReport]) -> Table:
    rows = []
    for report in reports:
        if (errors := report.memory_errors()).rows:
            rows.append((report.file, str(errors.rows), *_shown(errors)))
        if (errors := report.reserved_errors()).rows:
            rows.append((f"{report.file}, reserved (not scored)", str(errors.rows), *_shown(errors)))
    return Table(
        title="Peak memory",
        text="Rows scored `yes` with a printed peak; allocated bytes. Not scored: what the allocator held, against "
        "allocated bytes and a flat slack; its fragmentation is not modelled.",
        columns=("file", "rows", "median", "p90", "worst", "bias"), rows=tuple(rows),
    )  # fmt: skip


def _longest(reports: Sequence[FileReport]) -> Table:
    every = [one for report in reports for one in report.limits]
    predicted = [one for one in every if one.ratio is not None]
    met, close = sum(one.met for one in predicted), sum(one.close for one in predicted)
    rows = [
        (f"{one.file} {one.row}", one.label, str(one.printed_tokens), *_length(one.predicted_tokens, one.ratio),
         ("met" if one.met else "not met") if one.ratio is not None else one.reason)
        for one in every
    ]  # fmt: skip
    return Table(
        title="Longest sequence",
        text="The source doubles lengths and prints the last one, L, that ran, so the true maximum lies in [L, 2 L): "
        f"a prediction within [{1 - limits.BELOW:g} L, {1 + limits.ABOVE:g} x 2 L) is met. Predicted for "
        f"{len(predicted)} of {len(every)} rows, met by {met}; within -{limits.BELOW:.0%}/+{limits.ABOVE:.0%} of L "
        f"itself: {close}. Memory is what the framework allocates, buffers, context and slack.",
        columns=("row", "what", "printed L", "predicted", "predicted / L", "verdict"), rows=tuple(rows),
    )  # fmt: skip


def _length(tokens: int | None, ratio: float | None) -> tuple[str, str]:
    return ("–", "–") if tokens is None or ratio is None else (str(tokens), f"{ratio:.2f}")


def _endings(reports: Sequence[FileReport]) -> Table:
    every = [one for report in reports for one in report.endings]
    out = [one for one in every if one.printed == "ran out"]
    fitted = [one for one in every if one.printed == "fits"]
    words = {True: "fits", False: "does not fit", None: "–"}
    rows = [
        (f"{one.file} {one.row}", one.label, one.printed, words[one.fits],
         "–" if one.used_share is None else _percent(one.used_share),
         one.reason or ("right" if one.agrees else "failure"))
        for one in every
    ]  # fmt: skip
    return Table(
        title="Rows that ran out of memory, and rows that only fit",
        text=f"{len(out)} ran out: predicted so {sum(one.agrees is True for one in out)}, predicted to fit (a failure) "
        f"{sum(one.agrees is False for one in out)}, no prediction {sum(one.agrees is None for one in out)}. "
        f"{len(fitted)} only fit: predicted so {sum(one.agrees is True for one in fitted)}, not so "
        f"{sum(one.agrees is False for one in fitted)}, no prediction {sum(one.agrees is None for one in fitted)}. "
        "A label that ends a curve is read as the curve's last point, on 80 GB where the figure leaves 40 or 80 open.",
        columns=("row", "what", "printed", "predicted", "of the GPU", "verdict"), rows=tuple(rows),
    )  # fmt: skip


def _peers(reports: Sequence[FileReport]) -> Table:
    rows = []
    for report in reports:
        for what, ours, theirs in beside(report.scored()):
            both = (_percent(ours.median), _signed(ours.bias), _percent(theirs.median), _signed(theirs.bias))
            rows.append((report.file, what, str(ours.rows), *both))
    return Table(
        title="Against the simulator that measured them",
        text="Rows that carry another simulator's own prediction. It reads the time of each product from a table of "
        "exactly these shapes on the same machine.",
        columns=("file", "what", "rows", "median here", "bias here", "median there", "bias there"), rows=tuple(rows),
    )  # fmt: skip


def _sweeps(reports: Sequence[FileReport]) -> Table:
    rows = []
    for report in reports:
        found = report.rankings()
        pairs = sum(one.pairs for one in found)
        if not pairs:
            continue
        tau = sum(one.tau * one.pairs for one in found if one.pairs) / pairs
        worst = max(found, key=lambda one: one.regret)
        regrets = Errors.of([one.regret for one in found])
        rows.append(
            (report.file, str(len(found)), str(pairs), f"{tau:.2f}", _percent(regrets.median), _percent(worst.regret))
        )
    return Table(
        title="Order within sweeps",
        text="Choices for the same work on the same GPUs. Kendall's tau over pairs measured more than 5% apart; "
        "regret: how much longer the predicted best took than the measured best.",
        columns=("file", "sweeps", "pairs", "tau", "median regret", "worst regret"), rows=tuple(rows),
    )  # fmt: skip


def _habits(reports: Sequence[FileReport]) -> Table:
    rows = []
    for name, (kept, away) in without_habits(reports).items():
        rows.append(
            (name, str(kept.rows), _percent(kept.median), _signed(kept.bias), _percent(away.median), _signed(away.bias))
        )
    return Table(
        title="Each framework with its habits, and with them taken away",
        text="Habits are facts of the code that ran; the reasons are at the end.",
        columns=("framework", "rows", "median", "bias", "median without", "bias without"), rows=tuple(rows),
    )  # fmt: skip


def _worst(reports: Sequence[FileReport]) -> Table:
    every = [one for report in reports for one in report.scored()]
    every.sort(key=lambda one: (-abs(one.error), one.file, one.row))
    listed: list[Verdict] = []
    for report in reports:
        listed += [one for one in every if one.file == report.file][: max(2, WORST // max(1, len(reports)))]
    listed.sort(key=lambda one: (-abs(one.error), one.file, one.row))
    rows = tuple(
        (f"{one.file} {one.row}", one.label, f"{one.measured_s:.4g}", f"{one.predicted_s:.4g}", _signed(one.error))
        for one in listed
    )
    return Table(
        title="Worst rows", text="The worst of each file. Seconds.",
        columns=("row", "what", "measured", "predicted", "error"), rows=rows,
    )  # fmt: skip


def _silent(reports: Sequence[FileReport]) -> Table:
    rows = tuple(
        (report.file, str(count), reason) for report in reports for reason, count in sorted(report.reasons().items())
    )
    return Table(
        title="Rows without a prediction", text="Counted by reason; none is left out silently.",
        columns=("file", "rows", "reason"), rows=rows,
    )  # fmt: skip


def _notes(reports: Sequence[FileReport]) -> Table:
    notes = yaml.safe_load((FOLDER / "notes.yaml").read_text(encoding="utf-8"))
    names = {report.file for report in reports}
    return Table(
        title="Why rows are off", text="Found by looking; the rows stay in the score.",
        columns=("file", "what was found"),
        rows=tuple((file, text) for file in notes if file in names for text in notes[file].get("why_off", ())),
    )  # fmt: skip


def _reasons() -> Table:
    return Table(
        title="Habits and their reasons", text="One set per framework and generation; none per file or row.",
        columns=("framework", "reason"), rows=tuple((one.name, one.reason) for one in FRAMEWORKS),
    )  # fmt: skip


def _shown(errors: Errors) -> tuple[str, str, str, str]:
    return _percent(errors.median), _percent(errors.p90), _percent(errors.worst), _signed(errors.bias)


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.1%}"


def _signed(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:+.1%}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _plain(errors: Errors) -> dict[str, Any]:
    return {key: _finite(value) for key, value in asdict(errors).items()}
