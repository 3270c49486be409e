"""The certificate is that of this code and of these measurements; its page shows it; its bands hold what they say."""

import math
from pathlib import Path

import numpy as np
import pytest

from cost_models.bands import LEVEL, OFFLOADED
from cost_models.certificate import MEND, PROBABILITIES, certificate, code_digest
from validation.certificate import HELD_OUT, data_digest
from validation.certificate_page import LEAST, MOST, Page
from validation.conformal import FEW_ROWS, Scored, conformal
from validation.coverage import coverages, errors_against_others
from validation.domains import Error, measured, quantiles, weights
from validation.rows import files
from validation.score import score
from validation.steps import quarter, steps

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def page():
    return Page.of(certificate(), score(files(HELD_OUT), HELD_OUT))


def test_code_measurements_and_certificate_agree():
    found = certificate()
    compared = (("code", found.code, code_digest()), ("measurements", found.data, data_digest()))
    stale = [name for name, stated, now in compared if stated != now]
    assert not stale, f"cost_models/certificate.json was made of other {', '.join(stale)}: {MEND}"


def test_the_page_shows_the_certificate(page):
    assert (DOCS / "accuracy-certificate.md").read_text() == page.markdown()
    assert (DOCS / "accuracy-certificate.svg").read_text() == page.svg()


SHORT = {"step, measured, across nodes"}
"""Domains whose bands hold less of a source left out than they say: the page says so. None may join them."""
WIDEST = {"step, measured": 0.1, "step, scaled": 0.18}
"""Half-widths of bands of steps in the median, by kind of board."""


def test_bands_hold_what_they_say(page):
    """As shipped: every domain with rows enough, and all steps together."""
    share = sum(one.inside for one in page.shipped) / len(page.shipped)
    assert LEAST <= share <= MOST, f"{LEVEL:.0%} bands hold {share:.1%} of {len(page.shipped)} steps"
    tested = [one for one in page.coverage_as_shipped.values() if one.rows >= FEW_ROWS]
    assert len(tested) >= 5
    for one in tested:
        assert LEAST <= one.share <= MOST, f"{one.domain}: {one.share:.1%} of {one.rows} rows"


def test_bands_hold_what_they_say_of_sources_that_did_not_set_them(page):
    """Give or take one row; the domains that do not are those that are named, no more and no fewer."""
    tested = [one for one in page.coverage.values() if one.rows >= FEW_ROWS]
    assert len(tested) >= 10
    assert not {one.domain for one in tested if one.share > MOST + 1 / one.rows}
    assert {one.domain for one in tested if one.share < LEAST - 1 / one.rows} == SHORT


def test_peaks_of_runs_with_states_in_host_memory_are_a_domain_of_their_own(page):
    named = {one.name.split()[0] for one in page.tested if one.domain == "allocated"}
    assert "huggingface/blog" not in named
    assert certificate().domain("allocated, in host memory").sources == ("huggingface/blog",)


def test_bands_are_no_wider_than_asked(page):
    """Of domains with rows enough, inside a node and across nodes."""
    for kind, most in WIDEST.items():
        widths = [
            one.half_width
            for name, one in page.coverage_as_shipped.items()
            if name.startswith(kind) and one.rows >= FEW_ROWS
        ]
        assert len(widths) == 2 and max(widths) <= most, kind


def test_a_source_that_is_unlike_the_others_is_not_covered():
    errors = [Error(source=name, error=shift + 0.01 * step) for name, shift in zip("abcd", (0, 0, 0, 1), strict=True)
              for step in range(10)]  # fmt: skip
    tested = list(errors_against_others("x", errors))
    assert {one.source for one in tested if not one.inside} >= {"d"}
    (found,) = coverages(tested)
    assert found.rows == 40 and found.sources == 4 and found.share < 0.8
    assert not list(errors_against_others("x", [one for one in errors if one.source in "ab"])), (
        "two sources test nothing"
    )


def test_conformal_bands_hold_of_new_sources_what_plain_quantiles_do_not():
    """Five sources of ten rows that share a shift: 80% bands of four hold 65% of the fifth's, conformal ones 80%."""
    draws, plain, moved = np.random.default_rng(0), [], []
    low, high = PROBABILITIES.index(0.1), PROBABILITIES.index(0.9)
    for _ in range(200):
        errors = draws.normal(size=(5, 1)) + 0.3 * draws.normal(size=(5, 10))
        rows = [Scored(value=v, source=str(k), domain="x") for k, mine in enumerate(errors[:4]) for v in mine]
        plainly, conformally = quantiles([r.value for r in rows], [r.source for r in rows]), conformal(rows, "x")
        plain += [plainly[low] <= value <= plainly[high] for value in errors[4]]
        moved += [conformally[low] <= value <= conformally[high] for value in errors[4]]
    assert np.mean(plain) < 0.7 < LEAST < np.mean(moved) < MOST


def test_a_source_that_errs_by_much_is_counted_once():
    """Five sources within 1, one at 5: an end at 9 would be its rows and, once more, how far they are from others."""
    near = [Scored(value=float(value), source=name, domain="x") for name in "abcde" for value in np.linspace(-1, 1, 12)]
    far = [Scored(value=5.0, source="far", domain="x")] * 30
    found = conformal([*near, *far], "x")
    assert 1.0 < found[PROBABILITIES.index(0.9)] <= 5.0 + 1e-9 and max(found) <= 5.0 + 1e-9


def test_a_single_source_moves_nothing_and_few_rows_borrow_from_all_but_host_memory():
    alone = [Scored(value=0.1 * step - 1.5, source="a", domain="x") for step in range(30)]
    assert conformal(alone, "x") == pytest.approx(quantiles([one.value for one in alone], ["a"] * 30))
    far = [Scored(value=50.0, source=name, domain=OFFLOADED) for name in "bcdef"]
    assert conformal([*alone, *far], "no such rows") == conformal([*alone, *far], "x")
    assert max(conformal([*alone, *far], "x")) < 50.0 < max(conformal([*alone, *far], OFFLOADED)) + 1e-9


def test_no_source_outvotes_the_others():
    many, few = [Error(source="many", error=0.0)] * 500, [Error(source="few", error=1.0)] * 5
    assert measured(few + many).bias == pytest.approx(0.0)
    assert sum(weights(["many"] * 500)) < 3.0
    values, sources = [0.0] * 500 + [1.0] * 5, ["many"] * 500 + ["few"] * 5
    assert quantiles(values, sources, (0.9,))[0] == pytest.approx(1.0)


def test_rows_that_set_the_band_are_not_those_in_sight(page):
    rows = steps(page.reports)
    assert rows and all(math.isfinite(one.error) for one in rows)
    assert any(quarter(one.source) for one in rows) and not all(quarter(one.source) for one in rows)
