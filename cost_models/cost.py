"""What a step costs, as named parts that add up: seconds, bytes of memory, bytes sent, FLOP.

    step_s = sum of `seconds`        memory_bytes = `memory.device_bytes`        never a bare float

    allocated   what tensors take, which the framework's allocator counts as in use
    reserved    the segments that the allocator holds for them: + fragments
    device      what the driver says that the process takes: + communication + context

A step fits where `device` is within what the driver hands out, and what is offloaded within the host's memory. Only
exposed communication is in `seconds`: what fits behind compute is in `hidden_s`. `PARTS` is the one table of the names
of parts: which part of a cost the phases of a program belong to, and what people read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from cost_models.basis import Basis
from cost_models.strict import OPTIONAL

Held = TypeVar("Held")


class Part(NamedTuple):
    """Of a step's seconds."""

    words: str
    computed: tuple[str, ...] = ()  # parts of a program's phases that are computation
    exchanged: tuple[str, ...] = ()  # … and communication


PARTS = {
    "compute": Part("compute", computed=("attention", "matmul", "memory_bound", "loss")),
    "recompute": Part("recompute", computed=("recompute",)),
    "all_to_all": Part("exposed all-to-all", exchanged=("all_to_all",)),
    "ring": Part("exposed ring", exchanged=("ring",)),
    "sharding": Part("exposed sharding", exchanged=("sharding", "gradients")),
    "vision": Part("vision", computed=("vision",), exchanged=("embeddings",)),
    "tensor": Part("exposed tensor parallelism", exchanged=("tensor",)),
    "experts": Part("experts' all-to-all", exchanged=("experts",)),
    "pipeline": Part("pipeline bubble", exchanged=("pipeline", "bubble")),
    "offload": Part("exposed offload", exchanged=("offload",)),
    "host": Part("waiting for the host", exchanged=("host",)),
    "optimizer": Part("optimizer", computed=("optimizer",)),
}
PRICED_AS = {phase: name for name, part in PARTS.items() for phase in (*part.computed, *part.exchanged)}
"""The part of a cost that a phase of a program belongs to."""
COMPUTED = tuple(phase for part in PARTS.values() for phase in part.computed)
SECONDS = tuple(name for name in PARTS if name != "experts")
"""Of every cost; "experts" only where they are spread over ranks."""
ALLOCATED = ("parameters", "gradients", "optimizer", "gathered", "activations", "working", "logits", "vision", "cache")
MEMORY = (*ALLOCATED, "fragments", "communication", "context")


class Memory(dict[str, Held], Generic[Held]):
    """Bytes by part of MEMORY, of one rank or of many, and their sums at three levels.

    >>> memory = Memory(parameters=5, activations=3, fragments=1, context=2)
    >>> memory.allocated_bytes, memory.reserved_bytes, memory.device_bytes
    (8, 9, 11)
    """

    @property
    def allocated_bytes(self) -> Held:
        return self._sum(ALLOCATED)

    @property
    def reserved_bytes(self) -> Held:
        return self._sum((*ALLOCATED, "fragments"))

    @property
    def device_bytes(self) -> Held:
        return self._sum(tuple(self))

    def _sum(self, names: tuple[str, ...]) -> Held:
        return sum(self[name] for name in names if name in self)  # type: ignore[return-value, misc]


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """One step as priced: seconds, bytes and FLOP, each as named parts that add up to the total."""

    seconds: Mapping[str, float]  # by part of SECONDS, and "experts" where they are spread over ranks
    memory: Memory[int]  # peak of the worst rank, by part of MEMORY, whole bytes
    sent_bytes: Mapping[str, float]  # per rank and step, by axis and operation
    hidden_s: Mapping[str, float]  # communication that compute hides
    capacity_bytes: int  # what the driver hands out on the smallest GPU in use
    model_flops: float  # of all ranks in a step, without recompute: matmuls and causal attention
    executed_flops: float  # recompute counted
    peak_flops: float  # of all GPUs in use
    tokens: int  # of the step
    ranks: int
    estimates: tuple[str, ...]  # numbers that no measurement backs, in words
    moment: str = ""  # of the step, when memory peaks; empty where a plan file was read
    host_bytes: int = 0  # that offloading takes on the fullest node
    host_capacity_bytes: int = 0  # of that node; 0: not known, so not compared
    basis: Basis | None = field(default=None, repr=False, metadata=OPTIONAL)  # None where a plan file was read

    @property
    def step_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def memory_bytes(self) -> int:
        """At the level of the device, which `fits` compares."""
        return self.memory.device_bytes

    @property
    def fits(self) -> bool:
        return self.memory_bytes <= self.capacity_bytes and self.fits_host

    @property
    def fits_host(self) -> bool:
        return not self.host_capacity_bytes or self.host_bytes <= self.host_capacity_bytes

    @property
    def mfu(self) -> float:
        """Model FLOP (6 per matmul weight and token, attention causal, no recompute) over the bf16 dense peak."""
        return self.model_flops / (self.step_s * self.peak_flops)

    @property
    def tokens_per_s_per_gpu(self) -> float:
        return self.tokens / self.step_s / self.ranks

    @property
    def gpu_hours(self) -> float:
        return self.step_s * self.ranks / 3600
