"""The accuracy report: its tables, as a Markdown page (docs/accuracy.md), and every row as JSON.

Numbers are the same in all; percent with a sign where it is a bias.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import yaml

from cost_models.bands import CONFIDENCE, LEVEL, memory_factor
from validation import longest
from validation import tables as shown
from validation.rows import FOLDER
from validation.score import PEAKS, FileReport, Verdict, against_ours, against_peer
from validation.statistics import Errors, Ranking
from validation.tables import Cell, Table, percent, signed

WORST = 12
APART = "Reported apart: their peaks are not in the bf16 grids."
ERRORS = ("rows", "median", "p90", "worst", "bias")

MANY_ENDINGS = 40


def tables(reports: Sequence[FileReport]) -> list[Table]:
    """Everything that is shown, in reading order."""
    apart = [(report.file, report.errors("apart")) for report in reports]
    return [
        _files(reports), _errors("8- and 4-bit rows", APART, apart), _bands(reports),
        _memory(reports), _fits(reports), _longest(reports), _endings(reports), _peers(reports), _sweeps(reports),
        _frameworks(reports), _worst(reports), _silent(reports), _notes(reports),
    ]  # fmt: skip


def markdown(reports: Sequence[FileReport], folder: str = "measurements") -> str:
    """The report on the rows of `folder`; its picture lies beside it."""
    picture = "accuracy.svg" if folder == "measurements" else f"accuracy-{folder.rpartition('/')[2]}.svg"
    found = (
        "But which facts of a framework are named was found by looking at these rows, so rows that were never looked "
        "at are the harder test (docs/accuracy-later.md)."
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
            row below. {found} An error is predicted / measured - 1. How wrong prices are on rows that were not fitted,
            by domain, and what was first said of new files: [accuracy-certificate.md](accuracy-certificate.md).

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
            "memory": {level: _plain(report.memory_errors(level)) for level in PEAKS},
            "sweeps": [_plain(one) for one in report.rankings()],
            "not_predicted": report.reasons(),
            "longest": [{**asdict(one), "ratio": one.ratio, "met": one.met} for one in report.limits],
            "endings": [{**asdict(one), "agrees": one.agrees} for one in report.endings],
            "rows": [
                {**asdict(one), "error": one.error, "memory_error": one.memory_error()} for one in report.verdicts
            ],
            "untimed": [{**asdict(one), "memory_error": one.memory_error()} for one in report.untimed],
        }
        for report in reports
    ]
    return json.dumps(data, indent=1, ensure_ascii=False)


def median_of_medians(reports: Sequence[FileReport]) -> float:
    return Errors.of([one.median for report in reports if (one := report.errors()).rows]).median


def _files(reports: Sequence[FileReport]) -> Table:
    scored = {report.file: report.scored() for report in reports if report.scored()}
    scored["all rows"] = [one for rows in scored.values() for one in rows]
    neutral = {name: Errors.of(one.neutral_error for one in rows) for name, rows in scored.items()}
    return Table(
        title="Step time",
        text=f"Rows scored `yes`. Median of the files' medians: {percent(median_of_medians(reports))}. Neutral: the "
        "same rows priced as this project's executor would run them, which is what a plan gets.",
        columns=("file", *ERRORS, "neutral median", "neutral bias"),
        rows=[
            (name, *Errors.of([one.error for one in rows]).cells(), *neutral[name].centre())
            for name, rows in scored.items()
        ],
    )


def _errors(title: str, text: str, errors: Sequence[tuple[str, Errors]]) -> Table:
    """One row for each name that has errors."""
    rows = [(name, *one.cells()) for name, one in errors if one.rows]
    return Table(title=title, text=text, columns=("file", *ERRORS), rows=rows)


def _memory(reports: Sequence[FileReport]) -> Table:
    text = (
        "Rows scored `yes` with a printed peak, each at the level that it prints: allocated, reserved, used on the "
        "device."
    )
    errors = [(f"{one.file}, {level}", one.memory_errors(level)) for one in reports for level in PEAKS]
    return _errors("Peak memory", text, errors)


def _bands(reports: Sequence[FileReport]) -> Table:
    """By file: how many rows' measured seconds lie in the band that `plan` prints of such a price."""
    rows: list[tuple[Cell, ...]] = []
    for report in reports:
        found = [(one, one.band) for one in report.verdicts if one.score in ("yes", "apart") and one.band is not None]
        if found:
            inside = sum(band.low <= one.measured_s <= band.high for one, band in found)
            width = float(np.median([band.half_width for _, band in found]))
            rows.append((report.file, str(len(found)), percent(inside / len(found)), percent(width)))
    return Table(
        title="Bands",
        text=f"Steps whose measured time lies in the {LEVEL:.0%} band of their price; the bands' median half-width. "
        "Rows of `measurements/later/` set the bands; whether they hold for others is in docs/accuracy-certificate.md.",
        columns=("file", "rows", "inside", "half-width"),
        rows=rows,
    )


