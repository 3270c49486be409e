"""`make run`: the whole path on this machine, from a plan for 256 GPUs to an answer about a video, in a few minutes.

    plan 256 GPUs at 2M tokens · profile this machine · how long are the rows of the data? · plan for it and them
    · train LongVILA-tiny on real clips with that plan · ask it two questions · predicted against measured

Step time and memory are compared for the same work: the plan's tokens and the measured ones are printed beside them.

Every line beginning with `$` is a command that can be typed as it stands. Files go to runs/example.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
RUN = Path("runs/example")
RANKS = 2
WARM_STEPS = 5


def say(command: str) -> None:
    """Show a command and run it; its failure ends the example with its exit code."""
    print(f"\n$ {command}", flush=True)
    words = shlex.split(command)
    code = subprocess.run([str(BIN / words[0]), *words[1:]], check=False).returncode
    if code:
        sys.exit(code)


def compare(plan_file: Path, metrics_file: Path) -> None:
    """Predicted and measured step time and memory, side by side."""
    plan = json.loads(plan_file.read_text())
    rows = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    planned_tokens = plan["workload"]["context_tokens"] * plan["workload"]["global_batch"]
    tokens = {row["tokens"] for row in rows[WARM_STEPS:]}
    measured_s = statistics.median(row["seconds"] for row in rows[WARM_STEPS:])
    peak = max(row["peak_memory_bytes"] for row in rows)
    priced_s, parts = plan["priced"]["step_s"], plan["memory"]["parts"]
    total = sum(parts.values())
    print(f"\nThe plan against {len(rows) - WARM_STEPS} measured steps (rank 0):")
    print(
        f"  tokens     planned   {planned_tokens:7,}      measured {' or '.join(f'{n:,}' for n in sorted(tokens)):>7}"
    )
    print(f"  step time  predicted {priced_s * 1e3:7.1f} ms   measured {measured_s * 1e3:7.1f} ms   "
          f"{priced_s / measured_s - 1:+.0%}")  # fmt: skip
    print(f"  memory     predicted {total / 2**20:7.1f} MiB  measured {peak / 2**20:7.1f} MiB  {total / peak - 1:+.0%}")
    print(f"  loss       {rows[0]['loss']:.3f} -> {rows[-1]['loss']:.3f}")


def main() -> None:
    os.chdir(ROOT)
    RUN.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(RUN / "train", ignore_errors=True)  # of an earlier example
    say(f"plan --gpus 256 --ctx 2M -o {RUN}/headline.json")
    say(f"executor profile --quick --ranks {RANKS} -o {RUN}/profile.json")
    say("python -m longvila.lengths examples/train.yaml")
    local = f"plan --cluster local --gpus {RANKS} --model longvila-tiny --ctx 952 --frames 41 --batch 1"
    say(f"{local} --profile {RUN}/profile.json -o {RUN}/plan.json")
    say(f"executor launch {RUN}/plan.json --config examples/train.yaml --set run={RUN}/train")
    ask = f"executor launch {RUN}/plan.json --job longvila.generate --config examples/ask.yaml"
    say(f"{ask} --set checkpoint={RUN}/train")
    compare(RUN / "plan.json", RUN / "train" / "metrics.jsonl")


if __name__ == "__main__":
    main()
