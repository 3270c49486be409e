"""What to plan for a data set: the rows' tokens and frames are those that training passes."""

import json
from pathlib import Path

import pytest
import yaml

from longvila import lengths
from tests.longvila.clips import EXAMPLES
from tests.longvila.test_train import metrics, run_job, settings


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(EXAMPLES.parent)


def _lengths(folder: Path, capsys, **changes) -> tuple[int, str]:
    given = settings(folder, **changes)
    (folder / "train.yaml").write_text(yaml.safe_dump(given))
    code = 0
    try:
        lengths.main([str(folder / "train.yaml")])
    except SystemExit as ended:
        code = ended.code
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_the_example_fills_its_rows(capsys):
    """So that what the example predicts is what it runs."""
    lengths.main(["examples/train.yaml"])
    assert capsys.readouterr().out.splitlines() == [
        "samples  7: 41 to 208 tokens, 952 in all; 41 frames of 9 tokens",
        "rows     1 a pass: 952 to 952 tokens, 100% of max_tokens; 41 to 41 frames",
        "plan     --ctx 952 --frames 41 --batch 1",
    ]


def test_the_lengths_of_all_samples_are_written(tmp_path, capsys):
    """As `plan --lengths` reads them."""
    lengths.main(["examples/train.yaml", str(tmp_path / "lengths.csv")])
    header, *lines = (tmp_path / "lengths.csv").read_text().splitlines()
    counts = [tuple(map(int, line.split(","))) for line in lines]
    assert header == "tokens,count" and counts == sorted(counts)
    assert (sum(count for _, count in counts), sum(tokens * count for tokens, count in counts)) == (7, 952)
    with pytest.raises(SystemExit, match="2"):
        lengths.main(["examples/train.yaml", str(tmp_path)])
    assert "cannot be written" in capsys.readouterr().err


def test_rows_are_those_of_training(tmp_path, capsys):
    code, printed = _lengths(tmp_path, capsys, frames=1, rows_per_step=1)
    rows = int(printed.splitlines()[1].split()[1])
    run_job(tmp_path / "run", frames=1, rows_per_step=1, steps=rows)
    tokens = [line["tokens"] for line in metrics(tmp_path / "run")]
    assert code == 0 and f"{rows} a pass: {min(tokens)} to {max(tokens)} tokens" in printed
    assert f"{sum(tokens)} in all; 6 frames of 9 tokens" in printed
    assert "plan     --ctx 256 --frames" in printed


def test_what_training_would_refuse_is_found(tmp_path, capsys):
    code, printed = _lengths(tmp_path, capsys, max_tokens=100, frames=8)
    assert code == 2 and "max_tokens is 100: raise max_tokens or take fewer frames" in printed
    (tmp_path / "no.mp4").write_text("not a video")
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    (tmp_path / "no.jsonl").write_text(json.dumps({"video": "no.mp4", "conversations": turns}))
    code, printed = _lengths(tmp_path, capsys, data=[str(tmp_path / "no.jsonl")], media=None)
    assert code == 2 and printed.endswith("no.mp4: not a video (Invalid data found when processing input)\n")
    assert "no.jsonl:1: " in printed
    assert len(printed.splitlines()) == 1
    with pytest.raises(SystemExit, match="2"):
        lengths.main(["gone.yaml"])
    assert "gone.yaml cannot be read" in capsys.readouterr().err
