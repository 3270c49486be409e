"""The page of the certificate: what was held out, errors and coverage by domain, order of pairs, calibration, outliers.

`make pages` writes docs/accuracy-certificate.md and its picture; `python -m validation.certify` prints the tables.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import yaml

from cost_models.bands import LEVEL, quantile
from cost_models.certificate import Certificate, Domain
from validation import ceilings, left_out, parts, tables
from validation.certificate import memory_errors
from validation.conformal import FEW_ROWS, FEW_SOURCES
from validation.coverage import (
    Coverage,
    Tested,
    coverages,
    errors_against_others,
    odds_against_others,
    steps_against_others,
    steps_as_shipped,
)
from validation.domains import points
from validation.pairs import APART, Pair, ranked, ranked_pairs
from validation.plot import calibration
from validation.rows import FOLDER
from validation.score import FileReport
from validation.steps import quarter, steps
from validation.tables import Cell, Table, percent, signed

WORST = 20
ODDS = (0.5, 0.6, 0.75, 0.9, 0.97, 1.01)
LEAST, MOST = 0.75, 0.88
"""Share of a domain's rows that an 80% band should hold."""
INTRODUCTION = """
    How wrong prices are on rows that they were not fitted to, which `cost_models/certificate.json` carries and every
    band of `plan` and `plan price` comes from. Written by `python -m validation.certify --markdown
    docs/accuracy-certificate.md --plot docs/accuracy-certificate.svg` (`make pages`); an error is
    ln(measured / predicted), so +10% is a run that took a tenth longer than priced.

    **What is held out, and how.** Attention and products: a board's curve is fitted without one of its sources and
    predicts that source's rows; boards that nobody measured are tested by measured ones priced from another's curve.
    What memory limits: sizes left out. Links inside a node: sizes and numbers of ranks left out, and tables of
    machines that no curve is of. Across nodes and over PCIe: published tables; a kind of network's rate
    may come from one of them, so their errors are of sizes, nodes and operations rather than of that rate. Whole steps
    and memory: no number is fitted to any, but which facts a framework has was found by looking at rows, so those of
    `measurements/` itself are not counted here; those of `measurements/later/` came after the model. **They are not
    blind any more**: several forms of what hidden collectives take, of slow boards and of host time were tried, and the
    one kept was chosen with the scores of both folders in view; the rule of fragments was chosen with torchtitan's
    reserved peaks in view; that peaks of runs with states in host memory are a domain of their own was settled when one
    source of them held everybody's band open. What no choice
    has seen is the first prediction of each file, untouched, below. A quarter of
    all sources, by the digest of the name, may set no constant from now on (which quarter was settled after errors had
    been seen): {quarter}.

    **How a band is made.** The spreads of kernels and links, times their shares of the step (of links also what is
    hidden), and a residual of {residual} give the sigma of one price; the quantiles of error / sigma in the step's
    domain give its band, moved until they hold what they say of sources that had no part in them: every source's rows
    are scored by how far they lie outside what all others give, the ends that these give move out by the score, and the
    band has that level's quantile of such ends (conformal by source, CV+: `validation/conformal.py`). A source counts
    as n / (1 + (n - 1) / 3) rows in quantiles, each row once in scores. Domains of fewer than {few} rows or {sources}
    sources take quantiles and scores of all steps but those in host memory, wider where their own rows refute these.
    Errors of the CPU's update (`offload`) move an end by these seconds alone, beside the rest as legs of a right angle.
    Coverage is cross-validated once more: the rows of a source are tested against bands of which the other sources set
    everything. Allocated, reserved and device are peaks that runs of other frameworks print, each priced as itself; a
    plan's band takes `device memory`.

    ![predicted quantile against observed]({picture})
"""


