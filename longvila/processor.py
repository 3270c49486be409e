"""Real video and pictures to normalised frames: which frames, and only those, in little memory.

    container --demux--> shown times (pts) --uniform | fps--> chosen times --seek, decode--> [F, 3, size, size]

A `Clip` is the list of shown times, read from the packets without decoding, so every process chooses the same frames
of the same file whatever it decodes itself, also without a frame count and at a variable rate. Decoding walks forward
and holds one frame; it seeks only in containers with an exact index (mp4, mov, Matroska) and only past a key frame.
A chosen time gives the first frame shown at or after it. Pixels are scaled bicubically to a square and normalised as
SigLIP's (value/255 - 0.5) / 0.5. Times are in ticks of the stream; settings are in frames and frames per second.
Leaves out: audio, subtitles, and decoding ahead of the step that needs it.
"""

from __future__ import annotations

import bisect
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from longvila.job import JobError

# Formats whose index gives the key frame at or before a time; elsewhere a seek may land on a broken reference.
SEEKABLE = frozenset({"mov", "mp4", "matroska", "webm"})
# Text that FFmpeg would draw as a terminal picture.
NOT_VIDEO = frozenset({"tty", "bin", "xbin", "adf", "idf"})


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What is known of a video without decoding it: when each frame is shown, in ticks, ascending."""

    path: Path
    times: tuple[int, ...]
    key_times: tuple[int, ...]  # where decoding may start
    ticks_per_s: float
    exact_seek: bool


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Chosen frames of one clip or picture."""

    clip: Clip
    times: tuple[int, ...]


def open_clip(path: Path) -> Clip:
    """Index a video or picture file; one-line `JobError` naming it when it is missing, no video, or empty."""
    if not path.is_file():
        raise JobError(f"{path}: no such file")
    try:
        with av.open(str(path)) as container:
            formats = frozenset(container.format.name.split(","))
            if not container.streams.video or formats & NOT_VIDEO:
                raise JobError(f"{path}: holds no video stream")
            stream = container.streams.video[0]
            packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
            base = stream.time_base
        times = [p.pts for p in packets if p.pts is not None]
        key_times = sorted(p.pts for p in packets if p.pts is not None and p.is_keyframe)
        exact = bool(formats & SEEKABLE) and len(set(times)) == len(packets)
        if not exact:
            times, key_times = _decoded_times(path), []
    except av.FFmpegError as fault:
        raise JobError(f"{path}: not a video ({fault.strerror})") from None
    if not times:
        raise JobError(f"{path}: holds no frames")
    ticks = float(1 / base) if base else 1.0
    return Clip(path=path, times=tuple(sorted(times)), key_times=tuple(key_times), ticks_per_s=ticks, exact_seek=exact)


def choose_frames(
    clip: Clip, frames: int | None = None, fps: float | None = None, max_frames: int | None = None
) -> Frames:
    """`frames` spread evenly from first to last, or one per 1/`fps` seconds, evenly thinned to at most `max_frames`.

    A clip with fewer frames than asked gives every frame once.
    """
    count = len(clip.times)
    if fps is None:
        wanted = min(count, frames if frames is not None else count)
        chosen = [clip.times[i] for i in _spread(count, wanted)]
    else:
        chosen = _at_rate(clip, fps)
    if max_frames is not None and len(chosen) > max_frames:
        chosen = [chosen[i] for i in _spread(len(chosen), max_frames)]
    return Frames(clip=clip, times=tuple(chosen))


