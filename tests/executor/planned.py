"""Small plans for this machine, made by hand from degrees and priced, and the commands that run them."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from cost_models import Cluster, Model, Placement, Profile, Strategy, Workload, price
from cost_models.workload import Precision
from planner.plan_file import Plan, Simulated

ROOT = Path(__file__).resolve().parents[2]
FP32 = Precision(param="fp32", master="fp32", grad="fp32", reduce="fp32", optimizer="fp32")


def make_plan(
    strategy: Strategy,
    *,
    cluster: Cluster | None = None,
    model: str = "longvila-tiny",
    tokens: int = 256,
    frames: int = 0,
    batch: int | None = None,
    precision: Precision = FP32,
    placement: Placement | None = None,
    profile: Profile | None = None,
) -> Plan:
    cluster = cluster or Cluster.load("local", gpus=strategy.ranks)
    workload = Workload(
        Model.load(model),
        context_tokens=tokens,
        frames=frames,
        global_batch=batch or strategy.data * strategy.microbatches,
        precision=precision,
    )
    placement = placement or Placement.in_order(cluster, strategy.ranks)
    cost = price(cluster, workload, strategy, placement, profile)
    return Plan(
        cluster=cluster,
        workload=workload,
        strategy=strategy,
        placement=placement,
        cost=cost,
        simulated=Simulated(step_s=cost.step_s, seconds=cost.seconds, busiest_links=()),
        objective="time",
        chosen_by="model",
        alternatives=(),
        bound=cost.step_s,
        gap=0.0,
    )


def save_plan(folder: Path, strategy: Strategy, **given) -> Path:
    path = folder / "plan.json"
    make_plan(strategy, **given).save(path)
    return path


def edit_plan(path: Path, **changes) -> Path:
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, **changes}))
    return path


def start(*arguments: str | Path, folder: Path) -> subprocess.Popen[str]:
    """The `executor` command in `folder`, tests importable as jobs."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "executor.command", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # ignored under `tests &`
    )


def run(*arguments: str | Path, folder: Path, timeout_s: float = 90.0) -> subprocess.CompletedProcess[str]:
    process = start(*arguments, folder=folder)
    try:
        out, err = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
