"""Reading long video on one core: decoding against PyAV's own loop, and the host's work for a row of 2M tokens.

    python benchmarks/decoding.py [--frames 600]

Decoding: a clip of moving noise (H.264, 1280 x 720, 30 frames a second, a key frame every 250), the same frames by
`longvila.processor.pictures` and by a plain loop over `container.decode`, both scaled to 384 x 384; seconds of CPU on
one core, least of three turns. A rank of four decodes its quarter of the frames; its share of the whole shows what
seeking costs. Host work: one row of 2M tokens of a video at two frames a second, from an indexed clip to tensors,
decoding left out; and indexing a clip of 10,000 frames once, by its packets. All of it runs in a thread beside the step
(`longvila.ahead`).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation

from longvila.data.samples import Sample
from longvila.dataset import Documents, Row, Sampling, row_batch
from longvila.processor import Clip, FrameCache, Frames, choose_frames, open_clip, pictures
from longvila.sharding import OneProcess
from longvila.tokens import ByteTokenizer, Turn, Writer

SIZE, TOKENS = 384, 2 * 10**6


def write_clip(path: Path, frames: int, grain: int = 8) -> Path:
    """160 x 90 grains of noise that move by one a frame."""
    noise = np.random.default_rng(0).integers(0, 255, (90, 160 + frames, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 160 * grain, 90 * grain, "yuv420p", 250
        for i in range(frames):
            picture = np.ascontiguousarray(noise[:, i : i + 160].repeat(grain, 0).repeat(grain, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def plain(path: Path, wanted: set[int]) -> int:
    """PyAV's own loop: decode all, scale what is wanted."""
    taken = 0
    with av.open(str(path)) as container:
        for place, frame in enumerate(container.decode(video=0)):
            if place in wanted:
                frame.reformat(SIZE, SIZE, "rgb24", interpolation=Interpolation.BICUBIC).to_ndarray()
                taken += 1
            if taken == len(wanted):
                break
    return taken


def cpu_s(work: Callable[[], object], turns: int = 3) -> float:
    least = float("inf")
    for _ in range(turns):
        began = time.process_time()
        work()
        least = min(least, time.process_time() - began)
    return least


def compare(path: Path) -> None:
    clip = open_clip(path)
    count = len(clip.times)
    for name, frames in {"every frame": choose_frames(clip, count), "2 a second": choose_frames(clip, fps=2.0)}.items():
        place = {time: i for i, time in enumerate(clip.times)}
        wanted = {place[time] for time in frames.times}
        ours = cpu_s(lambda frames=frames: pictures(frames, range(len(frames.times)), SIZE))
        theirs = cpu_s(lambda wanted=wanted: plain(path, wanted))
        speed = f"ours {ours:.2f} s, PyAV {theirs:.2f} s: {theirs / ours:.2f} of PyAV's speed"
        print(f"{name:12} {len(wanted):5} frames: {speed}")
        quarters = [_own(frames, rank, 4) for rank in range(4)]
        shares = [cpu_s(lambda frames=frames, own=own: pictures(frames, own, SIZE), turns=1) for own in quarters]
        print(f"{'':12} four ranks: {', '.join(f'{share / ours:.0%}' for share in shares)} of the whole each")
    frames, cache = choose_frames(clip, fps=2.0), FrameCache(10**9)
    pictures(frames, range(len(frames.times)), SIZE, cache)
    again = cpu_s(lambda: pictures(frames, range(len(frames.times)), SIZE, cache))
    print(f"{'again, held':12} {len(frames.times):5} frames: {again:.3f} s")


def _own(frames: Frames, rank: int, ranks: int) -> range:
    count = len(frames.times)
    return range(count * rank // ranks, count * (rank + 1) // ranks)


class NoFrames(OneProcess):
    def own_frames(self, frames: int) -> range:
        return range(0)


def host_work(path: Path) -> None:
    per_frame = 196
    count = TOKENS // (per_frame + 1)
    times = tuple(range(count * 15))  # 30 frames a second, two of them taken
    clip = Clip(path=path, times=times, key_times=(), ticks_per_s=30.0, exact_seek=True, rate=30.0)
    writer = Writer(tokenizer=ByteTokenizer(), chat="byte", tokens_per_frame=per_frame, frame_separator="\n")
    documents = Documents(writer, Sampling(fps=2.0))
    documents._clips[path] = clip
    turns = (Turn(role="human", text="<video>\nWhat?"), Turn(role="gpt", text="That."))
    sample = Sample(where="here:1", name="long", images=(), videos=(path,), turns=turns)

    def row() -> None:
        made = Row(documents=(documents.make(sample),))
        assert made.tokens > 0.99 * TOKENS and made.label_tokens == 6
        row_batch(made, NoFrames(), SIZE, torch.device("cpu"), torch.float32)

    print(f"a row of {TOKENS:,} tokens, {count:,} frames, to tensors: {cpu_s(row):.2f} s")
    long = write_clip(path.with_name("long.mp4"), 10_000, grain=2)
    index_s = cpu_s(lambda: open_clip(long)) / 10_000
    print(f"indexing a clip, once: {index_s * 1e6:.1f} us a frame, {index_s * count * 15:.2f} s for that row's video")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=600)
    frames = parser.parse_args().frames
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(path, frames)
        compare(path)
        host_work(path)


if __name__ == "__main__":
    main()
