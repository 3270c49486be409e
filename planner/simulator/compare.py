"""Measured traces next to the simulated step: seconds of a step by class of kernel, and where they differ most.

    attention · products (matmul, head, vision) · element-wise (norms, optimizer) · copies
    all_to_all and hops (NCCL's send/recv) · all_gather · reduce_scatter · all_reduce

Measured are the files that `torch.profiler` exports (Chrome JSON, also .json.gz): kernels on the GPU within the
profiler's steps, per step, averaged over the files (one a rank). A collective's kernel also lasts while its rank waits
for the others. Recomputation runs the same kernels as the forward pass: it is spread over the classes as these are.
A trace of another number of ranks, or with groups that the plan does not have, is an InputError. Left out: what the
host does, and kernels outside the steps.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cost_models import strict
from cost_models.errors import InputError
from cost_models.strategy import AXIS_GROUPS, EXPERT_AXES, Strategy, rank_groups
from planner.simulator.simulation import Simulation

CLASSES = (
    ("attention", re.compile(r"flash|fmha|attention|sdpa", re.I)),
    ("all_gather", re.compile(r"nccl.*all_?gather", re.I)),
    ("reduce_scatter", re.compile(r"nccl.*reduce_?scatter", re.I)),
    ("all_reduce", re.compile(r"nccl.*all_?reduce", re.I)),
    ("all_to_all and hops", re.compile(r"nccl", re.I)),
    ("copies", re.compile(r"^mem(cpy|set)", re.I)),
    ("products", re.compile(r"gemm|cutlass|cublas|xmma|nvjet|matmul", re.I)),
    ("element-wise", re.compile("")),
)
"""By the kernel's name; the first that fits."""
SIMULATED = {"attention": "attention", "matmul": "products", "loss": "products", "vision": "products",
             "memory_bound": "element-wise", "optimizer": "element-wise"}  # fmt: skip
OF_OP = {"all_to_all": "all_to_all and hops", "send": "all_to_all and hops"}
GPU_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
AXES = tuple(axis for axis, of in AXIS_GROUPS.items() if of.patterns and axis not in EXPERT_AXES)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One rank's step."""

    step_s: float
    seconds: Mapping[str, float]  # by class of kernel
    ranks: int
    groups: frozenset[int]  # sizes of the groups that its collectives ran over


@dataclass(frozen=True, kw_only=True)
class Row:
    kernels: str
    simulated_s: float
    measured_s: float


def compare(simulation: Simulation, strategy: Strategy, paths: Sequence[str]) -> list[Row]:
    """Rows by class, then the step itself; `simulation` was made with `trace=True`."""
    measured = [read_trace(path) for path in paths]
    for path, one in zip(paths, measured, strict=True):
        _check(path, one, strategy)
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


def _check(path: str, measured: Measured, strategy: Strategy) -> None:
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
    work = [span for span in spans if span.kind in GPU_WORK]
    if not steps or not work:
        missing = "ProfilerStep# annotations (profile with a schedule, or call step())" if not steps else "GPU kernels"
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
    return Measured(step_s=(end - begin) * 1e-6 / len(steps), seconds=seconds, ranks=ranks, groups=frozenset(groups))


@dataclass(frozen=True, slots=True)
class _Span:
    name: str
    kind: str
    start_us: float
    us: float
    group: int  # ranks of its collective; 0: none


def _span(event: Mapping[str, Any], path: str) -> _Span:
    name, start, us = event.get("name"), event.get("ts"), event.get("dur", 0)
    if not isinstance(name, str) or not isinstance(start, int | float) or not isinstance(us, int | float) or us < 0:
        raise InputError(f"{path}: an event has name {name!r:.40}, ts {start!r:.40}, dur {us!r:.40}; not a trace's")
    arguments = event.get("args")
    group = arguments.get("Group size", 0) if isinstance(arguments, dict) else 0
    kind = event.get("cat")
    return _Span(name, kind if isinstance(kind, str) else "", start, us, group if isinstance(group, int) else 0)


def _json(path: str) -> Mapping[str, Any]:
    if not path.endswith(".gz"):
        return strict.read_json(path, "trace")
    if not Path(path).is_file():
        raise InputError(f"trace {path!r}: no such file")
    try:
        with gzip.open(path, "rb") as file:
            text = file.read(strict.MAX_FILE_BYTES + 1).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"trace {path!r} is not a gzipped text: {error}") from error
    if len(text) > strict.MAX_FILE_BYTES:
        raise InputError(f"trace {path!r}: more than {strict.MAX_FILE_BYTES:,} bytes; profile fewer steps")
    data = strict.parse_json(text, path)
    if not isinstance(data, dict):
        raise InputError(f"trace {path!r} is not a JSON object")
    return data
