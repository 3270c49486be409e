"""Frame choice and decoding of real files: the shipped clips and small ones in other codecs."""

import pytest
import torch

from longvila.job import JobError
from longvila.processor import FrameCache, choose_frames, decode, open_clip
from tests.longvila.clips import MEDIA, frame_numbers, write_clip

# frames that the cutting script wrote
SHIPPED = {"rabbit.mp4": 132, "taxi.mp4": 50, "cyclist.mp4": 60, "bicycle.mkv": 60, "band.webm": 120, "street.png": 1}
CODECS = {
    "h264.mp4": "libx264",
    "mpeg4.avi": "mpeg4",
    "mpeg1.mpg": "mpeg1video",
    "vp9.webm": "libvpx-vp9",
    "flash.flv": "flv",
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_clips_are_counted_and_split_decoding_equals_whole(name):
    clip = open_clip(MEDIA / name)
    assert len(clip.times) == SHIPPED[name]
    frames = choose_frames(clip, frames=7)
    whole = decode(frames, range(len(frames.times)), 48)
    assert whole.shape == (min(7, SHIPPED[name]), 3, 48, 48)
    assert whole.min() >= -1.0 and whole.max() <= 1.0 and whole.std() > 0.1
    parts = [decode(frames, range(i, min(i + 2, len(frames.times))), 48) for i in range(0, len(frames.times), 2)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_gives_the_frames_that_were_chosen(tmp_path, name):
    clip = open_clip(write_clip(tmp_path / name, CODECS[name]))
    assert len(clip.times) == 30
    frames = choose_frames(clip, frames=5)
    assert frame_numbers(decode(frames, range(5), 32)) == [0, 7, 14, 21, 29]
    assert frame_numbers(decode(frames, range(3, 5), 32)) == [21, 29]
    assert decode(frames, range(2, 2), 32).shape == (0, 3, 32, 32)


def test_variable_frame_rate_is_sampled_by_time(tmp_path):
    """Ten frames in the first second, then one a second for four: at 1 frame/s, 1 s apart in time, not in number."""
    times = [3 * i for i in range(10)] + [30, 60, 90, 120]
    clip = open_clip(write_clip(tmp_path / "slow.mkv", "libx264", frames=14, times=times))
    assert frame_numbers(decode(choose_frames(clip, fps=1.0), range(5), 32)) == [0, 10, 11, 12, 13]
    assert frame_numbers(decode(choose_frames(clip, frames=14), range(14), 32)) == list(range(14))


def test_fps_is_capped_evenly_and_short_clips_give_every_frame_once():
    clip = open_clip(MEDIA / "cyclist.mp4")  # 60 frames at 25 a second: 2.36 s from first to last
    assert len(choose_frames(clip, fps=5).times) == 12
    assert len(choose_frames(clip, fps=1000).times) == 60
    capped = choose_frames(clip, fps=25, max_frames=4)
    assert capped.times == tuple(clip.times[i] for i in (0, 19, 39, 59))
    assert choose_frames(clip, frames=500).times == clip.times


def test_a_picture_is_one_frame():
    clip = open_clip(MEDIA / "street.png")
    assert choose_frames(clip, frames=8).times == clip.times
    assert decode(choose_frames(clip, frames=1), range(1), 384).shape == (1, 3, 384, 384)


def test_the_cache_gives_the_same_pixels_and_keeps_its_limit():
    frames = choose_frames(open_clip(MEDIA / "taxi.mp4"), frames=6)
    fresh = decode(frames, range(6), 24)
    cache = FrameCache(4 * 24 * 24 * 3)
    for own in (range(6), range(2, 6), range(6)):
        assert torch.equal(decode(frames, own, 24, cache), fresh[own.start : own.stop])
    assert sum(cache.get(frames.clip.path, time, 24) is not None for time in frames.times) == 4


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.mp4", b"", "not a video"),
        ("text.mp4", b"no video at all\n" * 50, "not a video"),
        ("notes.txt", b"no video at all\n" * 50, "holds no video stream"),
    ],
)
def test_what_is_no_video_is_refused_in_one_line(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(JobError, match=reason) as fault:
        open_clip(path)
    assert str(path) in str(fault.value) and "\n" not in str(fault.value)


def test_truncated_and_missing_files_are_refused(tmp_path):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes((MEDIA / "rabbit.mp4").read_bytes()[:20000])
    with pytest.raises(JobError, match=r"cut\.mp4: not a video"):
        open_clip(cut)
    with pytest.raises(JobError, match=r"gone\.mp4: no such file"):
        open_clip(tmp_path / "gone.mp4")
    with pytest.raises(JobError, match="fps 0 must be positive"):
        choose_frames(open_clip(MEDIA / "taxi.mp4"), fps=0)
