"""Pages whose numbers come from commands show what the code predicts now; `make pages` renews them."""

from pathlib import Path

import pytest

from benchmarks import answers
from cost_models.timing.packed import FOLDER as CURVES
from validation.fit.__main__ import with_errors
from validation.plot import svg
from validation.report import markdown
from validation.rows import FOLDER, files, read
from validation.score import FileReport, score

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module", params=[FOLDER, FOLDER / "later"], ids=["accuracy", "accuracy-later"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def reports(folder: Path) -> tuple[FileReport, ...]:
    return score(files(folder), folder)


def test_the_accuracy_pages_are_what_the_command_writes(folder: Path, reports: tuple[FileReport, ...]) -> None:
    name = "accuracy" if folder == FOLDER else "accuracy-later"
    assert (DOCS / f"{name}.md").read_text() == markdown(reports, folder.relative_to(FOLDER.parent).as_posix())
    assert (DOCS / f"{name}.svg").read_text() == svg(reports)


def test_every_row_is_predicted_or_refused_with_a_reason(folder: Path, reports: tuple[FileReport, ...]) -> None:
    for report in reports:
        assert len(report.verdicts) + len(report.refused) == len(read(report.file, folder)), report.file
        assert all(one.score != "no" for one in report.verdicts)
        assert all(one.reason for one in report.refused)
        assert all(one.predicted_s > 0 and one.measured_s > 0 for one in report.verdicts)
    assert len({one.file for one in reports if one.errors().rows}) >= 8


def test_the_curves_page_has_the_packed_errors() -> None:
    page = (DOCS / "curves.md").read_text()
    assert with_errors(page, CURVES) == page
    assert with_errors(page.replace("| gemm | 25200 |", "| gemm | 1 |"), CURVES) == page


def test_the_answer_that_readme_shows_is_what_its_command_prints() -> None:
    """`make pages`, or `python -m benchmarks.answers`, renews it."""
    text = (DOCS.parent / "README.md").read_text()
    (block,) = answers.BLOCK.findall(text)
    assert max(map(len, block[2].splitlines())) <= 120
    assert answers.renewed(text) == text
