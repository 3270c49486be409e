"""Batches are made one ahead, faults come in their turn, and no frame is decoded twice while it is held."""

import json

import av
import pytest
import torch

from longvila import processor
from longvila.ahead import ahead
from longvila.dataset import Documents, Row, Sample, Sampling, row_batch
from longvila.job import JobError
from longvila.processor import FrameCache, choose_frames, open_clip, pictures
from longvila.sharding import OneProcess
from longvila.tokens import ByteTokenizer, Turn, Writer
from tests.longvila.clips import MEDIA, frame_numbers, write_clip
from tests.longvila.test_train import metrics, run_job


def test_one_is_made_while_the_one_before_is_in_use():
    made = []

    def items():
        for item in "abc":
            made.append(item)
            yield item
        raise JobError("the fault of d")

    coming = ahead(items())
    assert next(coming) == "a" and next(coming) == "b"
    assert next(coming) == "c" and made == ["a", "b", "c"]
    with pytest.raises(JobError, match="the fault of d"):
        next(coming)


def test_frames_that_are_held_are_not_decoded_again(monkeypatch):
    scaled = []
    paint = processor.Painter.picture
    monkeypatch.setattr(processor.Painter, "picture", lambda *given: scaled.append(given[1].pts) or paint(*given))
    frames, cache = choose_frames(open_clip(MEDIA / "taxi.mp4"), frames=6), FrameCache(10**6)
    for _ in range(3):  # several questions on one video
        pictures(frames, range(6), 32, cache)
    assert len(scaled) == 6
    own = [len(pictures(frames, range(rank, rank + 2), 32)) for rank in (0, 2, 4)]
    assert own == [2, 2, 2] and len(scaled) == 12  # three ranks decode each frame once


def test_frames_that_none_refers_to_are_passed_over_and_change_nothing(tmp_path):
    clip = open_clip(write_clip(tmp_path / "b.mp4", "libx264", gop=30))
    for frames in (3, 7, 30):
        chosen = choose_frames(clip, frames)
        expected = [clip.times.index(time) for time in chosen.times]
        whole = processor.decode(chosen, range(frames), 32)
        assert frame_numbers(whole) == expected


def test_a_clip_of_which_nothing_can_be_decoded_is_named_with_its_line_or_left_out(tmp_path):
    """Its index is whole, so that only decoding shows it; every process must find it where samples are left out."""
    content = bytearray(write_clip(tmp_path / "bad.mp4", "libx264", frames=9).read_bytes())
    start = content.index(b"mdat") + 4
    end = content.index(b"moov") - 4
    content[start:end] = bytes(end - start)
    (tmp_path / "bad.mp4").write_bytes(content)
    turns = (Turn(role="human", text="q"), Turn(role="gpt", text="a"))
    sample = Sample(where="data.jsonl:7", name="bad", images=(), videos=(tmp_path / "bad.mp4",), turns=turns)
    writer = Writer(tokenizer=ByteTokenizer(), chat="byte", tokens_per_frame=9, frame_separator="")
    row = Row(documents=(Documents(writer, Sampling(frames=2)).make(sample),))
    with pytest.raises(JobError, match=r"^data.jsonl:7: .*bad.mp4: holds no frame that can be decoded"):
        row_batch(row, OneProcess(), 32, torch.device("cpu"), torch.float32)
    with pytest.raises(JobError, match=r"^data.jsonl:7: .*bad.mp4: "):
        Documents(writer, Sampling(frames=2), tried=True).make(sample)


def test_a_damaged_end_shows_the_last_frame_before_it(tmp_path):
    content = bytearray(write_clip(tmp_path / "cut.mp4", "libx264", frames=24, gop=8).read_bytes())
    with av.open(str(tmp_path / "cut.mp4")) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    for position, size in packets[16:]:  # the last of three groups
        content[position + 4 : position + size] = bytes(size - 4)
    (tmp_path / "cut.mp4").write_bytes(content)
    clip = open_clip(tmp_path / "cut.mp4")
    last = choose_frames(clip, frames=24)
    assert frame_numbers(processor.decode(last, range(23, 24), 32)) == [15]


def test_training_leaves_out_what_it_cannot_use_and_counts_it(tmp_path, capsys):
    (tmp_path / "no.mp4").write_text("no video")
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    lines = [{"conversations": turns}, {"video": "no.mp4", "conversations": turns}, {"video": "gone.mp4"}]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    given = {"data": [str(tmp_path / "data.jsonl")], "media": None, "steps": 2, "rows_per_step": 1, "pack": False}
    run_job(tmp_path / "run", on_error="skip", **given)
    assert [line["left_out"] for line in metrics(tmp_path / "run")][-1] >= 1
    assert "data: 2 faults; 2 samples are left; the first: " in capsys.readouterr().err
    with pytest.raises(JobError, match=r"data.jsonl:3: video 'gone.mp4' is not in .* \(and 1 more: python -m"):
        run_job(tmp_path / "again", **given)
    with pytest.raises(JobError, match="on_error 'ignore' must be one of stop, skip"):
        run_job(tmp_path / "wrong", on_error="ignore", **given)
