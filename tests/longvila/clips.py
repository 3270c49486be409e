"""Where the example data is, and how tests make videos of their own."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MEDIA = EXAMPLES / "media"


def write_clip(path, codec, *, frames=30, times=None, gop=8, size=64, pixel="yuv420p"):
    """Frame i is a grey of 8 + 7 i, so that a decoded picture tells which frame it is; `times` in 1/30 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.bit_rate = 4_000_000  # enough for greys to survive
        stream.width = stream.height = size
        stream.pix_fmt, stream.gop_size = pixel, gop
        stream.time_base = stream.codec_context.time_base = Fraction(1, 30)
        for i in range(frames):
            grey = np.full((size, size, 3), 8 + 7 * i, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24").reformat(format=pixel)
            frame.pts, frame.time_base = (i if times is None else times[i]), Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def frame_numbers(pixels_FCHW):
    """The numbers of the frames that `write_clip` wrote, read off their grey."""
    greys = (pixels_FCHW.mean(dim=(1, 2, 3)) + 1.0) * 127.5
    return [round((float(grey) - 8) / 7) for grey in greys]
