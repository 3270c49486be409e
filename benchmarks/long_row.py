"""A training step on a film of 1,400 frames, 275,000 tokens, at reduced width: planned, launched, measured.

    python -m benchmarks.long_row [--frames 1400] [--ranks 2]         about 3 minutes on two quiet cores

196 tokens a frame as LongVILA has (28 x 28 patches, merged two by two), one layer 32 wide in tower and language model,
a ring of `--ranks` processes in float32. Prints the plan's price beside the measured step, and the largest process.
Left out: a profile of this machine, so the price rests on what is assumed of a CPU.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import yaml

import longvila
from cost_models import Cluster, Model, Workload
from cost_models.models.model import Vision
from cost_models.workload import Precision
from planner import plan

SIDE, TOKENS_PER_FRAME, TEXT = 224, 196, 600
PRESET = Path(longvila.__file__).parent / "presets" / "tiny.yaml"
WIDE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = Vision(
    layers=1, hidden=32, ffn=64, heads=2, patches=784, patch_size=8, tokens_per_frame=TOKENS_PER_FRAME,
    projector_in=128, projector_hidden=32,
)  # fmt: skip
MODEL = Model(name="narrow", layers=1, hidden=32, ffn=64, heads=2, kv_heads=2, head_dim=16, vocab=264, vision=VISION)


def write_film(path: Path, frames: int) -> None:
    """A bar that moves down over changing grey."""
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=24)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for frame in range(frames):
            grey = frame * 7 % 255
            picture = np.full((SIDE, SIDE, 3), grey, np.uint8)
            picture[frame % 28 * 8 :][:8] = 255 - grey
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        film.mux(stream.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1400)
    parser.add_argument("--ranks", type=int, default=2)
    asked = parser.parse_args()
    tokens = asked.frames * TOKENS_PER_FRAME + TEXT
    work = Workload(MODEL, frames=asked.frames, context_tokens=tokens, precision=Precision(param="fp32"))
    found = plan(Cluster.load("local", gpus=asked.ranks), work, fixed={"ring": asked.ranks, "ulysses": 1})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found.save(folder / "plan.json")
        write_film(folder / "film.mp4", asked.frames)
        turns = [{"from": "human", "value": "<video>\nWhat moves?"}, {"from": "gpt", "value": "A bar moves down."}]
        (folder / "data.json").write_text(json.dumps([{"id": "0", "video": "film.mp4", "conversations": turns}]))
        shape = yaml.safe_load(PRESET.read_text())
        shape["llm"] |= {**WIDE, "num_key_value_heads": 2}
        shape["vision"] |= {**WIDE, "image_size": SIDE}
        (folder / "narrow.yaml").write_text(yaml.safe_dump(shape))
        settings = {
            "model": str(folder / "narrow.yaml"), "data": [str(folder / "data.json")], "media": name, "steps": 1,
            "run": str(folder / "run"), "rows_per_step": 1, "max_tokens": tokens, "frames": asked.frames,
            "precision": "fp32",
        }  # fmt: skip
        (folder / "train.yaml").write_text(yaml.safe_dump(settings))
        launch = [str(Path(sys.executable).with_name("executor")), "launch", str(folder / "plan.json")]
        subprocess.run([*launch, "--config", str(folder / "train.yaml")], check=True)
        step = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"{asked.frames} frames, {step['tokens']:,} tokens, ring {asked.ranks}: priced {found.cost.step_s:.3g} s, "
        f"measured {step['seconds']:.3g} s, largest process {largest:.2g} GiB, loss {step['loss']:.4f}"
    )


if __name__ == "__main__":
    main()
