"""A plan: the cluster, the workload, the chosen layout with its groups and places, and why it was chosen.

    plan.json  one object, one key a line; same input, same bytes (no clock, no solver time)

Everything that an executor needs is explicit: the rank lists of every group, rank -> (slot, GPU), frames per rank.
Reading checks the schema, the cluster's digest and that the lists are those of the degrees; nothing is trusted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from cost_models import strict
from cost_models.bands import memory_band, step_band
from cost_models.basis import Basis
from cost_models.cost import MEMORY, StepCost
from cost_models.cost import Memory as StepMemory
from cost_models.errors import InputError
from cost_models.hardware.cluster import MAX_GPUS, Cluster
from cost_models.hardware.placement import Placement
from cost_models.room import Room, sureness
from cost_models.strategy import LISTED_AXES, Strategy, rank_groups
from cost_models.workload import Workload
from planner.files import write_whole
from planner.prove.regions import Proof
from planner.search.objective import Objective
from planner.search.searched import Searched
from planner.targets.target import MMSP, Target

VERSION = 2
ChosenBy = Literal["model", "regret", "simulator"]
SCHEMA = Path(__file__).parent / "schemas" / "plan.schema.json"
"""The JSON Schema of `PlanFile`, for readers in other languages; a test compares."""


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What the simulator says of one layout."""

    step_s: float
    seconds: Mapping[str, float]  # by part, along the slowest rank
    busiest_links: tuple[tuple[str, float], ...]  # (name, share of the step that it is busy)
    averaged: bool = False  # ranks that are nearly alike were played as one


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """A layout that lost, and why."""

    strategy: Strategy
    step_s: float
    memory_bytes: int
    simulated_s: float | None
    regret: float | None  # of a layout that is tied with the best price
    reason: str


@dataclass(frozen=True, kw_only=True)
class Regret:
    """What the plan takes at most above the best of the layouts that are tied with it."""

    most: float
    scenario: str  # where it takes that much
    tied: int  # layouts, this one counted


