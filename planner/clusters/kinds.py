"""Nodes that differ a little as one kind: a fleet measured node by node is planned by kinds, each as its slowest node.

    alike    the same parts in the same numbers, and every rate, clock and memory within the tolerance
    kind     the least of each number among its nodes (of latencies the largest): no node is slower than its kind

Up to `MOST_EXACT` kinds nothing is merged. Above, the tolerance is the smallest of `TOLERANCES` that leaves at most
`FEW`, and is said among the cluster's notes. Left out: kinds that no tolerance brings together stay apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from types import MappingProxyType

import numpy as np

from cost_models.hardware.cluster import Cluster, NodeRun
from cost_models.hardware.node import Node

MOST_EXACT = 32
FEW = 16
TOLERANCES = (0.005, 0.01, 0.02, 0.05)
Path = tuple[str, ...]
Numbers = dict[Path, float]
Kind = tuple[tuple[object, ...], tuple[float, ...]]  # what must be equal, and what may differ a little


@dataclass(frozen=True)
class _Number:
    """Stands among the parts for a number, which is not compared with them."""

    name: str


def by_kind(cluster: Cluster) -> Cluster:
    """The cluster with few kinds of node, and a note that says so if any were merged."""
    if len(cluster.runs) <= MOST_EXACT:
        return cluster
    read = [_kind(run.node) for run in cluster.runs]
    kinds = dict(zip(read, (run.node for run in cluster.runs), strict=True))
    if len(kinds) <= MOST_EXACT:
        return cluster
    for tolerance in TOLERANCES:
        merged = _merged(list(kinds), tolerance)
        fewer = len(set(merged.values()))
        if fewer <= FEW:
            break
    if fewer == len(kinds):
        return cluster
    node_of = {worst: _node(kinds[kind], worst) for kind, worst in merged.items()}
    runs = []
    for worst, equal in itertools.groupby(zip(read, cluster.runs, strict=True), key=lambda pair: merged[pair[0]]):
        runs.append(NodeRun(count=sum(run.count for _, run in equal), node=node_of[worst]))
    said = f"{len(kinds)} kinds of node planned as {fewer}: nodes within {tolerance:.1%} count as the slowest of them"
    return replace(cluster, runs=tuple(runs), notes=(*cluster.notes, said))


def _kind(node: Node) -> Kind:
    numbers: Numbers = {}
    parts = tuple(_read(node, (), numbers))
    return parts, tuple(numbers.values())


def _node(node: Node, worst: Kind) -> Node:
    """`node` with the numbers of `worst`."""
    numbers: Numbers = {}
    tuple(_read(node, (), numbers))
    made = _written(node, (), dict(zip(numbers, worst[1], strict=True)))
    assert isinstance(made, Node)
    return made


def _merged(kinds: list[Kind], tolerance: float) -> dict[Kind, Kind]:
    """The kind that stands for each: greedily, from the fastest down."""
    merged: dict[Kind, Kind] = {}
    by_parts: dict[tuple[object, ...], list[Kind]] = {}
    for kind in kinds:
        by_parts.setdefault(kind[0], []).append(kind)
    for parts, alike in by_parts.items():
        late = np.array([part.name.endswith("latency_s") for part in parts if isinstance(part, _Number)])
        order = sorted(alike, key=lambda kind: [-value for value in kind[1]])
        numbers = np.array([kind[1] for kind in order])
        first = 0
        for i in range(1, len(order) + 1):
            together = numbers[first : i + 1]
            if i < len(order) and np.all(together.max(axis=0) <= together.min(axis=0) * (1 + tolerance)):
                continue
            together = numbers[first:i]
            worst = np.where(late, together.max(axis=0), together.min(axis=0))
            merged.update((kind, (parts, tuple(worst.tolist()))) for kind in order[first:i])
            first = i
    return merged


def _is_number(name: str, value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and name.endswith("_bytes"))


def _read(value: object, path: Path, numbers: Numbers) -> Iterator[object]:
    """Yields what must be equal; `numbers` takes what may differ a little."""
    if is_dataclass(value):
        for one in fields(value):
            yield from _read(getattr(value, one.name), (*path, one.name), numbers)
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield from _read(value[key], (*path, str(key)), numbers)
    elif _is_number(path[-1], value) or (isinstance(value, int) and len(path) > 1 and path[-2] == "peak_flops"):
        numbers[path] = value  # type: ignore[assignment]
        yield _Number(path[-1])
    else:
        yield ".".join(path), 0, value


def _written(value: object, path: Path, numbers: Numbers) -> object:
    """`value` with other numbers."""
    if is_dataclass(value) and not isinstance(value, type):
        changed = {one.name: _written(getattr(value, one.name), (*path, one.name), numbers) for one in fields(value)}
        return replace(value, **changed)
    if isinstance(value, Mapping):
        return MappingProxyType({key: _written(value[key], (*path, str(key)), numbers) for key in value})
    return numbers.get(path, value)
