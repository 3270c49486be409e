"""What a job is given: its settings, how it is split, and where it computes.

A job is a module with `main(job: Job) -> None`, started by dotted name (`longvila.train`, `longvila.generate`).
Settings come from `--config file.yaml` and `--set key=value` and are checked by the strict reader of the job.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from longvila.sharding import OneProcess, Sharding


class JobError(ValueError):
    """A setting, checkpoint or data file that a job cannot use; the message holds the fix, on one line."""


def require(holds: bool, name: str, value: object, legal: str) -> None:
    """Raise a JobError that names the setting, its value and the legal ones, unless it `holds`."""
    if not holds:
        raise JobError(f"settings: {name} {value!r} must be {legal}")


def refuse_differences(sharding: Sharding, **told: object) -> None:
    """Collective. A JobError on every process where one was told something else than the others, by its name.

    Hosts may hold different files under one path. A value's hash, summed over the processes, is `world` times that of
    each only where all have the same; 40 bits, so that sums of 8,192 processes are exact.
    """
    for name, value in told.items():
        text = json.dumps(value, sort_keys=True, default=str)
        mine = int.from_bytes(hashlib.sha256(text.encode()).digest()[:5], "big")
        apart = sharding.total(float(mine)) != float(mine * sharding.world)
        if sharding.total(float(apart)):
            raise JobError(f"hosts disagree: the {name} is not the same for all ranks; give every host the same files")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a job's `main` is given."""

    config: Mapping[str, Any] = field(default_factory=dict)
    sharding: Sharding = field(default_factory=OneProcess)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    step_done: Callable[[], None] = field(default=lambda: None)  # a job of steps calls this after each
