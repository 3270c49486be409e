"""Measured traces next to the simulated step: seconds of a step by class of kernel, and where they differ most.

    attention · products (matmul, head, vision) · element-wise (norms, optimizer) · copies
    all_to_all and hops (NCCL's send/recv) · all_gather · reduce_scatter · all_reduce

Measured are the files that `torch.profiler` exports (Chrome JSON, also .json.gz; `executor launch --trace`):
kernels on the GPU within the profiler's steps, per step, averaged over the files (one a rank). Without a GPU: operators
that compute, each without those that it calls, and gloo's collectives under the names of the calls that started them,
those of one class that are in flight together counted once. A collective also lasts while its rank waits for others.
Recomputation runs the same kernels as the forward pass: it is spread over the classes as these are. A trace that names
another plan, another number of ranks, or groups that the plan does not have, is an InputError. Left out: what the host
does, and kernels outside the steps.
"""

from __future__ import annotations

import gzip
import re
import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cost_models import strict
from cost_models.errors import InputError
from cost_models.strategy import AXIS_GROUPS, EXPERT_AXES, Strategy, rank_groups
from planner.simulator.result import Simulation

CLASSES = (
    ("attention", re.compile(r"flash|fmha|attention|sdpa", re.I)),
    ("all_gather", re.compile(r"(nccl|c10d).*all_?gather", re.I)),
    ("reduce_scatter", re.compile(r"(nccl|c10d).*reduce_?scatter", re.I)),
    ("all_reduce", re.compile(r"(nccl|c10d).*all_?reduce", re.I)),
    ("all_to_all and hops", re.compile(r"nccl|c10d", re.I)),
    ("copies", re.compile(r"^mem(cpy|set)|^aten::(_foreach_)?(copy_|cat)$|^fsdp::", re.I)),
    (
        "products",
        re.compile(r"gemm|cutlass|cublas|xmma|nvjet|matmul|^aten::(addmm|b?mm|baddbmm|\w*convolution\w*)$", re.I),
    ),
    ("element-wise", re.compile("")),
)
"""By the name of the kernel, of an operator, or of the call of a collective; the first that fits."""
SIMULATED = {"attention": "attention", "matmul": "products", "loss": "products", "vision": "products",
             "memory_bound": "element-wise", "optimizer": "element-wise"}  # fmt: skip
OF_OP = dict.fromkeys(("all_to_all", "send", "chain", "tree"), "all_to_all and hops")
MAX_TRACE_BYTES, MOST_TRACE_PARTS = 128 * 2**20, 2**23
"""Of half a million events of a profiler, some 250 bytes and 15 keys each."""
GPU_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
COMPUTES, CALLS, GLOO = ("aten::", "fsdp::"), "c10d::", "gloo:"
AXES = tuple(axis for axis, of in AXIS_GROUPS.items() if of.patterns and axis not in EXPERT_AXES)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One rank's step."""

    step_s: float
    seconds: Mapping[str, float]  # by class of kernel
    ranks: int
    groups: frozenset[int]  # sizes of the groups that its collectives ran over
    plan: str | None  # digest of the plan that was run, if the trace names it


@dataclass(frozen=True, kw_only=True)
class Row:
    """Seconds of a class of kernels, simulated and measured."""

    kernels: str
    simulated_s: float
    measured_s: float


def compare(simulation: Simulation, strategy: Strategy, paths: Sequence[str], plan: str | None = None) -> list[Row]:
    """Rows by class, then the step itself; `simulation` was made with `trace=True`, `plan` is the plan's digest."""
    measured = [read_trace(path) for path in paths]
    for path, one in zip(paths, measured, strict=True):
        _check(path, one, strategy, plan)
    simulated = simulated_s(simulation)
    rows = [
        Row(
            kernels=name,
            simulated_s=simulated.get(name, 0.0),
            measured_s=sum(one.seconds.get(name, 0.0) for one in measured) / len(measured),
        )
        for name, _ in CLASSES
    ]
    step_s = sum(one.step_s for one in measured) / len(measured)
    rows = [row for row in rows if row.simulated_s or row.measured_s]
    return [*rows, Row(kernels="step", simulated_s=simulation.step_s, measured_s=step_s)]