def _fits(reports: Sequence[FileReport]) -> Table:
    """Runs that were real, and those that were not, against what is said to fit."""
    ran = [one.used_share for report in reports for one in report.ran() if one.used_share is not None]
    ends = [one for report in reports if not report.file.startswith("op_") for one in report.endings]
    out = [one.used_share for one in ends if one.printed == "ran out" and one.used_share]

    def row(words: str, factor: float) -> tuple[Cell, ...]:
        refused, called = sum(one * factor > 1 for one in ran), sum(one * factor <= 1 for one in out)
        return (words, str(len(ran)), percent(refused / max(len(ran), 1)), str(len(out)), str(called))

    return Table(
        title="What fits",
        text="Memory used on the device against what its driver hands out, as priced and at the confidence of `plan`. "
        "Steps: an operator alone is no plan, and is in the table of rows that ran out.",
        columns=("at", "rows that ran", "refused", "rows that ran out", "called a fit"),
        rows=[row("the price", 1.0), row(f"{CONFIDENCE:.0%}", memory_factor())],
    )


def _longest(reports: Sequence[FileReport]) -> Table:
    every = [one for report in reports for one in report.limits]
    predicted = [one for one in every if one.ratio is not None]
    met, close = sum(one.met for one in predicted), sum(one.close for one in predicted)
    rows = [
        (f"{one.file} {one.row}", one.label, str(one.printed_tokens), one.predicted_tokens, one.ratio,
         ("met" if one.met else "not met") if one.ratio is not None else one.reason)
        for one in every
    ]  # fmt: skip
    return Table(
        title="Longest sequence",
        text="The source doubles lengths and prints the last one, L, that ran, so the true maximum lies in [L, 2 L): "
        f"a prediction within [{1 - longest.BELOW:g} L, {1 + longest.ABOVE:g} x 2 L) is met. Predicted for "
        f"{len(predicted)} of {len(every)} rows, met by {met}; within -{longest.BELOW:.0%}/+{longest.ABOVE:.0%} of L "
        f"itself: {close}. Memory is what the framework allocates, buffers, context and slack.",
        columns=("row", "what", "printed L", "predicted", "predicted / L", "verdict"),
        rows=rows,
    )


def _endings(reports: Sequence[FileReport]) -> Table:
    every = [one for report in reports for one in report.endings]

    def counts(printed: str) -> tuple[int, int, int, int]:
        agrees = [one.agrees for one in every if one.printed == printed]
        return len(agrees), agrees.count(True), agrees.count(False), agrees.count(None)

    out, fitted = counts("ran out"), counts("fits")
    words = {True: "fits", False: "does not fit", None: None}
    many = {report.file for report in reports if len(report.endings) > MANY_ENDINGS}
    rows = [
        (f"{one.file} {one.row}", one.label, one.printed, words[one.fits],
         None if one.used_share is None else percent(one.used_share),
         one.reason or ("right" if one.agrees else "failure"))
        for one in every
        if one.file not in many or not one.agrees
    ]  # fmt: skip
    return Table(
        title="Rows that ran out of memory, and rows that only fit",
        text=f"{out[0]} ran out: predicted so {out[1]}, predicted to fit (a failure) {out[2]}, no prediction {out[3]}. "
        f"{fitted[0]} only fit: predicted so {fitted[1]}, not so {fitted[2]}, no prediction {fitted[3]}. "
        "A label that ends a curve is read as the curve's last point, on 80 GB where the figure leaves 40 or 80 open. "
        f"Of files with more than {MANY_ENDINGS} such rows the right ones are counted alone.",
        columns=("row", "what", "printed", "predicted", "of the GPU", "verdict"),
        rows=rows,
    )


