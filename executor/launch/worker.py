"""What each rank runs: meet the others, build the plan's groups and sharding, call the job's `main`.

    launcher ── host process (imports once) ── fork ── rank 0, 1, …        gloo on Linux
             └─ one process per rank                                       NCCL, other systems

Started as `python -m executor.launch.worker RUN_DIR 0,1 PARENT_PID LISTEN_FD`. The ranks meet at a TCPStore of rank 0,
with a time limit. A rank that fails records why (`run_folder`), writes the traceback to its log and leaves at once: 2
for a user's mistake, 1 otherwise. Nothing outlives its parent (`orphans`).
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, is_dataclass, replace
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executor.launch.orphans import die_with_parent
from executor.launch.run_folder import FAILED, RunFolder, Spec

if TYPE_CHECKING:
    import torch

    from executor.sharding import ContextSharding
    from planner.plan_file import Plan

_ALL_AT_ONCE = 2**40
"""Tokens of a loss chunk where the plan says all at once."""
_PEER_WORDS = ("Connection reset by peer", "Connection closed by peer", "Broken pipe", "Socket closed", "gloo", "NCCL")


def make_sharding(plan: Plan, rank: int, device: torch.device) -> ContextSharding:
    """Collective over all ranks: the plan's groups, and the job's view of them on this rank."""
    import torch

    from executor.groups import make_groups
    from executor.sharding import ContextSharding, Precision

    @dataclass(kw_only=True)
    class PlannedSharding(ContextSharding):
        """Also hands the plan's loss chunk to the model: how it is computed, not what."""

        loss_chunk_tokens: int

        def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
            config = getattr(model, "config", None)
            if is_dataclass(config) and hasattr(config, "loss_chunk_tokens"):
                model.config = replace(config, loss_chunk_tokens=self.loss_chunk_tokens)  # type: ignore[type-var, assignment]
            return super().wrap(model)

    strategy, precision = plan.strategy, plan.workload.precision
    dtypes = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    mixed = precision.param != precision.master
    return PlannedSharding(
        groups=make_groups(
            {axis: lists.tolist() for axis, lists in plan.groups.items()},
            rank,
            "nccl" if device.type == "cuda" else None,
        ),
        device=device,
        ring_layout=strategy.ring_kind,
        zero=strategy.zero,
        recompute=tuple((part.recompute, part.count) for part in strategy.layers),
        precision=Precision(param=dtypes[precision.param], reduce=dtypes[precision.reduce]) if mixed else Precision(),
        grad_ring_dtype=dtypes[strategy.grad_ring_dtype],
        loss_chunk_tokens=strategy.loss_chunk_tokens or _ALL_AT_ONCE,
    )


def job_main(name: str) -> Callable[[Any], None]:
    """The `main` of a job module; one that is not there is the user's mistake."""
    from cost_models.errors import InputError
    from executor.launch.settings import check_job

    check_job(name)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: a job beside the user, but never a shadow of an installed module
    try:
        main = getattr(import_module(name), "main", None)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise InputError(f"--job {name}: there is no module {error.name}; legal: longvila.train, …") from None
        raise
    if not callable(main):
        raise InputError(f"--job {name}: the module has no function main(job)")
    return main


def compute(plan: Plan, spec: Spec, rank: int, gpu: int, store: Any) -> None:
    """One rank from an open store to the end of the job."""
    import torch
    import torch.distributed as dist

    from longvila.job import Job

    torch.set_num_threads(spec.threads)
    torch.manual_seed(0)
    limit = timedelta(seconds=spec.timeout_s)
    device = torch.device("cpu")
    if spec.backend == "nccl":
        device = torch.device("cuda", gpu)
        torch.cuda.set_device(device)
    world = plan.strategy.ranks
    if store.add(f"claims/{rank}", 1) > 1:
        raise RuntimeError(f"two processes claim rank {rank}; is another launch using port {spec.port}?")
    # gloo for what checkpoints tell each other; the plan's groups are NCCL's alone.
    backend = "cpu:gloo,cuda:nccl" if spec.backend == "nccl" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
    sharding = make_sharding(plan, rank, device)
    job_main(spec.job)(Job(config=spec.settings, sharding=sharding, device=device))
    dist.barrier()
    dist.destroy_process_group()
    store.add("done", 1)
    while rank == 0 and store.add("done", 0) < world:  # the store lives in rank 0
        time.sleep(0.01)


