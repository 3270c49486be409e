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

A fault takes 10 to 25 s on two quiet cores, so 200 take about an hour; after `--minutes` no other is begun. At the end,
also where something did not happen in time, every loss is compared with one process's. Goodput is the time that the
steps that count would have taken without faults, over the time passed; beside it what `planner/reverse/goodput.py`
predicts from the measured times between faults, of a restart and of a checkpoint. Exit code 1 if a fault was not named,
a loss differs or a wait was in vain.
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
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np

from cost_models import Cluster
from longvila import checkpoint
from planner.planning import plan
from planner.reverse.goodput import Failures

EVERY = 4  # steps between checkpoints
WORDS = {
    "kill": r"rank \d failed: killed by signal 9",
    "stop": r"rank \d on \S+ is silent for",
    "cut": r"rank \d on \S+ (is silent for|has no answer from|lost)",
    "full": r"cannot be written .*0 MiB free|No space left on device",
    "corrupt": r"is not as it was written: its SHA-256",
}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Hosts:
    """Two hosts: namespaces and a small disk for root, else two addresses of this machine."""

    def __init__(self, folder: Path, root: bool, silence_s: float) -> None:
        self.folder, self.root, self.silence_s = folder, root, silence_s
        self.names = [f"soak{os.getpid()}{side}" for side in "ab"]
        self.addresses = ["10.78.0.1", "10.78.0.2"] if root else ["127.0.0.1", "127.0.0.2"]
        self.launches: list[subprocess.Popen[bytes] | None] = [None, None]
        self.run = folder / "disk" / "run"
        self.texts = [folder / f"host-{number}.log" for number in (0, 1)]

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
        with self.texts[number].open("ab") as text:
            self.launches[number] = subprocess.Popen(
                [*inside, str(executor), "launch", "plan.json", "--config", "train.json", *settings, "--elastic=1000",
                 f"--hosts={','.join(self.addresses)}", f"--node-rank={number}", "--port=29555", "--timeout=60",
                 f"--silence={self.silence_s:g}", f"--run-dir=launch-{number}"],
                cwd=self.folder, stdout=text, stderr=text, env={**os.environ, "GLOO_SOCKET_IFNAME": interface},
            )  # fmt: skip

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

    def said(self, after: tuple[int, int] = (0, 0)) -> str:
        """What both launches have written, each after so many bytes."""
        return "".join(
            text.read_bytes()[start:].decode(errors="replace")
            for text, start in zip(self.texts, after, strict=True)
            if text.exists()
        )

    def heard(self) -> tuple[int, int]:
        first, second = (text.stat().st_size if text.exists() else 0 for text in self.texts)
        return first, second

    def steps(self) -> list[dict[str, float]]:
        """The steps that count, in order."""
        file = self.run / "metrics.jsonl"
        lines: list[str] = []
        with suppress(OSError):
            lines = file.read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]


def wait(what: str, holds: Callable[[], bool], limit_s: float = 180.0) -> None:
    until_s = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > until_s:
            raise TimeoutError(f"{what} did not happen within {limit_s:g} s")
        time.sleep(0.05)


