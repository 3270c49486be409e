"""`executor launch`: a plan becomes processes on this machine (or the lines that start them on several).

    plan.json -> check against what is here -> bind slots to hosts -> start ranks -> watch -> first failure ends all

One host: this process starts every rank and is the only one to be stopped; Ctrl-C, a lost rank or this process's own
death end all within a second. Several hosts: the same on each with `--node-rank`, or `torchrun` (`elastic`), or a batch
script (`slurm`). The meeting port is bound before anything starts, so that a busy one is named. Returns exit codes:
0 done, 1 a rank failed, 2 the user's mistake, 130 stopped. Left out: restarts (resume from the checkpoint instead).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from cost_models.errors import InputError
from cost_models.hardware.machine import Host, discover
from executor.launch import requirements
from executor.launch.dry_run import DEFAULT_PORT
from executor.launch.hosts import Binding, Seat, bind, used_slots
from executor.launch.run_folder import FAILED, Failure, RunFolder, Spec
from executor.launch.settings import Settings, check_job, merge
from planner.plan_file import Plan

BACKENDS = ("gloo", "nccl")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for, as on the command line."""

    plan: Path
    job: str = "longvila.train"
    config: str | None = None
    sets: tuple[str, ...] = ()
    run_dir: Path | None = None
    hosts: tuple[str, ...] = ()
    node_rank: int | None = None  # -1: the place of this host's name in `hosts`
    port: int | None = None
    backend: str | None = None
    timeout_s: float = 600.0


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A request that was checked: everything is known, nothing is started."""

    request: Request
    plan: Plan
    settings: Settings
    binding: Binding
    backend: str
    here: Host
    host: str | None  # this host's name in the binding; None: several hosts, and it was not said which one this is

    @property
    def seats(self) -> tuple[Seat, ...]:
        return self.binding.on(self.host) if self.host is not None else ()

    @property
    def alone(self) -> bool:
        return len(self.binding.host_of_slot) == 1

    @property
    def folder(self) -> RunFolder:
        return RunFolder(path=self.request.run_dir or Path("runs") / "launch")


def prepare(request: Request) -> Launch:
    """Check everything that can be checked before a process starts."""
    check_job(request.job)
    plan = Plan.load(request.plan)
    settings = merge(plan, request.job, request.config, request.sets)
    slots, here = used_slots(plan), discover()
    names = request.hosts or ((here.name,) if len(slots) == 1 else tuple(f"HOST{slot}" for slot in slots))
    binding = bind(plan, names)
    host = _this_host(request, binding, here)
    problems = requirements.unsupported(plan)
    if host is not None:
        slot, ranks = binding.on(host)[0].slot, len(binding.on(host))
        problems += requirements.differences(plan, here, slot, ranks)
    if problems:
        raise InputError(f"{request.plan} does not run on {host or 'any host'}: " + "; ".join(problems))
    backend = _backend(request, plan)
    return Launch(request=request, plan=plan, settings=settings, binding=binding, backend=backend, here=here, host=host)


def _this_host(request: Request, binding: Binding, here: Host) -> str | None:
    hosts, number = binding.hosts, request.node_rank
    if number is None:
        return hosts[0] if len(hosts) == 1 else None
    if number == -1:
        short = here.name.split(".")[0]
        mine = [name for name in hosts if name in (here.name, short) or name.split(".")[0] == short]
        if len(mine) != 1:
            raise InputError(f"--node-rank auto: this host is {here.name}, which is not one of {', '.join(hosts)}")
        return mine[0]
    if not 0 <= number < len(hosts):
        raise InputError(f"--node-rank {number}: the plan uses {len(hosts)} hosts; legal: 0 to {len(hosts) - 1}, auto")
    return hosts[number]


def _backend(request: Request, plan: Plan) -> str:
    natural = "gloo" if plan.cluster.node(used_slots(plan)[0]).device.architecture == "cpu" else "nccl"
    if request.backend not in (None, natural):
        device = "CPU processes" if natural == "gloo" else "GPUs"
        raise InputError(f"--backend {request.backend}: this plan is for {device}, which talk over {natural}")
    return natural


def run(launch: Launch, out: TextIO, err: TextIO) -> int:
    """Start this host's ranks, show rank 0's output, and wait; the exit code."""
    seats, folder = launch.seats, launch.folder
    assert seats, "only a launch that knows its host can run"
    first = launch.binding.seats[0]
    master = "127.0.0.1" if launch.alone else launch.binding.first_host
    listener = _listen(master, launch.request.port, launch.alone) if first in seats else None
    port = listener.getsockname()[1] if listener else launch.request.port or DEFAULT_PORT
    spec = Spec(
        job=launch.request.job,
        settings=launch.settings.values,
        backend=launch.backend,
        master=master,
        port=port,
        threads=max(1, launch.here.cores // len(seats)),
        timeout_s=launch.request.timeout_s,
    )
    ranks = tuple(seat.rank for seat in seats)
    folder.create(spec, launch.request.plan.read_text(encoding="utf-8"), ranks)
    shown = _Shown(folder, ranks[0], out, err)
    with _signals_raise(), _started(folder, spec, ranks, listener) as processes:
        try:
            _wait(processes, shown)
        except KeyboardInterrupt:
            err.write("stopped: all ranks are ended\n")
            return 130
        shown.update()
        failed = [process.returncode for process in processes if process.poll() not in (0, None)]
    if not failed:
        return 0
    failure = folder.first_failure() or _unexplained(failed[0], ranks)
    err.write(_explain(failure, folder))
    return 2 if failure.kind == "user" else 1


def _explain(failure: Failure, folder: RunFolder) -> str:
    if failure.kind == "user":
        return f"executor: {failure.message}\n"
    return f"executor: rank {failure.rank} failed: {failure.message} (more in {folder.log(failure.rank)})\n"


def _unexplained(code: int, ranks: Sequence[int]) -> Failure:
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    message = f"the process of ranks {', '.join(map(str, ranks))} ended without a word: {how}"
    return Failure(rank=ranks[0], kind="fault", message=message, at_ns=time.time_ns())


def _listen(master: str, port: int | None, alone: bool) -> socket.socket:
    """The bound socket where the ranks meet: on this machine only, if all of them are here."""
    wanted = port if port is not None else (0 if alone else DEFAULT_PORT)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((master if alone else "", wanted))
        listener.listen(4096)
    except OSError as error:
        listener.close()
        raise InputError(f"--port {wanted} cannot be used: {error.strerror}; give another --port") from None
    return listener


def rank_environment(threads: int) -> dict[str, str]:
    """Threads that sleep while they wait: ranks share cores, and one that spins takes its neighbour's time."""
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}


