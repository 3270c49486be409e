"""Which layouts exist: the integers that a plan may choose, with what the user pinned.

    data x microbatches divides the global batch (train; else data divides it)      data x context <= free GPUs
    ulysses   1 to the GPUs of a scale-up domain, beyond it the divisors of the query heads; never above the heads
    ring      any integer with at least two tokens for each rank of the context group
    shard     all ranks, as many as fit in a domain, the context group, or 1        zero 3 or 2 (0 where shard = 1)

A `Family` fixes everything but the ring degree and how parameters are sharded; rings are ranges 1 to `most_ring`.
Left out: tensor and pipeline degrees, virtual stages and schedules are searched only as pinned (default 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster
from cost_models.layer.recompute import POLICIES
from cost_models.layer.stages import is_mixed
from cost_models.models.model import Model
from cost_models.room import DEFAULT_ROOM, Room
from cost_models.strategy import PINS, RECOMPUTES, Recompute, Strategy
from cost_models.workload import Workload

SHARDINGS = (("ranks", 3), ("ranks", 2), ("domain", 3), ("domain", 2), ("context", 3), ("context", 2), ("one", 0))
"""How parameters can be sharded: over what, and the ZeRO stage."""
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

    def __post_init__(self) -> None:
        for name in self.pins:
            if name not in PINS:
                raise InputError(f"fixed {name!r} is unknown; legal: {', '.join(PINS)}")
        if self.pins.get("attention_chunk_tokens") is not None:
            raise InputError(
                f"attention_chunk_tokens={self.pins['attention_chunk_tokens']} is priced (`plan price --strategy`), "
                "not planned; legal: none"
            )
        self.base.check(self.workload.model)
        if self.pins.get("offload_states", "none") != "none":
            raise InputError(
                f"offload_states={self.pins['offload_states']} is priced (`plan price --strategy`), not planned; "
                "legal: none"
            )
        if self.pins.get("recompute", "none") not in RECOMPUTES:
            raise InputError(f"recompute={self.pins['recompute']!r} is unknown; legal: {', '.join(RECOMPUTES)}")
        if self.workload.mode != "train" and self.pins.get("recompute", "none") != "none":
            raise InputError(f"recompute={self.pins['recompute']} without training; legal: none")
        if self.pins.get("zero", 3) not in (0, 1, 2, 3):
            raise InputError(f"zero={self.pins['zero']} is unknown; legal: 0, 1, 2, 3")
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

        Training rows may be packed, so their documents are dealt in balance; one document lies as in zigzag.
        """
        moved = ("data", "ring", "ulysses", "shard", "zero", "microbatches", "recompute")
        kind: dict[str, Any] = {"ring_kind": "balanced"} if self.workload.mode == "train" else {}
        return Strategy(**{**kind, **{name: value for name, value in self.pins.items() if name not in moved}})

    @property
    def policies(self) -> tuple[Recompute, ...]:
        """Recompute policies that layers may have."""
        if "recompute" in self.pins:
            return (self.pins["recompute"],)
        return SEARCHED if self.workload.mode == "train" else ("none",)

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
                for ulysses in self._ulysses():
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
            "microbatches" in self.pins
            and "data" not in self.pins
            and self.pins["microbatches"] in divisors(self.workload.global_batch)
        ):
            return [value for value in legal if value == self.pins["microbatches"]]
        return self._pinned("microbatches", legal, f"does not divide the {rows} rows of a data replica")

    def _ulysses(self) -> list[int]:
        heads = self.workload.model.heads // self.base.tensor
        most = min(heads, self.replica_gpus)
        if "ulysses" in self.pins:
            return self._pinned("ulysses", list(range(1, most + 1)), f"exceeds the {heads} query heads or the GPUs")
        near = range(1, min(most, self.domain_gpus // self.base.tensor) + 1)
        far = [degree for degree in divisors(heads) if degree <= most]
        return sorted({1, *near, *far})

    def _rings(self, data: int, ulysses: int) -> tuple[int, int]:
        """The first and the largest ring degree."""
        tokens = -(-self.workload.context_tokens // 2)
        most = min(self.replica_gpus // (data * ulysses), max(1, tokens // ulysses))
        if "ring" in self.pins:
            ring = self.pins["ring"]
            if not 1 <= ring <= self.replica_gpus:
                raise InputError(f"ring={ring} is not possible here; legal: 1 to {self.replica_gpus}")
            return ring, min(ring, self.replica_gpus // (data * ulysses))
        return 1, most

    def shards(self, data: Any, context: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """(shard, zero, legal) of each layout, shape (layouts, len(SHARDINGS)); a repeated choice is not legal."""
        ranks = np.asarray(data) * np.asarray(context)
        near = np.array([_largest_divisor(int(n), self.domain_gpus) for n in ranks], dtype=np.int64)
        over = {"ranks": ranks, "domain": near, "context": np.broadcast_to(context, ranks.shape), "one": 0 * ranks + 1}
        shard = np.stack([over[name] for name, _ in SHARDINGS], axis=1)
        zero = np.broadcast_to(np.array([stage for _, stage in SHARDINGS]), shard.shape).copy()
        legal = (shard > 1) | (zero == 0)
        for column in range(2, len(SHARDINGS)):
            for earlier in range(column):
                legal[:, column] &= (shard[:, column] != shard[:, earlier]) | (zero[:, column] != zero[:, earlier])
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
                legal[:, 0] = legal[:, 1] = possible
        if "zero" in self.pins:
            zero = np.full(zero.shape, self.pins["zero"])
            legal[:, 1::2] = False  # the second of each pair differs in its stage alone
            unsharded = self.pins["zero"] == 0
            legal[:, :-1] &= "shard" in self.pins or not unsharded
            legal[:, -1] &= "shard" in self.pins or unsharded or (ranks == 1)
        return shard, zero, legal


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