def open_store(spec: Spec, rank: int, listen_fd: int | None) -> Any:
    """The meeting place; rank 0 keeps it, on a socket that the launcher may have bound already."""
    from torch._C._distributed_c10d import TCPStore

    return TCPStore(
        spec.master,
        spec.port,
        is_master=rank == 0,
        timeout=timedelta(seconds=spec.timeout_s),
        wait_for_workers=False,
        master_listen_fd=listen_fd if rank == 0 else None,
    )


def kind_of(error: BaseException) -> str:
    """user, peer or fault: see `run_folder.Failure`."""
    from cost_models.errors import InputError
    from longvila.job import JobError

    if isinstance(error, InputError | JobError):
        return "user"
    text = f"{type(error).__name__} {error}"
    return "peer" if isinstance(error, RuntimeError) and any(word in text for word in _PEER_WORDS) else "fault"


def one_line(error: BaseException) -> str:
    """What a failed rank says of itself."""
    text = " ".join(str(error).split())
    named = text if kind_of(error) == "user" else f"{type(error).__name__}: {text}".removesuffix(": ")
    return named if len(named) <= 400 else named[:397] + "..."


def _rank(folder: RunFolder, rank: int, listen_fd: int | None) -> int:
    """One rank in its own process, its output in its logs; the exit code."""
    for file, stream in ((folder.out(rank), 1), (folder.log(rank), 2)):
        handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(handle, stream)
    try:
        from planner.plan_file import Plan

        spec, plan = folder.spec(), Plan.load(folder.plan)
        compute(plan, spec, rank, int(plan.placement.gpu_of_rank[rank]), open_store(spec, rank, listen_fd))
    except BaseException as error:
        folder.fail(rank, kind_of(error), one_line(error))
        with suppress(OSError):
            sys.stderr.write(FAILED + traceback.format_exc())
        return 2 if kind_of(error) == "user" else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _host(folder: RunFolder, ranks: Sequence[int], listen_fd: int | None) -> int:
    """Import once, fork the ranks, wait for all or for the first failure; the launcher ends the rest."""
    try:
        job_main(folder.spec().job)
        import executor.sharding  # noqa: F401  paid once instead of once per rank
    except BaseException as error:
        folder.fail(ranks[0], kind_of(error), one_line(error))
        with folder.log(ranks[0]).open("a", encoding="utf-8") as log:
            log.write(FAILED + traceback.format_exc())
        return 2 if kind_of(error) == "user" else 1
    own, children = os.getpid(), {}
    for rank in ranks:
        if (pid := os.fork()) == 0:
            die_with_parent(own)
            os._exit(_rank(folder, rank, listen_fd))
        children[pid] = rank
    failed = 0
    while children and not failed:
        failed = _reap(folder, children, 0)
    deadline_s = time.monotonic() + 0.5  # the cause may be reported just after its consequence
    while failed and children and time.monotonic() < deadline_s:
        _reap(folder, children, os.WNOHANG)
        time.sleep(0.02)
    return failed


def _reap(folder: RunFolder, children: dict[int, int], how: int) -> int:
    """Take one ended rank off `children`; its exit code (1 for a signal)."""
    pid, status = os.waitpid(-1, how)
    if pid == 0:
        return 0
    rank, code = children.pop(pid), os.waitstatus_to_exitcode(status)
    if code < 0:
        folder.fail(rank, "killed", killed(-code))
    return code if code >= 0 else 1


def killed(number: int) -> str:
    """A signal in words."""
    import signal

    hint = "; out of memory?" if number == signal.SIGKILL else ""
    return f"killed by signal {number} ({signal.Signals(number).name}){hint}"


def main(arguments: Sequence[str]) -> int:
    """RUN_DIR RANKS PARENT LISTEN_FD: `0,1`, the launcher's process, and -1 for no socket."""
    folder, ranks, parent, descriptor = arguments
    die_with_parent(int(parent))
    listen_fd = int(descriptor) if int(descriptor) >= 0 else None
    own = [int(rank) for rank in ranks.split(",")]
    run_folder = RunFolder(path=Path(folder))
    if len(own) == 1:
        return _rank(run_folder, own[0], listen_fd)
    return _host(run_folder, own, listen_fd)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
