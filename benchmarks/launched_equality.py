"""Launched plans against one process: the same first loss and gradients, the same losses for twenty steps.

    for each layout: plan -> executor launch (real processes, gloo) -> LongVILA-tiny on the example clips and the cases
                     loss of every step, gradients of the first      against longvila.train alone (no executor, SDPA)

    gradient of a tensor   |g - g1| / max(|g1|, 1e-3 of the largest |g1|): a key's bias has gradient zero, but for noise
    limits                 first step in float32 1e-5; 20 losses 1e-5 in float64, 1e-3 in float32, all relative

Gradients are read from the checkpoint after the first step, into one process: AdamW's first moment is then
(1 - beta) min(1, clip / norm) g, and the norm is in the metrics. The other 19 steps are resumed from it. Run as
`python benchmarks/launched_equality.py [--quick]`; prints every layout and case, the worst last, and exits with 1
beyond a limit. Left out: bfloat16 and GPUs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import train_runs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from cost_models import Cluster, Model, Strategy, Workload
from cost_models.workload import Precision
from longvila import checkpoint
from longvila.assemble import PARTS, build_model, precision
from longvila.config import load_config
from longvila.job import Job
from longvila.optimizer import Optimizer
from longvila.weights import plain_parameters
from planner import plan

HERE = Path(__file__).resolve().parent  # the job module is found beside this file
EXAMPLES = HERE.parent / "examples"
FP32 = Precision(param="fp32")
CONTEXT_TOKENS, ROWS, BETA, CLIP = 640, 2, 0.9, 1.0
STEPS = 20
LAYOUTS = ((1, 1), (2, 1), (1, 2), (2, 2), (4, 2), (2, 4))  # (ulysses, ring)
QUICK = ((1, 2, 2), (2, 2, 1))  # (ulysses, ring, data)
ALL_CASES_ON = (2, 2, 1)  # ulysses, ring, data; the others run the example clips alone
FIRST_LIMIT = 1e-5
LOSS_LIMIT = {"fp32": 1e-3, "fp64": 1e-5}


@dataclass(frozen=True, kw_only=True)
class Case:
    """Rows that a step is made of; `ids` are samples of the example data."""

    name: str
    ids: tuple[str, ...] = ()  # empty: all of them
    settings: Mapping[str, Any]


PACKED = {"max_tokens": CONTEXT_TOKENS, "pack": True, "frames": 8}
APART = {"max_tokens": CONTEXT_TOKENS, "pack": False, "shuffle": False}
CASES = (
    Case(name="example clips, packed", settings=PACKED),
    Case(name="5 frames a row", ids=("rabbit", "taxi"), settings={**APART, "frames": 5}),
    Case(name="1 frame a row", ids=("street", "cyclist"), settings={**APART, "frames": 1}),
    Case(name="text only", ids=("units",), settings={**APART}),
    Case(name="two lengths", ids=("band", "units"), settings={**APART, "frames": 8}),
)


class Seen(NamedTuple):
    losses: list[float]
    gradients: dict[str, Tensor]


class Result(NamedTuple):
    """Relative differences from one process; `worst` is the largest of them in units of its limit."""

    worst: float
    layout: str
    case: str
    number: str
    first_loss: float
    gradient: float
    tensor: str
    losses: float


def write_data(folder: Path) -> None:
    """One file of samples for each case."""
    lines = (EXAMPLES / "clips.jsonl").read_text(encoding="utf-8").splitlines()
    samples = {json.loads(line)["id"]: line for line in lines}
    for place, case in enumerate(CASES):
        wanted = case.ids or tuple(samples)
        (folder / f"{place}.jsonl").write_text("\n".join(samples[name] for name in wanted) + "\n", encoding="utf-8")


def settings_of(case: Case, number: str, data: Path, folder: Path) -> dict[str, Any]:
    """Of one training run: its samples are in `data`, its files go to `folder`."""
    place = CASES.index(case)
    common = {
        "data": [str(data / f"{place}.jsonl")],
        "media": str(EXAMPLES / "media"),
        "run": str(folder / f"{place}-{number}"),
        "rows_per_step": ROWS,
        "steps": STEPS,
        "precision": number,
        "betas": [BETA, 0.95],
        "clip": CLIP,
    }
    return {**common, **case.settings}


def train(strategy: Strategy | None, cases: Sequence[Case], data: Path, folder: Path) -> None:
    """All runs of a layout in one launch, or in one process without any; a failure ends the benchmark with its line."""
    folder.mkdir()
    runs = [settings_of(case, number, data, folder) for case in cases for number in LOSS_LIMIT]
    (folder / "runs.json").write_text(json.dumps({"runs": runs}), encoding="utf-8")
    command = [sys.executable, "train_runs.py", str(folder / "runs.json")]
    if strategy is not None:
        work = Workload(Model.load("longvila-tiny"), context_tokens=CONTEXT_TOKENS, global_batch=ROWS, precision=FP32)
        fixed = {"ulysses": strategy.ulysses, "ring": strategy.ring, "data": strategy.data}
        plan(Cluster.load("local", gpus=strategy.ranks), work, fixed=fixed).save(folder / "plan.json")
        command = [sys.executable, "-m", "executor.command", "launch", str(folder / "plan.json"), "--job=train_runs"]
        command += [f"--config={folder / 'runs.json'}", f"--run-dir={folder / 'launch'}"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{folder.name}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")


def read(run: Path, number: str) -> Seen:
    """Losses and first gradients of a run, whatever ranks made it."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    dtype = precision(number)
    model = build_model(load_config("tiny"), Job(), dtype=dtype, seed=0, weights=None, trained=PARTS, filled=False)
    optimizer = Optimizer(plain_parameters(model), betas=(BETA, 0.95), eps=1e-8, weight_decay=0.0)
    checkpoint.load(run / train_runs.FIRST, model, optimizer)
    moments, share = optimizer.state()["exp_avg"], (1 - BETA) * min(1.0, CLIP / lines[0]["grad_norm"])
    return Seen([line["loss"] for line in lines], {name: moment / share for name, moment in moments.items()})


