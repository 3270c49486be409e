"""Answers all scenarios of a sweep, over the cores of this machine, and remembers them so that a stopped sweep goes on.

    run(sweep, store)   a process for each core; each answer is appended to the store as one line, in any order
    store               FILE.part: a first line with the digest of the question, then {"index": i, …} lines

The same command run again reads what is there and asks only for the rest; a store of another question is refused. Parts
of a Slurm array (`--part 2/8`) each write FILE.part-2-of-8, and the command without --part reads all of them.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cost_models import strict
from cost_models.errors import InputError
from planner.solve import Solution
from planner.what_if.scenario import Outcome, Sweep, outcome, planned

MOST_BYTES = 128 * 2**20
"""Of a file of answers: some 200,000."""
FLUSHED = 16
"""Scenarios that a process answers at a time."""


@dataclass(frozen=True)
class Part:
    """Scenario i belongs to part i mod `of`."""

    number: int
    of: int

    @classmethod
    def read(cls, text: str) -> Part:
        """`2/8`, numbered from 0."""
        number, _, of = text.partition("/")
        if not (number.isascii() and number.isdigit() and of.isascii() and of.isdigit() and int(number) < int(of)):
            raise InputError(f"--part {text!r} is not K/N with K from 0 to N - 1 (as in 2/8)")
        return cls(int(number), int(of))


WHOLE = Part(0, 1)


def digest(sweep: Sweep) -> str:
    """Of everything that an answer depends on."""
    asked = {
        "given": dict(sweep.given),
        "axes": [(axis.name, [value.text for value in axis.values]) for axis in sweep.axes],
        "fixed": {name: str(value) for name, value in sweep.fixed.items()},
        "objective": sweep.objective,
        "seed": sweep.seed,
        "now": [strict.plain(one) for one in _subject(sweep)],
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()


def _subject(sweep: Sweep) -> list[Any]:
    asked = sweep.question(sweep.now())
    return [asked.cluster.to_dict(), asked.workload, asked.profile.digest if asked.profile else ""]


class Store:
    """Answers on disk, a line each; without a path they are kept in memory only."""

    def __init__(self, path: Path | None, sweep: Sweep, part: Part) -> None:
        self.header: dict[str, Any] = {"what_if": digest(sweep), "scenarios": sweep.scenarios}
        self.known: dict[int, Outcome] = {}
        self.path = path and path.with_name(f"{path.name}.part{_suffix(part)}")
        self.file: Any = None
        if path is None or self.path is None:
            return
        for other in sorted(path.parent.glob(f"{path.name}.part*")):
            self._read(other)
        fresh = not self.path.exists()
        try:
            self.file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"-o {str(path)!r}: {self.path.name} cannot be written: {error.strerror}") from error
        if fresh:
            self._write(self.header)

    def _read(self, path: Path) -> None:
        """Complete lines only: a stopped process may leave half of one."""
        lines = strict.read_text(path, "answers", MOST_BYTES).split("\n")[:-1]
        for number, line in enumerate(lines):
            entry = _entry(path, number, line)
            if number == 0:
                if entry != self.header:
                    raise InputError(f"{path} holds answers to another question; remove it, or give another -o")
            elif isinstance(index := entry.pop("index", None), int) and 0 <= index < self.header["scenarios"]:
                self.known[index] = _outcome(path, number, entry)

    def add(self, index: int, found: Outcome) -> None:
        self.known[index] = found
        if self.file is not None:
            self._write({"index": index, **asdict(found)})

    def _write(self, entry: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()

    def close(self, remove: bool = False) -> None:
        """`remove`: the sweep is complete and its answers stand elsewhere."""
        if self.file is None or self.path is None:
            return
        self.file.close()
        if remove:
            for path in self.path.parent.glob(f"{self.path.name.partition('.part')[0]}.part*"):
                path.unlink()


def _suffix(part: Part) -> str:
    return "" if part == WHOLE else f"-{part.number}-of-{part.of}"


def _entry(path: Path, number: int, line: str) -> dict[str, Any]:
    entry = strict.parse_json(line, f"{path}, line {number + 1}")
    if not isinstance(entry, dict):
        raise InputError(f"{path}, line {number + 1}: no answer of a sweep; remove the file")
    return entry


def _outcome(path: Path, number: int, entry: dict[str, Any]) -> Outcome:
    try:
        return strict.read(Outcome, entry, "an answer")
    except InputError as error:
        raise InputError(f"{path}, line {number + 1}: no answer of this release; remove the file ({error})") from error


def run(
    sweep: Sweep,
    store: Store,
    part: Part = WHOLE,
    jobs: int | None = None,
    on_answer: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Answer what the store does not know; `on_answer(answers so far, of how many)`."""
    wanted = [index for index in range(sweep.scenarios) if index % part.of == part.number]
    missing = [index for index in wanted if index not in store.known]
    if not missing:
        return
    old = planned(sweep, sweep.question(sweep.now()))
    done = len(wanted) - len(missing)
    for index, found in _answers(sweep, old, missing, jobs or os.cpu_count() or 1):
        store.add(index, found)
        done += 1
        on_answer(done, len(wanted))


def _answers(sweep: Sweep, old: Solution, missing: list[int], jobs: int) -> Iterator[tuple[int, Outcome]]:
    """In processes where there is enough to do; forked, so that the axes need no pickling."""
    jobs = min(jobs, -(-len(missing) // FLUSHED))
    _Task.sweep, _Task.old = sweep, old
    if jobs <= 1:
        yield from map(_Task.answer, missing)
        return
    with multiprocessing.get_context("fork").Pool(jobs, initializer=_ignore_interrupts) as pool:
        yield from pool.imap_unordered(_Task.answer, missing, chunksize=FLUSHED if len(missing) > 256 else 1)


class _Task:
    """What a forked process inherits: the sweep and the old plan."""

    sweep: Sweep
    old: Solution

    @staticmethod
    def answer(index: int) -> tuple[int, Outcome]:
        values = _Task.sweep.all()[index]
        return index, outcome(_Task.sweep, values, _Task.old)


def _ignore_interrupts() -> None:
    """Ctrl-C ends the parent, which ends these."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
