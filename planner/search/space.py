"""Which layouts exist: the integers that a plan may choose, with what the user pinned.

    data x microbatches divides the global batch (train; else data divides it)      data x context <= free GPUs
    ulysses   1 to the GPUs of a scale-up domain, beyond it the divisors of the query heads; never above the heads
    ring      any integer with at least two tokens for each rank of the context group
    shard     all ranks, as many as fit in a domain, the context group, or 1        zero 3 or 2 (0 where shard = 1)
    tensor    divisors of the query heads        pipeline x virtual  divisors of the layers

What of this exists is the target's to say (`planner/targets`). A `Family` fixes everything but the ring degree and how
parameters are sharded; rings are ranges 1 to `most_ring`. A `Space` has one tensor and pipeline degree and one set of
recompute policies: `spaces` lists those of a target.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster
from cost_models.layer.heads import head_split
from cost_models.layer.recompute import POLICIES, policy
from cost_models.layer.stages import is_mixed
from cost_models.models.model import Model
from cost_models.room import DEFAULT_ROOM, Room
from cost_models.ssd_messages import PASSES
from cost_models.strategy import PINS, RECOMPUTES, LayerRange, Recompute, SsdSplit, Strategy
from cost_models.workload import Workload
from planner.search.levers import NONE, Bundle
from planner.search.together import check_together
from planner.targets.target import MMSP, Target

Policy = Recompute | LayerRange
Key = tuple[tuple[tuple[str, Any], ...], Bundle, tuple[Recompute, ...]]

SEARCHED: tuple[Recompute, ...] = tuple(name for name, policy in POLICIES.items() if policy.planned)


class Family(Struct, frozen=True, kw_only=True):
    """Layouts that differ only in ring degree and sharding."""

    data: int
    microbatches: int
    ulysses: int
    first_ring: int
    most_ring: int


class Space(Struct, frozen=True, kw_only=True, dict=True):
    """The layouts of one cluster and workload under the pins."""

    cluster: Cluster
    workload: Workload
    pins: Mapping[str, Any]
    room: Room = DEFAULT_ROOM
    target: Target = MMSP
    among: tuple[Recompute, ...] = SEARCHED  # policies that may stand side by side in the layers
    levers: Bundle = NONE  # of memory, that all layouts of this space have

    def __post_init__(self) -> None:
        for name in self.pins:
            if name not in PINS:
                raise InputError(f"fixed {name!r} is unknown; legal: {', '.join(PINS)}")
        self.target.check_pins(self.pins)
        check_together(self.pins, self.workload.model)
        asked = "gather" if self.base.ssd_pass == "least" else self.base.ssd_pass
        replace(self.base, ssd_pass=asked).check(self.workload.model)
        if self.pins.get("recompute", "none") not in RECOMPUTES:
            raise InputError(f"recompute={self.pins['recompute']!r} is unknown; legal: {', '.join(RECOMPUTES)}")
        if self.workload.mode != "train" and self.pins.get("recompute", "none") != "none":
            raise InputError(f"recompute={self.pins['recompute']} without training; legal: none")
        if self.pins.get("zero", 3) not in (0, 1, 2, 3):
            raise InputError(f"zero={self.pins['zero']} is unknown; legal: 0, 1, 2, 3")
        for name, least in (("shard", 1), ("zero", 0)) if self.workload.mode == "decode" else ():
            if self.pins.get(name, least) != least:
                raise InputError(f"{name}={self.pins[name]} in decode: every rank has all weights; legal: {least}")
        if is_mixed(self.workload.model) and self.base.pipeline > 1:
            raise InputError(
                f"pipeline={self.base.pipeline} for layers of several kinds is priced (`plan price --strategy`), "
                "not planned; legal: 1"
            )
        if not 1 <= self.pins.get("shard", 1) <= self.replica_gpus:
            raise InputError(f"shard={self.pins['shard']} exceeds the GPUs; legal: 1 to {self.replica_gpus}")

    @cached_property
    def base(self) -> Strategy:
        """Everything that the search does not move, with degrees of 1.

        Our training rows may be packed, so their documents are dealt in balance; one document lies as in zigzag.
        """
        moved = ("data", "ring", "ulysses", "shard", "zero", "microbatches", "recompute")
        held: dict[str, Any] = {"loss_chunk_tokens": self.target.loss_chunk_tokens}
        held |= {"ring_kind": self.target.ring_kind} if self.workload.mode == "train" else {}
        if self.workload.model.ssd is not None and self.workload.mode == "train":
            held |= {"ssd_pass": "least"}  # a prefill's stretches end where documents do: it gathers
        pinned = {name: value for name, value in self.pins.items() if name not in moved}
        return Strategy(**{**held, **self.levers.fields, **pinned})

    @property
    def key(self) -> Key:
        """What tells it from the other spaces of one question, whatever the cluster."""
        return tuple(sorted(self.pins.items())), self.levers, self.among

    @cached_property
    def policies(self) -> tuple[Policy, ...]:
        """Recompute policies that layers may have; with that lever also those whose kept input waits on the host."""
        among = self.among if self.workload.mode == "train" else ("none",)
        named = (self.pins["recompute"],) if "recompute" in self.pins else among
        if self.base.attention_chunk_tokens is not None:
            named = tuple(one for one in named if one not in ("all_but_attention", "core_attention"))
        if not self.levers.inputs:
            return named
        kept = [one for one in named if policy(one).keeps_input]
        return (*named, *(LayerRange(recompute=one, offload="activations", count=1) for one in kept))

    @property
    def uses_host(self) -> bool:
        """Whether anything of a layout may lie in host memory."""
        return (
            self.levers.uses_host or self.base.offload_states != "none" or self.base.attention_chunk_tokens is not None
        )

    @property
    def frees(self) -> bool:
        """Whether weights are freed after each use: those that wait in host memory, and in this project's executor the
        copies on the card of masters that do, unless another stage is asked for (a comparison)."""
        ours = self.target.is_ours and "zero" not in self.pins
        return self.base.offload_states == "all" or (self.base.offload_states == "optimizer" and ours)

    @property
    def shardings(self) -> tuple[tuple[str, int], ...]:
        """How parameters can be sharded: over what, and the ZeRO stage; not at all comes last. A decode step finds all
        weights gathered, so that shards are bytes beside them."""
        return self.target.shardings[-1:] if self.workload.mode == "decode" else self.target.shardings

    @cached_property
    def again(self) -> list[int]:
        """Of `shardings` those that differ from the one before in their stage alone."""
        over = [name for name, _ in self.shardings]
        return [place for place in range(1, len(over)) if over[place] == over[place - 1]]

    @cached_property
    def domain_gpus(self) -> int:
        """Free GPUs of the largest scale-up domain."""
        return int(np.bincount(self.cluster.domain_of_slot, weights=self.cluster.gpus_of_slot).max())

    @cached_property
    def replica_gpus(self) -> int:
        """GPUs that data x context may use."""
        most = self.cluster.gpus // (self.base.tensor * self.base.pipeline)
        if most < 1:
            pinned = f"pipeline={self.base.pipeline} x tensor={self.base.tensor}"
            raise InputError(f"{pinned} needs more than the {self.cluster.gpus} GPUs; together at most that many")
        return most

    @cached_property
    def families(self) -> tuple[Family, ...]:
        """Every choice of data, microbatches and ulysses with its range of rings; at least one, or InputError."""
        families = []
        for data in self._data():
            for microbatches in self._microbatches(data):
                for ulysses in self._with_heads(self._ulysses()):
                    first, most = self._rings(data, ulysses)
                    one = Family(
                        data=data, microbatches=microbatches, ulysses=ulysses, first_ring=first, most_ring=most
                    )
                    families += [one] if first <= most else []
        if not families:
            pinned = " × ".join(
                f"{name} {self.pins[name]}" for name in ("data", "ring", "ulysses") if name in self.pins
            )
            raise InputError(
                f"{pinned} does not fit: data x ring x ulysses may be 1 to {self.replica_gpus} "
                f"with at least two tokens for each rank of a context of {self.workload.context_tokens}"
            )
        return tuple(families)

    def _pinned(self, name: str, legal: list[int], why: str) -> list[int]:
        if name not in self.pins:
            return legal
        value = self.pins[name]
        if value not in legal:
            raise InputError(f"{name}={value} {why}; legal: {', '.join(map(str, legal))}")
        return [value]

    def _data(self) -> list[int]:
        batch = self.workload.global_batch
        legal = [data for data in divisors(batch) if data <= self.replica_gpus]
        return self._pinned("data", legal, f"does not divide the batch of {batch} or exceeds the GPUs")

    def _microbatches(self, data: int) -> list[int]:
        rows = self.workload.global_batch // data
        training = self.workload.mode == "train"
        legal = divisors(rows) if training else [1]
        if (
            self.base.virtual > 1 and not self.target.is_ours
        ):  # interleaved schedules run as many microbatches as there are stages at a time
            legal = [value for value in legal if value % self.base.pipeline == 0]
        if (
            "microbatches" in self.pins
            and "data" not in self.pins
            and self.pins["microbatches"] in divisors(self.workload.global_batch)
        ):
            return [value for value in legal if value == self.pins["microbatches"]]
        return self._pinned("microbatches", legal, f"does not divide the {rows} rows of a data replica")

    def _ulysses(self) -> list[int]:
        heads = self.workload.model.heads // self.base.tensor
        most = min(heads, self.replica_gpus) if "ulysses" in self.target.degrees else 1
        keys = max(1, self.workload.model.kv_heads // self.base.tensor)
        if self.target.ulysses != "any":
            legal = [one for one in range(1, most + 1) if self.target.splits(one, heads, keys)]
            return self._pinned("ulysses", legal, f"does not divide the {heads} query and {keys} KV heads")
        if "ulysses" in self.pins:
            return self._pinned("ulysses", list(range(1, most + 1)), f"exceeds the {heads} query heads or the GPUs")
        near = range(1, min(most, self.domain_gpus // self.base.tensor) + 1)
        far = [degree for degree in divisors(heads) if degree <= most]
        return sorted({1, *near, *far})

    def _with_heads(self, degrees: list[int]) -> list[int]:
        """The degrees at which every rank has a head for each of the pieces in which heads are attended."""
        chunks, model, tensor = self.base.attention_head_chunks, self.workload.model, self.base.tensor
        if chunks == 1:
            return degrees
        heads, keys = model.heads // tensor, max(1, model.kv_heads // tensor)
        splits = (head_split(q_heads=heads, kv_heads=keys, ulysses=degree) for degree in degrees)
        return [one.ulysses for one in splits if min(share.q_heads for share in one.shares) >= chunks]

    def has(self, bundle: Bundle) -> bool:
        """Whether these levers are possible for the model at all."""
        model, fields = self.workload.model, bundle.fields
        heads = model.heads // self.base.tensor
        if fields.get("attention_head_chunks", 1) > heads or ("mlp_chunk_tokens" in fields and model.experts):
            return False
        return "attention_chunk_tokens" not in fields or (self.pins.get("ring", 1) == 1 and model.ssd is None)

    def _rings(self, data: int, ulysses: int) -> tuple[int, int]:
        """The first and the largest ring degree."""
        tokens = -(-self.workload.context_tokens // 2)
        most = min(self.replica_gpus // (data * ulysses), max(1, tokens // ulysses))
        alone = "ring" not in self.target.degrees or self.base.attention_chunk_tokens is not None
        if alone or (self.target.context == "apart" and ulysses > 1):
            most = min(most, 1)
        if "ring" in self.pins:
            ring = self.pins["ring"]
            if not 1 <= ring <= self.replica_gpus:
                raise InputError(f"ring={ring} is not possible here; legal: 1 to {self.replica_gpus}")
            return ring, min(ring, self.replica_gpus // (data * ulysses))
        return 1, most

    def allows(self, ulysses: NDArray[np.int64], ring: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the target has these degrees together, and state-space layers have a head for each rank; all that
        `families` lists are possible else."""
        possible = np.ones(ring.shape, dtype=bool)
        if self.target.context == "gcd":
            possible &= np.gcd(ulysses * ring, self.workload.model.kv_heads) == ulysses
        ssd = self.workload.model.ssd
        if ssd is not None and self.base.ssd != "states":
            possible &= ssd.heads % (ulysses * ring if self.base.ssd == "heads" else ulysses) == 0
        if self.base.ssd_pass == "chain":
            possible &= self.base.varied(ulysses=ulysses, ring=ring).ssd_slots == 1
        return possible

    def shards(self, data: Any, context: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """(shard, zero, legal) of each layout, shape (layouts, len(shardings)); a repeated choice is not legal."""
        ranks = np.asarray(data) * np.asarray(context)
        near = np.array([_largest_divisor(int(n), self.domain_gpus) for n in ranks], dtype=np.int64)
        one = np.ones_like(ranks)
        over = {"ranks": ranks, "domain": near, "context": one * context, "one": one, "alone": one}
        shard = np.stack([over[name] for name, _ in self.shardings], axis=1)
        zero = np.broadcast_to(np.array([stage for _, stage in self.shardings]), shard.shape).copy()
        alone = (ranks == 1)[:, None] & self.frees  # one rank frees weights that wait there
        legal = (shard > 1) | (zero == 0) | alone
        legal[:, [name == "alone" for name, _ in self.shardings]] &= (one * context == 1)[:, None]
        for column in range(1, len(self.shardings)):
            for earlier in range(column):
                legal[:, column] &= (shard[:, column] != shard[:, earlier]) | (zero[:, column] != zero[:, earlier])
        if self.frees:
            legal &= zero == 3
        return self._pinned_shards(shard, zero, legal, ranks)

    def _pinned_shards(
        self, shard: NDArray[np.int64], zero: NDArray[np.int64], legal: NDArray[np.bool_], ranks: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        if "shard" in self.pins:
            wanted = self.pins["shard"]
            shard = np.full(shard.shape, wanted)
            possible = ranks % wanted == 0
            legal = np.zeros(shard.shape, dtype=bool)
            if wanted == 1:
                legal[:, -1] = possible
            else:
                stages = [stage for _, stage in self.shardings]
                legal[:, [stages.index(stage) for stage in set(stages) - {0}]] = possible[:, None]
        if "zero" in self.pins:
            zero = np.full(zero.shape, self.pins["zero"])
            legal[:, self.again] = False
            unsharded = self.pins["zero"] == 0
            legal[:, :-1] &= "shard" in self.pins or not unsharded
            legal[:, -1] &= "shard" in self.pins or unsharded or (ranks == 1)
        return shard, zero, legal


def spaces(cluster: Cluster, workload: Workload, pins: Mapping[str, Any], room: Room, target: Target) -> list[Space]:
    """The spaces of a target, one for each tensor degree, pipeline, virtual stages, set of policies, and way to split
    state-space layers."""
    model, training = workload.model, workload.mode == "train"

    def degrees(name: Literal["tensor", "pipeline"], legal: list[int]) -> list[int]:
        if name in pins or name not in target.degrees:
            return [pins.get(name, 1)]
        return [degree for degree in legal if degree <= cluster.gpus]

    among = target.recompute if training and "recompute" not in pins else target.recompute[:1]
    found = []
    tensors, pipelines = degrees("tensor", tensor_degrees(model)), degrees("pipeline", divisors(model.layers))
    for tensor, pipeline in itertools.product(tensors, pipelines):
        several = [1]
        if pipeline > 1:
            if "pipeline" not in pins and (tensor * pipeline > cluster.gpus or is_mixed(model)):
                continue
            if training and "interleaved" in target.schedules and not {"virtual", "schedule"} & {*pins}:
                several = divisors(model.layers // pipeline)
        copies = max(1, tensor // model.kv_heads) if "cache" in target.degrees and "cache_context" not in pins else 1
        splits: tuple[SsdSplit, ...] = ("states",) if model.ssd is None or "ssd" in pins else get_args(SsdSplit)
        for virtual, policies, cut, ssd in itertools.product(several, among, divisors(copies), splits):
            here = {"tensor": tensor, "pipeline": pipeline, "virtual": virtual, "cache_context": cut}
            schedule = {"schedule": "interleaved"} if virtual > 1 else {}
            split = {"ssd": ssd} if len(splits) > 1 else {}
            held = {name: value for name, value in here.items() if value > 1} | schedule | split | {**pins}
            found.append(Space(cluster=cluster, workload=workload, pins=held, room=room, target=target, among=policies))
    return found


def named(strategy: Strategy) -> Iterator[Strategy]:
    """The strategy, or where a search left open how states are passed, one for each way that it may be."""
    if strategy.ssd_pass != "least":
        yield strategy
        return
    for way in PASSES if strategy.ssd != "heads" else PASSES[:1]:
        packed = strategy.ring_kind == "balanced" and strategy.ring > 1
        if way != "chain" or (strategy.ssd_slots == 1 and not packed):
            yield replace(strategy, ssd_pass=way)


def tensor_degrees(model: Model) -> list[int]:
    """Divisors of the query heads and the MLP's width that divide the KV heads or are multiples of them.

    >>> tensor_degrees(Model.load("longvila-1.5b"))
    [1, 2, 4]
    """
    legal = [one for one in divisors(model.heads) if model.ffn % one == 0]
    return [one for one in legal if 0 in (model.kv_heads % one, one % model.kv_heads)]


def check_plannable(model: Model) -> None:
    """InputError: a model that is priced (`plan price`, `cost_models.price`), but neither searched nor simulated."""
    found = ["experts"] * (model.experts is not None) + ["latent attention"] * (model.latent is not None)
    if found:
        raise InputError(
            f"--model {model.name!r} has {' and '.join(found)}: priced, but neither planned nor run; "
            "price a layout with `plan price --strategy data=8,…`, or plan a model without"
        )


def divisors(number: int) -> list[int]:
    """
    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def _largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)
