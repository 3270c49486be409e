"""Which rank is silent: each posts a beat to the meeting store, its predecessor listens, and the job ends by name.

    rank 0 --hears--> rank 1 --hears--> … rank N-1 --hears--> rank 0     beat/N = count, host, process, last collective
                 a round every silence / 10;   `end` holds the reason, once somebody has ended the job

Two threads of a rank: one talks to the store and may hang in it, the other counts and never blocks. Both count
rounds, not seconds: a machine that was paused as a whole, or is overloaded, adds a round where a stopped rank misses
ten. A rank that computes for minutes is alive, and so is one whose main thread waits for ever: `--timeout` ends that.
The last collective is from torch's own record (FSDP's too), transfers from `mmsp.exchange`. Leaves out: a rank that
never came (`--timeout`), and one C call that holds Python's lock for longer than the silence allowed.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch.distributed as dist
from torch._C import _distributed_c10d
from torch._C._distributed_c10d import Store

from executor.mmsp import exchange

ROUNDS = 10
"""Rounds of silence that end a job."""
_PATIENCE_S = 2.0  # for a store that may be out of reach


@dataclass(frozen=True, kw_only=True)
class End:
    """Why the job ended, one line; `code` is the exit code; host and process of a rank that has to be killed."""

    reason: str
    code: int = 1
    host: str = ""
    process: int = 0

    @staticmethod
    def read(store: Store) -> End:
        return End(**json.loads(store.get("end")))


class Liveness:
    """The beat of one rank, from `start` to `done`; `leave` is called, from a thread, to end this process."""

    def __init__(
        self, store: Store, *, rank: int, world: int, host: str, silence_s: float, leave: Callable[[End], None]
    ) -> None:
        self._store, self._rank, self._next = own_connection(store), rank, (rank + 1) % world
        self._host, self._every_s, self._leave = host, silence_s / ROUNDS, leave
        self._done, self._rounds, self._unheard = Event(), 0, 0
        self._end: End | None = None
        self._talk = Thread(target=self._talk_to_store, name="beat", daemon=True)

    def start(self) -> None:
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "16")  # collectives that torch keeps for `last_collective`
        self._talk.start()
        Thread(target=self._count, name="watch", daemon=True).start()

    def done(self) -> None:
        """The rank has done its work: its silence means nothing from now on."""
        self._done.set()
        self._talk.join(_PATIENCE_S)

    def _talk_to_store(self) -> None:
        heard: Mapping[str, Any] = {}
        try:
            while True:
                done, beat = self._done.is_set(), f"beat/{self._rank}"
                mine = {"count": self._rounds, "host": self._host, "process": os.getpid(), "done": done}
                self._store.set(beat, json.dumps({**mine, "doing": last_collective()}))
                if done:
                    return
                if self._store.check(["end"]):
                    self._end = End.read(self._store)
                before, heard = heard, beat_of(self._store, self._next)
                alive = not heard or heard["done"] or heard["count"] != before.get("count")
                self._unheard = 0 if alive else self._unheard + 1
                if self._unheard >= ROUNDS and self._end is None:
                    self._end = announce(self._store, self._silent(heard))
                self._rounds += 1
                self._done.wait(self._every_s)
        except RuntimeError as error:  # the store's process has ended
            if not self._done.is_set():
                self._end = self._cut_off(f"lost the meeting store ({' '.join(str(error).split())[:120]})")

    def _count(self) -> None:
        rounds = mute = 0
        while not self._done.wait(self._every_s):
            mute, rounds = 0 if self._rounds != rounds else mute + 1, self._rounds
            if self._end is not None:
                self._leave(self._end)
            if mute >= ROUNDS:
                self._leave(self._cut_off(f"has no answer from the meeting store for {self._every_s * ROUNDS:g} s"))

    def _silent(self, heard: Mapping[str, Any]) -> End:
        reason = (
            f"rank {self._next} on {heard['host']} is silent for {self._every_s * ROUNDS:g} s: stopped or cut off; "
            f"last collective: {heard['doing']}"
        )
        return End(reason=reason, host=heard["host"], process=heard["process"])

    def _cut_off(self, why: str) -> End:
        return End(
            reason=f"rank {self._rank} on {self._host} {why}: this host or the first one is cut off or has ended; "
            f"last collective: {last_collective()}"
        )


def own_connection(store: Store) -> Store:
    """One that a thread may hang in, and nobody else with it."""
    return store.clone()  # type: ignore[attr-defined]


def announce(store: Store, end: End) -> End:
    """Say why the job ends, to all hosts; who comes first decides: the reason that holds."""
    store.compare_set("end", "", json.dumps(end.__dict__))
    return End.read(store)


def in_time(function: Callable[[], Any], otherwise: Any = None) -> Any:
    """What `function` returns, or `otherwise` where the store gives no answer in two seconds, or is gone."""
    result = [otherwise]

    def call() -> None:
        with suppress(RuntimeError):
            result[0] = function()

    thread = Thread(target=call, daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    return result[0]


def beat_of(store: Store, rank: int) -> Mapping[str, Any]:
    """The last beat of a rank; empty before its first."""
    key = f"beat/{rank}"
    return dict(json.loads(store.get(key))) if store.check([key]) else {}


def last_collective() -> str:
    """What this process last gave to a process group, with the plan's name of the group and its ranks."""
    transfer = exchange.LAST
    at_ns, what, group = transfer.at_ns, transfer.what, transfer.group
    for entry in _records():
        if entry["time_created_ns"] > at_ns:
            at_ns, what = entry["time_created_ns"], entry["profiling_name"].partition(":")[2]
            with suppress(RuntimeError):
                group = _distributed_c10d._resolve_process_group(entry["process_group"][0])
    if group is None:
        return what
    name = group.group_desc.replace("default_pg", "the world")
    try:
        return f"{what} of {name} {dist.get_process_group_ranks(group)}"
    except KeyError:  # the group is gone: the job has ended
        return f"{what} of {name}"


def _records() -> list[Mapping[str, Any]]:
    """The last collectives in torch's records: gloo's, and NCCL's where this torch has NCCL."""
    dumps = (getattr(_distributed_c10d, name, None) for name in ("_dump_fr_trace_json", "_dump_nccl_trace_json"))
    return [entry for dump in dumps if dump for entry in json.loads(dump() or "{}").get("entries", [])[-1:]]


def kill_sibling(end: End, host: str) -> None:
    """End a silent rank that this process's agent started: a stopped process hears nothing else."""
    if end.process and end.host == host and end.process != os.getpid() and _parent(end.process) == os.getppid():
        with suppress(ProcessLookupError):
            os.kill(end.process, signal.SIGKILL)


def _parent(process: int) -> int | None:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None
