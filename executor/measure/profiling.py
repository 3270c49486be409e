"""`executor profile`: measure this machine under the loads that a plan will have, and write `profile.json`.

    launch N ranks running `measuring` -> samples of loads 1 … N (divisors of N) -> profile.json, whole or not at all

The ranks are started as for any plan, so a lost rank or Ctrl-C ends all and leaves no file. `path` of a collective is
the link of the local cluster. On a CPU every sample says how many processes ran beside it (`ranks`; collectives:
`shape`); the planner takes the load that its plan has. Left out: the network between hosts.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cost_models import strict
from cost_models.curves.samples import Sample
from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.machine import cores, discover
from cost_models.hardware.placement import Placement
from cost_models.models.model import Model
from cost_models.pricing import price
from cost_models.profile import VERSION, Profile
from cost_models.strategy import Strategy
from cost_models.workload import Precision, Workload
from executor.launch import launch
from planner.files import check_target, write_whole
from planner.plan_file import Plan, Simulated

JOB = "executor.measure.measuring"
MOST_CPU_RANKS = 16


def loads_of(ranks: int) -> tuple[int, ...]:
    """How many ranks measure at once: the divisors of their number.

    >>> loads_of(4), loads_of(6)
    ((1, 2, 4), (1, 2, 3, 6))
    """
    return tuple(part for part in range(1, ranks + 1) if ranks % part == 0)


def profile(target: Path, ranks: int | None, quick: bool) -> Profile:
    """Measure with `ranks` processes (default: all GPUs, or twice the cores) and write the file."""
    check_target(target, "-o")
    here = discover()
    most = len(here.gpus) if here.gpus else MOST_CPU_RANKS
    count = ranks if ranks is not None else (len(here.gpus) or min(most, 2 * here.cores))
    if not 1 <= count <= most:
        raise InputError(f"--ranks {count}: on this machine from 1 to {most} ranks can measure")
    cluster = Cluster.load("local", gpus=count)
    device = cluster.runs[0].node.device
    found = Profile(
        version=VERSION,
        device=device.name,
        machine=f"{here.describe()}; {', '.join(map(str, loads_of(count)))} processes at once",
        versions=here.versions,
        samples=_measure(cluster, count, quick),
    )
    write_whole(target, json.dumps(found.to_dict(), indent=1) + "\n")
    return found


def _measure(cluster: Cluster, count: int, quick: bool) -> tuple[Sample, ...]:
    with tempfile.TemporaryDirectory(prefix="profile-") as name:
        folder = Path(name)
        _plan(cluster, count).save(folder / "plan.json")
        settings = {
            "out": str(folder / "samples.json"),
            "window_s": 0.012 if quick else 0.05,
            "windows": 3 if quick else 7,
            "loads": list(loads_of(count)),
            "cores": cores(),
            "path": cluster.runs[0].node.scale_up.link,
        }
        request = launch.Request(
            plan=folder / "plan.json",
            job=JOB,
            sets=tuple(f"{key}={json.dumps(value)}" for key, value in settings.items()),
            run_dir=folder / "run",
        )
        with _Bar(len(loads_of(count))) as bar:
            errors = io.StringIO()
            code = launch.run(launch.prepare(request), bar, errors)
        if code == 130:
            raise KeyboardInterrupt
        if code:
            raise InputError(f"the measurement did not end well: {errors.getvalue().strip()}")
        rows = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
        return tuple(strict.read(Sample, row, f"samples[{index}]") for index, row in enumerate(rows))


def _plan(cluster: Cluster, count: int) -> Plan:
    """A plan that only says where the ranks are."""
    cpu = cluster.runs[0].node.device.architecture == "cpu"
    precision = Precision(param="fp32") if cpu else Precision()
    work = Workload(Model.load("longvila-tiny"), context_tokens=count, global_batch=count, precision=precision)
    strategy = Strategy(data=count, shard=count)
    cost = price(cluster, work, strategy)
    # The measurement holds little; what this made-up plan would hold is not asked for.
    return Plan(
        cluster=cluster,
        workload=work,
        strategy=strategy,
        placement=Placement.in_order(cluster, count),
        cost=replace(cost, memory={**cost.memory, "reserve": 0}),
        simulated=Simulated(step_s=cost.step_s, seconds=cost.seconds, busiest_links=()),
        objective="time",
        chosen_by="model",
        alternatives=(),
        bound=cost.step_s,
        gap=0.0,
    )


class _Bar(io.StringIO):
    """Takes the ranks' lines (one for each load that is done) and shows them as a bar on a terminal."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        columns = (TextColumn("measuring"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
        self._task = self._bar.add_task("starting", total=steps)
        self._began_s = time.monotonic()

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.startswith("measured with"):
                self._bar.update(self._task, description=line, advance=1)
                if self._bar.disable:
                    print(f"{line} ({time.monotonic() - self._began_s:.0f} s)", file=sys.stderr, flush=True)
        return len(text)
