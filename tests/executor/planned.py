"""Small plans for this machine, made by hand from degrees and priced, and the commands that run them."""

import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from benchmarks.namespaces import enter
from cost_models import Cluster, Model, Placement, Profile, Strategy, Workload, price
from cost_models.workload import Precision
from executor.command import main
from planner.plan_file import Plan, Simulated
from tests.forked import forked

ROOT = Path(__file__).resolve().parents[2]
FP32 = Precision(param="fp32")


def make_plan(
    strategy: Strategy,
    *,
    cluster: Cluster | None = None,
    model: str | Model = "longvila-tiny",
    tokens: int = 256,
    frames: int = 0,
    batch: int | None = None,
    precision: Precision = FP32,
    placement: Placement | None = None,
    profile: Profile | None = None,
    **asked: Any,
) -> Plan:
    """`asked` is of the workload."""
    cluster = cluster or Cluster.load("local", gpus=strategy.ranks)
    workload = Workload(
        Model.load(model) if isinstance(model, str) else model,
        context_tokens=tokens,
        frames=frames,
        global_batch=batch or strategy.data * strategy.microbatches,
        precision=precision,
        **asked,
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


class Command:
    """An `executor` command that runs in `folder` (and network namespace), with the tests importable as jobs."""

    def __init__(self, *arguments: str | Path, folder: Path, namespace: str | None = None) -> None:
        self._streams = tempfile.TemporaryDirectory(prefix="command-")
        files = [Path(self._streams.name, name) for name in ("stdout", "stderr")]
        for file in files:
            file.touch()
        self._process = forked(_command, [str(argument) for argument in arguments], folder, files, namespace)
        self._files = files

    @property
    def running(self) -> bool:
        return self._process.exitcode is None

    def signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def end(self, timeout_s: float = 90.0) -> CompletedProcess[str]:
        """Waits; what does not end in time is killed and fails the test."""
        self._process.join(timeout_s)
        late = self.running
        if late:
            self._process.kill()
        out, err = (file.read_text() for file in self._files)
        self._streams.cleanup()
        assert not late, out + err
        return CompletedProcess((), self._process.exitcode, out, err)


def _command(arguments: list[str], folder: Path, streams: list[Path], namespace: str | None) -> None:
    if namespace is not None:
        enter(namespace)
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    sys.argv = ["executor", *arguments]
    main()


def run(*arguments: str | Path, folder: Path, timeout_s: float = 90.0) -> CompletedProcess[str]:
    return Command(*arguments, folder=folder).end(timeout_s)