def compare(layout: str, case: Case, number: str, alone: Seen, launched: Seen) -> Result:
    """The largest relative differences of a run from that of one process."""
    assert len(alone.losses) == len(launched.losses) == STEPS
    losses = [abs(b - a) / abs(a) for a, b in zip(alone.losses, launched.losses, strict=True)]
    least = 1e-3 * max(float(gradient.norm()) for gradient in alone.gradients.values())
    gradient, tensor = max(
        (float((launched.gradients[name] - want).norm()) / max(float(want.norm()), least), name)
        for name, want in alone.gradients.items()
    )
    worst = max(losses[0] / FIRST_LIMIT, gradient / FIRST_LIMIT, max(losses) / LOSS_LIMIT[number])
    return Result(worst, layout, case.name, number, losses[0], gradient, tensor, max(losses))


def run_all(layouts: Sequence[tuple[int, int, int]], folder: Path, on_layout: Callable[[str], None]) -> list[Result]:
    """One process, then every layout; a result for each case and number format."""
    write_data(folder)
    on_layout("one process")
    train(None, CASES, folder, folder / "alone")
    results = []
    for ulysses, ring, data in layouts:
        strategy = Strategy(data=data, ring=ring, ulysses=ulysses, shard=data * ring * ulysses)
        layout = f"data {data} × ring {ring} × ulysses {ulysses}"
        on_layout(layout)
        cases = CASES if (ulysses, ring, data) == ALL_CASES_ON else CASES[:1]
        train(strategy, cases, folder, folder / layout)
        for case in cases:
            for number in LOSS_LIMIT:
                name = f"{CASES.index(case)}-{number}"
                alone, launched = (read(folder / where / name, number) for where in ("alone", layout))
                results.append(compare(layout, case, number, alone, launched))
    return results


def report(results: Sequence[Result]) -> int:
    """The table, the worst last; the exit code."""
    print(f"{'layout':<28}{'rows':<22}{'':<6}{'first loss':>10}{'gradient':>10}{'20 losses':>11}  worst gradient")
    for found in sorted(results, key=lambda result: result.worst):
        numbers = f"{found.first_loss:>10.0e}{found.gradient:>10.0e}{found.losses:>11.0e}"
        beyond = "  BEYOND ITS LIMIT" if found.worst > 1 else ""
        print(f"{found.layout:<28}{found.case:<22}{found.number:<6}{numbers}  {found.tensor}{beyond}")
    failed = sum(not found.worst <= 1 for found in results)
    limits = ", ".join(f"{number} {limit:.0e}" for number, limit in LOSS_LIMIT.items())
    print(f"{len(results)} comparisons, {failed} beyond a limit (first step {FIRST_LIMIT:.0e}; 20 losses {limits})")
    return 1 if failed else 0


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Launched plans against one process: losses and gradients.")
    parser.add_argument("--quick", action="store_true", help=f"{len(QUICK)} layouts instead of {2 * len(LAYOUTS)}")
    quick = parser.parse_args(arguments).quick
    layouts = QUICK if quick else [(ulysses, ring, data) for ulysses, ring in LAYOUTS for data in (1, 2)]
    columns = (TextColumn("layouts"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
    bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), disable=not sys.stderr.isatty())
    task, began_s = bar.add_task("", total=len(layouts) + 1, completed=-1), time.monotonic()

    def on_layout(layout: str) -> None:
        bar.update(task, description=layout, advance=1)
        if bar.disable:
            print(f"  {time.monotonic() - began_s:>5.0f} s  {layout}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="equality-") as name, bar:
        results = run_all(layouts, Path(name), on_layout)
    return report(results)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
