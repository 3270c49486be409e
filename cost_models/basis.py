"""What a price rests on: its seconds by where their error comes from, and what was measured of the machine.

    attention, products, elementwise   kernels, by a board's curves: measured, or scaled from another by data sheets
    inside, pcie, across               exposed collectives: over NVLink, over PCIe, between nodes
    offload, update, host              copies to host memory, the CPU's update there; launches that the GPU waits for

`StepCost.seconds` names parts of a step; the same second is here under the curve that it was read from. A part that is
made of others (recomputation, a pipeline's bubble) is spread as these are. Kernels that hide a transfer count as
kernels. Left out: which of several boards of a cluster was the slowest at a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cost_models.errors import InputError
from cost_models.number import Number
from cost_models.program import Broadcasts, Compute, Exchange, Passed, Phase, Ring, Staged, StepProgram
from cost_models.strict import nearest
from cost_models.timing.kernels import Kernels
from cost_models.timing.paths import Paths

Board = Literal["measured", "scaled"]
Link = Literal["inside", "pcie"]
KERNELS = ("attention", "products", "elementwise")
SOURCES = (*KERNELS, "inside", "pcie", "across", "offload", "update", "host")
"""Of errors, in the order of their shares."""
_KERNEL = {"attention": "attention", "matmul": "products", "memory_bound": "elementwise", "loss": "products"}
"""By part of a program's phases."""
_PARTS = {"vision": "products", "optimizer": "elementwise", "offload": "offload", "host": "host"}
_ON_HOST = {**_PARTS, "optimizer": "update"}
_EXCHANGES = ("all_to_all", "ring", "sharding", "tensor", "experts")
"""Parts of a cost that are exchanges."""


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What a price rests on: a board, and seconds by source. InputError: an unknown source, seconds below 0."""

    board: Board
    seconds: Mapping[str, float]  # by SOURCES; together the step's
    narrow: bool = False  # the layers' products in 8 or 4 bits
    hidden: Mapping[str, float] = field(default_factory=dict)  # seconds of collectives behind computation, by SOURCES

    def __post_init__(self) -> None:
        for name, value in (*self.seconds.items(), *self.hidden.items()):
            if name not in SOURCES:
                raise InputError(f"seconds.{name} is unknown; {nearest(name, SOURCES)}")
            if not value >= 0:
                raise InputError(f"seconds.{name}={value} must be at least 0")
        if not sum(self.seconds.values()) > 0:
            raise InputError("seconds must be above 0 together")

    @property
    def place(self) -> Literal["inside", "pcie", "across"]:
        """Where the step's exchanges run: the farthest counts."""
        if "across" in self.seconds:
            return "across"
        return "pcie" if "pcie" in self.seconds else "inside"

    @property
    def shares(self) -> dict[str, float]:
        """Of the step, by SOURCES.

        >>> Basis(board="measured", seconds={"products": 3.0, "inside": 1.0}).shares["products"]
        0.75
        """
        total = sum(self.seconds.values())
        return {name: self.seconds.get(name, 0.0) / total for name in SOURCES}

    @property
    def stakes(self) -> dict[str, float]:
        """Shares that an error of each source would move, to first order: a slower link also shows what it hid.

        >>> Basis(board="measured", seconds={"products": 3.0, "across": 1.0}, hidden={"across": 2.0}).stakes["across"]
        0.75
        """
        total = sum(self.seconds.values())
        return {name: (self.seconds.get(name, 0.0) + self.hidden.get(name, 0.0)) / total for name in SOURCES}


def basis_of(
    seconds: Mapping[str, float],
    hidden_s: Mapping[str, float],
    program: StepProgram,
    kernels: Kernels,
    paths: Paths,
    priced_as: Mapping[str, str],
    narrow: bool = False,
) -> Basis:
    """Of one step: `seconds` and `hidden_s` by part of a cost, as `program` was folded over `paths`.

    `priced_as`: the part of a cost that a phase's belongs to."""
    found: dict[str, float] = {}
    inside: Link = "pcie" if paths.inside.name.startswith("pcie") else "inside"
    for axis, path in paths.axes.items():
        if path.ranks > 1:
            found.setdefault("across" if paths.crosses(axis) else inside, 0.0)
    kernel_s, away = _kernel_seconds(program), _crossing(program, paths, priced_as)
    updated = any(segment.host_update_bytes for segment in (*program.microbatch, *program.last, *program.epilogue))
    parts = _ON_HOST if updated else _PARTS
    for part, value in seconds.items():
        if part in parts:
            _add(found, parts[part], value)
        elif part in _EXCHANGES:
            _add(found, "across" if part in away else inside, value)
        elif part == "compute":
            total = sum(kernel_s.values())
            for name, taken in kernel_s.items():
                _add(found, name, value * taken / total)
    rest = sum(seconds.values()) - sum(found.values())  # recomputation, a pipeline's bubble
    known = sum(found.values())
    spread = {name: value * (1 + rest / known) for name, value in found.items()}
    scaled = kernels.is_estimate("gemm") or kernels.is_estimate("attention_forward")
    hidden: dict[str, float] = {}
    for part, value in hidden_s.items():
        if part in _EXCHANGES and value > 0:
            _add(hidden, "across" if part in away else inside, value)
    return Basis(board="scaled" if scaled else "measured", seconds=spread, narrow=narrow, hidden=hidden)


def _crossing(program: StepProgram, paths: Paths, priced_as: Mapping[str, str]) -> set[str]:
    """The parts any of whose exchanges leaves a domain."""
    found = set()
    for segment, _ in program.segments():
        for phase in (*segment.sharding, *segment.phases):
            if isinstance(phase, Exchange | Broadcasts | Passed) and paths.crosses(phase.axis):
                found.add(priced_as[phase.part])
            elif isinstance(phase, Ring) and paths.crosses("ring"):
                found.add("ring")
    return found


def _kernel_seconds(program: StepProgram) -> dict[str, float]:
    """Seconds of each kind of kernel of one microbatch, forward and backward, without what is recomputed."""
    found: dict[str, float] = {}
    for segment in program.microbatch:
        for phase in segment.phases:
            kernel = _KERNEL.get(phase.part)
            if kernel is not None:
                _add(found, kernel, float(segment.repeat * _seconds(phase)))
    return found or {"products": 1.0}


def _seconds(phase: Phase) -> Number:
    if isinstance(phase, Compute):
        return phase.seconds
    if isinstance(phase, Ring):
        return phase.first_s + (phase.pieces - 1) * phase.piece_s
    return phase.blocks * phase.seconds if isinstance(phase, Staged) else 0.0


def _add(found: dict[str, float], name: str, value: float) -> None:
    found[name] = found.get(name, 0.0) + value
