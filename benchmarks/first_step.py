"""From `executor launch` to the first step's line, and the same by torchrun: what a user waits for.

    python benchmarks/first_step.py [--ranks 8] [--limits 15,30]

The tiny model with text of 32 tokens a rank, one step, CPU ranks of this host. Timed from the start of the command to
the metrics of the first step, imports included; a launch imports once and forks its ranks, torchrun's processes each
import for themselves. Exit code 1 beyond the limits. Left out: reading weights, several hosts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cost_models import Cluster, Model, Workload
from cost_models.workload import Precision
from planner.planning import plan

FP32 = Precision(param="fp32")
MOST_S = 300.0


def prepared(folder: Path, ranks: int) -> list[str]:
    """A plan and a row of text in the folder; the job's settings."""
    tokens = 32 * ranks
    workload = Workload(Model.load("longvila-tiny"), context_tokens=tokens, precision=FP32)
    fixed = {"ulysses": 2, "ring": ranks // 2, "data": 1}
    plan(Cluster.load("local", gpus=ranks), workload, fixed=fixed).save(folder / "plan.json")
    turns = [{"from": "human", "value": "say"}, {"from": "gpt", "value": "0 " * (tokens // 4)}]
    (folder / "rows.json").write_text(json.dumps([{"id": "one", "conversations": turns}]))
    settings = {"data": "[rows.json]", "steps": 2, "max_tokens": tokens}
    return [f"--set={name}={value}" for name, value in settings.items()]


def first_step_s(command: list[str], folder: Path, run: str) -> float:
    """Seconds from the command's start to the first line of its metrics; the command is then left to end."""
    metrics, began_s = folder / run / "metrics.jsonl", time.monotonic()
    with (folder / f"{run}.log").open("wb") as log:
        job = subprocess.Popen([*command, f"--set=run={run}"], cwd=folder, stdout=log, stderr=log)
        try:
            while not (metrics.exists() and metrics.stat().st_size):
                took_s = time.monotonic() - began_s
                if took_s > MOST_S or (job.poll() is not None and not metrics.exists()):
                    text = (folder / f"{run}.log").read_text(errors="replace")
                    raise SystemExit(f"{run}: no step within {took_s:.0f} s\n{text[-2000:]}")
                time.sleep(0.02)
            took_s = time.monotonic() - began_s
            job.wait(MOST_S)
        finally:
            job.kill()
            job.wait()
    return took_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=8, help="even")
    parser.add_argument("--limits", default="15,30", help="seconds, of launch and of torchrun")
    given = parser.parse_args()
    limits_s = [float(part) for part in given.limits.split(",")]
    bin_folder = Path(sys.executable).parent
    late = False
    with tempfile.TemporaryDirectory(prefix="first-step-") as scratch:
        folder = Path(scratch)
        sets = prepared(folder, given.ranks)
        launch = [str(bin_folder / "executor"), "launch", "plan.json", *sets]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={given.ranks}",
                    "--module", "executor.launch.worker", "plan.json", *sets]  # fmt: skip
        for name, command, limit_s in zip(("launch", "torchrun"), (launch, torchrun), limits_s, strict=True):
            took_s = first_step_s(command, folder, name)
            late |= took_s > limit_s
            print(f"{name:<9} {given.ranks} ranks, first step after {took_s:.1f} s (limit {limit_s:g} s)", flush=True)
    return int(late)


if __name__ == "__main__":
    sys.exit(main())
