"""The ranks of one host under torch's elastic agent: started together, watched together, ended together.

    this process: agent + meeting store (node 0) ── fork on Linux for CPU ranks, spawn otherwise ── local rank 0, 1, …

A forked rank shares what this process imported, so imports are paid once. A rank that fails writes its reason and its
traceback to files next to its log and leaves at once; the agent sees that within a tenth of a second and ends the
others. Lost connections are consequences: a rank that raises a RuntimeError stays `_CAUSE_FIRST_S` longer, so that the
rank that caused it is seen first. The kernel ends ranks whose agent was killed. With an `Elastic` the same agent starts
ranks again. Leaves out: ranks that outlive a killed agent on systems other than Linux.
"""

from __future__ import annotations

import fcntl
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousHandler
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]

from cost_models.errors import InputError
from executor.launch.launch import SILENCE_S
from executor.launch.liveness import ROUNDS, End, announce, beat_of, in_time, kill_sibling, own_connection
from longvila.job import JobError
from planner.exports.torchrun import PORT

_CAUSE_FIRST_S = 1.0
_LOST = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited",
    "Timed out waiting",
)  # fmt: skip
_PREFIX = "mmsp"
_STOPS = ("SIGINT", "SIGTERM", "SIGHUP")


@dataclass(frozen=True, kw_only=True)
class Team:
    """The processes that this host adds to a job, and where all processes of the job meet."""

    ranks: tuple[int, ...]  # the plan's rank of each local rank; logs are named after it
    logs: Path
    forked: bool
    timeout_s: float = 600.0
    node: int = 0
    nodes: int = 1
    master: str = "127.0.0.1"  # the host of node 0
    port: int | None = None  # None means a free port for one node, PORT for several
    host: str = "this host"
    silence_s: float = SILENCE_S
    round: int = 0  # of an elastic job


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a team ended. `code`: 0 done, 1 a rank failed, 2 the user's mistake, 130 stopped."""

    code: int
    reason: str = ""
    value: Any = None  # what the first local rank's function returned


class Elastic(Protocol):
    """How an agent goes on after a failure."""

    @property
    def restarts(self) -> int: ...

    def rounds(self, store: TCPStore, start: Callable[[object, Team], None]) -> RendezvousHandler:
        """The agents' meetings; each calls `start` with the ranks' argument and this host's team of the round."""


