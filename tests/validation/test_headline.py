"""The headline benchmark on a small grid: parts add up, published figures stand beside, the claim of 2M is met."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cost_models import Model, Strategy, Workload
from validation import longvila as lv
from validation.longvila import METHODS, cluster, fastest, kept, longest, path_rate_of, priced

FILE = Path(__file__).parents[2] / "benchmarks" / "headline.py"
TEXT = Model.load("llama-3-8b")


@pytest.fixture(scope="module")
def headline():
    spec = importlib.util.spec_from_file_location("headline_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def found(headline):
    return {one.key: one for one in headline.sections([8], [32 * lv.K], [32])}


def test_parts_add_up_to_steps(headline, found):
    section = found["parts"]
    first, last = section.columns.index(headline.PARTS[0]), section.columns.index("step s")
    assert section.columns[first:last] == headline.PARTS
    for row in section.rows:
        assert sum(row[first:last]) == pytest.approx(row[last], rel=1e-9)


def test_every_published_figure_stands_beside_its_prediction(found):
    rows = [dict(zip(found["published"].columns, row, strict=True)) for row in found["published"].rows]
    assert [row["published s"] for row in rows if row["method"] == "MM-SP"] == [1.04, 1.08, 2.30, 7.04, 11.12, 16.9]
    assert [row["published s"] for row in rows if row["method"] == "ring"] == [2.06, 4.40, 8.63, 17.54, None, 77.2]
    for row in rows:
        if row["published s"]:
            assert row["error"] == pytest.approx(row["predicted s"] / row["published s"] - 1)
    ratios = {row[0]: row[1:3] for row in found["ratios"].rows}
    assert ratios == {"ring / MM-SP": (2.1, 5.7), "CP + TP / MM-SP": (1.1, 1.4), "CP / MM-SP": (3.1, 4.3)}


def test_the_page_shows_what_is_predicted_now(found):
    """Sections that hang on no grid; `make pages` renews the page."""
    page = (FILE.parents[1] / "docs" / "headline.md").read_text()
    for key in ("published", "ratios", "parts"):
        for row in found[key].cells():
            assert "| " + " | ".join(row) + " |" in page


def test_the_command_writes_what_the_sections_hold(headline, found, monkeypatch, capsys, tmp_path):
    asked_for = []
    monkeypatch.setattr(headline, "sections", lambda *given: asked_for.append(given) or list(found.values()))
    page = tmp_path / "headline.md"
    asked = ["--gpus", "8", "--ctx", "32K", "--frames", "32", "--json", "--markdown", str(page)]
    assert headline.main(asked) == 0
    assert asked_for == [([8], [32 * lv.K], [32])]
    data = {section["key"]: section for section in json.loads(capsys.readouterr().out)}
    assert list(data) == ["published", "ratios", "against", "parts", "lengths", "two_stages"]
    assert data["against"]["rows"][0]["GPUs"] == 8
    text = page.read_text(encoding="utf-8")
    assert all(f"## {section['title']}" in text for section in data.values())


@pytest.mark.parametrize("asked, said", [("--gpus=12", "legal: 8, 16, 32"), ("--frames=x", "not a list of numbers")])
def test_bad_input_is_one_line_and_exit_code_2(headline, capsys, asked, said):
    assert headline.main([asked]) == 2
    assert said in capsys.readouterr().err


def test_2m_tokens_fit_256_a100_without_recompute():
    """The paper's claim; and Ulysses alone, with 32 query heads, reaches an eighth of it."""
    where = cluster(lv.LONGEST_GPUS, "dgx-a100")
    assert longest(METHODS["MM-SP"], where, TEXT) >= lv.LONGEST_TOKENS
    assert longest(METHODS["Ulysses"], where, TEXT) < lv.LONGEST_TOKENS / 4


def test_longest_fits_and_one_step_more_does_not():
    where, method = cluster(8), METHODS["ring"]
    most = longest(method, where, TEXT)
    layout = method.layouts(8)[0]
    for extra, fits in ((0, True), (lv.LENGTH_STEP * 8, False)):
        assert priced(method.framework, where, Workload(TEXT, context_tokens=most + extra), layout).fits is fits


def test_a_ring_over_a_slower_path_takes_longer_and_the_rate_is_found_again():
    work, rate = Workload(TEXT, context_tokens=64 * lv.K), 8e9
    slow = kept(METHODS["ring"], cluster(32, path_bytes_per_s=rate), work).step_s
    assert slow > kept(METHODS["ring"], cluster(32), work).step_s
    assert path_rate_of(METHODS["ring"], 32, work, slow) == pytest.approx(rate, rel=1e-3)


def test_best_degrees_are_never_slower_than_the_papers():
    for gpus, tokens in ((8, 32), (32, 256)):
        where, work = cluster(gpus), Workload(TEXT, context_tokens=tokens * lv.K)
        best, paper = (fastest(METHODS[name], where, work) for name in ("best degrees", "MM-SP"))
        assert best.step_s <= paper.step_s


def test_two_stages_beat_one_by_what_the_busiest_rank_encodes_more():
    model, layout = Model.load("longvila-8b"), Strategy(ulysses=8, shard=8, loss_chunk_tokens=None)
    work = Workload(model, frames=64, text_tokens=256)
    steps = {}
    for way in ("exchanged", "reduced", "own_tokens", "placeholders"):
        framework = replace(lv.MM_SP, frame_sharding=way)
        steps[way] = priced(framework, cluster(8), work, layout).step_s
    assert steps["exchanged"] < steps["reduced"] < steps["own_tokens"] < steps["placeholders"]
