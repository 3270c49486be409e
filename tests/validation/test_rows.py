"""A row of a published table is data from outside: what no price can be made of is refused by row and column."""

import pytest

from cost_models import InputError
from validation.rows import Row
from validation.score import score
from validation.steps import steps


def row(**cells):
    return Row(file="train_x", number="3", score="yes", cells=cells)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "-1", "abc", ""])
def test_what_is_no_quantity_is_refused(text):
    with pytest.raises(InputError, match="train_x row 3: iter_s"):
        row(iter_s=text).number_of("iter_s")


def test_counts_are_whole_and_reach_their_least():
    assert row(tp=" 8.0 ").count("tp") == 8
    assert row(zero_stage="0").count("zero_stage", least=0) == 0
    for text in ("0", "1.5", "-2"):
        with pytest.raises(InputError, match="row 3: tp"):
            row(tp=text).count("tp")


def test_what_was_measured_is_above_zero():
    assert row(iter_s="0.5").positive("iter_s") == 0.5
    with pytest.raises(InputError, match="iter_s is zero"):
        row(iter_s="0").positive("iter_s")


CELLS = {
    "row": "1", "model": "small", "gpu": "H100", "gpus_per_node": "8", "n_gpus": "8", "layers": "4", "hidden": "4096",
    "ffn": "14336", "heads": "32", "kv_heads": "8", "vocab": "128256", "seq_len": "8192", "micro_batch": "1", "tp": "1",
    "zero_stage": "3", "iter_s": "0.9", "score": "yes",
}  # fmt: skip


@pytest.mark.parametrize(
    "column, text",
    [("n_gpus", "0"), ("gpus_per_node", "0"), ("iter_s", "0"), ("layers", "inf"), ("heads", "nan"), ("tp", "-1")],
)
def test_a_bad_cell_refuses_its_row_and_no_other(tmp_path, column, text):
    lines = [CELLS, CELLS.values(), (CELLS | {"row": "2", column: text}).values()]
    (tmp_path / "train_x.csv").write_text("".join(",".join(line) + "\n" for line in lines))
    (report,) = score(["train_x"], tmp_path)
    assert [one.row for one in report.verdicts] == ["1"]
    assert [one.row.number for one in report.refused] == ["2"]
    assert column in report.refused[0].reason


def test_a_row_of_memory_alone_judges_no_time(tmp_path):
    cells = CELLS | {"peak_mem_gb": "40"}
    lines = [
        cells,
        cells.values(),
        (cells | {"row": "2", "iter_s": "90", "score": "memory: waits for its data"}).values(),
    ]
    (tmp_path / "train_x.csv").write_text("".join(",".join(line) + "\n" for line in lines))
    (report,) = score(["train_x"], tmp_path)
    assert (report.errors().rows, report.memory_errors().rows) == (1, 2)
    assert [one.name for one in steps((report,))] == ["train_x 1"]


@pytest.mark.parametrize("text", ["row,score\n1\n", "row,score\n1,yes,more\n"])
def test_a_line_with_other_cells_than_the_header_is_refused(tmp_path, text):
    (tmp_path / "train_x.csv").write_text(text)
    with pytest.raises(InputError, match="line 2: not as many cells"):
        score(["train_x"], tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "train_x.csv").write_bytes(b"row,score\n\xff\xfe,yes\n")
    with pytest.raises(InputError, match="not a table of UTF-8 text"):
        score(["train_x"], tmp_path)