def run_team(function: Callable[[Any], Any], argument: object, team: Team, elastic: Elastic | None = None) -> Outcome:
    """Run `function(argument)` on every rank of the team, under an open port and with output in `team.logs`."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("torch.multiprocessing").setLevel(logging.CRITICAL)
    store, logs = _meeting_store(team), _Logs(team)
    heard = [name for name in _STOPS if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN]
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(heard)
    spec = WorkerSpec(
        role="",
        local_world_size=len(team.ranks),
        entrypoint=_rank,
        args=(function, argument, os.getpid(), team.silence_s),
        rdzv_handler=_Meeting(store, team),
        max_restarts=elastic.restarts if elastic else 0,
    )
    agent = _Agent(spec, logs, team, store)

    def start(argument: object, team: Team) -> None:
        """The next round of an elastic job."""
        spec.args, spec.local_world_size = (function, argument, os.getpid(), team.silence_s), len(team.ranks)
        agent.begin(team)

    if elastic:
        spec.rdzv_handler = elastic.rounds(store, start)
    else:
        agent.watch()
    try:
        result = agent.run()
    except (SignalException, KeyboardInterrupt):
        return Outcome(code=130, reason="stopped: all ranks are ended")
    except RendezvousError as error:
        return Outcome(code=1, reason=f"the other hosts do not go on ({one_line(error)})")
    finally:
        for left in multiprocessing.active_children():
            left.kill()
        agent.clear()
        if elastic:
            in_time(spec.rdzv_handler.shutdown)
    if not result.is_failed():
        return Outcome(code=0, value=next(iter(result.return_values.values())))
    end = agent.cause(result)
    if agent.team.nodes > 1:
        end = _tell_hosts(end, agent.team, agent.meeting)
    return Outcome(code=end.code, reason=end.reason)


class _Agent(LocalElasticAgent):
    """Torch's agent, which says why it starts ranks again, and does not where the user has to mend something."""

    def __init__(self, spec: WorkerSpec, logs: _Logs, team: Team, store: Store) -> None:
        # An empty role name is the only way to an empty prefix: lines are shown as the rank wrote them.
        method = "fork" if team.forked else "spawn"
        super().__init__(spec, logs, start_method=method, log_line_prefix_template="${role_name}")
        self.team, self._rank_logs, self._store_of_all, self._first_logs = team, logs, store, logs

    @property
    def meeting(self) -> Store:
        """What the ranks of this round tell each other."""
        return PrefixStore(f"{_PREFIX}/{self.team.round}", self._store_of_all)

    def begin(self, team: Team) -> None:
        """A round with this team."""
        self.team = team
        if team.round:
            self.clear()
            self._rank_logs = self._logs_specs = _Logs(team)
        self.watch()

    def watch(self) -> None:
        if self.team.nodes > 1:
            Thread(target=_end_silent_ranks, args=(own_connection(self.meeting), self.team), daemon=True).start()

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        _continue(multiprocessing.active_children())
        super()._shutdown(death_sig, timeout)

    def clear(self) -> None:
        for rank in self.team.ranks:
            self._rank_logs.file(rank, "room").unlink(missing_ok=True)

    def cause(self, result: RunResult) -> End:
        return _end(next(iter(result.failures.values())), self.team, self._rank_logs, self.meeting)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if len(left := multiprocessing.active_children()) < len(self.team.ranks):  # torch ends the others now
            _continue(left)
        result = super()._monitor_workers(worker_group)
        if result.is_failed() and self._remaining_restarts:
            end, most = self.cause(result), self._worker_group.spec.max_restarts
            if end.code == 2:
                self._remaining_restarts = 0
            else:
                again = f"starts again ({most - self._remaining_restarts + 1} of {most})"
                print(f"executor: {end.reason}; {again}", file=sys.stderr, flush=True)
        return result


def _continue(ranks: Sequence[BaseProcess]) -> None:
    """A rank that is stopped would not see the signal that ends it, until torch has waited 30 s for it."""
    for rank in ranks:
        with suppress(ProcessLookupError):
            os.kill(rank.pid, signal.SIGCONT)  # type: ignore[arg-type]


def _tell_hosts(end: End, team: Team, meeting: Store) -> End:
    """The reason that came first of all hosts. Node 0, which holds the store, waits until the others have read it."""
    end = in_time(lambda: announce(meeting, end), end)
    in_time(lambda: meeting.add("read", 1))
    until_s = time.monotonic() + team.silence_s
    while team.node == 0 and time.monotonic() < until_s and in_time(lambda: meeting.add("read", 0)) != team.nodes:
        time.sleep(0.1)
    return end


def _end_silent_ranks(meeting: Store, team: Team) -> None:
    """End this host's ranks once the job has ended: those that are stopped do not read it."""
    with suppress(RuntimeError):
        while not meeting.check(["end"]):
            time.sleep(team.silence_s / ROUNDS)
        ranks = multiprocessing.active_children()  # not those of a next round
        time.sleep(3 * team.silence_s / ROUNDS)
        for left in ranks:
            left.kill()


def open_store(timeout_s: float, round: int = 0) -> Store:
    """Connect to the store of the agent that started this process; the agent set the variables that name it.

    Each `round` of an elastic job has a part of its own.
    """
    limit = timedelta(seconds=timeout_s)
    store, _, _ = next(rendezvous("env://", int(variable("RANK")), int(variable("WORLD_SIZE")), timeout=limit))
    store.set_timeout(limit)
    return PrefixStore(f"{_PREFIX}/{round}", store)


