"""Run a function on N gloo ranks of this machine and hand back what each returned.

    results = run_ranks(check, 4, "float64")        # every rank calls check("float64") inside an initialised group

One process per rank, one thread each; rendezvous through a file, so parallel test runs never meet. The function is
a top-level one of an importable module (pickled by name). The first rank that fails decides: its traceback is the
message of `RankFailure`, the others are killed. Nothing is left running, also at the time limit.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class RankFailure(AssertionError):
    """A rank raised, died or did not end in time; the message names it and holds its traceback."""


def run_ranks(function: Callable[..., Any], ranks: int, *args: Any, timeout_s: float = 120.0) -> list[Any]:
    """What `function(*args)` returned on each of `ranks` processes, in rank order; picklable values only."""
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        Path(folder, "job").write_bytes(pickle.dumps((function, args)))
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
        }
        command = [sys.executable, "-P", str(Path(__file__).resolve()), folder, str(ranks), str(timeout_s)]
        processes = [
            subprocess.Popen([*command, str(rank)], env=environment, cwd=ROOT, stdin=subprocess.DEVNULL)
            for rank in range(ranks)
        ]
        try:
            _wait(processes, Path(folder), time.monotonic() + timeout_s)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return [pickle.loads(Path(folder, f"result{rank}").read_bytes()) for rank in range(ranks)]


def _wait(processes: list[subprocess.Popen[bytes]], folder: Path, deadline_s: float) -> None:
    while True:
        codes = [process.poll() for process in processes]
        if all(code == 0 for code in codes):
            return
        if any(code not in (None, 0) for code in codes):
            raise RankFailure(_first_failure(codes, folder))
        if time.monotonic() > deadline_s:
            running = [rank for rank, code in enumerate(codes) if code is None]
            raise RankFailure(f"ranks {running} did not end in time")
        time.sleep(0.02)


def _first_failure(codes: list[int | None], folder: Path) -> str:
    reports = sorted(folder.glob("error*"), key=lambda path: path.stat().st_mtime_ns)
    if reports:
        return f"rank {reports[0].name.removeprefix('error')} failed first:\n{reports[0].read_text()}"
    rank = next(rank for rank, code in enumerate(codes) if code not in (None, 0))
    return f"rank {rank} died with exit code {codes[rank]}"


def _child(folder: Path, ranks: int, timeout_s: float, rank: int) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        function, args = pickle.loads((folder / "job").read_bytes())
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
        partial = folder / f"partial{rank}"
        partial.write_text(traceback.format_exc())
        partial.rename(folder / f"error{rank}")
        raise SystemExit(1) from None


if __name__ == "__main__":
    _child(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
