"""A target: the program that is to run the plan, as a file of what its layouts may be.

    targets/megatron.yaml    title, framework (cost_models/frameworks), modes, and what exists there:
    degrees      which may be above 1, of data, ring, ulysses, tensor, pipeline; cache: tensor ranks with the same KV
                 heads cut the cache by tokens
    context      ring and ulysses "together", "apart" (one of them 1), or "gcd": ulysses is the greatest common divisor
                 of ring x ulysses and the KV heads
    ulysses      any integer, a divisor of the query heads (and of the KV heads, or a multiple), or of the KV heads
    shardings    (over what weights and states are sharded, ZeRO stage)
    recompute    sets of policies that may stand side by side in the layers of one model
    levers       of memory (`search/levers.py`) that may be chosen

`fixed` names choices that are held at their defaults and may be fixed by hand (`--fix`). Left out: experts, and what a
program can do beyond what is priced; `why` says which and for what reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from cost_models import strict
from cost_models.errors import InputError
from cost_models.framework import Framework
from cost_models.strategy import Recompute, RingKind, Schedule
from cost_models.workload import Mode, Workload
from planner.search.levers import Lever

FOLDER = Path(__file__).parent
Degree = Literal["data", "ring", "ulysses", "tensor", "pipeline", "cache"]
Sharded = Literal["ranks", "domain", "context", "one", "alone"]
"""Over all of data x context, a scale-up domain's, the context group, or not at all: `alone` without context alone."""


_STATES: Mapping[str, str] = {"": "none", "optimizer": "optimizer", "states": "all"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """
    >>> Target.load("torchtitan").degrees
    ('data', 'ring', 'tensor', 'pipeline')
    """

    name: str
    title: str
    framework: str
    why: str  # what is left out of it, and for what reason
    modes: tuple[Mode, ...] = ("train",)
    degrees: tuple[Degree, ...]
    context: Literal["together", "apart", "gcd"] = "together"
    ulysses: Literal["any", "heads", "kv_heads"] = "any"
    shardings: tuple[tuple[Sharded, Literal[0, 1, 2, 3]], ...]
    recompute: tuple[tuple[Recompute, ...], ...] = (("none",),)
    ring_kind: RingKind = "zigzag"
    schedules: tuple[Schedule, ...] = ("1f1b",)
    loss_chunk_tokens: int | None = None
    levers: tuple[Lever, ...] = ()
    fixed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.shardings[-1] not in (("one", 0), ("alone", 0)) or (0 in [stage for _, stage in self.shardings[:-1]]):
            raise InputError(f"target {self.name}: shardings must end with one or alone, and that alone has stage 0")

    @classmethod
    def load(cls, name: str) -> Target:
        """A target by its name; InputError with the legal ones."""
        return _load(name)

    @staticmethod
    def names() -> list[str]:
        return sorted(path.stem for path in FOLDER.glob("*.yaml"))

    @cached_property
    def code(self) -> Framework:
        """Whose code runs a step."""
        return Framework.load(self.framework)

    @property
    def is_ours(self) -> bool:
        return self.framework == "ours"

    def asked(self, workload: Workload) -> Workload:
        """The workload in the precision that this code computes in; InputError for a mode or layers that it does not
        run."""
        if workload.mode not in self.modes:
            others = [name for name in self.names() if workload.mode in Target.load(name).modes]
            raise InputError(
                f"--for {self.name} has no mode={workload.mode}; legal: mode={', '.join(self.modes)} "
                f"(for {workload.mode}: {', '.join(others)})"
            )
        if workload.model.ssd is not None and not self.is_ours:
            raise InputError(f"--for {self.name} does not run {workload.model.name}'s state-space layers; legal: mmsp")
        return workload if self.is_ours else replace(workload, precision=self.code.precision)

    def runs(self, workload: Workload) -> bool:
        """Whether this code has the workload's mode and layers."""
        return workload.mode in self.modes and (workload.model.ssd is None or self.is_ours)

    def splits(self, ulysses: int, heads: int, keys: int) -> bool:
        """Whether so many ranks can share a layer's query and KV heads."""
        if self.ulysses == "any":
            return ulysses <= heads
        whole = keys % ulysses == 0 or (self.ulysses == "heads" and ulysses % keys == 0)
        return heads % ulysses == 0 and whole

    def check_pins(self, pins: Mapping[str, Any]) -> None:
        """InputError for a pinned value that does not exist here."""
        for name, value in pins.items():
            legal = self._legal(name)
            if name not in self.fixed and legal is not None and value not in legal:
                raise InputError(
                    f"{name}={'none' if value is None else value} does not exist with --for {self.name}; "
                    f"legal: {', '.join('none' if one is None else str(one) for one in legal)}"
                )

    def _legal(self, name: str) -> tuple[Any, ...] | None:
        """The values of a pin; `None`: those that the cluster and the workload allow."""
        if name in ("data", "ring", "ulysses", "tensor", "pipeline"):
            return None if name in self.degrees else (1,)
        if name == "cache_context" and "cache" in self.degrees:
            return None
        if name == "virtual":
            return None if "interleaved" in self.schedules else (1,)
        known: dict[str, tuple[Any, ...] | None] = {
            "expert": (1,),
            "cache_context": (1,),
            "zero": tuple(sorted({stage for _, stage in self.shardings})),
            "recompute": tuple(dict.fromkeys(policy for several in self.recompute for policy in several)),
            "ring_kind": (self.ring_kind,),
            "schedule": self.schedules,
            "loss_chunk_tokens": None if "loss" in self.levers else (self.loss_chunk_tokens,),
            "mlp_chunk_tokens": None if "slices" in self.levers else (None,),
            "attention_chunk_tokens": None if "rows" in self.levers else (None,),
            "attention_head_chunks": None if "heads" in self.levers else (1,),
            "offload_states": tuple(value for lever, value in _STATES.items() if lever in ("", *self.levers)),
            "grad_ring_dtype": ("fp32",),
        }
        return known.get(name)


@cache
def _load(name: str) -> Target:
    if name not in Target.names():
        raise InputError(f"--for {name!r} is unknown; {strict.nearest(name, [*Target.names(), 'any'])}")
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    found: Target = strict.read(Target, {"name": name, **strict.parse_yaml(text, f"target {name}")}, f"target {name}")
    return found


MMSP = Target.load("mmsp")
"""What this project's executor runs."""