def variable(name: str) -> str:
    """A variable that torch's agent sets for its workers."""
    value = os.environ.get(name)
    if value is None:
        raise InputError(f"{name} is not set: start this module by torchrun, as `executor launch PLAN` prints it")
    return value


def is_mistake(error: BaseException) -> bool:
    """Whether the user can mend it: a setting, plan, file or flag."""
    return isinstance(error, InputError | JobError)


def one_line(error: BaseException) -> str:
    """What a failed rank says of itself, at most 400 characters."""
    text = " ".join(str(error).split())
    named = text if is_mistake(error) else f"{type(error).__name__}: {text}".removesuffix(": ")
    return named if len(named) <= 400 else named[:397] + "..."


def killed(number: int) -> str:
    """Describe a signal by number, name and likely cause."""
    hint = "; out of memory?" if number == signal.SIGKILL else ""
    return f"killed by signal {number} ({signal.Signals(number).name}){hint}"


def _rank(function: Callable[[Any], Any], argument: object, agent: int, silence_s: float) -> Any:
    """One rank, in a process of its agent. Signals that the agent handles get the default action of the system here."""
    for name in _STOPS:
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    _prctl_pr_set_pdeathsig(signal.SIGKILL)  # torch asks for SIGINT, which a stopped process does not see
    if os.getppid() != agent:  # it ended before the kernel was asked to end this process with it
        os._exit(1)
    try:
        return function(argument)
    except BaseException as error:
        _record(one_line(error), "".join(traceback.format_exception(error)), mistake=is_mistake(error))
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        wait_for_cause(error, silence_s)
        os._exit(2 if is_mistake(error) else 1)


def wait_for_cause(error: BaseException, silence_s: float) -> None:
    """A lost connection, or a time limit, is a consequence: give those who know its cause time to end this process."""
    if isinstance(error, RuntimeError):
        lost = any(words in str(error) for words in _LOST)
        time.sleep(1.5 * silence_s if lost else _CAUSE_FIRST_S)


def leave(host: str, end: End) -> None:
    """End this process, and a silent one of its host, for a reason that is the whole job's."""
    told = _record(end.reason, whole=True)
    kill_sibling(end, host)
    if not told:  # to an agent that shows it
        print(f"executor: {end.reason}", file=sys.stderr, flush=True)
    os._exit(end.code)