class Soak:
    def __init__(self, hosts: Hosts, draw: random.Random) -> None:
        self.hosts, self.draw = hosts, draw
        self.restarts_s: list[float] = []
        self.checkpoints_s: list[float] = []
        self.unnamed: list[str] = []
        self.kinds: Counter[str] = Counter()
        Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """What a checkpoint takes: from a step's line to that of the next, less the next step's own time."""
        known, came_s = 0, 0.0
        while True:
            time.sleep(0.02)
            steps, now_s = self.hosts.steps(), time.monotonic()
            if len(steps) == known + 1 and known and known % EVERY == 0:
                self.checkpoints_s.append(max(0.0, now_s - came_s - steps[-1]["seconds"]))
            if len(steps) != known:
                known, came_s = len(steps), now_s

    def newest(self) -> int:
        done = checkpoint.complete(self.hosts.run / "checkpoints")
        return int(done[-1].name.removeprefix("step-")) if done else 0

    def work(self) -> None:
        """Until there is another checkpoint, and a random while more."""
        saved = self.newest()
        wait("a checkpoint", lambda: self.newest() > saved)
        time.sleep(self.draw.random() * 2)

    def fault(self, kind: str) -> None:
        heard, began_s, hosts = self.hosts.heard(), time.monotonic(), self.hosts
        victim = self.draw.randrange(2)
        getattr(self, kind)(victim)
        named = re.search(WORDS[kind], hosts.said(heard))
        if named is None:
            self.unnamed.append(kind)
        lines = len(hosts.steps())
        changed = (hosts.run / "metrics.jsonl").stat().st_mtime_ns
        wait("a step after the fault", lambda: (hosts.run / "metrics.jsonl").stat().st_mtime_ns > changed)
        self.restarts_s.append(time.monotonic() - began_s)
        self.kinds[kind] += 1
        print(f"  {kind:8} on host {victim}: {named[0] if named else 'NOT NAMED'}; a step again after "
              f"{self.restarts_s[-1]:.0f} s, at step {lines}", flush=True)  # fmt: skip

    def _again(self, kind: str) -> None:
        """The launch goes on by itself, in its next round."""
        rounds = self.hosts.said().count("\nround ")
        wait(f"a new round after {kind}", lambda: self.hosts.said().count("\nround ") >= rounds + 1)

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
        newest = checkpoint.complete(self.hosts.run / "checkpoints")[-1]
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
        soak, late = Soak(hosts, draw), False
        soak.work()
        began_s, first = time.monotonic(), len(hosts.steps())
        try:
            for number in range(given.faults):
                if time.monotonic() - began_s > 60 * given.minutes:
                    break
                print(f"fault {number + 1} of {given.faults}", flush=True)
                soak.fault(draw.choice(kinds))
                soak.work()
        except (TimeoutError, ProcessLookupError) as error:
            print(f"{error}\n{hosts.said()[-3000:]}", file=sys.stderr)
            late = True
        wall_s, steps = time.monotonic() - began_s, hosts.steps()
        for number in (0, 1):
            hosts.end(number)
        if not soak.restarts_s:
            return 1
        return max(late, report(soak, steps, len(steps) - first, wall_s, unbroken(hosts.folder, len(steps))))


def report(soak: Soak, steps: list[dict[str, float]], counted: int, wall_s: float, alone: list[float]) -> int:
    worst = max(abs(one["loss"] / want - 1) for one, want in zip(steps, alone, strict=True))
    in_order = [int(one["step"]) for one in steps] == list(range(1, len(steps) + 1))
    faults = len(soak.restarts_s)
    step_s = statistics.median(one["seconds"] for one in steps)
    checkpoint_s = max(1e-3, statistics.median(soak.checkpoints_s))
    failures = Failures(
        between_s=wall_s / faults, checkpoint_s=checkpoint_s, restart_s=statistics.mean(soak.restarts_s)
    )
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(soak.kinds.items()))
    print(f"{faults} faults ({kinds}) in {wall_s / 60:.0f} minutes, {faults - len(soak.unnamed)} named")
    print(f"{len(steps)} steps, "
          f"{'in order' if in_order else 'NOT in order'}, losses within {worst:.0e} of one process's")  # fmt: skip
    print(f"goodput {counted * step_s / wall_s:.1%}; predicted {failures.goodput(EVERY * step_s):.1%} with "
          f"{failures.between_s:.0f} s between faults, {failures.restart_s:.1f} s a restart, {checkpoint_s:.2f} s a "
          f"checkpoint, every {EVERY} steps of {step_s:.3f} s")  # fmt: skip
    return 0 if in_order and not soak.unnamed and worst < 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())
