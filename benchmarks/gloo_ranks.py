"""Ranks on gloo for the benchmarks: one process each, in network namespaces or on this host, and what each returned.

    run_ranks(function, arguments, homes)     function(*arguments) in an initialised world of len(homes) ranks

`homes[rank]` is the rank's namespace, or None for this host's loopback. The first rank that fails decides: RankFailed
holds its traceback. Ctrl-C, a TERM signal, the time limit and the death of this process end all ranks. The function is
one of an importable module. Ranks meet through a file, so no port is taken.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.namespaces import enter
from cost_models.errors import InputError
from executor.launch.launch import rank_environment

_PR_SET_PDEATHSIG = 1
_SERVER = multiprocessing.get_context("forkserver")


class RankFailed(Exception):
    """A rank raised, died or did not end in time; the message names it."""


@contextmanager
def stoppable() -> Iterator[None]:
    """A TERM signal becomes a KeyboardInterrupt, so that contexts clean up."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def printed(command: str, told: Callable[[], str]) -> int:
    """Print what `told` returns, if anything; a mistake, a lost rank or Ctrl-C is one line. The command's exit code."""
    try:
        with stoppable():
            if said := told():
                print(said)
    except (InputError, RankFailed) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print(f"{command}: stopped; ranks and namespaces are gone", file=sys.stderr)
        return 130
    return 0


def check_ranges(given: argparse.Namespace, **legal: range) -> None:
    """InputError for an option that is not one of its legal numbers."""
    for name, numbers in legal.items():
        if getattr(given, name) not in numbers:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} {getattr(given, name)}; legal: {numbers.start} to {numbers.stop - 1}")


def run_ranks(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    homes: Sequence[str | None],
    *,
    threads: int = 1,
    timeout_s: float = 3600.0,
) -> list[Any]:
    """What the function returned on each rank, in rank order; picklable values only."""
    _SERVER.set_forkserver_preload(["executor.mmsp.attention", "executor.measure.measuring"])
    given = mock.patch.dict(os.environ, rank_environment(threads))
    with tempfile.TemporaryDirectory(prefix="gloo-ranks-") as folder, given:
        pipes, processes = [], []
        try:
            for rank, home in enumerate(homes):
                ours, theirs = _SERVER.Pipe(duplex=False)
                place = (folder, rank, len(homes), home, threads, timeout_s)
                process = _SERVER.Process(target=_rank, args=(theirs, place, function, tuple(arguments)))
                pipes.append(ours)
                processes.append(process)
                process.start()
                theirs.close()
            return _collect(pipes, time.monotonic() + timeout_s)
        finally:
            started = [process for process in processes if process.pid is not None]
            for process in started:
                process.kill()
            for process in started:
                process.join()


def _collect(pipes: Sequence[Connection], deadline_s: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        waiting = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in results}
        ready = wait(list(waiting), timeout=max(0.0, deadline_s - time.monotonic()))
        if not ready:
            raise RankFailed(f"ranks {sorted(waiting.values())} did not end in time")
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = waiting[pipe]
            try:
                done, value = pipe.recv()
            except EOFError:
                raise RankFailed(f"rank {rank} died without a word") from None
            if not done:
                raise RankFailed(f"rank {rank} failed:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(pipes))]


def _rank(pipe: Connection, place: tuple[Any, ...], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    folder, rank, world, home, threads, timeout_s = place
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends all ranks
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        if home is not None:
            enter(home)
        else:
            os.environ["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"
        pipe.send((True, _in_world(Path(folder), rank, world, threads, timeout_s, function, arguments)))
    except BaseException:
        with suppress(BrokenPipeError):  # the first process was stopped and listens no more
            pipe.send((False, traceback.format_exc()))


def _in_world(
    folder: Path,
    rank: int,
    world: int,
    threads: int,
    timeout_s: float,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> Any:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(threads)
    meeting, limit = f"file://{folder}/store", timedelta(seconds=timeout_s)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=limit)
    result = function(*arguments)
    dist.barrier()
    dist.destroy_process_group()
    return result
