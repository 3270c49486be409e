"""Break a training run at random, again and again: each fault must be named, and the losses must be unbroken.

    python benchmarks/soak.py --faults 200 [--minutes 60] [--seed 0] [--kinds kill,stop]          root for all kinds

Two hosts of one rank each train the tiny model under `executor launch --elastic`; as root they are network namespaces
joined by a cable, and the run lies on a small file system. Faults, drawn at random:

    kill      a rank is ended by SIGKILL                     the same launch goes on
    stop      a rank is stopped by SIGSTOP                   silent, ended, the same launch goes on
    cut       the cable is cut                               the first host goes on alone, planned again; the other
                                                             host is started again, joins, and both go on
    full      the disk of the run is full                    the launch ends (a user's mistake), and is started again
    corrupt   a byte of the newest checkpoint flips,         the checkpoint is refused by name; without it the launch
              and a rank is killed                           is started again

Faults strike while steps run, at a constant rate: after exponential times of mean M (`--between`). At the end, also
where something did not happen in time, every loss is compared with one process's, and the time is told apart:

    R    a fault until a step is done again, less that step: until it is named, until ranks start, until the step
    t C  EVERY steps; their checkpoint      goodput  the steps that count, at the mean step's time, over the time passed
    predicted = t / ((M + R) (exp((t + C) / M) - 1))

which is `planner/reverse/goodput.py` without faults that strike a restart: exp(R / M) is 1 + R / M. A flipped
checkpoint costs R an interval more, as the one before it is resumed. Exit code 1 if a fault was not named, a loss
differs or a wait was in vain.
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
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import numpy as np

from cost_models import Cluster
from longvila import checkpoint
from planner.planning import plan

EVERY = 4  # steps between checkpoints
STEP = re.compile(r"step (\d+)/")
WORDS = {
    "kill": r"rank \d failed: killed by signal 9",
    "stop": r"rank \d on \S+ is silent for",
    "cut": r"rank \d on \S+ (is silent for|has no answer from|lost)",
    "full": r"cannot be written .*0 MiB free|No space left on device",
    "corrupt": r"is not as it was written: its SHA-256",
}


class Line(NamedTuple):
    at_s: float  # of the monotonic clock
    text: str


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Hosts:
    """Two hosts: namespaces and a small disk for root, else two addresses of this machine."""

    def __init__(self, folder: Path, root: bool, silence_s: float) -> None:
        self.folder, self.root, self.silence_s = folder, root, silence_s
        self.names = [f"soak{os.getpid()}{side}" for side in "ab"]
        self.addresses = ["10.78.0.1", "10.78.0.2"] if root else ["127.0.0.1", "127.0.0.2"]
        self.launches: list[subprocess.Popen[str] | None] = [None, None]
        self.run = folder / "disk" / "run"
        self.lines: tuple[list[Line], list[Line]] = [], []  # that the launches of each host have written

    def __enter__(self) -> Hosts:
        self.run.parent.mkdir(parents=True)
        if self.root:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", self.run.parent], check=True)
            for name in self.names:
                ip("netns", "add", name)
            first, second = self.names
            ip("link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second)
            for name, address in zip(self.names, self.addresses, strict=True):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
                ip("-n", name, "link", "set", "lo", "up")
                ip("-n", name, "link", "set", "eth0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for number in (0, 1):
            self.end(number, signal.SIGKILL)
        if self.root:
            for name in self.names:
                subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
            subprocess.run(["umount", "-l", self.run.parent], check=False)

    def start(self, number: int, resume: bool) -> None:
        settings = [f"--set=run={self.run}", *(["--set=resume=latest"] if resume else [])]
        executor = Path(sys.executable).parent / "executor"
        inside = ["ip", "netns", "exec", self.names[number]] if self.root else []
        interface = "eth0" if self.root else "lo"
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

    def end(self, number: int, how: int = signal.SIGINT) -> None:
        launch = self.launches[number]
        if launch is not None:
            with suppress(ProcessLookupError):
                launch.send_signal(how)
            with suppress(subprocess.TimeoutExpired):
                launch.wait(30)
            launch.kill()
            launch.wait()
        self.launches[number] = None

    def cable(self, state: str) -> None:
        ip("-n", self.names[1], "link", "set", "eth0", state)

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

    named_s: float
    started_s: float  # until the last ranks were started
    again_s: float  # until they have done a step
    lost: int


class Soak:
    def __init__(self, hosts: Hosts, draw: random.Random, between_s: float) -> None:
        self.hosts, self.draw, self.between_s = hosts, draw, between_s
        self.restarts: list[Restart] = []
        self.ran_s = 0.0  # while faults could strike
        self.unnamed: list[str] = []
        self.kinds: Counter[str] = Counter()

    def newest(self) -> int:
        done = checkpoint.complete(self.hosts.run / "checkpoints")
        return int(done[-1].name.removeprefix("step-")) if done else 0

    def first_step(self, after_s: float) -> tuple[float, Line] | None:
        """Of the ranks that were started last: when they were, and their first step."""
        started_s, first = None, None
        for line in self.hosts.said(after_s):
            if re.match(r"round \d|starting \d", line.text):
                started_s, first = line.at_s, None
            elif started_s is not None and first is None and line.text.startswith("step "):
                first = line
        return None if started_s is None or first is None else (started_s, first)

    def fault(self, kind: str) -> None:
        time.sleep(gap_s := self.draw.expovariate(1 / self.between_s))
        self.ran_s += gap_s
        began_s, hosts, victim = time.monotonic(), self.hosts, self.draw.randrange(2)
        getattr(self, kind)(victim)
        wait("a step after the fault", lambda: self.first_step(began_s) is not None)
        found = self.first_step(began_s)
        assert found is not None
        started_s, first = found
        named = next((line for line in hosts.said(began_s) if re.search(WORDS[kind], line.text)), None)
        if named is None:
            self.unnamed.append(kind)
        before = max(
            (number(line) for line in hosts.said() if STEP.match(line.text) and line.at_s < began_s), default=0
        )
        self.restarts.append(Restart(
            named_s=(named or first).at_s - began_s, started_s=started_s - began_s, again_s=first.at_s - began_s,
            lost=max(0, before - number(first) + 1),
        ))  # fmt: skip
        self.kinds[kind] += 1
        print(f"  {kind:8} on host {victim}: {'NOT NAMED' if named is None else named.text.strip()[:70]} after "
              f"{self.restarts[-1].named_s:.1f} s; ranks again after {self.restarts[-1].started_s:.1f} s, a step after "
              f"{self.restarts[-1].again_s:.1f} s; {self.restarts[-1].lost} steps lost", flush=True)  # fmt: skip

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
        hosts.cable("down")
        self._again("cut")
        hosts.end(1, signal.SIGKILL)  # its machine is started again
        hosts.cable("up")
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
        wait("a checkpoint", lambda: self.newest() > 0)
        os.kill(self.hosts.rank(victim), signal.SIGSTOP)  # no newer one comes
        newest = checkpoint.complete(self.hosts.run / "checkpoints")[-1]
        file = self.draw.choice(sorted(newest.glob("*.safetensors")))
        content = bytearray(file.read_bytes())
        content[self.draw.randrange(len(content) // 2, len(content))] ^= 1 << self.draw.randrange(8)
        file.write_bytes(content)
        wait("the launches' end", lambda: all(one is None or one.poll() is not None for one in self.hosts.launches))
        shutil.rmtree(newest)
        self._start_again()

    def _start_again(self) -> None:
        for number in (0, 1):
            self.hosts.end(number)
        for number in (0, 1):
            self.hosts.start(number, resume=self.newest() > 0)


def prepared(folder: Path) -> None:
    """A plan of two CPU hosts, rows of text, and the job's settings."""
    from cost_models import Model, Workload
    from cost_models.workload import Precision

    one = Cluster.load("local", gpus=1)
    fp32 = Precision(param="fp32", master="fp32", grad="fp32", reduce="fp32", optimizer="fp32")
    workload = Workload(Model.load("longvila-tiny"), context_tokens=256, frames=0, global_batch=1, precision=fp32)
    cluster = replace(one, runs=(replace(one.runs[0], count=2),))
    plan(cluster, workload, fixed={"ulysses": 2, "ring": 1, "data": 1}).save(folder / "plan.json")
    rows = np.random.default_rng(0).integers(0, 10, (7, 40))
    lines = [json.dumps({"id": str(number), "conversations": [
        {"from": "human", "value": f"say {number}"}, {"from": "gpt", "value": " ".join(map(str, row))}]})
        for number, row in enumerate(rows)]  # fmt: skip
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    settings = {"data": [str(folder / "rows.jsonl")], "steps": 10**6, "max_tokens": 256, "precision": "fp64",
                "checkpoint_every": EVERY, "keep_checkpoints": 3}  # fmt: skip
    (folder / "train.json").write_text(json.dumps(settings))


