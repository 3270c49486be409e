"""Frame choice and decoding of real files: the shipped clips and small ones in other codecs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from longvila.job import JobError
from longvila.processor import Clip, FrameCache, choose_frames, decode, open_clip
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
    assert whole.shape == (7, 3, 48, 48)
    assert whole.min() >= -1.0 and whole.max() <= 1.0 and whole.std() > 0.1
    parts = [decode(frames, range(i, min(i + 2, len(frames.times))), 48) for i in range(0, len(frames.times), 2)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_gives_the_frames_that_were_chosen(tmp_path, name):
    clip = open_clip(write_clip(tmp_path / name, CODECS[name]))
    assert len(clip.times) == 30
    frames = choose_frames(clip, frames=5)
    assert frame_numbers(decode(frames, range(5), 32)) == [0, 7, 14, 22, 29]
    assert frame_numbers(decode(frames, range(3, 5), 32)) == [22, 29]
    assert decode(frames, range(2, 2), 32).shape == (0, 3, 32, 32)


def test_variable_frame_rate_is_sampled_by_time(tmp_path):
    """Ten frames in the first second, then one a second for four: at 1 frame/s, 1 s apart in time, not in number."""
    times = [3 * i for i in range(10)] + [30, 60, 90, 120]
    clip = open_clip(write_clip(tmp_path / "slow.mkv", "libx264", frames=14, times=times))
    assert frame_numbers(decode(choose_frames(clip, fps=1.0), range(5), 32)) == [0, 10, 11, 12, 13]
    assert frame_numbers(decode(choose_frames(clip, frames=14), range(14), 32)) == list(range(14))


def vila_places(count, rate, frames, fps):
    """NVlabs/VILA, llava/utils/media.py, `_load_video`: places of the frames, said again from its arithmetic."""
    if fps == 0:
        return [int(place) for place in np.round(np.linspace(0, count - 1, frames)).astype(int)]
    return [int(second * rate) for second in np.arange(0, count / rate, 1.0 / fps)[:frames]]


def constant(count, rate):
    """A clip of that many frames, its times in ticks of 1/90,000 s."""
    times = tuple(round(i * 90_000 / rate) for i in range(count))
    return Clip(path=Path("none"), times=times, key_times=(), ticks_per_s=90_000.0, exact_seek=True, rate=rate)


@pytest.mark.parametrize("frames", [1, 8, 41, 256])
def test_frames_are_chosen_as_vila_chooses_over_200_lengths(frames):
    for count in range(1, 201):
        rate = (10.0, 23.976, 25.0, 30000 / 1001, 60.0)[count % 5]
        clip = constant(count, rate)
        place = {time: i for i, time in enumerate(clip.times)}
        assert [place[t] for t in choose_frames(clip, frames).times] == vila_places(count, rate, frames, 0)
        for fps in (0.5, 2.0, 3.0, 24.0):
            chosen = choose_frames(clip, None, fps, frames).times
            assert [place[t] for t in chosen] == vila_places(count, rate, frames, fps), (count, rate, fps)


def test_fps_is_cut_off_and_short_clips_repeat_frames():
    clip = open_clip(MEDIA / "cyclist.mp4")  # 60 frames at 25 a second
    assert clip.rate == 25.0
    assert len(choose_frames(clip, fps=5).times) == 12
    cut = choose_frames(clip, fps=5, max_frames=4)
    assert cut.times == tuple(clip.times[i] for i in (0, 5, 10, 15))
    repeated = choose_frames(clip, frames=120)
    assert repeated.times[:4] == (clip.times[0],) * 2 + (clip.times[1],) * 2
    assert decode(repeated, range(2, 6), 24).shape == (4, 3, 24, 24)


def test_a_picture_is_one_frame():
    clip = open_clip(MEDIA / "street.png")
    assert choose_frames(clip, frames=1).times == clip.times
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
