"""Two hosts that train one tiny model together, for `soak`: namespaces with a link and a small disk, or two addresses.

    10.77.0.1 ──link── 10.77.0.2        both on one tmpfs of 96 MiB; without root 127.0.0.1 and 127.0.0.2, no disk

Each has one rank of the plan, under its own `executor launch --elastic`, whose lines are kept with their times.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import numpy as np

from benchmarks.namespaces import Namespaces
from cost_models import Cluster, Model, Workload
from cost_models.workload import Precision
from planner.planning import plan


class Line(NamedTuple):
    at_s: float  # of the monotonic clock
    text: str


class Hosts:
    """Two hosts: namespaces and a small disk for root, else two addresses of this machine."""

    def __init__(self, folder: Path, root: bool, silence_s: float) -> None:
        self.folder, self.silence_s = folder, silence_s
        self.links = Namespaces((None, None)) if root else None
        self.addresses = self.links.addresses if self.links else ("127.0.0.1", "127.0.0.2")
        self.launches: list[subprocess.Popen[str] | None] = [None, None]
        self.run = folder / "disk" / "run"
        self.lines: tuple[list[Line], list[Line]] = [], []  # that the launches of each host have written

    def __enter__(self) -> Hosts:
        self.run.parent.mkdir(parents=True)
        if self.links:
            self.links.__enter__()
            try:
                subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", self.run.parent], check=True)
            except BaseException:
                self.links.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in (0, 1):
            self.end(number, signal.SIGKILL)
        if self.links:
            self.links.__exit__()
            subprocess.run(["umount", "-l", self.run.parent], check=False)

    def start(self, number: int, resume: bool) -> None:
        settings = [f"--set=run={self.run}", *(["--set=resume=intact"] if resume else [])]
        executor = Path(sys.executable).parent / "executor"
        inside = ["ip", "netns", "exec", self.links.names[number]] if self.links else []
        interface = "eth0" if self.links else "lo"
        self.launches[number] = launch = subprocess.Popen(
            [*inside, str(executor), "launch", "plan.json", "--config", "train.json", *settings, "--elastic=1000",
             f"--hosts={','.join(self.addresses)}", f"--node-rank={number}", "--port=29555", "--timeout=60",
             f"--silence={self.silence_s:g}", f"--run-dir=launch-{number}"],
            cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "GLOO_SOCKET_IFNAME": interface},
        )  # fmt: skip
        Thread(target=self._listen, args=(launch, self.lines[number]), daemon=True).start()

    def _listen(self, launch: subprocess.Popen[str], lines: list[Line]) -> None:
        assert launch.stdout is not None
        for text in launch.stdout:
            lines.append(Line(time.monotonic(), text))

    def end(self, number: int, how: int = signal.SIGTERM) -> None:
        launch = self.launches[number]
        if launch is not None:
            with suppress(ProcessLookupError):
                launch.send_signal(how)
            with suppress(subprocess.TimeoutExpired):
                launch.wait(30)
            launch.kill()
            launch.wait()
        self.launches[number] = None

    def ended(self) -> bool:
        """Whether a launch has ended."""
        return any(one is not None and one.poll() is not None for one in self.launches)

    def rank(self, number: int) -> int:
        """The process of this host's rank: it writes to its log."""
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                errors = Path(os.readlink(process / "fd" / "2"))
                if errors.is_relative_to(self.folder / f"launch-{number}") and errors.name.startswith("rank-"):
                    return int(process.name)
        raise ProcessLookupError(f"host {number} has no rank")

    def said(self, after: float = 0.0) -> list[Line]:
        """What both launches have written since, in order."""
        return sorted(line for lines in self.lines for line in list(lines) if line.at_s >= after)

    def steps(self) -> list[dict[str, float]]:
        """The steps that count, in order."""
        file = self.run / "metrics.jsonl"
        lines: list[str] = []
        with suppress(OSError):
            lines = file.read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]


def prepared(folder: Path, every: int) -> None:
    """A plan of two CPU hosts, rows of text, and the job's settings."""
    one = Cluster.load("local", gpus=1)
    fp32 = Precision(param="fp32")
    workload = Workload(Model.load("longvila-tiny"), context_tokens=256, frames=0, global_batch=1, precision=fp32)
    cluster = replace(one, runs=(replace(one.runs[0], count=2),))
    plan(cluster, workload, fixed={"ulysses": 2, "ring": 1, "data": 1}).save(folder / "plan.json")
    rows = np.random.default_rng(0).integers(0, 10, (7, 40))
    lines = [json.dumps({"id": str(number), "conversations": [
        {"from": "human", "value": f"say {number}"}, {"from": "gpt", "value": " ".join(map(str, row))}]})
        for number, row in enumerate(rows)]  # fmt: skip
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    settings = {"data": [str(folder / "rows.jsonl")], "steps": 10**6, "max_tokens": 256, "precision": "fp64",
                "lr": 1e-8, "checkpoint_every": every, "keep_checkpoints": 3}  # fmt: skip
    (folder / "train.json").write_text(json.dumps(settings))


def unbroken(folder: Path, steps: int) -> list[float]:
    """The losses of one process that nothing happens to."""
    code = ("import json, sys; from longvila import train; from longvila.job import Job; "
            "given = json.load(open('train.json')); given.update(run='alone', checkpoint_every=None, "
            "steps=int(sys.argv[1])); train.main(Job(config=given))")  # fmt: skip
    few = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads that spin for such small work cost more than they bring
    subprocess.run([sys.executable, "-c", code, str(steps)], cwd=folder, check=True, capture_output=True, env=few)
    return [json.loads(line)["loss"] for line in (folder / "alone" / "metrics.jsonl").read_text().splitlines()]
