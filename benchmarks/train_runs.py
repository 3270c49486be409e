"""A job of several training runs, one after the other: what `launched_equality` launches under every plan.

    job.config: {"runs": [settings of longvila.train, …]}

A run with `steps` above 1 is made in two parts: its first step, whose checkpoint is kept, and the rest, resumed from
there. Typed as `python benchmarks/train_runs.py runs.json` it trains them in one process, without the executor.
Left out: everything else; each run is `longvila.train` as it is.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from longvila import train
from longvila.job import Job

FIRST = "checkpoints/step-000001"
"""In a run's folder: the state after its first step."""


def main(job: Job) -> None:
    """Train every run to its end; collective."""
    for settings in job.config["runs"]:
        train.main(replace(job, config={**settings, "steps": 1}))
        if job.sharding.world > 1:
            torch.distributed.barrier()  # the first rank names the checkpoint after all have written it
        if settings["steps"] > 1:
            train.main(replace(job, config={**settings, "resume": "latest"}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Job(config=json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
