"""`python -m validation.ceilings`: what limits the order of layouts beside the price, in published runs.

    again       pairs of layouts that a source ran once more with another attention kernel: how many kept their order
    described   the order, where exchanges of data ranks take `times` what is priced. `times` is what makes the errors
                of the source's runs of all other work most alike (median distance from their sweep's median), so no
                run that it judges has set it; None where a source has fewer than ROWS other runs
    refuted     a layout that took more than APART longer with the faster attention kernel: neither run is counted but
                by `again`
    noise       pairs in the wrong order that changed it when the source ran them again, and how far apart it measured
                runs that are one layout to the price

Nothing here enters a price, band or certificate: a plan's network is that of its cluster file, or what `executor
measure` found. Left out: sends between stages, and a row's other twins where it has several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations

import numpy as np

from validation.certificate import HELD_OUT
from validation.domains import Floats
from validation.pairs import APART, by_sweep, contradictions, ranked, refuted, twins
from validation.rows import files
from validation.score import score
from validation.steps import Step
from validation.tables import Cell, Table, display, percent

ROWS = 20
WRONG = 5
"""Pairs in the wrong order, from which on a sweep has a row of its own."""
TIMES = np.geomspace(0.5, 16.0, 71)


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """One sweep: pairs measured more than APART apart."""

    sweep: str
    pairs: int
    right: int
    times: float | None
    described: int  # right with exchanges that take `times` as long
    again: int  # pairs of which both layouts were run with another kernel, too
    kept: int  # of these, in the same order then
    wrong_again: int  # of the pairs in the wrong order, run again
    wrong_kept: int  # of these, in the same order then: the price is wrong, not the runs


def work_of(sweep: str) -> str:
    """Without the file: the same work may have been run for two files."""
    return sweep.split(": ", 1)[-1]


def ceilings(rows: Sequence[Step]) -> list[Ceiling]:
    """Of every sweep with a pair, those with the most pairs in the wrong order first."""
    out = refuted(rows)
    other = {one.name: two for both in twins(rows) for one, two in (both, both[::-1])}
    found = []
    for sweep, here in by_sweep(rows).items():
        work = work_of(sweep)
        rest = [row for row in rows if row.source == here[0].source and work_of(row.sweep) != work]
        rest = [row for row in rest if row.name not in out]
        times = most_alike(rest) if len(rest) >= ROWS else None
        judged = apart([row for row in here if row.name not in out])
        again = _again(apart(here), other)
        wrong = _again([(one, two) for one, two in judged if one.predicted_s > two.predicted_s], other)
        found.append(
            Ceiling(
                sweep=sweep,
                pairs=len(judged),
                right=sum(one.predicted_s < two.predicted_s for one, two in judged),
                times=times,
                described=sum(described_s(one, times or 1) < described_s(two, times or 1) for one, two in judged),
                again=len(again),
                kept=_kept(again),
                wrong_again=len(wrong),
                wrong_kept=_kept(wrong),
            )
        )
    return sorted((one for one in found if one.pairs), key=lambda one: (one.right - one.pairs, one.sweep))


def _again(pairs: Sequence[tuple[Step, Step]], other: Mapping[str, Step]) -> list[tuple[Step, Step]]:
    """The second runs of those pairs of which both layouts have one."""
    return [(other[one.name], other[two.name]) for one, two in pairs if {one.name, two.name} <= other.keys()]


def _kept(again: Sequence[tuple[Step, Step]]) -> int:
    return sum(one.measured_s < two.measured_s for one, two in again)


def repeats(rows: Sequence[Step]) -> list[float]:
    """How much longer the longer of two runs took that are one layout to the price; sorted."""
    pairs = (both for sweep in by_sweep(rows).values() for both in combinations(sweep, 2))
    return sorted(
        max(one.measured_s, two.measured_s) / min(one.measured_s, two.measured_s) - 1
        for one, two in pairs
        if one.predicted_s == two.predicted_s
    )


def apart(rows: Sequence[Step]) -> list[tuple[Step, Step]]:
    """(faster, slower) as measured; not such as are one layout to the price."""
    pairs = (sorted(both, key=lambda one: one.measured_s) for both in combinations(rows, 2))
    return [
        (fast, slow)
        for fast, slow in pairs
        if slow.measured_s > fast.measured_s * (1 + APART) and slow.predicted_s != fast.predicted_s
    ]


def described_s(row: Step, times: float) -> float:
    """The price, where exchanges of data ranks take `times` as long."""
    return row.predicted_s + (times - 1) * row.exchanged_s


def most_alike(rows: Sequence[Step]) -> float:
    """How many times what is priced exchanges take, by the errors within sweeps."""
    away = [_from_median(sweep) for sweep in by_sweep(rows).values() if len(sweep) > 2]
    return float(TIMES[np.median(np.concatenate(away), axis=0).argmin()]) if away else 1.0


def _from_median(sweep: Sequence[Step]) -> Floats:
    """Of ln(measured / described), the distance from the sweep's median; (rows, TIMES)."""
    measured, predicted, exchanged = (
        np.array([[getattr(row, name)] for row in sweep]) for name in ("measured_s", "predicted_s", "exchanged_s")
    )
    errors = np.log(measured / (predicted + (TIMES - 1) * exchanged))
    return np.asarray(np.abs(errors - np.median(errors, axis=0)))