@dataclass(frozen=True, kw_only=True)
class Apart:
    """Prefill on GPUs of its own."""

    strategy: Strategy
    first_token_s: float
    cache_bytes: int  # of one prompt, handed over to the ranks that decode


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What a server with this layout answers; seconds are none where the memory does not hold it."""

    first_token_s: float | None  # prefill of one prompt a replica
    token_s: float | None  # a decode step of the batch
    longest_tokens: int  # of a row, at this batch; 0: none
    most_rows: int  # of this length at once
    most_token_s: float | None  # a decode step of so many
    most_tokens_per_s: float
    apart: Apart | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What `plan.json` holds: the question, the layout with its places, its price, and why it was chosen."""

    target: Target = MMSP  # the program that it is for
    targets: Mapping[str, float | None] = field(default_factory=dict)  # of `any`: the best of each, if anything fits
    cluster: Cluster
    workload: Workload
    strategy: Strategy
    placement: Placement
    cost: StepCost
    simulated: Simulated
    serving: Serving | None = None  # of prefill and decode
    objective: Objective
    chosen_by: ChosenBy
    regret: Regret | None = None  # nothing is tied with it
    alternatives: tuple[Alternative, ...]  # the tied ones first, best price first
    searched: Searched = field(default_factory=Searched)
    bound: float  # in the objective's unit: no layout of the space `searched` is priced below it on any placement
    gap: float  # (price of this layout - bound) / price of this layout
    reproducible: bool = True
    profile_digest: str | None = None
    fixed: Mapping[str, str] | None = None  # what the user pinned
    trust_model: bool = False  # what is tied with the best price does not count
    room: Room = field(default_factory=Room)  # what counts as fitting
    proof: Proof | None = None  # `plan --proof`

    @property
    def bands(self) -> dict[str, Any]:
        """What 80% of steps are expected to take and hold, and how sure it is that they fit."""
        step, memory = step_band(self.cost), memory_band(self.cost)
        return {
            "level": step.level,
            "step_s": [step.low, step.high],
            "memory_bytes": [memory.low, memory.high],
            "fits_at": sureness(self.cost.memory_bytes, self.cost.capacity_bytes),
        }

    @cached_property
    def groups(self) -> dict[str, NDArray[np.int64]]:
        """Rank lists of every group, one group a row."""
        return {axis: rank_groups(self.strategy, axis) for axis in LISTED_AXES}

    @cached_property
    def frames(self) -> list[tuple[int, int]]:
        """[first, last + 1) frame of each rank: frames (or those of one mean) spread evenly over the context group."""
        context, frames, vision = self.strategy.context, self.workload.frames, self.workload.model.vision
        pool = vision.frames_pooled if vision else 1
        whole = -(-frames // pool)
        spans = np.zeros((self.strategy.ranks, 2), dtype=np.int64)
        for index, ranks in enumerate(self.groups["context"].T):
            spans[ranks] = index * whole // context, (index + 1) * whole // context
        return [(int(first) * pool, min(int(stop) * pool, frames)) for first, stop in spans]

    @property
    def digest(self) -> str:
        """Tells plans apart by all that they state."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        cost = self.cost
        return {
            "version": VERSION,
            "target": self.target.name,
            **({"targets": dict(self.targets)} if self.targets else {}),
            "objective": self.objective,
            "fixed": dict(sorted((self.fixed or {}).items())),
            "trust_model": self.trust_model,
            "room": strict.plain(self.room),
            "profile": self.profile_digest,
            "cluster": {"digest": self.cluster.digest, **self.cluster.to_dict()},
            "workload": strict.plain(self.workload),
            "strategy": strict.plain(self.strategy),
            "memory": {"capacity_bytes": cost.capacity_bytes, "parts": dict(cost.memory), **_on_host(cost)},
            "priced": {"step_s": cost.step_s, **_rest(cost)},
            "bands": self.bands,
            "simulated": strict.plain(self.simulated),
            **({"serving": strict.plain(self.serving)} if self.serving else {}),
            "chosen_by": self.chosen_by,
            "regret": strict.plain(self.regret),
            "alternatives": strict.plain(self.alternatives),
            "searched": strict.plain(self.searched),
            "bound": self.bound,
            "gap": self.gap,
            "reproducible": self.reproducible,
            **({"proof": strict.plain(self.proof)} if self.proof else {}),
            "ranks": np.stack([self.placement.slot_of_rank, self.placement.gpu_of_rank], axis=1).tolist(),
            "frames": self.frames,
            "groups": {axis: groups.tolist() for axis, groups in self.groups.items()},
        }

    @property
    def equal_shares_bound(self) -> bool:
        """Whether the bound is of equal shares of a row, and the plan's are not."""
        return bool(self.strategy.token_shares) and "token_shares" in self.searched.held

    def to_json(self) -> str:
        """One top-level key a line, compact inside, stable bytes."""
        lines = [
            f" {json.dumps(key)}: {json.dumps(value, separators=(', ', ': '))}" for key, value in self.to_dict().items()
        ]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def save(self, path: str | Path, flag: str = "-o") -> None:
        write_whole(path, self.to_json(), flag)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """A plan file, checked; anything wrong is an InputError that names the key."""
        return from_dict(strict.read_json(path, "plan"), str(path))


_PRICED = ("seconds", "hidden_s", "sent_bytes", "model_flops", "executed_flops", "peak_flops", "tokens", "estimates",
           "basis")  # fmt: skip

_KEPT = ("workload", "targets", "simulated", "serving", "objective", "chosen_by", "regret", "alternatives", "searched",
         "bound", "gap", "reproducible", "fixed", "trust_model",
         "room", "proof")  # fmt: skip


def _rest(cost: StepCost) -> dict[str, Any]:
    return {name: strict.plain(getattr(cost, name)) for name in _PRICED}


Least = Annotated[float, Meta(ge=0)]
Above = Annotated[float, Meta(gt=0)]
Index = Annotated[int, Meta(ge=0, le=MAX_GPUS)]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of a plan file: bytes of the fullest rank by part."""

    capacity_bytes: Annotated[int, Meta(ge=0)]
    parts: Mapping[str, Annotated[int, Meta(ge=0)]]
    host_bytes: Annotated[int, Meta(ge=0)] = 0  # that levers take on the fullest node; written where there are any
    host_capacity_bytes: Annotated[int, Meta(ge=0)] = 0  # of that node; 0: not known


def _on_host(cost: StepCost) -> dict[str, int]:
    return {name: getattr(cost, name) for name in _HOST} if cost.host_bytes else {}


_HOST = ("host_bytes", "host_capacity_bytes")
AGREES = 1e-9
"""Relative difference that the order of a sum may make."""


@dataclass(frozen=True, kw_only=True)
class Priced:
    """Of a plan file: seconds by part, and what else is priced."""

    step_s: Above
    seconds: Mapping[str, Least]
    hidden_s: Mapping[str, Least]
    sent_bytes: Mapping[str, Least]
    model_flops: Least
    executed_flops: Least
    peak_flops: Above
    tokens: Annotated[int, Meta(ge=1)]
    estimates: tuple[str, ...]
    basis: Basis | None = None  # files of earlier releases do not say


@dataclass(frozen=True, kw_only=True)
class Bands:
    """Of a plan file: 80% bands of seconds and bytes."""

    level: float
    step_s: tuple[Least, Least]
    memory_bytes: tuple[Least, Least]
    fits_at: Annotated[float, Meta(ge=0, le=1)]  # probability that the memory fits


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """What plan.json holds, key by key."""

    version: Literal[2]
    target: str = "mmsp"  # `plan --for`; files of earlier releases do not say
    targets: Mapping[str, Least | None] = field(default_factory=dict)
    objective: Objective
    fixed: Mapping[str, str]
    trust_model: bool
    room: Room
    profile: str | None
    cluster: Mapping[str, Any]  # its digest, and what `Cluster.from_dict` reads
    workload: Workload
    strategy: Strategy
    memory: Memory
    priced: Priced
    bands: Bands
    simulated: Simulated
    serving: Serving | None = None  # files of earlier releases do not say
    chosen_by: ChosenBy
    regret: Regret | None
    alternatives: tuple[Alternative, ...]
    searched: Searched
    bound: Least
    gap: Least
    reproducible: bool
    proof: Proof | None = None
    ranks: tuple[tuple[Index, Index], ...]  # (slot, GPU) of each rank
    frames: tuple[tuple[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=0)]], ...]
    groups: Mapping[str, tuple[tuple[Index, ...], ...]]


def from_dict(data: Mapping[str, Any], where: str) -> Plan:
    """Check every key and the consistency of all, then build the plan."""
    version = data.get("version")
    if version != VERSION:
        raise InputError(f"{where}: plan version {version!r} is not {VERSION}; plan again with this release")
    stated = strict.read(PlanFile, data, where)
    described = dict(stated.cluster)
    digest = described.pop("digest", None)
    cluster = Cluster.from_dict(described, f"{where}: cluster")
    if cluster.digest != digest:
        raise InputError(f"{where}: cluster does not have the digest that the plan states; the file was changed")
    strategy = stated.strategy
    strategy.check(stated.workload.model)
    places = np.array(stated.ranks, dtype=np.int64).reshape(-1, 2)
    placement = Placement(slot_of_rank=places[:, 0], gpu_of_rank=places[:, 1])
    placement.check(cluster, strategy.ranks)
    cost = StepCost(
        memory=_memory(stated, where),
        capacity_bytes=stated.memory.capacity_bytes,
        **{name: getattr(stated.memory, name) for name in _HOST},
        ranks=strategy.ranks,
        **{name: getattr(stated.priced, name) for name in _PRICED},
    )
    if abs(stated.priced.step_s - cost.step_s) > AGREES * cost.step_s:
        raise InputError(
            f"{where}: priced.step_s states {stated.priced.step_s:.6g} s, priced.seconds add up to {cost.step_s:.6g}; "
            "the file was changed"
        )
    plan = Plan(
        target=Target.load(stated.target),
        cluster=cluster,
        strategy=strategy,
        placement=placement,
        cost=cost,
        profile_digest=stated.profile,
        **{name: getattr(stated, name) for name in _KEPT},
    )
    _check_lists(plan, stated, where)
    return plan


def _memory(stated: PlanFile, where: str) -> StepMemory[int]:
    """Every part, once, and a sum that is in its own band, as each price is: a launch asks whether so much is free."""
    memory, (low, high) = StepMemory(stated.memory.parts), stated.bands.memory_bytes
    if set(memory) != set(MEMORY):
        given = ", ".join(memory) or "none"
        raise InputError(f"{where}: memory.parts has {given}; legal, and all needed: {', '.join(MEMORY)}")
    if not low <= memory.device_bytes <= high:
        raise InputError(
            f"{where}: memory.parts add up to {memory.device_bytes:,} bytes, outside bands.memory_bytes "
            f"({low:,.0f} to {high:,.0f}); the file was changed"
        )
    return memory


def _check_lists(plan: Plan, stated: PlanFile, where: str) -> None:
    """The explicit lists must be the ones that the degrees give: an executor builds exactly these."""
    if set(stated.groups) != set(plan.groups):
        raise InputError(
            f"{where}: groups has {', '.join(stated.groups)}; legal, and all needed: {', '.join(plan.groups)}"
        )
    for axis, groups in plan.groups.items():
        if stated.groups.get(axis) != tuple(map(tuple, groups.tolist())):
            raise InputError(f"{where}: groups.{axis} is not what the degrees {plan.strategy.describe()} give")
    if list(stated.frames) != plan.frames:
        raise InputError(f"{where}: frames are not spread evenly over the context group")


def schema_text() -> str:
    """The text of `SCHEMA`."""
    return json.dumps(strict.schema(PlanFile), indent=1) + "\n"
