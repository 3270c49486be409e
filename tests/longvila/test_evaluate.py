"""Evaluation: what is read from each benchmark, how answers become choices, and a model that is evaluated."""

import csv
import json

import av
import numpy as np
import pytest
import torch
from pyarrow import Table, parquet

from longvila.assemble import build_model
from longvila.config import load_config
from longvila.evaluate import heatmap, main
from longvila.evaluate.benchmarks import BENCHMARKS, read
from longvila.evaluate.model import Evaluated
from longvila.evaluate.needle import make_films
from longvila.job import Job, JobError
from longvila.sharding import OneProcess
from longvila.synthetic import encode, make_film
from longvila.weights import save_weights

OPTIONS = ["red", "green", "blue", "white", "cyan"]
QUESTION = "Which colour has the shape?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A video under the names of all benchmarks, their files, and a model."""
    folder = tmp_path_factory.mktemp("evaluate")
    encode(make_film(np.random.default_rng(0), "f", 6, 1), folder / "v1.mp4", 48)
    lettered = [f"{letter}. {text}" for letter, text in zip("ABCDE", OPTIONS, strict=True)]
    written = {
        "videomme": [
            {"video_id": "001", "videoID": "v1", "duration": "short", "questions": [
                {"question_id": "001-1", "question": QUESTION, "options": lettered[:4], "answer": "C"},
                {"question_id": "001-2", "question": QUESTION, "options": lettered[:4], "answer": "A"}]},
            {"question_id": "002-1", "videoID": "v1", "duration": "long", "question": QUESTION,
             "options": lettered[:4], "answer": "B"},
        ],
        "longvideobench": [{"id": "x_0", "video_id": "x", "video_path": "v1.mp4", "question": QUESTION,
                            "candidates": OPTIONS, "correct_choice": 4, "question_category": "S2E"}],
        "egoschema": [{"q_uid": "v1", "question": QUESTION, **{f"option {i}": OPTIONS[i] for i in range(5)}},
                      {"q_uid": "unanswered", "question": QUESTION, **{f"option {i}": "" for i in range(5)}}],
    }  # fmt: skip
    for name, content in written.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "egoschema-answers.json").write_text(json.dumps({"v1": 3}))
    with (folder / "nextqa.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["video", "question", "answer", "qid", "type", *(f"a{i}" for i in range(5))])
        rows.writerow(["v1", QUESTION, "2", "7", "CW", *OPTIONS])
    torch.manual_seed(0)
    model = build_model(load_config("tiny"), Job(), dtype=torch.float32, seed=0, weights=None, trained=())
    save_weights(model, folder / "weights", OneProcess())
    return folder


FILES = {"videomme": "videomme.json", "longvideobench": "longvideobench.json", "egoschema": "egoschema.json",
         "nextqa": "nextqa.csv"}  # fmt: skip
RIGHT = {"videomme": [2, 0, 1], "longvideobench": [4], "egoschema": [3], "nextqa": [2]}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_is_read_as_published(folder, name):
    answers = folder / "egoschema-answers.json" if name == "egoschema" else None
    choices, _ = read(BENCHMARKS[name], folder / FILES[name], answers, folder)
    assert [choice.right for choice in choices] == RIGHT[name]
    for choice in choices:
        assert choice.video == folder / "v1.mp4"
        assert choice.question == QUESTION
        assert list(choice.options) == OPTIONS[: len(choice.options)]


@pytest.mark.parametrize(("name", "change", "told"), [
    ("longvideobench", {"correct_choice": 5}, "entry 1: the answer '5' is not one of 5 options"),
    ("longvideobench", {"video_path": "../../etc/passwd"}, "entry 1: video '../../etc/passwd' is not in"),
    ("longvideobench", {"candidates": "red"}, "entry 1: candidates is no list"),
    ("videomme", {"answer": ""}, "entry 1: the answer '' is not one of 4 options"),
])  # fmt: skip
def test_a_question_that_cannot_be_used_is_one_line(folder, tmp_path, name, change, told):
    entry = json.loads((folder / FILES[name]).read_text())[-1]
    (tmp_path / "q.json").write_text(json.dumps([{**entry, **change}]))
    with pytest.raises(JobError) as error:
        read(BENCHMARKS[name], tmp_path / "q.json", None, folder)
    assert told in str(error.value)
    del entry["question"]
    (tmp_path / "q.json").write_text(json.dumps([entry]))
    with pytest.raises(JobError, match="entry 1: has no 'question'"):
        read(BENCHMARKS[name], tmp_path / "q.json", None, folder)


ODD = {  # legal, and seen in published files or copies of them: (benchmark, suffix, entries, right options)
    "options without letters": ("videomme", ".json", [{"options": ["E. coli", "B. subtilis"], "answer": "A"}], [0]),
    "letters of other kinds": ("videomme", ".json", [{"options": ["(A) red", "B: blue"], "answer": "(b)"}], [1]),
    "an answer in full": ("videomme", ".jsonl", [{"options": OPTIONS, "answer": "B. green"}], [1]),
    "an answer as text": ("videomme", ".json", [{"options": OPTIONS, "answer": "White"}], [3]),
    "a row of Parquet": ("videomme", ".parquet", [{"options": OPTIONS, "answer": "C", "duration": None}], [2]),
    "no subtitles, numbers": (
        "longvideobench", ".json", [{"candidates": [1, 2, 3], "correct_choice": "2", "subtitle_path": None}], [2],
    ),
    "a list and an answer beside it": (
        "egoschema", ".parquet", [{"video_idx": "v1", "option": OPTIONS, "answer": "4"}], [4],
    ),
    "options in columns, some empty": (
        "longvideobench", ".parquet",
        [{**{f"option{i}": one for i, one in enumerate((*OPTIONS[:3], "N/A", "N/A"))}, "correct_choice": 2}], [2],
    ),
    "questions without an answer": (
        "egoschema", ".parquet",
        [{"video_idx": "v1", "option": OPTIONS, "answer": one} for one in (None, "None", "3")], [3],
    ),
    "a number with a point": ("nextqa", ".csv", [{"answer": "1.0", "question": "first\nline"}], [1]),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_but_legal_fields_are_read(folder, tmp_path, name):
    benchmark, suffix, entries, right = ODD[name]
    common = {"question": QUESTION, "video_id": "v1", "q_uid": "v1", "video": "17", "question_id": "q", "id": "q"}
    entries = [{**common, **entry} for entry in entries]
    if "video_idx" in entries[0]:
        del entries[0]["q_uid"]
    (tmp_path / "v1.mp4").write_bytes((folder / "v1.mp4").read_bytes())
    file = tmp_path / f"questions{suffix}"
    if suffix == ".csv":
        (tmp_path / "map_vid_vidorID.json").write_text(json.dumps({"17": "v1"}))
        with file.open("w", newline="", encoding="utf-8-sig") as opened:
            rows = csv.DictWriter(opened, [*entries[0], *(f"a{i}" for i in range(5))])
            rows.writeheader()
            rows.writerows({**entry, **{f"a{i}": option for i, option in enumerate(OPTIONS)}} for entry in entries)
    elif suffix == ".parquet":
        parquet.write_table(Table.from_pylist(entries), file)
    else:
        lines = "\n".join(json.dumps(entry) for entry in entries)
        file.write_text(lines if suffix == ".jsonl" else f"\ufeff[{lines}]")
    choices, faults = read(BENCHMARKS[benchmark], file, None, tmp_path)
    assert ([choice.right for choice in choices], faults) == (right, [])
    assert "(A)" not in choices[0].options[0] and choices[0].video == tmp_path / "v1.mp4"
    assert name != "options without letters" or choices[0].options == ("E. coli", "B. subtilis")


def test_choices_that_cannot_be_used_are_counted_and_left_out_where_asked(folder, tmp_path):
    entry = json.loads((folder / "longvideobench.json").read_text())[0]
    bad = [{**entry, "video_path": "gone.mp4"}, {**entry, "candidates": ["red", None]}]
    (tmp_path / "q.json").write_text(json.dumps([bad[0], entry, bad[1]]))
    with pytest.raises(JobError, match=r"entry 1: video 'gone\.mp4' is not in .* \(and 1 more; on_error: skip\)"):
        read(BENCHMARKS["longvideobench"], tmp_path / "q.json", None, folder)
    choices, faults = read(BENCHMARKS["longvideobench"], tmp_path / "q.json", None, folder, skip=True)
    assert len(choices) == 1 and [fault.partition(": ")[2] for fault in faults][1] == "entry 3: option 1 is empty"


def run(folder, output, **settings):
    main(Job(config={"weights": str(folder / "weights"), "output": str(output), "frames": 4, **settings}))
    return json.loads((output / "scores.json").read_text())


@pytest.mark.parametrize("by", ["letters", "likelihood"])
def test_choices_are_made_and_counted(folder, tmp_path, by):
    given = {"task": "choice", "benchmark": "videomme", "questions": str(folder / "videomme.json"), "by": by}
    scores = run(folder, tmp_path, **given)
    right = dict(zip(("001-1", "001-2", "002-1"), RIGHT["videomme"], strict=True))
    hits = [scores["chosen"][name] == place for name, place in right.items()]
    assert scores["shares"]["all"]["share"] == pytest.approx(sum(hits) / 3)
    assert scores["shares"]["long"]["count"] == 1
    if by == "likelihood":
        assert None not in scores["chosen"].values()


def test_a_needle_is_looked_for_at_every_depth_and_length(folder, tmp_path, monkeypatch):
    seen, make = [], Evaluated._batch

    def watched(*given, **more):
        batch = make(*given, **more)
        seen.append(batch.frames)
        return batch

    monkeypatch.setattr(Evaluated, "_batch", watched)
    scores = run(folder, tmp_path, task="needle", needle_frames=[4, 12], depths=3, films=2)
    assert np.array(scores["found"]).shape == (2, 3)
    films = [film for count in (4, 12) for film in make_films(count, 3, 2, seed=1)]
    assert [film.cards[0].frame for film in films[:6]] == [0, 0, 2, 2, 3, 3]
    assert sorted(seen) == sorted(film.frames for film in films)
    right = [scores["answers"][film.name].strip() == film.cards[0].letter for film in films]
    assert np.mean(scores["found"]) == pytest.approx(np.mean(right))
    with av.open(str(tmp_path / "heatmap.png")) as picture:
        assert next(picture.decode(video=0)).height == heatmap.ABOVE + 2 * heatmap.CELL
    assert "12 frames" in (tmp_path / "heatmap.html").read_text()


def test_a_heat_map_is_green_where_all_is_found():
    picture = heatmap.draw(np.array([[0.0, 1.0]]), ["8"], ["0%", "100%"])
    last = picture[heatmap.ABOVE + 5, heatmap.LEFT + 5], picture[heatmap.ABOVE + 5, heatmap.LEFT + heatmap.CELL + 5]
    assert tuple(last[0]) == tuple(heatmap.LOW)
    assert tuple(last[1]) == tuple(heatmap.HIGH)


def test_questions_are_asked_in_turn_and_right_where_the_files_answer_is_said(folder, tmp_path, monkeypatch):
    turns = [("human", "<video>\nWho says A?"), ("gpt", "red"), ("human", "Who says B?"), ("gpt", "blue")]
    line = {"id": "d/says", "video": "v1.mp4", "conversations": [{"from": who, "value": text} for who, text in turns]}
    (folder / "asked.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line | {"id": "d/find"}) + "\n")
    seen = []

    def texts(self, samples, most_tokens):
        seen.extend([turn.text for turn in sample.turns] for sample in samples)
        return iter([" Red", "green", "red", "blue"])

    monkeypatch.setattr(Evaluated, "texts", texts)
    scores = run(folder, tmp_path, task="retrieval", questions=str(folder / "asked.jsonl"))
    assert seen[:2] == [["<video>\nWho says A?"], ["<video>\nWho says A?", "red", "Who says B?"]]
    assert {name: (one["share"], one["count"]) for name, one in scores["shares"].items()} == {
        "all": (0.75, 4), "find": (1.0, 2), "says": (0.5, 2),
    }  # fmt: skip
