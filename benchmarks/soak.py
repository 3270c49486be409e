"""Break a training run at random, again and again: each fault must be named, and the losses must be unbroken.

    python -m benchmarks.soak --faults 200 [--minutes 60] [--seed 0] [--kinds kill,stop] [--log soak.jsonl]

Two hosts of one rank each train the tiny model under `executor launch --elastic`; as root, which all kinds need, they
are network namespaces joined by a cable, and the run lies on a small file system. Faults, drawn at random:

    kill      a rank is ended by SIGKILL                     the same launch goes on
    stop      a rank is stopped by SIGSTOP                   silent, ended, the same launch goes on
    cut       the cable is cut                               the first host goes on alone, planned again; the other
                                                             host is started again, joins, and both go on
    full      the disk of the run is full                    the launch ends (a user's mistake), and is started again
    corrupt   a bit of the newest checkpoint flips,          the checkpoint is refused by name, the same launch goes on
              and a rank is killed                           from the one before

Faults strike while steps run, at a constant rate: after exponential times of mean M (`--between`). At the end, also
after Ctrl-C, every loss is compared with one process's. Training is in float64 at a tiny learning rate, where a step
changes the loss by some 1e-6 and a difference of the last digit stays one: so a difference of 1e-9 is a fault. (At 3e-6
weights that differ by 2e-16 give other losses by 1e-11 after 3,000 steps and by 1e-2 after 4,000, without any fault.)
What did not happen in time counts as a fault of ours, and both hosts are started again. The time is told apart:

    R    a fault until a step is done again, less that step: until it is named, until ranks start, until the step
    t C  EVERY steps; their checkpoint      goodput  the steps that count, at the mean step's time, over the time passed
    predicted = t / ((M + R) (exp((t + C) / M) - 1))

which is `planner/reverse/goodput.py` without faults that strike a restart: exp(R / M) is 1 + R / M. A flipped
checkpoint costs R an interval more, as the one before it is resumed. `--log` has a JSON line for every fault. Exit code
1 if a fault was not named, a loss differs or a wait was in vain.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.soak_hosts import Hosts, Line, prepared, unbroken
from longvila import checkpoint

EVERY = 4  # steps between checkpoints
WITHIN = 1e-9  # of one process's losses
STEP = re.compile(r"step (\d+)/")
WORDS = {
    "kill": r"rank \d failed: killed by signal 9",
    "stop": r"rank \d on \S+ is silent for",
    "cut": r"rank \d on \S+ (is silent for|has no answer from|lost)",
    "full": r"cannot be written .*0 MiB free|No space left on device",
    "corrupt": r"is not as it was written: its SHA-256",
}


def number(line: Line) -> int:
    """Of a step's line."""
    match = STEP.match(line.text)
    assert match is not None
    return int(match[1])


def wait(what: str, holds: Callable[[], bool], limit_s: float = 180.0) -> None:
    until_s = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > until_s:
            raise TimeoutError(f"{what} did not happen within {limit_s:g} s")
        time.sleep(0.05)


@dataclass(frozen=True, kw_only=True)
class Restart:
    """A fault's seconds, and the steps that were done before it and have to be done again."""

    kind: str
    host: int
    gap_s: float  # of steps before it
    named: str  # the line that names it; empty: none did
    named_s: float
    started_s: float  # until the last ranks were started
    again_s: float  # until they have done a step
    lost: int


