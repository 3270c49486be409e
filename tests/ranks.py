"""Run a function on N gloo ranks of this machine and hand back what each returned.

    results = run_ranks(check, 4, "float64")        # every rank calls check("float64") inside an initialised group

One process per rank, one thread each; rendezvous through a file, so parallel test runs never meet. The function is
a top-level one of an importable module (pickled by name). A host process, forked from the server that has imported
torch (`tests.forked`), forks the ranks. The first rank that fails decides: its traceback is the message of
`RankFailure`, the others are killed. Nothing is left running, also at the time limit.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.forked import forked


class RankFailure(AssertionError):
    """A rank raised, died or did not end in time; the message names it and holds its traceback."""


def run_ranks(function: Callable[..., Any], ranks: int, *args: Any, timeout_s: float = 300.0) -> list[Any]:
    """What `function(*args)` returned on each of `ranks` processes, in rank order; picklable values only."""
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        host = forked(_host, Path(folder), ranks, timeout_s, function, args)
        try:
            host.join(timeout_s)
            if host.exitcode is None:
                raise RankFailure("the ranks did not end in time")
            if host.exitcode:
                raise RankFailure(_first_failure(Path(folder)))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(host.pid, signal.SIGKILL)
            host.join()
        return [pickle.loads(Path(folder, f"result{rank}").read_bytes()) for rank in range(ranks)]


def _first_failure(folder: Path) -> str:
    reports = sorted(folder.glob("error*"), key=lambda path: path.stat().st_mtime_ns)
    if not reports:
        return "the ranks' host process died before it could say why"
    return f"rank {reports[0].name.removeprefix('error')} failed first:\n{reports[0].read_text()}"


def _host(folder: Path, ranks: int, timeout_s: float, function: Callable[..., Any], args: Sequence[Any]) -> None:
    """Fork the ranks, wait for the first failure or for all; the exit code is 0 if all did well."""
    os.setsid()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"
    children = {}
    for rank in range(ranks):
        if (pid := os.fork()) == 0:
            os._exit(_rank(folder, rank, ranks, timeout_s, function, args))
        children[pid] = rank
    while children:
        pid, status = os.wait()
        rank, code = children.pop(pid), os.waitstatus_to_exitcode(status)
        if code:
            if not list(folder.glob("error*")):
                _report(folder, rank, f"it died with exit code {code}")
            sys.exit(1)


def _rank(
    folder: Path, rank: int, ranks: int, timeout_s: float, function: Callable[..., Any], args: Sequence[Any]
) -> int:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=timeout_s),
        )
        result = function(*args)
        dist.barrier()
        (folder / f"result{rank}").write_bytes(pickle.dumps(result))
        dist.destroy_process_group()
    except BaseException:
        _report(folder, rank, traceback.format_exc())
        return 1
    return 0


def _report(folder: Path, rank: int, text: str) -> None:
    partial = folder / f"partial{rank}"
    partial.write_text(text)
    partial.rename(folder / f"error{rank}")
