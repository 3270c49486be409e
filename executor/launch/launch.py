"""`executor launch`: a request becomes a launch in which everything is known and nothing is started.

    plan.json -> bind slots to hosts -> check against what is here -> Launch -> `worker.run` starts the ranks

One host: this process starts every rank; Ctrl-C, a lost rank or this process's death end all within a second. Several
hosts: the same on each with `--node-rank`, or `torchrun` (`worker`), or a batch script; the ranks meet at the first
host. Exit codes: 0 done, 1 a rank failed, 2 the user's mistake, 130 stopped.
Restarts after a failure are `elastic`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cost_models.errors import InputError
from cost_models.hardware.machine import Host, discover
from executor.launch import requirements
from executor.launch.hosts import Binding, Seat, bind, used_slots
from executor.launch.settings import Settings, check_job, merge
from planner.plan_file import Plan
from planner.targets.executed import unsupported

COMPILED = "layers under torch.compile; the plan's time and memory are those of eager layers"
SILENCE_S = 20.0
"""A rank that is not heard of for so long ends the job."""


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
    host: str | None = None  # this host's name in `hosts`, instead of its number
    port: int | None = None
    backend: str | None = None
    timeout_s: float = 600.0
    silence_s: float = SILENCE_S
    trace: Path | None = None  # folder for a profiler trace of each rank
    elastic: int = 0  # failures after which the job goes on
    compile: bool = False  # decoder layers run under torch.compile


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A request that was checked: everything is known, nothing is started."""

    request: Request
    plan: Plan
    settings: Settings
    binding: Binding
    backend: str
    here: Host
    host: str | None  # this host's name in the binding; None means that nobody said which of several hosts this is
    round: int = 0  # of an elastic launch: how often its ranks were started before

    @property
    def seats(self) -> tuple[Seat, ...]:
        return self.binding.on(self.host) if self.host is not None else ()

    @property
    def threads(self) -> int:
        """Threads of torch for each rank of this host."""
        return max(1, self.here.cores // max(len(self.seats), 1))

    @property
    def run_dir(self) -> Path:
        return self.request.run_dir or Path("runs") / "launch"


def prepare(request: Request, known: Mapping[str, Host] | None = None) -> Launch:
    """Check everything that can be checked before a process starts; `known` is what other hosts have."""
    check_job(request.job)
    plan = Plan.load(request.plan)
    settings = merge(plan, request.job, request.config, request.sets)
    if request.compile:
        settings = replace(settings, notes=(*settings.notes, COMPILED))
    slots, here = used_slots(plan), discover()
    named = tuple(plan.cluster.hosts[slot] for slot in slots) if plan.cluster.hosts else ()
    nobody = (here.name,) if len(slots) == 1 else tuple(f"HOST{slot}" for slot in slots)
    names = request.hosts or named or nobody
    binding = bind(plan, names, known)
    host = _this_host(request, binding, here)
    problems = unsupported(plan)
    if host is not None:
        slot, ranks = binding.on(host)[0].slot, len(binding.on(host))
        problems += requirements.differences(plan, here, slot, ranks)
        problems += requirements.no_compiler(plan, slot) if request.compile else []
    if problems:
        raise InputError(f"{request.plan} does not run on {host or 'any host'}: " + "; ".join(problems))
    backend = _backend(request, plan)
    return Launch(request=request, plan=plan, settings=settings, binding=binding, backend=backend, here=here, host=host)


def _this_host(request: Request, binding: Binding, here: Host) -> str | None:
    hosts, number = binding.hosts, request.node_rank
    if request.host is not None:
        return request.host
    short = here.name.split(".")[0]
    mine = [name for name in hosts if name in (here.name, short) or name.split(".")[0] == short]
    if number is None:
        return hosts[0] if len(hosts) == 1 and (request.hosts or mine) else None
    if number == -1:
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


GPU_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""CUDA numbers its devices as nvidia-smi does, which says what they have; its default is the fastest first."""


KEPT_HEAP = {"MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
"""glibc keeps what a tensor of up to 32 MiB (its most) freed. Else the kernel takes it back and gives it again zeroed,
page by page, and how much of it depends on what else was freed: one scan of a state-space layer, forward and backward,
took 400 to 1,400 page faults where it ran again and again, as in a profile, and 4,500 in turns with others, as in a
step: 11 and 18 ms."""


def rank_environment(threads: int) -> dict[str, str]:
    """Make threads sleep while they wait: ranks share cores, and one that spins takes time from the others. PyTorch's
    segments of device memory grow, so that what one tensor freed serves others of any size. `KEPT_HEAP` likewise."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        **GPU_ORDER,
        **KEPT_HEAP,
    }