class Soak:
    def __init__(self, hosts: Hosts, draw: random.Random, between_s: float) -> None:
        self.hosts, self.draw, self.between_s = hosts, draw, between_s
        self.restarts: list[Restart] = []
        self.in_vain: list[str] = []
        self.began_s, self.ended_s, self.first = time.monotonic(), 0.0, 0

    def begin(self) -> None:
        for number in (0, 1):
            self.hosts.start(number, resume=False)
        wait("a checkpoint, or a launch's end", lambda: bool(self.checkpoints()) or self.hosts.ended())
        if not self.checkpoints():
            sys.exit("a launch ended before its first checkpoint:\n" + "".join(one.text for one in self.hosts.said()))
        self.began_s, self.first = time.monotonic(), len(self.hosts.steps())

    def end(self) -> list[dict[str, float]]:
        """The steps that count, of launches that are ended."""
        self.ended_s, steps = time.monotonic(), self.hosts.steps()
        for number in (0, 1):
            self.hosts.end(number)
        return steps

    def checkpoints(self) -> list[Path]:
        return checkpoint.complete(self.hosts.run / "checkpoints")

    def first_step(self, after_s: float) -> tuple[float, Line] | None:
        """Of the ranks that were started last: when they were, and their first step."""
        started_s, first = None, None
        for line in self.hosts.said(after_s):
            if re.match(r"round \d|starting \d", line.text):
                started_s, first = line.at_s, None
            elif started_s is not None and first is None and line.text.startswith("step "):
                first = line
        return None if started_s is None or first is None else (started_s, first)

    def fault(self, kind: str) -> Restart:
        time.sleep(gap_s := self.draw.expovariate(1 / self.between_s))
        began_s, hosts, victim = time.monotonic(), self.hosts, self.draw.randrange(2)
        getattr(self, kind)(victim)
        wait("a step after the fault", lambda: self.first_step(began_s) is not None)
        found = self.first_step(began_s)
        assert found is not None
        started_s, first = found
        named = next((line for line in hosts.said(began_s) if re.search(WORDS[kind], line.text)), None)
        before = max(
            (number(line) for line in hosts.said() if STEP.match(line.text) and line.at_s < began_s), default=0
        )
        restart = Restart(
            kind=kind, host=victim, gap_s=gap_s, named=named.text.strip() if named else "",
            named_s=(named or first).at_s - began_s, started_s=started_s - began_s, again_s=first.at_s - began_s,
            lost=max(0, before - number(first) + 1),
        )  # fmt: skip
        self.restarts.append(restart)
        return restart

    def late(self, kind: str, error: Exception) -> bool:
        """What was waited for did not happen: both hosts are started again; whether they do a step."""
        self.in_vain.append(f"{kind}: {error}")
        print(f"  IN VAIN: {error}\n{''.join(line.text for line in self.hosts.said()[-40:])}", flush=True)
        if self.hosts.links:
            self.hosts.links.join(1)
        (self.hosts.run.parent / "filler").unlink(missing_ok=True)
        began_s = time.monotonic()
        self._start_again()
        try:
            wait("a step", lambda: self.first_step(began_s) is not None)
        except TimeoutError as again:
            print(f"  IN VAIN once more: {again}; the soak ends here", flush=True)
            return False
        return True

    def _again(self, kind: str) -> None:
        """The launch goes on by itself, in its next round."""
        rounds = self.rounds()
        wait(f"a new round after {kind}", lambda: self.rounds() > rounds)

    def rounds(self) -> int:
        return sum(line.text.startswith("round ") for line in self.hosts.said())

    def kill(self, victim: int) -> None:
        os.kill(self.hosts.rank(victim), signal.SIGKILL)
        self._again("kill")

    def stop(self, victim: int) -> None:
        os.kill(self.hosts.rank(victim), signal.SIGSTOP)
        self._again("stop")

    def cut(self, _: int) -> None:
        hosts = self.hosts
        assert hosts.links is not None
        hosts.links.cut(1)
        self._again("cut")
        hosts.end(1, signal.SIGKILL)  # its machine is started again
        hosts.links.join(1)
        hosts.start(1, resume=True)
        self._again("the cut host's return")

    def full(self, _: int) -> None:
        filler = self.hosts.run.parent / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
        wait("the launches' end", lambda: all(one is None or one.poll() is not None for one in self.hosts.launches))
        filler.unlink()
        self._start_again()

    def corrupt(self, victim: int) -> None:
        wait("two checkpoints", lambda: len(self.checkpoints()) > 1)
        rank = self.hosts.rank(victim)
        os.kill(rank, signal.SIGSTOP)  # no newer one comes
        file = self.draw.choice(sorted(self.checkpoints()[-1].glob("*.safetensors")))
        content = bytearray(file.read_bytes())
        content[self.draw.randrange(len(content) // 2, len(content))] ^= 1 << self.draw.randrange(8)
        file.write_bytes(content)
        os.kill(rank, signal.SIGKILL)
        self._again("corrupt")

    def _start_again(self) -> None:
        for number in (0, 1):
            self.hosts.end(number)
        for number in (0, 1):
            self.hosts.start(number, resume=bool(self.checkpoints()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no other fault is begun")
    parser.add_argument("--between", type=float, default=4.0, help="mean seconds of steps between faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--silence", type=float, default=3.0, help="seconds, of the launches; more on a busy machine")
    parser.add_argument("--kinds", help=f"of {', '.join(WORDS)}; default: all, without root those but cut and full")
    parser.add_argument("--log", type=Path, help="file that gets a JSON line for every fault")
    given = parser.parse_args()
    root = os.geteuid() == 0 and shutil.which("ip") is not None
    kinds = given.kinds.split(",") if given.kinds else [kind for kind in WORDS if root or kind not in ("cut", "full")]
    if odd := [kind for kind in kinds if kind not in WORDS or (not root and kind in ("cut", "full"))]:
        parser.error(f"--kinds: {odd[0]} is none of {', '.join(WORDS)}, or needs root")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # reported as Ctrl-C is; all is taken down
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch, Hosts(Path(scratch), root, given.silence) as hosts:
        prepared(hosts.folder, EVERY)
        soak = Soak(hosts, random.Random(given.seed), given.between)
        try:
            soak.begin()
            strike(soak, kinds, given.faults, given.minutes, given.log)
        except KeyboardInterrupt:
            print(f"stopped after {len(soak.restarts)} faults", flush=True)
        steps = soak.end()
        if not soak.restarts:
            return 1
        print(f"{len(steps)} steps in one process, to compare", flush=True)
        return report(soak, steps, unbroken(hosts.folder, len(steps)))


def strike(soak: Soak, kinds: list[str], faults: int, minutes: float, log: Path | None) -> None:
    for count in range(1, faults + 1):
        if time.monotonic() - soak.began_s > 60 * minutes:
            return
        kind = soak.draw.choice(kinds)
        print(f"fault {count} of {faults}: {kind}", flush=True)
        goes_on = True
        try:
            one = soak.fault(kind)
        except (TimeoutError, ProcessLookupError) as error:
            goes_on = soak.late(kind, error)
            entry: dict[str, object] = {"kind": kind, "in_vain": str(error)}
        else:
            print(f"  {one.named[:90] or 'NOT NAMED'} after {one.named_s:.1f} s; ranks again after "
                  f"{one.started_s:.1f}, a step after {one.again_s:.1f}; {one.lost} lost", flush=True)  # fmt: skip
            entry = asdict(one)
        if log is not None:
            with log.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"fault": count, "at_s": time.monotonic() - soak.began_s, **entry}) + "\n")
        if not goes_on:
            return


def report(soak: Soak, steps: list[dict[str, float]], alone: list[float]) -> int:
    worst = max(abs(one["loss"] / want - 1) for one, want in zip(steps, alone, strict=True))
    in_order = [int(one["step"]) for one in steps] == list(range(1, len(steps) + 1))
    restarts, unnamed = soak.restarts, sum(not one.named for one in soak.restarts)
    wall_s, step_s, checkpoint_s = soak.ended_s - soak.began_s, *parts(soak.hosts.said())
    named_s, started_s, again_s = (
        statistics.mean(getattr(one, name) for one in restarts) for name in ("named_s", "started_s", "again_s")
    )
    print(f"{len(restarts)} faults in {wall_s / 60:.0f} minutes, {len(restarts) - unnamed} named, "
          f"{len(soak.in_vain)} in vain; seconds until a step:")  # fmt: skip
    for kind, count in sorted(Counter(one.kind for one in restarts).items()):
        seconds = sorted(one.again_s for one in restarts if one.kind == kind)
        print(f"  {kind:8} {count:3}, median {statistics.median(seconds):.1f}, at most {seconds[-1]:.1f}")
    print(f"{len(steps)} steps, {'in order' if in_order else 'NOT in order'}, losses from {alone[0]:.3f} to "
          f"{alone[-1]:.3f}, within {worst:.0e} of one process's")  # fmt: skip
    print(f"a restart: {named_s:.1f} s until it is named, {started_s - named_s:.1f} until ranks start (agents meet, "
          f"plan), {again_s - started_s:.1f} until a step (groups, model, checkpoint, the step)")  # fmt: skip
    counted_s = (len(steps) - soak.first) * step_s
    print(f"of the time: restarts {again_s * len(restarts) / wall_s:.1%}, steps that count {counted_s / wall_s:.1%}, "
          f"lost {sum(one.lost for one in restarts) * step_s / wall_s:.1%}")  # fmt: skip
    print(f"goodput {counted_s / wall_s:.1%}; {prediction(restarts, step_s, checkpoint_s)}")
    return 0 if in_order and not unnamed and not soak.in_vain and worst < WITHIN else 1


def prediction(restarts: list[Restart], step_s: float, checkpoint_s: float) -> str:
    """The goodput that the parts give, and the parts."""
    work_s, mean_s = EVERY * step_s, statistics.mean(one.gap_s for one in restarts)
    older = sum(one.kind == "corrupt" for one in restarts) / len(restarts) * (work_s + checkpoint_s)
    restart_s = statistics.mean(one.again_s for one in restarts) - step_s + older
    predicted = work_s / ((mean_s + restart_s) * math.expm1((work_s + checkpoint_s) / mean_s))
    return (f"predicted {predicted:.1%} with {mean_s:.1f} s of steps between faults, {restart_s:.1f} s a restart, "
            f"{checkpoint_s:.2f} s a checkpoint, every {EVERY} steps of {step_s:.3f} s")  # fmt: skip


def parts(lines: list[Line]) -> tuple[float, float]:
    """Mean seconds of a step, and of a checkpoint: from a step's line to the next one's, less a step."""
    apart: dict[bool, list[float]] = {True: [], False: []}
    told = [line for line in lines if STEP.match(line.text) or re.match(r"round \d|starting \d", line.text)]
    for line, later in pairwise(told):
        if STEP.match(line.text) and STEP.match(later.text) and number(later) == number(line) + 1:
            apart[number(line) % EVERY == 0].append(later.at_s - line.at_s)
    step_s = statistics.mean(apart[False])
    return step_s, max(1e-3, statistics.mean(apart[True]) - step_s)


if __name__ == "__main__":
    sys.exit(main())
