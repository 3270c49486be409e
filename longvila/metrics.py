"""What a run says of its steps: a line of JSON each in its folder, a progress bar, and the peak of its memory.

The file is of the steps that the run has done: what a resumed run does again is dropped from it first.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from longvila.files import write_whole
from longvila.job import JobError


class Report:
    """A line of metrics per step in the run folder, and a progress bar (or plain lines where there is no terminal)."""

    def __init__(self, path: Path, step: int, steps: int, *, shown: bool) -> None:
        self._shown, self._path, self._steps = shown, path, steps
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[state]}"))
        console = Console(stderr=True)
        self._bar = Progress(
            *columns, TimeRemainingColumn(), console=console, disable=not shown or not sys.stderr.isatty()
        )
        self._task = self._bar.add_task("train", total=steps, completed=step, state="")

    def __enter__(self) -> Report:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, metrics: dict[str, Any], state: str) -> None:
        """Append the line, and tell the step's state."""
        if not self._shown:
            return
        try:
            with self._path.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(metrics) + "\n")
        except OSError as fault:
            raise JobError(f"{self._path} cannot be written: {fault.strerror}") from None
        self._bar.update(self._task, completed=metrics["step"], state=state)
        if self._bar.disable:
            print(f"step {metrics['step']}/{self._steps}  {state}", file=sys.stderr, flush=True)


def forget_after(path: Path, step: int) -> None:
    """Make the run's folder, and drop the metrics of steps that a resumed run does again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_whole(path, "".join(kept))
    except OSError as fault:
        raise JobError(f"{path} cannot be written: {fault.strerror}") from None
    except (ValueError, TypeError, KeyError) as fault:
        raise JobError(f"{path} holds a line that is no step's ({fault}); move the file away") from None


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held: the allocator's on an accelerator, resident on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
