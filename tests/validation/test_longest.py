"""Longest sequences and out-of-memory rows: the rule by hand, and every printed row counted."""

import csv
import json
from dataclasses import replace

import pytest

from cost_models import InputError
from cost_models.longest import MOST_TOKENS, most_tokens
from validation.cases import price_of
from validation.certificate import memory_errors
from validation.longest import Limit, ending_of, limit_of, longest, operator_bytes
from validation.operators import call_of
from validation.report import as_json, markdown
from validation.rows import FOLDER, read
from validation.score import score
from validation.standard import case_of

FPDT, FIGURES, EASY = "train_fpdt_ulysses_offload", "train_deepspeed_figures_digitized", "train_easycontext"


@pytest.mark.parametrize(
    ("predicted", "met", "close"),
    [(899, False, False), (900, True, True), (1050, True, True), (1051, True, False), (2099, True, False),
     (2100, False, False)],
)  # fmt: skip
def test_a_source_that_doubles_leaves_an_octave_open(predicted, met, close):
    found = Limit(file="", row="", label="", printed_tokens=1000, predicted_tokens=predicted)
    assert (found.met, found.close) == (met, close)
    unknown = replace(found, predicted_tokens=None)
    assert (unknown.ratio, unknown.met, unknown.close) == (None, False, False)


def test_the_predicted_maximum_is_the_last_length_that_fits():
    row = next(row for row in read(FPDT) if row.number == "9")
    case = case_of(row)
    most, device = longest(case), case.cluster.runs[0].node.device
    assert limit_of(row).predicted_tokens == most and most % 16 == 0

    def held(tokens):
        work = replace(case.workload, context_tokens=tokens, text_tokens=None)
        return price_of(replace(case, workload=work)).memory_bytes

    assert held(most) <= device.allocatable_bytes < held(most + 16)


def test_a_search_without_an_end_is_refused():
    with pytest.raises(InputError, match="fits still"):
        most_tokens(lambda tokens: True, unit=MOST_TOKENS // 8)


def test_every_row_with_a_length_or_an_end_is_listed():
    reports = {one.file: one for one in score([FPDT, FIGURES, EASY, "op_usp_ulysses_ring"], FOLDER)}
    assert [one.row for one in reports[FPDT].limits] == [row.number for row in read(FPDT)]
    assert all(one.met for one in reports[FPDT].limits)
    for name in (FIGURES, "op_usp_ulysses_ring"):
        ran_out = [row.number for row in read(name) if row.text("outcome") == "OOM"]
        assert [one.row for one in reports[name].endings if one.printed == "ran out"] == ran_out
        assert all((one.fits is None) == bool(one.reason) for one in reports[name].endings)
    assert [(one.printed, one.fits) for one in reports[EASY].endings] == [("fits", True)] * 2
    page, data = markdown(list(reports.values())), json.loads(as_json(list(reports.values())))
    assert "## Longest sequence" in page and "predicted to fit (a failure)" in page
    assert [len(one["longest"]) for one in data] == [10, 0, 0, 0]
    assert [len(one["endings"]) for one in data] == [0, 16, 2, 1]


def test_the_end_of_a_curve_holds_what_its_last_point_printed():
    """Llama3-70B over ulysses 32 ran out at 2M: the row names the cells that come from the point before it."""
    rows = read(FIGURES)
    place = next(place for place, row in enumerate(rows) if row.number == "88")
    end, last = rows[place], rows[place - 1]
    for name in ("layers", "gpus_per_node", "zero_stage", "recompute", "offload"):
        assert name in end.text("inferred").split(", ") and end.text(name) == last.text(name)
    assert "ulysses 32" in ending_of(end).label
    assert ending_of(replace(end, cells={**end.cells, "layers": ""})).reason.startswith("layers is blank")
    assert ending_of(last) is None  # it ran


def test_what_lies_on_the_host_is_not_on_the_gpu():
    row = next(row for row in read(EASY) if row.number == "6")
    here = ending_of(replace(row, cells={**row.cells, "offload": "activations CPU"}))
    assert ending_of(row).used_share < here.used_share


def test_an_operator_holds_its_tensors():
    """Two rows of 16K own tokens, 32 heads of 32 in bf16: q, k, v twice, two blocks, output, fp32 sum and merge."""
    row = next(row for row in read("op_usp_ulysses_ring") if row.text("outcome") == "OOM")
    values = 2 * 131072 // 8 * 32 * 32
    assert operator_bytes(call_of(row)) == values * (2 * 3 * 2 + 4 * 2 + 2 + 12)


def test_rows_in_standard_columns_need_no_time(tmp_path):
    cells = {
        "row": "1", "model": "llama", "gpu": "A100-80GB", "gpus_per_node": "8", "n_gpus": "8", "layers": "32",
        "hidden": "4096", "ffn": "14336", "heads": "32", "kv_heads": "8", "vocab": "128256", "ulysses": "8",
        "zero_stage": "3",
        "seq_len": "", "max_seq_len": "", "outcome": "", "score": "yes",
    }  # fmt: skip
    rows = [
        {**cells, "seq_len": "8388608", "outcome": "OOM"},
        {**cells, "max_seq_len": "65536", "outcome": "ok"},
        {**cells, "seq_len": "8388608", "outcome": "out of memory", "score": "no: why"},
    ]
    with (tmp_path / "train_x.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, list(cells))
        writer.writeheader()
        writer.writerows(rows)
    (report,) = score(["train_x"], tmp_path)
    assert [(one.printed, one.fits) for one in report.endings] == [("ran out", False), ("ran out", None)]
    assert [one.printed_tokens for one in report.limits] == [65536] and report.limits[0].predicted_tokens > 16


def test_memory_of_rows_without_a_time_judges_as_that_of_others():
    """Three rows whose printed time is a mean over unequal rows, one that prints no time at all."""
    mean, none = score(["train_litgpt", "train_trl_context_parallel"], FOLDER / "later")
    assert [one.row for one in mean.untimed] == ["0", "1", "3"] and [one.row for one in none.untimed] == ["11"]
    assert mean.verdicts == () and len(mean.refused) == 11
    assert mean.memory_errors().rows == 3 and mean.memory_errors().worst < 0.02
    errors = memory_errors([mean, none])
    assert len(errors["allocated"]) == 3 + len(
        [one for one in none.verdicts if one.memory_error() and not one.offloaded]
    )
    assert {one.source for one in errors["allocated, in host memory"]} == {"huggingface/blog"}


def test_reserved_memory_of_megatron_is_met_within_five_percent():
    """No row was fitted: fragments come from the allocator played on this project's steps."""
    (report,) = score(["train_simumax_b200"], FOLDER)
    rows = [one.peaks for one in report.verdicts if "reserved" in one.peaks]
    errors = report.memory_errors("reserved")
    assert len(rows) == errors.rows == 24
    assert all(peaks["allocated"][1] < peaks["reserved"][1] for peaks in rows)
    assert errors.median < 0.02 and errors.worst < 0.05
    found = price_of(case_of(read("train_simumax_b200")[0]))
    assert found.memory.reserved_bytes - found.memory.allocated_bytes == found.memory["fragments"]
    assert "train_simumax_b200, reserved | 24 |" in markdown([report])
