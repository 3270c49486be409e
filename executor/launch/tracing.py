"""`executor launch --trace DIR`: torch's profiler over a few steps of every rank, one Chrome trace each.

    step 1 not recorded (start-up) · step 2 warms the profiler up · steps 3 to 5 are in DIR/rank-N.json.gz

The job says where its steps end (`Job.step_done`, once an optimizer step). A trace says which plan it ran, by its
digest, so `plan compare` can refuse that of another one. Left out: memory, stacks, shapes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cost_models.errors import InputError
from planner.plan_file import Plan

if TYPE_CHECKING:
    import torch

SKIPPED, RECORDED = 2, 3
"""Steps before the recorded ones, and these."""


@contextmanager
def traced(folder: Path, plan: Plan, rank: int, device: torch.device) -> Iterator[Callable[[], None]]:
    """Gives what a job calls after each step. The trace is written as soon as its last step is done."""
    from torch.profiler import ProfilerActivity, profile, schedule

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    path, steps = folder / f"rank-{rank}.json.gz", 0

    def save(profiler: profile) -> None:
        partial = path.with_name(f".{path.name}")
        try:
            profiler.export_chrome_trace(str(partial))
            partial.replace(path)
        except OSError as fault:
            partial.unlink(missing_ok=True)
            raise InputError(f"--trace {folder} cannot be written: {fault.strerror}") from None

    folder.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    window = schedule(wait=SKIPPED - 1, warmup=1, active=RECORDED, repeat=1)
    with profile(activities=activities, schedule=window, on_trace_ready=save) as profiler:

        def step_done() -> None:
            nonlocal steps
            steps += 1
            if steps == SKIPPED + RECORDED:
                profiler.add_metadata_json("plan", json.dumps(plan.digest))
            if steps <= SKIPPED + RECORDED:
                profiler.step()

        yield step_done
    if steps < SKIPPED + RECORDED:
        raise InputError(f"--trace {folder}: the job did {steps} steps; a trace takes {SKIPPED + RECORDED}")