def _peers(reports: Sequence[FileReport]) -> Table:
    return Table(
        title="Against the simulator that measured them",
        text="Rows that carry another simulator's own prediction. It reads the time of each product from a table of "
        "exactly these shapes on the same machine.",
        columns=("file", "what", "rows", "median here", "bias here", "median there", "bias there"),
        rows=[
            (report.file, what, str(ours.rows), *ours.centre(), *theirs.centre())
            for report in reports
            for what, ours, theirs in against_peer(report.scored())
        ],
    )


def _sweeps(reports: Sequence[FileReport]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for report in reports:
        found = report.rankings()
        if pairs := sum(one.pairs for one in found):
            tau = sum(one.tau * one.pairs for one in found if one.pairs) / pairs
            regrets = [one.regret for one in found]
            shares = [percent(float(np.quantile(regrets, share))) for share in (0.5, 0.95, 1.0)]
            rows.append((report.file, str(len(found)), str(pairs), f"{tau:.2f}", *shares))
    return Table(
        title="Order within sweeps",
        text="Choices for the same work on the same GPUs. Kendall's tau over pairs measured more than 5% apart; "
        "regret: how much longer the predicted best took than the measured best.",
        columns=("file", "sweeps", "pairs", "tau", "median regret", "95th percentile", "worst regret"),
        rows=rows,
    )


def _frameworks(reports: Sequence[FileReport]) -> Table:
    return Table(
        title="Each framework, and the same rows priced as this project's executor would run them",
        text="A framework is facts of the code that ran, none set per row: `plan frameworks NAME`.",
        columns=("framework", "rows", "median", "bias", "median without", "bias without"),
        rows=[
            (name, str(kept.rows), *kept.centre(), *away.centre())
            for name, (kept, away) in against_ours(reports).items()
        ],
    )


def _worst(reports: Sequence[FileReport]) -> Table:
    def order(one: Verdict) -> tuple[float, str, str]:
        return -abs(one.error), one.file, one.row

    most = max(2, WORST // max(1, len(reports)))
    listed = sorted((one for report in reports for one in sorted(report.scored(), key=order)[:most]), key=order)
    return Table(
        title="Worst rows",
        text="The worst of each file. Seconds.",
        columns=("row", "what", "measured", "predicted", "error"),
        rows=[
            (f"{one.file} {one.row}", one.label, f"{one.measured_s:.4g}", f"{one.predicted_s:.4g}", signed(one.error))
            for one in listed
        ],
    )


def _silent(reports: Sequence[FileReport]) -> Table:
    return Table(
        title="Rows without a prediction",
        text="Counted by reason; none is left out silently.",
        columns=("file", "rows", "reason"),
        rows=[
            (report.file, str(count), reason)
            for report in reports
            for reason, count in sorted(report.reasons().items())
        ],
    )


def _notes(reports: Sequence[FileReport]) -> Table:
    notes = yaml.safe_load((FOLDER / "notes.yaml").read_text(encoding="utf-8"))
    names = {report.file for report in reports}
    return Table(
        title="Why rows are off",
        text="Found by looking; the rows stay in the score.",
        columns=(),
        rows=(),
        notes=tuple(
            f"- **{file}**: {text}" for file in notes if file in names for text in notes[file].get("why_off", ())
        ),
    )


def _plain(value: Any) -> Any:
    """For JSON: dataclasses as mappings, not-a-number as null."""
    if isinstance(value, Errors | Ranking):
        return {key: _plain(one) for key, one in asdict(value).items()}
    return None if isinstance(value, float) and math.isnan(value) else value