def largest(rows: Sequence[Row], count: int = 3) -> list[Row]:
    """The classes that differ most, in seconds."""
    differ = [row for row in rows if row.kernels != "step" and row.simulated_s != row.measured_s]
    return sorted(differ, key=lambda row: -abs(row.measured_s - row.simulated_s))[:count]


def simulated_s(simulation: Simulation) -> dict[str, float]:
    """Seconds of the slowest rank by class of kernel."""
    assert simulation.trace is not None
    seconds: dict[str, float] = {}
    for part, spent in simulation.spent_s.items():
        if part in SIMULATED:
            seconds[SIMULATED[part]] = seconds.get(SIMULATED[part], 0.0) + spent
    again, once = simulation.spent_s.get("recompute", 0.0), sum(seconds.values())
    seconds = {name: spent * (1 + again / once) for name, spent in seconds.items()} if once else seconds
    places = simulation.trace.places
    mine = next(c for c, place in enumerate(places) if place.rank == simulation.slowest_rank)
    for span in simulation.trace.spans:
        if span.rank_class == mine and (span.op or span.stream == "copy"):
            name = OF_OP.get(span.op, span.op) if span.op else "copies"
            seconds[name] = seconds.get(name, 0.0) + float(span.end_s - span.start_s)
    return seconds


def trace_files(path: str) -> list[str]:
    """The traces in a folder, or the file itself."""
    if not Path(path).is_dir():
        return [path]
    found = sorted(str(one) for one in Path(path).iterdir() if one.name.endswith((".json", ".json.gz")))
    if not found:
        raise InputError(f"trace {path!r}: the folder holds no .json or .json.gz")
    return found


def _check(path: str, measured: Measured, strategy: Strategy, plan: str | None) -> None:
    if plan and measured.plan not in (None, plan):
        raise InputError(f"{path}: a trace of another plan; its digest begins with {measured.plan:.12}, not {plan:.12}")
    if measured.ranks != strategy.ranks:
        raise InputError(f"{path}: a trace of {measured.ranks} ranks; the plan has {strategy.ranks}: another plan's")
    legal = {strategy.ranks, *(rank_groups(strategy, axis).shape[1] for axis in AXES)}
    if strange := measured.groups - legal - {1}:
        raise InputError(
            f"{path}: collectives over {min(strange)} ranks; the plan's groups have "
            f"{', '.join(map(str, sorted(legal - {1})))}: another plan's"
        )


def read_trace(path: str) -> Measured:
    """What a trace says of its rank; anything that is not such a trace is an InputError."""
    data = _json(path)
    events = data.get("traceEvents")
    if not isinstance(events, list):
        raise InputError(f"{path}: no list traceEvents; give the file that torch.profiler's export_chrome_trace wrote")
    about = data.get("distributedInfo", {})
    ranks = about.get("world_size", 1) if isinstance(about, dict) else 1
    spans = [_span(event, path) for event in events if isinstance(event, dict) and event.get("ph") == "X"]
    steps = [span for span in spans if span.kind == "user_annotation" and span.name.startswith("ProfilerStep#")]
    work = [span for span in spans if span.kind in GPU_WORK] or [*_computing(spans), *_collectives(spans)]
    if not steps or not work:
        missing = "ProfilerStep# annotations (profile with a schedule, or call step())" if not steps else "kernels"
        raise InputError(f"{path}: no {missing}")
    begin, end = min(span.start_us for span in steps), max(span.start_us + span.us for span in steps)
    seconds: dict[str, float] = {}
    groups = set()
    for span in work:
        if begin <= span.start_us < end:
            name = next(name for name, pattern in CLASSES if pattern.search(span.name))
            seconds[name] = seconds.get(name, 0.0) + span.us * 1e-6 / len(steps)
            groups |= {span.group} if span.group else set()
    if not isinstance(ranks, int):
        raise InputError(f"{path}: distributedInfo.world_size {ranks!r} is not a whole number")
    step_s, plan = (end - begin) * 1e-6 / len(steps), data.get("plan")
    plan = plan if isinstance(plan, str) else None
    return Measured(step_s=step_s, seconds=seconds, ranks=ranks, groups=frozenset(groups), plan=plan)