class FrameCache:
    """Decoded pictures of clips seen before, least recently used ones dropped beyond `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._pictures: OrderedDict[tuple[Path, int, int], np.ndarray] = OrderedDict()

    def get(self, path: Path, time: int, size: int) -> np.ndarray | None:
        picture = self._pictures.get((path, time, size))
        if picture is not None:
            self._pictures.move_to_end((path, time, size))
        return picture

    def put(self, path: Path, time: int, picture: np.ndarray) -> None:
        key = (path, time, picture.shape[0])
        if key in self._pictures or picture.nbytes > self._limit_bytes:
            return
        self._pictures[key] = picture
        self._held_bytes += picture.nbytes
        while self._held_bytes > self._limit_bytes:
            self._held_bytes -= self._pictures.popitem(last=False)[1].nbytes


def decode(frames: Frames, places: range, size: int, cache: FrameCache | None = None) -> Tensor:
    """Frames `places` (positions in `frames.times`) as float32 [len(places), 3, size, size] in -1 … 1."""
    cache = cache or FrameCache(0)
    path, wanted = frames.clip.path, [frames.times[i] for i in places]
    held = [cache.get(path, time, size) for time in wanted]
    missing = [time for time, picture in zip(wanted, held, strict=True) if picture is None]
    pixels_FHWC = np.empty((len(places), size, size, 3), dtype=np.uint8)
    try:
        decoded = _pictures(frames.clip, missing, size)
        for place, picture in enumerate(held):
            pixels_FHWC[place] = next(decoded) if picture is None else picture
            if picture is None:
                cache.put(path, wanted[place], pixels_FHWC[place].copy())
    except av.FFmpegError as fault:
        raise JobError(f"{path}: cannot be decoded ({fault.strerror})") from None
    return torch.from_numpy(pixels_FHWC).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def _spread(count: int, wanted: int) -> list[int]:
    """`wanted` of `count` places, first and last among them (a single one: the first)."""
    return [int(place) for place in np.linspace(0, count - 1, wanted)]


def _at_rate(clip: Clip, fps: float) -> list[int]:
    if fps <= 0:
        raise JobError(f"fps {fps} must be positive")
    first, last = clip.times[0], clip.times[-1]
    step = clip.ticks_per_s / fps
    moments = [first + i * step for i in range(math.floor((last - first) / step) + 1)]
    shown = (clip.times[bisect.bisect_right(clip.times, moment) - 1] for moment in moments)
    return list(dict.fromkeys(shown))  # a clip slower than fps shows some frames for several moments


def _decoded_times(path: Path) -> list[int]:
    """Shown times by decoding, for containers whose packets do not tell them; in order where a frame has none."""
    with av.open(str(path)) as container:
        return [time for time, _ in _walk(container, container.streams.video[0])]


def _walk(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decoded frames with ascending times; a frame without a usable time is one tick after the one before."""
    before: int | None = None
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            continue  # a damaged or empty packet costs one frame, as in every player
        for frame in frames:
            time = frame.pts
            if time is None or (before is not None and time <= before):
                time = 0 if before is None else before + 1
            before = time
            yield time, frame


def _pictures(clip: Clip, wanted: Sequence[int], size: int) -> Iterator[np.ndarray]:
    """One picture per wanted time (ascending), decoding each stretch once and holding one frame."""
    if not wanted:
        return
    with av.open(str(clip.path)) as container:
        stream = container.streams.video[0]
        walk, now = _walk(container, stream), -1
        time, frame = clip.times[0] - 1, None
        for target in wanted:
            key = _key_before(clip, target)
            if key is not None and key > time:
                container.seek(key, stream=stream, backward=True)
                walk = _walk(container, stream)
                time, frame = next(walk, (time, frame))
                if time > target:  # the index lied: walk from the start
                    container.seek(clip.times[0], stream=stream, backward=True)
                    walk, time = _walk(container, stream), clip.times[0] - 1
            while time < target or frame is None:
                following = next(walk, None)
                if following is None:
                    break
                time, frame = following
            if frame is None:
                raise JobError(f"{clip.path}: holds no frame that can be decoded")
            if now != time:
                picture, now = _square(frame, size), time
            yield picture


def _key_before(clip: Clip, target: int) -> int | None:
    place = bisect.bisect_right(clip.key_times, target)
    return clip.key_times[place - 1] if clip.exact_seek and place else None


def _square(frame: av.VideoFrame, size: int) -> np.ndarray:
    scaled = frame.reformat(width=size, height=size, format="rgb24", interpolation="BICUBIC")
    # the rotation that the frame names (a phone held upright) is counter-clockwise, as rot90's
    return np.rot90(scaled.to_ndarray(), k=round(frame.rotation / 90))