def total(found: Sequence[Ceiling]) -> Ceiling:
    """Of all sweeps together."""
    counted = [field.name for field in fields(Ceiling) if field.name not in ("sweep", "times")]
    return Ceiling(sweep="all", times=None, **{name: sum(getattr(one, name) for one in found) for name in counted})


def table(rows: Sequence[Step]) -> Table:
    """Sweeps with the most pairs in the wrong order, and all."""
    found = ceilings(rows)
    listed = [one for one in found if one.pairs - one.right >= WRONG]
    rest = [one for one in found if one not in listed]
    return Table(
        title="What limits the order",
        text="Pairs measured more than 3% apart. Again: run once more with another attention kernel, and how many kept "
        "their order. Described: right, where exchanges of data ranks take as many times what is priced as the "
        "source's runs of all other work show.",
        columns=("work", "pairs", "right", "times", "described", "again", "kept"),
        rows=[
            *(_cells(one.sweep, one) for one in listed),
            _cells(f"{len(rest)} others", total(rest)),
            _cells("all", total(found)),
        ],
        notes=(*_refuted(rows), *_noise(total(found)), *_repeated(rows)),
    )


def _cells(name: str, one: Ceiling) -> tuple[Cell, ...]:
    times = None if one.times is None else f"{one.times:.1f}"
    kept = percent(one.kept / one.again) if one.again else None
    right, described = (percent(count / one.pairs) if one.pairs else None for count in (one.right, one.described))
    return (name, str(one.pairs), right, times, described, str(one.again), kept)


def _refuted(rows: Sequence[Step]) -> tuple[str, ...]:
    """Rows that are not counted, by work."""
    found = contradictions(rows)
    longer = max((one.measured_s / two.measured_s - 1 for one, two in found), default=0.0)
    works = Counter(work_of(one.sweep) for one, _ in found)
    named = "; ".join(f"{count} of {work}" for work, count in works.most_common())
    words = f"Not counted: {len(found)} layouts that took up to {longer:.0%} longer with the faster kernel ({named})."
    return (words,) if found else ()


def _noise(one: Ceiling) -> tuple[str, ...]:
    """Wrong pairs that are the runs', and those that are the price's."""
    wrong, changed = one.pairs - one.right, one.wrong_again - one.wrong_kept
    words = (
        f"Noise: of {wrong} pairs in the wrong order {one.wrong_again} were run again; {changed} of these changed their"
        f" order, {one.wrong_kept} kept it, so that the price is wrong."
    )
    return (words,) if one.wrong_again else ()


def _repeated(rows: Sequence[Step]) -> tuple[str, ...]:
    found = repeats(rows)
    if not found:
        return ()
    far, median = sum(one > APART for one in found), percent(float(np.median(found)))
    words = (
        "Runs that are one layout to the price (printed twice, or apart by a switch or release without a price): "
        f"{len(found)} pairs, {median} apart in the median, {far} by more than {APART:.0%}, at most "
        f"{percent(found[-1])}."
    )
    return (words,)


def main() -> None:
    display([table(ranked(score(files(HELD_OUT), HELD_OUT)))])


if __name__ == "__main__":
    main()