def _computing(spans: Sequence[_Span]) -> list[_Span]:
    """Operators of the CPU that compute, each with its time outside the operators that it calls."""
    found: list[_Span] = []
    threads: dict[object, list[_Span]] = {}
    for span in sorted((one for one in spans if one.kind == "cpu_op"), key=lambda one: (one.start_us, -one.us)):
        callers = threads.setdefault(span.thread, [])
        while callers and callers[-1].start_us + callers[-1].us <= span.start_us:
            callers.pop()
        if callers:
            callers[-1].own_us -= span.us
        callers.append(span)
        if span.name.startswith(COMPUTES):
            found.append(span)
    return [replace(span, us=max(span.own_us, 0.0)) for span in found]


def _collectives(spans: Sequence[_Span]) -> list[_Span]:
    """What gloo had in flight, by the call before it; where several of one class overlap, the later ones' rest."""
    calls = sorted((span for span in spans if span.name.startswith(CALLS)), key=lambda span: span.start_us)
    starts = [call.start_us for call in calls]
    until: dict[str, float] = {}
    found = []
    for span in sorted((one for one in spans if one.name.startswith(GLOO)), key=lambda one: one.start_us):
        at = bisect_right(starts, span.start_us)
        call = calls[at - 1].name if at else CALLS + span.name
        kind = next(name for name, pattern in CLASSES if pattern.search(call))
        begin, end = max(span.start_us, until.get(kind, 0.0)), span.start_us + span.us
        if end > begin:
            found.append(replace(span, name=call, start_us=begin, us=end - begin))
            until[kind] = end
    return found


@dataclass(slots=True)
class _Span:
    name: str
    kind: str
    start_us: float
    us: float
    group: int  # ranks of its collective; 0: none
    thread: object
    own_us: float  # without what it calls


def _span(event: Mapping[str, Any], path: str) -> _Span:
    name, start, us = event.get("name"), event.get("ts"), event.get("dur", 0)
    if not isinstance(name, str) or not isinstance(start, int | float) or not isinstance(us, int | float) or us < 0:
        raise InputError(f"{path}: an event has name {name!r:.40}, ts {start!r:.40}, dur {us!r:.40}; not a trace's")
    arguments = event.get("args")
    group = arguments.get("Group size", 0) if isinstance(arguments, dict) else 0
    kind = event.get("cat")
    kind, group = kind if isinstance(kind, str) else "", group if isinstance(group, int) else 0
    return _Span(name, kind, start, us, group, str(event.get("tid")), us)


def _json(path: str) -> Mapping[str, Any]:
    if not path.endswith(".gz"):
        return strict.read_json(path, "trace", MAX_TRACE_BYTES, MOST_TRACE_PARTS)
    if not Path(path).is_file():
        raise InputError(f"trace {path!r}: no such file")
    try:
        with gzip.open(path, "rb") as file:
            text = file.read(MAX_TRACE_BYTES + 1).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"trace {path!r} is not a gzipped text: {error}") from error
    if len(text) > MAX_TRACE_BYTES:
        raise InputError(f"trace {path!r}: more than {MAX_TRACE_BYTES:,} bytes; profile fewer steps")
    data = strict.parse_json(text, path, MOST_TRACE_PARTS)
    if not isinstance(data, dict):
        raise InputError(f"trace {path!r} is not a JSON object")
    return data
