"""The folder of one launch: what was started, what each rank said, and why a rank failed.

    run-dir/  launch.json  plan.json  logs/rank-0.out (stdout)  logs/rank-0.log (stderr)  logs/rank-0.failure

`launch.json` is what the ranks read: job, settings, backend, meeting place. A failure file appears whole, with the
time of the failure, so that the first one can be told from those that only lost their peer. After `FAILED` in a log
comes the traceback, which is not shown on the terminal. Leaves out the job's own files (metrics, checkpoints).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cost_models import strict
from cost_models.errors import InputError

FAILED = "=== this rank failed ===\n"
KINDS = ("killed", "user", "fault", "peer")
"""From cause to consequence: of several failures at once, the first kind here is the reason."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every rank of a launch is told."""

    job: str
    settings: Mapping[str, Any]
    backend: str
    master: str  # host name or address where rank 0 listens
    port: int
    threads: int  # of torch, per rank
    timeout_s: float  # to meet, and of a collective


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why one rank ended. `kind`: killed (a signal), user (a mistake in settings or data), fault, peer (lost it)."""

    rank: int
    kind: str
    message: str  # one line
    at_ns: int


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    path: Path

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    def out(self, rank: int) -> Path:
        return self.path / "logs" / f"rank-{rank}.out"

    def log(self, rank: int) -> Path:
        return self.path / "logs" / f"rank-{rank}.log"

    def create(self, spec: Spec, plan_text: str, ranks: tuple[int, ...]) -> None:
        """Make the folder anew for these ranks; a failure of an earlier launch is forgotten."""
        try:
            (self.path / "logs").mkdir(parents=True, exist_ok=True)
            for stale in (self.path / "logs").glob("rank-*.failure"):
                stale.unlink()
            for rank in ranks:
                self.out(rank).write_text("", encoding="utf-8")
                self.log(rank).write_text("", encoding="utf-8")
            self.plan.write_text(plan_text, encoding="utf-8")
            text = json.dumps(asdict(spec), indent=1, default=str) + "\n"
            (self.path / "launch.json").write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"--run-dir {str(self.path)!r} cannot be written: {error.strerror}") from None

    def spec(self) -> Spec:
        return strict.read(Spec, strict.read_json(self.path / "launch.json", "launch file"), "launch.json")

    def fail(self, rank: int, kind: str, message: str) -> None:
        """Record why a rank ends; the first record of a rank stays."""
        assert kind in KINDS
        target = self.path / "logs" / f"rank-{rank}.failure"
        if target.exists():
            return
        line = " ".join(message.split())[:2000]
        record = Failure(rank=rank, kind=kind, message=line, at_ns=time.time_ns())
        partial = target.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(record)), encoding="utf-8")
        partial.replace(target)

    def first_failure(self) -> Failure | None:
        """The failure that explains the others: causes before consequences, then by time."""
        files = (self.path / "logs").glob("rank-*.failure")
        found = [strict.read(Failure, json.loads(file.read_text(encoding="utf-8")), file.name) for file in files]
        return min(found, key=lambda failure: (KINDS.index(failure.kind), failure.at_ns), default=None)
