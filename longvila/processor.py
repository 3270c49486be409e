"""Real video and pictures to normalised frames: which frames, and only those, in little memory.

    container --demux--> shown times (pts) --even | fps--> chosen times --seek, decode--> [F, 3, size, size]

A `Clip` is the list of shown times, read from the packets without decoding, so every process chooses the same frames
of the same file whatever it decodes itself, also without a frame count and at a variable rate. Frames are chosen as
NVlabs/VILA's `llava/utils/media.py` does: places round(linspace(0, count - 1, n)), so a short clip repeats frames; at a
rate, the frame shown at 0, 1/fps, 2/fps … s, cut off after `max_frames`. Decoding walks forward and holds one frame; it
seeks only in containers with an exact index (mp4, mov, Matroska) and only past a key frame. Pixels are scaled
bicubically to a square and normalised as SigLIP's (value/255 - 0.5) / 0.5. Times are in ticks of the stream.
Leaves out: audio, subtitles.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from longvila.data.pictures import Painter, shown_size, shown_stream, walk
from longvila.data.sources import Source, frame_files, opened
from longvila.job import JobError

# Formats whose index gives the key frame at or before a time; elsewhere a seek may land on a broken reference.
SEEKABLE = frozenset({"mov", "mp4", "matroska", "webm"})


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What is known of a video without decoding it: when each frame is shown, in ticks, ascending."""

    path: Source
    times: tuple[int, ...]
    key_times: tuple[int, ...]  # where decoding may start
    ticks_per_s: float
    exact_seek: bool
    rate: float | None = None  # frames per second where it is constant; None of a folder, which has no times
    files: tuple[Path, ...] = ()  # the frames of a folder; `times` are then their places


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Chosen frames of one clip or picture; of a tiled picture, the tiles row by row and then the whole."""

    clip: Clip
    times: tuple[int, ...]
    grid: tuple[int, int] | None = None  # columns and rows of tiles
    pool: int = 1  # frames that share their tokens

    @property
    def count(self) -> int:
        """How many stand in the row: frames, tiles, or means of `pool` frames."""
        return len(self.times) // self.pool

    def pooled(self, pool: int) -> Frames:
        """The same, `pool` of them at a time; the last is repeated where they do not divide."""
        return replace(self, times=self.times + self.times[-1:] * (-len(self.times) % pool), pool=pool)


def open_clip(path: Source) -> Clip:
    """Index a video, a picture, or a folder of frames; one-line `JobError` naming it when it is missing or none."""
    if isinstance(path, Path) and path.is_dir():
        files = frame_files(path)
        if not files:
            raise JobError(f"{path}: a folder without pictures")
        places = tuple(range(len(files)))
        return Clip(path=path, times=places, key_times=(), ticks_per_s=1.0, exact_seek=False, files=files)
    if isinstance(path, Path) and not path.is_file():
        raise JobError(f"{path}: no such file")
    try:
        with opened(path) as container:
            stream = shown_stream(container, path)
            packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size and not p.is_discard]
            base, average = stream.time_base, stream.average_rate
            seekable = bool(SEEKABLE & frozenset(container.format.name.split(",")))
        times = [pts for pts, _ in packets if pts is not None]
        key_times = sorted(pts for pts, key in packets if pts is not None and key)
        exact = seekable and len(set(times)) == len(packets)
        if not exact:
            times, key_times = _decoded_times(path), []
    except av.FFmpegError as fault:
        raise JobError(f"{path}: not a video ({fault.strerror})") from None
    if not times:
        raise JobError(f"{path}: holds no frames")
    times.sort()
    ticks = float(1 / base) if base else 1.0
    clip = Clip(path=path, times=tuple(times), key_times=tuple(key_times), ticks_per_s=ticks, exact_seek=exact)
    return replace(clip, rate=_constant_rate(clip, float(average) if average else None))


def choose_frames(
    clip: Clip, frames: int | None = None, fps: float | None = None, max_frames: int | None = None
) -> Frames:
    """`frames` spread evenly from first to last, or one per 1/`fps` seconds and at most `max_frames`.

    A clip with fewer frames than asked repeats some. A folder of frames has no times: at a rate it gives `max_frames`
    (or `frames`) spread evenly.
    """
    count = len(clip.times)
    if fps is not None and fps <= 0:
        raise JobError(f"fps {fps} must be positive")
    if fps is None or clip.files:
        wanted = max_frames if fps is not None and max_frames is not None else frames
        chosen = [clip.times[i] for i in _spread(count, count if wanted is None else wanted)]
    else:
        chosen = _at_rate(clip, fps)[:max_frames]
    return Frames(clip=clip, times=tuple(chosen))


def tile(clip: Clip, size: int, least: int, most: int) -> Frames:
    """A picture as tiles of size x size, in the grid of `least` to `most` tiles whose shape is nearest to its own.

    As NVlabs/VILA's `dynamic_preprocess` (`llava/mm_utils.py`): of grids equally near, the larger where the picture has
    more than half its pixels; the whole picture follows where there is more than one tile.
    """
    with opened(clip.path) as container:
        _, frame = next(walk(container, shown_stream(container, clip.path)))
    width, height = shown_size(frame, clip.path)
    best, nearest = (1, 1), float("inf")
    grids = {(i, j) for i in range(1, most + 1) for j in range(1, most + 1) if least <= i * j <= most}
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        apart = abs(width / height - columns / rows)
        if apart < nearest or (apart == nearest and width * height > 0.5 * size * size * columns * rows):
            best, nearest = (columns, rows), apart
    count = best[0] * best[1]
    return Frames(clip=clip, times=(clip.times[0],) * (count + (count > 1)), grid=best)


class FrameCache:
    """Decoded pictures of clips seen before, least recently used ones dropped beyond `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._pictures: OrderedDict[tuple[Source, int, int], np.ndarray] = OrderedDict()

    def get(self, path: Source, time: int, size: int) -> np.ndarray | None:
        picture = self._pictures.get((path, time, size))
        if picture is not None:
            self._pictures.move_to_end((path, time, size))
        return picture

    def put(self, path: Source, time: int, picture: np.ndarray) -> None:
        key = (path, time, picture.shape[0])
        if key in self._pictures or picture.nbytes > self._limit_bytes:
            return
        self._pictures[key] = picture.copy()
        self._held_bytes += picture.nbytes
        while self._held_bytes > self._limit_bytes:
            self._held_bytes -= self._pictures.popitem(last=False)[1].nbytes


def decode(frames: Frames, places: range, size: int, cache: FrameCache | None = None) -> Tensor:
    """Frames `places` (positions in `frames.times`) as float32 [len(places), 3, size, size] in -1 … 1."""
    return normalised(torch.from_numpy(pictures(frames, places, size, cache)), torch.float32)


def normalised(pictures_FHWC: Tensor, dtype: torch.dtype) -> Tensor:
    """Pictures of bytes as the tower wants them, [F, 3, H, W] in -1 … 1, on their device."""
    frames, height, width, _ = pictures_FHWC.shape
    pixels_FCHW = torch.empty(frames, 3, height, width, dtype=dtype, device=pictures_FHWC.device)
    for start in range(0, frames, 64):  # so that little is held in float32
        part_FCHW = pictures_FHWC[start : start + 64].permute(0, 3, 1, 2)
        pixels_FCHW[start : start + 64] = torch.div(part_FCHW, 127.5).sub_(1.0)
    return pixels_FCHW


def pictures(frames: Frames, places: range, size: int, cache: FrameCache | None = None) -> np.ndarray:
    """Frames `places` as bytes [len(places), size, size, 3]; a fault is a JobError that names the file."""
    pictures_FHWC = np.empty((len(places), size, size, 3), dtype=np.uint8)
    try:
        if frames.grid is not None:
            pictures_FHWC[:] = _tiles(frames, size)[places.start : places.stop]
        else:
            _fill(pictures_FHWC, frames, places, cache or FrameCache(0))
    except av.FFmpegError as fault:
        raise JobError(f"{frames.clip.path}: cannot be decoded ({fault.strerror})") from None
    return pictures_FHWC


def _fill(pictures_FHWC: np.ndarray, frames: Frames, places: range, cache: FrameCache) -> None:
    size, clip = pictures_FHWC.shape[1], frames.clip
    wanted = [frames.times[i] for i in places]
    held = [cache.get(clip.path, time, size) for time in wanted]
    missing = [time for time, picture in zip(wanted, held, strict=True) if picture is None]
    decoded = _file_pictures(clip, missing, size) if clip.files else _pictures(frames, missing, size)
    for place, picture in enumerate(held):
        pictures_FHWC[place] = next(decoded) if picture is None else picture
        if picture is None:
            cache.put(clip.path, wanted[place], pictures_FHWC[place])


def _spread(count: int, wanted: int) -> list[int]:
    """`wanted` of `count` places, first and last among them (a single one: the first); halves go to the even place."""
    return [int(place) for place in np.round(np.linspace(0, count - 1, wanted))]


def _constant_rate(clip: Clip, average: float | None) -> float | None:
    """Frames per second where no frame is shown more than a tick from its turn."""
    count, first, last = len(clip.times), clip.times[0], clip.times[-1]
    if count < 2:
        return average
    turns = first + np.arange(count) * (last - first) / (count - 1)
    if np.abs(turns - clip.times).max() > 1.0:
        return None
    measured = (count - 1) * clip.ticks_per_s / (last - first)
    # the stated rate is exact (30000/1001) where times are rounded to milliseconds
    return average if average is not None and abs(average / measured - 1) * count < 1.0 else measured


def _at_rate(clip: Clip, fps: float) -> list[int]:
    """Times of the frames shown at 0, 1/fps … s; the arithmetic is VILA's, so that both round alike."""
    first, count = clip.times[0], len(clip.times)
    if clip.rate is not None:
        moments_s = np.arange(0, count / clip.rate, 1.0 / fps)
        return [clip.times[min(int(moment_s * clip.rate), count - 1)] for moment_s in moments_s]
    shown_last_s = (clip.times[-1] - first) / clip.ticks_per_s
    moments = np.arange(0, np.nextafter(shown_last_s, np.inf), 1.0 / fps) * clip.ticks_per_s + first
    return [clip.times[bisect.bisect_right(clip.times, moment) - 1] for moment in moments]


def _decoded_times(path: Source) -> list[int]:
    """Shown times by decoding, for containers whose packets do not tell them; in order where a frame has none."""
    with opened(path) as container:
        return [time for time, _ in walk(container, shown_stream(container, path))]


def _pictures(frames: Frames, wanted: Sequence[int], size: int) -> Iterator[np.ndarray]:
    """One picture per wanted time (ascending), decoding each stretch once and holding one frame."""
    if not wanted:
        return
    clip = frames.clip
    painter, chosen = Painter(clip.path), frozenset(frames.times) if clip.exact_seek else None
    with opened(clip.path) as container:
        stream = shown_stream(container, clip.path)
        steps, now = walk(container, stream, chosen), None
        time, frame = clip.times[0] - 1, None
        for target in wanted:
            key = _key_before(clip, target)
            if key is not None and key > time:
                container.seek(key, stream=stream, backward=True)
                steps = walk(container, stream, chosen)
                time, frame = next(steps, (time, frame))
                if time > target:  # the index lied: walk from the start
                    container.seek(clip.times[0], stream=stream, backward=True)
                    steps, time = walk(container, stream, chosen), clip.times[0] - 1
            while time < target or frame is None:
                following = next(steps, None)
                if following is None:
                    break
                time, frame = following
            if frame is None:
                time, frame = _last_shown(clip, target)
            if now != time:
                picture, now = painter.picture(frame, size, size), time
            yield picture


def _last_shown(clip: Clip, target: int) -> tuple[int, av.VideoFrame]:
    """The last frame up to a time after which nothing can be decoded: what a player goes on showing."""
    last = None
    with opened(clip.path) as container:
        for time, frame in walk(container, shown_stream(container, clip.path)):
            if last is not None and time > target:
                break
            last = time, frame
    if last is None:
        raise JobError(f"{clip.path}: holds no frame that can be decoded")
    return last


def _file_pictures(clip: Clip, wanted: Sequence[int], size: int) -> Iterator[np.ndarray]:
    """One picture per wanted place of a folder of frames; for a broken one the readable one before, else after, it."""
    for place in wanted:
        for near in (*range(place, -1, -1), *range(place + 1, len(clip.files))):
            frame = _file_frame(clip.files[near])
            if frame is not None:
                yield Painter(clip.files[near]).picture(frame, size, size)
                break
        else:
            raise JobError(f"{clip.path}: holds no picture that can be decoded")


def _file_frame(file: Path) -> av.VideoFrame | None:
    try:
        with opened(file) as container:
            return next(walk(container, shown_stream(container, file)), (0, None))[1]
    except (av.FFmpegError, JobError):
        return None


def _tiles(frames: Frames, size: int) -> np.ndarray:
    """All tiles of a tiled picture, and the whole, [tiles, size, size, 3]."""
    columns, rows = frames.grid or (1, 1)
    painter = Painter(frames.clip.path)
    with opened(frames.clip.path) as container:
        _, frame = next(walk(container, shown_stream(container, frames.clip.path)))
    large_HWC = painter.picture(frame, columns * size, rows * size)
    tiles = large_HWC.reshape(rows, size, columns, size, 3).transpose(0, 2, 1, 3, 4).reshape(-1, size, size, 3)
    whole = painter.picture(frame, size, size)[None]
    return tiles if columns * rows == 1 else np.concatenate([tiles, whole])


def _key_before(clip: Clip, target: int) -> int | None:
    place = bisect.bisect_right(clip.key_times, target)
    return clip.key_times[place - 1] if clip.exact_seek and place else None
