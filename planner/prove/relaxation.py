"""The least seconds of a layout, by a relaxation of the proof's own, and which degrees there are.

    least = the kernels' seconds, nothing recomputed, on the fastest device there is, all ranks in one scale-up domain
          + the optimizer's                               both under the sharding for which they are least
          + the all-to-all over that domain's link, or at least half of the buffer over the best card, if that is less

Rings, gathers, reductions, waits for the host, vision and recompute count nothing, memory and leaves do not limit, and
no node is slow: so no placement of any sharding takes less. Seconds a step. The kernels are those of every price; the
legal degrees are read off batch, heads and GPUs here once more. Left out: tensor and pipeline degrees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cost_models.batch import price_batch
from cost_models.hardware.cluster import Cluster, NodeRun
from cost_models.hardware.node import Node
from cost_models.strategy import Strategy
from cost_models.workload import Workload

AT_ONCE = 2000
"""Layouts priced together."""


class Family(NamedTuple):
    """Layouts that differ in ring and sharding alone."""

    data: int
    microbatches: int
    ulysses: int


def families(cluster: Cluster, workload: Workload, fixed: Mapping[str, object]) -> dict[Family, tuple[int, int]]:
    """(first, last ring) of every family.

    >>> from cost_models import Model
    >>> work = Workload(Model.load("longvila-8b"), context_tokens=2**17)
    >>> families(Cluster.load("dgx-h100", nodes=1), work, {"ulysses": 4})
    {Family(data=1, microbatches=1, ulysses=4): (1, 2)}
    """
    batch, heads, train = workload.global_batch, workload.model.heads, workload.mode == "train"
    gpus = [0] * cluster.slots
    for slot, domain in enumerate(cluster.domain_of_slot.tolist()):
        gpus[domain] += int(cluster.gpus_of_slot[slot])
    found = {}
    for data in (d for d in range(1, min(batch, cluster.gpus) + 1) if batch % d == 0):
        rows = batch // data
        for micro in (m for m in range(1, (rows if train else 1) + 1) if rows % m == 0 or not train):
            for ulysses in range(1, min(heads, cluster.gpus) + 1):
                usual = ulysses <= max(gpus) or heads % ulysses == 0 or "ulysses" in fixed
                last = min(cluster.gpus // (data * ulysses), max(1, math.ceil(workload.context_tokens / 2) // ulysses))
                here = {"data": data, "microbatches": micro, "ulysses": ulysses}
                if not usual or last < 1 or any(fixed.get(name, value) != value for name, value in here.items()):
                    continue
                ring = fixed.get("ring")
                if ring is None or (isinstance(ring, int) and ring <= cluster.gpus // (data * ulysses)):
                    found[Family(**here)] = (1, last) if not isinstance(ring, int) else (ring, ring)
    return found


def least_s(
    cluster: Cluster, workload: Workload, held: Strategy, several: Sequence[tuple[Family, int]]
) -> NDArray[np.float64]:
    """Of each (family, ring); `held`: every other choice."""
    return np.concatenate(
        [_least(cluster, workload, held, several[at : at + AT_ONCE]) for at in range(0, len(several), AT_ONCE)]
    )


def _least(
    cluster: Cluster, workload: Workload, held: Strategy, several: Sequence[tuple[Family, int]]
) -> NDArray[np.float64]:
    least = np.full(len(several), np.inf)
    ranks = [family.data * family.ulysses * ring for family, ring in several]
    for node in _devices(cluster):
        slots = math.ceil(cluster.gpus / node.gpus)
        near = replace(
            cluster, runs=(NodeRun(count=slots, node=node),), nodes_per_domain=slots, domains=(), hosts=(),
            fabric=replace(cluster.fabric, leaves=(), spines=(), missing_uplinks=()),
        )  # fmt: skip
        for stage in (3, 2, 0):
            layouts = [
                replace(
                    held, ring=ring, shard=count if stage else 1, zero=stage if count > 1 else 0, **family._asdict()
                )
                for (family, ring), count in zip(several, ranks, strict=True)
            ]
            parts = price_batch(near, workload, layouts).seconds
            exchanged = np.minimum(parts["all_to_all"], _half_out_s(cluster, workload, several))
            switched = node.scale_up.kind == "switch"  # elsewhere an order of ranks may be better than theirs here
            seconds = parts["compute"] + parts["optimizer"] + switched * exchanged
            least = np.minimum(least, seconds)
    return least


def _devices(cluster: Cluster) -> list[Node]:
    """A node with free GPUs of each device and link, all its cards whole."""
    found: list[Node] = []
    for run in cluster.runs:
        node = replace(run.node, missing_nics=(), nic_shares=(), missing_bridges=())
        if node.gpus and not any((one.device, one.scale_up) == (node.device, node.scale_up) for one in found):
            found.append(node)
    return found


def _half_out_s(cluster: Cluster, workload: Workload, several: Sequence[tuple[Family, int]]) -> NDArray[np.float64]:
    """Half of the heads' bytes of queries, keys, values and output over the best card, once: forward alone."""
    model, card = workload.model, max(run.node.nics.bytes_per_s for run in cluster.runs)
    width = 2 * model.head_dim * (2 * model.heads + 2 * model.kv_heads) * model.layers
    tokens = np.array(
        [workload.context_tokens * workload.global_batch / (f.data * ring * f.ulysses) for f, ring in several]
    )
    sends = np.array([family.ulysses > 1 for family, _ in several])
    return np.where(sends, 0.5 * tokens * width / card, 0.0)