@dataclass(frozen=True, kw_only=True)
class Page:
    known: Certificate
    reports: Sequence[FileReport]
    tested: tuple[Tested, ...]  # by bands that other sources set
    shipped: tuple[Tested, ...]  # steps, by the bands of the certificate

    @classmethod
    def of(cls, known: Certificate, reports: Sequence[FileReport]) -> Page:
        found = steps_against_others(steps(reports), known)
        for name, families in parts.families(FOLDER).items():
            found += errors_against_others(name, points(families))
        for level, errors in memory_errors(reports).items():
            found += errors_against_others(level, errors)
        shipped = steps_as_shipped(steps(reports), known)
        return cls(known=known, reports=reports, tested=tuple(found), shipped=tuple(shipped))

    @cached_property
    def coverage(self) -> dict[str, Coverage]:
        return {one.domain: one for one in coverages(self.tested)}

    @cached_property
    def coverage_as_shipped(self) -> dict[str, Coverage]:
        return {one.domain: one for one in coverages(self.shipped)}

    def markdown(self) -> str:
        held = sorted({one.source for one in steps(self.reports) if quarter(one.source)})
        words = INTRODUCTION.format(
            quarter=", ".join(held), residual=percent(self.known.residual), few=FEW_ROWS, sources=FEW_SOURCES,
            picture="accuracy-certificate.svg",
        )  # fmt: skip
        return tables.markdown(
            "The certificate",
            tables.paragraphs(words),
            [*self.tables(), ceilings.table(ranked(self.reports)), self._worst(), *left_out.tables(FOLDER), _first()],
        )

    def svg(self) -> str:
        """Of domains with as many rows as a coverage stands on."""
        curves: dict[str, list[float]] = {}
        for one in self.tested:
            if self.coverage[one.domain].rows >= FEW_ROWS:
                curves.setdefault(one.domain, []).append(one.below)
        return calibration(dict(sorted(curves.items())))

    def tables(self) -> list[Table]:
        return [self._domains(), self._pairs(), self._odds()]

    def _domains(self) -> Table:
        return Table(
            title="Errors by domain",
            text=f"Quantiles of ln(measured / predicted). Coverage of {LEVEL:.0%} bands, good within {LEAST:.0%} to "
            f"{MOST:.0%}: over rows of a source that had no part in them, and of bands as shipped, which all set; "
            "half-width: of a band, in the median. A new source is held less often than a band says: of sources left "
            f"out {self._steps_inside(self.tested)} lie inside (one source has {self._most_of_a_source()} of them), "
            f"as shipped {self._steps_inside(self.shipped)}.",
            columns=(
                "domain",
                "rows",
                "sources",
                "10%",
                "bias",
                "90%",
                "spread",
                "coverage of a new source",
                "half-width",
                "coverage as shipped",
                "half-width",
            ),
            rows=[self._row(name, one) for name, one in self.known.domains.items()],
            notes=tuple(f"{name} is stated: {one.stated}." for name, one in self.known.domains.items() if one.stated),
        )

    def _most_of_a_source(self) -> int:
        return max(Counter(one.source for one in self.shipped).values())

    @staticmethod
    def _steps_inside(tested: Sequence[Tested]) -> str:
        steps_alone = [one.inside for one in tested if one.domain.startswith("step")]
        return f"{percent(sum(steps_alone) / len(steps_alone))} of {len(steps_alone)} steps"

    def _row(self, name: str, one: Domain) -> tuple[Cell, ...]:
        tail: list[Cell] = []
        for covered in (self.coverage.get(name), self.coverage_as_shipped.get(name)):
            tail += [None, None] if covered is None else [percent(covered.share), percent(covered.half_width)]
        ends = (signed(quantile(one.quantiles, 0.1)), signed(one.bias), signed(quantile(one.quantiles, 0.9)))
        return (name, str(one.rows), str(len(one.sources)), *ends, percent(one.spread), *tail)

    def _pairs(self) -> Table:
        pairs = self.known.pairs
        counted, every = map(_in_order, (ranked_pairs(self.reports), ranked_pairs(self.reports, with_refuted=True)))
        ends = [*(f"to {one.least:.0%}" for one in pairs.apart[1:]), "and more"]
        return Table(
            title="Order of two layouts",
            text=f"Pairs of held-out rows for the same work on the same GPUs ({len(pairs.sources)} sources), but for "
            "runs that are one layout to the price. Beyond what both share, a layout has "
            f"{percent(pairs.residual)} of its own. {counted} measured more than {APART:.0%} apart are in the "
            "right order. Not counted, nor in the odds: rows that took longer than another run of the same layout "
            "with a slower attention kernel, and those other runs, as no price can order both (named below). With them "
            f"{every} are.",
            columns=("priced apart by", "pairs", "wrong order", "loss of the wrong, median", "worst"),
            rows=[
                (f"{one.least:.0%} {end}", str(one.pairs), str(one.wrong), percent(one.loss), percent(one.worst_loss))
                for one, end in zip(pairs.apart, ends, strict=True)
            ],
        )

    def _odds(self) -> Table:
        given = odds_against_others(ranked_pairs(self.reports), self.known)
        rows: list[tuple[Cell, ...]] = []
        for low, high in pairwise(ODDS):
            mine = [(odds, right) for odds, right in given if low <= odds < high]
            if mine:
                odds, right = (sum(column) / len(mine) for column in zip(*mine, strict=True))
                rows.append((f"{low:.0%} to {min(high, 1):.0%}", str(len(mine)), percent(odds), percent(right)))
        return Table(
            title="Odds",
            text="That the layout priced faster is faster, from the pairs of all other sources; and how often it was.",
            columns=("odds", "pairs", "odds, mean", "faster"),
            rows=rows,
        )

    def _worst(self) -> Table:
        outside = sorted((one for one in self.tested if not one.inside and one.domain.startswith("step")),
                         key=lambda one: (-abs(one.error), one.name))  # fmt: skip
        return Table(
            title="Rows farthest outside their band",
            text=f"The worst {WORST} of {len(outside)} steps outside.",
            columns=("row", "domain", "measured over predicted"),
            rows=[(one.name, one.domain, signed(math.expm1(one.error))) for one in outside[:WORST]],
        )


def _in_order(pairs: Sequence[Pair]) -> str:
    """Of those that were measured apart."""
    apart = [one for one in pairs if abs(one.distance + one.error) > math.log1p(APART)]
    return f"{percent(sum(one.loss < 0 for one in apart) / len(apart))} of {len(apart)} pairs"


def _first() -> Table:
    """What the model said of each new file before anything was learned from it."""
    listed = yaml.safe_load((FOLDER / "first.yaml").read_text(encoding="utf-8"))
    return Table(
        title="First numbers",
        text="Files predicted untouched, by the code of the commit; errors of predicted / measured - 1.",
        columns=("file", "rows", "what", "median", "90th percentile", "commit"),
        rows=[
            (
                one["file"],
                str(one["rows"]),
                one["what"],
                _share(one, "median"),
                _share(one, "p90"),
                one["commit"],
            )
            for one in listed
        ],
    )


def _share(entry: Mapping[str, Any], name: str) -> str:
    """An entry of orders has no errors."""
    return percent(entry[name]) if name in entry else "–"