def _record(reason: str, trace: str = "", *, whole: bool = False, mistake: bool = False) -> bool:
    """Write the reason, as torch's agent reads it, into room that was kept for it; then the traceback for people.

    A reason is this rank's, or the `whole` job's; a `mistake` is the user's. Whether it could be written.
    """
    file, at_ns = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", os.devnull)), time.time_ns()
    room = file.with_suffix(".room")
    message = {"message": reason, "extraInfo": {"timestamp": at_ns // 10**9}}
    with suppress(OSError):
        with (room if room.exists() else file).open("r+", encoding="utf-8") as start:
            start.write(
                json.dumps({"message": message, "at_ns": at_ns, "whole": whole, "mistake": mistake}).ljust(4096)
            )
        if room.exists():
            room.replace(file)
        if trace:
            file.with_suffix(".traceback").write_text(trace, encoding="utf-8")
        return True
    return False


def _end(failure: ProcessFailure, team: Team, logs: _Logs, meeting: Store) -> End:
    """The first cause in one line: the rank that the agent saw end, or one that failed before it.

    The agent sees ranks that end within a tenth of a second as one, in no order: what they wrote has the order.
    """
    rank, log = team.ranks[failure.local_rank], "log"
    records = [(record, rank) for rank in team.ranks if (record := _read(logs.file(rank, "failure")))]
    for record, _ in records:
        if record["whole"]:
            return End(code=2 if failure.exitcode == 2 else 1, reason=str(record["message"]["message"]))
    if failure.exitcode == 2 and (mistake := _read(logs.file(rank, "failure"))):
        return End(code=2, reason=str(mistake["message"]["message"]))
    first = min(records, key=lambda entry: (entry[0]["at_ns"], entry[1]), default=None)
    if failure.exitcode >= 0 and first is not None and first[0]["mistake"]:
        return End(code=2, reason=str(first[0]["message"]["message"]))
    if failure.exitcode < 0:
        message = killed(-failure.exitcode)
    elif first is not None:
        record, rank = first
        message, log = record["message"]["message"], "traceback"
    else:
        message = f"it ended without a word: exit code {failure.exitcode}"
    last = in_time(lambda: beat_of(meeting, rank), {}).get("doing", "none")
    where = f"on {team.host}; last collective: {last}; more in {logs.file(rank, log)}"
    return End(code=2 if failure.exitcode == 2 else 1, reason=f"rank {rank} failed: {message} ({where})")


def _read(file: Path) -> Mapping[str, Any] | None:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


class _Logs(LogsSpecs):
    """rank-N.out, rank-N.log (standard error), rank-N.failure, rank-N.traceback, named by the plan's ranks."""

    def __init__(self, team: Team) -> None:
        super().__init__(str(team.logs))
        self._team = team
        try:
            team.logs.mkdir(parents=True, exist_ok=True)
            self._lock = (team.logs / f"node-{team.node}.lock").open("w", encoding="utf-8")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ranks inherit it: held until the last has ended
            for rank in team.ranks:
                for kind in ("failure", "traceback"):
                    self.file(rank, kind).unlink(missing_ok=True)
                for kind in ("out", "log"):
                    self.file(rank, kind).write_text("", encoding="utf-8")
                # A disk that the job fills still takes the reason of the failure: it replaces these blanks.
                self.file(rank, "room").write_text(" " * 4096, encoding="utf-8")
        except BlockingIOError:
            raise InputError(f"--run-dir: another launch is writing to {team.logs}; give another --run-dir") from None
        except OSError as error:
            raise InputError(f"--run-dir: {team.logs} cannot be written: {error.strerror}") from None

    @property
    def root_log_dir(self) -> str:
        return str(self._team.logs)

    def file(self, rank: int, kind: str) -> Path:
        return self._team.logs / f"rank-{rank}.{kind}"

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        def files(kind: str, ranks: tuple[int, ...] = self._team.ranks) -> dict[int, str]:
            return {local: str(self.file(rank, kind)) for local, rank in enumerate(ranks)}

        for local, file in files("failure").items():
            envs[local]["TORCHELASTIC_ERROR_FILE"] = file
        shown = self._team.ranks[:1]  # its output also appears on that of this process
        return LogsDest(
            stdouts=files("out"),
            stderrs=files("log"),
            tee_stdouts=files("out", shown),
            tee_stderrs=files("log", shown),
            error_files=files("failure"),
        )


class _Meeting(StaticTCPRendezvous):
    """Nodes meet in the order of --hosts, at a store that is open already."""

    def __init__(self, store: TCPStore, team: Team) -> None:
        super().__init__(team.master, store.port, team.node, team.nodes, "launch", round(team.timeout_s))
        self._store = store


def _meeting_store(team: Team) -> TCPStore:
    """Node 0 listens, on this machine only if all ranks are here; the others look for it until the time limit."""
    limit, port = timedelta(seconds=team.timeout_s), team.port or PORT
    if team.node > 0:
        try:
            return TCPStore(team.master, port, None, False, limit)
        except DistError as error:
            raise InputError(f"no launch answers at {team.master}, port {port}: {one_line(error)}") from None
    wanted = team.port if team.port is not None else (0 if team.nodes == 1 else PORT)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((team.master if team.nodes == 1 else "", wanted))
        listener.listen(4096)
    except OSError as error:
        listener.close()
        raise InputError(f"--port {wanted} cannot be used: {error.strerror}; give another --port") from None
    port = listener.getsockname()[1]
    return TCPStore(team.master, port, None, True, limit, wait_for_workers=False, master_listen_fd=listener.detach())