@contextmanager
def _started(
    folder: RunFolder, spec: Spec, ranks: Sequence[int], listener: socket.socket | None
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The ranks' processes; all of them are ended on the way out."""
    forked = sys.platform == "linux" and spec.backend == "gloo"
    descriptor = listener.fileno() if listener else -1
    environment = os.environ | rank_environment(spec.threads)
    if spec.master.startswith("127."):
        environment["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for own in [list(ranks)] if forked else [[rank] for rank in ranks]:
            listens = descriptor if 0 in own else -1
            names = [str(folder.path.resolve()), ",".join(map(str, own)), str(os.getpid()), str(listens)]
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-P", "-m", "executor.launch.worker", *names],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    pass_fds=[descriptor] if listens >= 0 else [],
                )
            )
        if listener:
            listener.close()
        yield processes
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP end a launch as Ctrl-C does; what was ignored (nohup) stays ignored."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    heard = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen[bytes]], shown: _Shown) -> None:
    """Until all have ended well or one has not; then a moment for the others to say why."""
    while True:
        shown.update()
        codes = [process.poll() for process in processes]
        if all(code == 0 for code in codes):
            return
        if any(code not in (None, 0) for code in codes):
            if len(processes) > 1:
                time.sleep(0.5)
            return
        time.sleep(0.05)


class _Shown:
    """Copies what a rank prints from its logs to the terminal as it comes, up to its traceback."""

    def __init__(self, folder: RunFolder, rank: int, out: TextIO, err: TextIO) -> None:
        self._streams = [(folder.out(rank), out), (folder.log(rank), err)]
        self._read = [0, 0]
        self._ended = [False, False]

    def update(self) -> None:
        for index, (path, stream) in enumerate(self._streams):
            with path.open("rb") as file:
                file.seek(self._read[index])
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            if not whole or self._ended[index]:
                continue
            self._read[index] += len(whole)
            text = whole.decode("utf-8", errors="replace")
            before, failed, _ = text.partition(FAILED)
            self._ended[index] = bool(failed)
            stream.write(before)
            stream.flush()
