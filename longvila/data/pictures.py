"""Frames of one video stream as a player shows them: which stream, in which order of time, and which way up.

    packets --decode--> frames, ascending in time --scale--> [h, w, 3] --display matrix--> upright picture

- Stream: the one FFmpeg's players choose, never a cover picture.
- Time: a file whose streams were joined begins again at an earlier time; the joint is closed, so that time goes on.
- Upright: the frame's display matrix (a phone held upright, EXIF's orientation, a mirrored front camera) maps what is
  stored to what is shown. With M = [[a, b], [c, d]], x' = a x + c y and y' = b x + d y (FFmpeg's display.h); a negative
  determinant mirrors, so the angle alone would mislead. Angles between quarter turns go to the nearest one.

Left out: pixels that are not square (frames are scaled to a square), interlacing, HDR.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter

from longvila.data.sources import Source, read_bytes
from longvila.job import JobError

# Text that FFmpeg would draw as a terminal picture.
NOT_VIDEO = frozenset({"tty", "bin", "xbin", "adf", "idf"})
JOINT_S = 0.1  # a step back in time by more is a joint of two streams, as in fftools; by less, a bad time


def shown_stream(container: av.container.InputContainer, source: Source) -> av.VideoStream:
    """The video that a player shows."""
    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not videos or frozenset(container.format.name.split(",")) & NOT_VIDEO:
        cover = ", only a cover picture" if container.streams.video and not videos else ""
        raise JobError(f"{source}: holds no video stream{cover}")
    best = container.streams.best("video")
    return next((video for video in videos if best is not None and video.index == best.index), videos[0])


def walk(
    container: av.container.InputContainer, stream: av.VideoStream, wanted: frozenset[int] | None = None
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decoded frames with ascending times; one without a time is a frame's step after the one before, one whose time
    does not ascend a tick.

    Of a stream whose packets tell their times, frames that no other refers to are decoded only where `wanted`.
    """
    joint = round(JOINT_S / stream.time_base) if stream.time_base else 0
    rate = stream.average_rate
    before, shift = None, 0
    step = max(1, round(1 / (rate * stream.time_base))) if rate and stream.time_base else 1
    for packet in container.demux(stream):
        if wanted is not None:
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        try:
            frames = packet.decode()
        except av.FFmpegError:
            continue  # a damaged or empty packet costs one frame, as in every player
        for frame in frames:
            time = None if frame.pts is None else frame.pts + shift
            if before is not None and time is not None and time < before - joint:
                shift += before + step - time
                time = before + step
            elif time is None:
                time = 0 if before is None else before + step
            elif before is not None and time <= before:
                time = before + 1
            elif before is not None:
                step = time - before
            before = time
            yield time, frame


class Painter:
    """Frames of one medium to pictures; keeps FFmpeg's scaler, which is costly to set up, from frame to frame."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._scaler = VideoReformatter()

    def picture(self, frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
        """The frame as shown, scaled (bicubic, as SigLIP's processor): a view [height, width, 3] of bytes, to copy."""
        a, b, c, d = _matrix(frame, self._source)
        turned = abs(b) > abs(a)
        size = (height, width) if turned else (width, height)
        scaled = self._scaler.reformat(frame, *size, format="rgb24", interpolation=Interpolation.BICUBIC)
        plane: Any = scaled.planes[0]  # a buffer, though its type does not say so
        lines = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)  # lines end in padding
        stored_HWC = lines[:, : 3 * plane.width].reshape(plane.height, plane.width, 3)
        shown_HWC = stored_HWC.transpose(1, 0, 2) if turned else stored_HWC
        right, down = (c, b) if turned else (a, d)
        return shown_HWC[:: 1 if down > 0 else -1, :: 1 if right > 0 else -1]


def shown_size(frame: av.VideoFrame, source: Source) -> tuple[int, int]:
    """Width and height of the frame as shown."""
    a, b, _, _ = _matrix(frame, source)
    return (frame.height, frame.width) if abs(b) > abs(a) else (frame.width, frame.height)


def _matrix(frame: av.VideoFrame, source: Source) -> tuple[int, int, int, int]:
    """a, b, c, d of the frame's display matrix; of none, the identity's."""
    try:
        data: Any = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]
        if data is None:
            return _UPRIGHT
        a, b, _, c, d, *_ = struct.unpack_from("<9i", bytes(data))
        return a, b, c, d
    except ValueError:  # PyAV cannot list a frame's data where one is of a newer kind, as EXIF is
        return _EXIF.get(_orientation(source) or 0, _TURNS[round(frame.rotation / 90) % 4])


_UPRIGHT = (1, 0, 0, 1)
_TURNS = (_UPRIGHT, (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))  # counter-clockwise by 0, 90, 180, 270 degrees
# Exif 2.3, 4.6.4: orientation -> display matrix
_EXIF = {1: _UPRIGHT, 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1)}
_EXIF |= {5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0)}
# where EXIF's TIFF begins in JPEG, PNG and WebP
_TIFF = re.compile(rb"(?:Exif\0\0|eXIf|EXIF[\0-\xff]{4})(?:Exif\0\0)?(II\*\0|MM\0\*)")


def _orientation(source: Source) -> int | None:
    """The orientation that a picture file's EXIF states."""
    content = read_bytes(source)
    found = _TIFF.search(content)
    if found is None:
        return None
    tiff, order = content[found.start(1) :], "<" if found[1].startswith(b"II") else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == 0x0112:
                return int(value)
    except struct.error:
        return None
    return None
