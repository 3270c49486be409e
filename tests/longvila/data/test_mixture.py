"""Weights: how often samples come, the same order under any process count and after a resume; samples left out."""

import json
from collections import Counter

import pytest

from longvila.data.listing import data_files, read_data
from longvila.data.mixture import Part, epoch_order
from longvila.dataset import Cursor, Documents, Rows, Sampling
from longvila.job import JobError
from longvila.tokens import ByteTokenizer, Writer
from tests.longvila.clips import MEDIA
from tests.longvila.data.test_planted import line, turns

PARTS = (Part(7), Part(10, 0.25), Part(3, 2.5))


@pytest.mark.parametrize("shuffle", [False, True])
def test_every_sample_comes_as_often_as_its_weight_says(shuffle):
    epochs = [epoch_order(PARTS, 3, epoch, shuffle=shuffle).tolist() for epoch in range(8)]
    assert [len(order) for order in epochs] == [7 + 2 + 7, 7 + 3 + 8] * 4
    counts = Counter(place for order in epochs for place in order)
    assert {counts[place] for place in range(7)} == {8}
    assert {counts[place] for place in range(7, 17)} == {2}
    assert {counts[place] for place in range(17, 20)} == {20}
    for before in range(0, 8, 4):  # no sample of the quarter set again before all have come
        quarter = Counter(p for order in epochs[before : before + 4] for p in order if 7 <= p < 17)
        assert set(quarter.values()) == {1} and len(quarter) == 10


def test_order_depends_on_seed_and_epoch_only():
    first = epoch_order(PARTS, 0, 1, shuffle=True).tolist()
    assert first == epoch_order(PARTS, 0, 1, shuffle=True).tolist()
    assert first != epoch_order(PARTS, 1, 1, shuffle=True).tolist()
    assert first != epoch_order(PARTS, 0, 3, shuffle=True).tolist()


def write(path, *entries):
    path.write_text("\n".join(json.dumps(entry) for entry in entries))
    return str(path)


def rows_of(data, skip=True, max_tokens=600):
    writer = Writer(tokenizer=ByteTokenizer(), chat="byte", tokens_per_frame=9, frame_separator="")
    return Rows(
        data.samples, Documents(writer, Sampling(frames=2)), max_tokens=max_tokens, pack=True, seed=0, shuffle=True,
        parts=data.parts, skip=skip,
    )  # fmt: skip


@pytest.fixture
def mixed(tmp_path):
    (tmp_path / "broken.mp4").write_text("no video")
    first = [line(id=f"a{i}", video=str(MEDIA / "taxi.mp4"), conversations=turns("q", "a")) for i in range(4)]
    first[2]["video"] = str(tmp_path / "broken.mp4")  # found when a row reaches it
    second = [line(id=f"b{i}", conversations=turns("q" * (900 if i == 1 else 9), "a")) for i in range(4)]
    second[3]["conversations"] = []  # found when it is read
    files = [write(tmp_path / "a.jsonl", *first), {"file": write(tmp_path / "b.jsonl", *second), "weight": 2}]
    return data_files(files)


def test_what_cannot_be_used_is_left_out_and_counted(mixed):
    data = read_data(mixed, None, skip=True)
    assert len(data.samples) == 7 and len(data.faults) == 1
    rows, cursor, seen = rows_of(data), Cursor(), Counter()
    while cursor.epoch == 0:
        (row,), cursor = rows.step(cursor, 1)
        seen.update(document.name for document in row.documents)
    assert seen == {"a0": 1, "a1": 1, "a3": 1, "b0": 2, "b2": 2}
    assert cursor == Cursor(epoch=1, position=0, left_out=3)  # a2 once, b1 twice
    with pytest.raises(JobError, match=r"a.jsonl:3: .*not a video|b.jsonl:2: .*max_tokens is 600"):
        for _ in range(4):
            _, cursor = rows_of(data, skip=False).step(cursor, 1)
    with pytest.raises(JobError, match=r"b.jsonl:4: conversations must be a list of turns$"):
        read_data(mixed, None, skip=False)
    with pytest.raises(JobError, match="none of the 7 samples can be used"):
        rows_of(data, max_tokens=3).step(Cursor(), 1)


def test_reading_goes_on_where_it_stood(mixed):
    rows = rows_of(read_data(mixed, None, skip=True), max_tokens=60)
    whole, _ = rows.step(Cursor(), 9)
    first, cursor = rows.step(Cursor(), 4)
    rest, _ = rows.step(cursor, 5)
    names = [[d.name for d in row.documents] for row in whole]
    assert names == [[d.name for d in row.documents] for row in (*first, *rest)] and len(names) == 9


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"file": "a.jsonl", "weight": 0}, "weight 0.0 of a.jsonl must be positive"),
        ({"file": "a.jsonl", "wieght": 1}, "unknown setting 'wieght'"),
        ({"weight": 1}, "missing setting 'file'"),
    ],
)
def test_wrong_entries_are_named(entry, reason):
    with pytest.raises(JobError, match=reason):
        data_files([entry])