def unbroken(folder: Path, steps: int) -> list[float]:
    """The losses of one process that nothing happens to."""
    code = ("import json, sys; from longvila import train; from longvila.job import Job; "
            "given = json.load(open('train.json')); given.update(run='alone', checkpoint_every=None, "
            "steps=int(sys.argv[1])); train.main(Job(config=given))")  # fmt: skip
    subprocess.run([sys.executable, "-c", code, str(steps)], cwd=folder, check=True, capture_output=True)
    return [json.loads(line)["loss"] for line in (folder / "alone" / "metrics.jsonl").read_text().splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no other fault is begun")
    parser.add_argument("--between", type=float, default=10.0, help="mean seconds of steps between faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--silence", type=float, default=5.0, help="seconds, of the launches; more on a busy machine")
    parser.add_argument("--kinds", help=f"of {', '.join(WORDS)}; default: all, without root those but cut and full")
    given = parser.parse_args()
    root = os.geteuid() == 0 and shutil.which("ip") is not None
    kinds = given.kinds.split(",") if given.kinds else [kind for kind in WORDS if root or kind not in ("cut", "full")]
    if odd := [kind for kind in kinds if kind not in WORDS or (not root and kind in ("cut", "full"))]:
        parser.error(f"--kinds: {odd[0]} is none of {', '.join(WORDS)}, or needs root")
    draw = random.Random(given.seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # namespaces and disk are taken down
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch, Hosts(Path(scratch), root, given.silence) as hosts:
        prepared(hosts.folder)
        for number in (0, 1):
            hosts.start(number, resume=False)
        soak, late = Soak(hosts, draw, given.between), False
        wait("a checkpoint", lambda: soak.newest() > 0)
        began_s, first = time.monotonic(), len(hosts.steps())
        try:
            for count in range(given.faults):
                if time.monotonic() - began_s > 60 * given.minutes:
                    break
                print(f"fault {count + 1} of {given.faults}", flush=True)
                soak.fault(draw.choice(kinds))
        except (TimeoutError, ProcessLookupError) as error:
            print(f"{error}\n{''.join(line.text for line in hosts.said()[-40:])}", file=sys.stderr)
            late = True
        wall_s, steps = time.monotonic() - began_s, hosts.steps()
        for host in (0, 1):
            hosts.end(host)
        if not soak.restarts:
            return 1
        return max(late, report(soak, steps, len(steps) - first, wall_s, unbroken(hosts.folder, len(steps))))


def report(soak: Soak, steps: list[dict[str, float]], counted: int, wall_s: float, alone: list[float]) -> int:
    worst = max(abs(one["loss"] / want - 1) for one, want in zip(steps, alone, strict=True))
    in_order = [int(one["step"]) for one in steps] == list(range(1, len(steps) + 1))
    restarts, faults = soak.restarts, len(soak.restarts)
    step_s, checkpoint_s = parts(soak.hosts.said())
    work_s, mean_s = EVERY * step_s, soak.ran_s / faults
    interval_s = soak.kinds["corrupt"] / faults * (work_s + checkpoint_s)
    named_s, started_s, again_s = (
        statistics.mean(getattr(one, name) for one in restarts) for name in ("named_s", "started_s", "again_s")
    )
    restart_s = again_s - step_s + interval_s
    predicted = work_s / ((mean_s + restart_s) * math.expm1((work_s + checkpoint_s) / mean_s))
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(soak.kinds.items()))
    print(f"{faults} faults ({kinds}) in {wall_s / 60:.0f} minutes, {faults - len(soak.unnamed)} named")
    print(f"{len(steps)} steps, "
          f"{'in order' if in_order else 'NOT in order'}, losses within {worst:.0e} of one process's")  # fmt: skip
    print(f"a restart: {named_s:.1f} s until it is named, {started_s - named_s:.1f} until ranks start (agents meet, "
          f"plan), {again_s - started_s:.1f} until a step (groups, model, checkpoint, the step)")  # fmt: skip
    print(f"of the time: restarts {again_s * faults / wall_s:.1%}, steps that count {counted * step_s / wall_s:.1%}, "
          f"lost {sum(one.lost for one in restarts) * step_s / wall_s:.1%}")  # fmt: skip
    print(f"goodput {counted * step_s / wall_s:.1%}; predicted {predicted:.1%} with {mean_s:.1f} s of steps between "
          f"faults, {restart_s:.1f} s a restart, {checkpoint_s:.2f} s a checkpoint, every {EVERY} steps of "
          f"{step_s:.3f} s")  # fmt: skip
    return 0 if in_order and not soak.unnamed and worst < 1e-6 else 1


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
