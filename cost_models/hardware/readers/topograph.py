"""Topograph's files -> FabricTree: its models (YAML), its `graph` engine's output, and NetQ's JSON, which it reads.

    model      switches: {core: {switches: [leaf1]}}     blocks: [{switch: leaf1, nodes: ["n[1-8]"], annotations: {…}}]
    graph      {"instances": [{"id": "n1", "network_layers": ["leaf1", "core"], "labels": {…}}]}     nearest layer first
    NetQ       a list with `links` and `nodes`; or a list of hosts with the NVLink domain (DomainUUID) of each

An annotation or label whose key names an accelerator's domain (or a clique) is the host's scale-up domain. Keys that
are not named here are not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TypeVar

import msgspec

from cost_models.errors import InputError
from cost_models.hardware.readers.fabric_tree import MOST_LEVELS, Builder, FabricTree
from cost_models.hardware.readers.hostlist import expand

T = TypeVar("T")


class _Switch(msgspec.Struct):
    switches: list[str] = []


class _Block(msgspec.Struct):
    switch: str
    nodes: list[str]
    annotations: dict[str, str] = {}


class _Model(msgspec.Struct):
    blocks: list[_Block]
    switches: dict[str, _Switch] = {}


class _Instance(msgspec.Struct):
    id: str
    network_layers: list[str] | None = None
    labels: dict[str, str] | None = None


class _Instances(msgspec.Struct):
    instances: list[_Instance]


class _Host(msgspec.Struct):
    Name: str
    DomainUUID: str


class _Device(msgspec.Struct):
    id: str
    name: str = ""
    device_type: str = ""
    compounded_nodes: list[_Device] = []


class _Link(msgspec.Struct):
    src: str
    target: str
    compounded_links: list[object] = []


class _NetQ(msgspec.Struct):
    nodes: list[_Device]
    links: list[_Link]


def is_topograph(data: object) -> bool:
    """Whether the data are Topograph's or NetQ's."""
    if isinstance(data, Mapping):
        return "instances" in data or ("blocks" in data and "nodes" not in data)
    if not isinstance(data, list) or not data or not isinstance(data[0], Mapping):
        return False
    return {"links", "nodes"} <= set(data[0]) or "DomainUUID" in data[0]


def read(data: object, where: str) -> FabricTree:
    """The network that they describe; NetQ lists every cable. InputError: a wrong key or type, by name."""
    builder = Builder(where)
    if isinstance(data, Mapping):
        if "instances" in data:
            _instances(builder, _typed(data, _Instances, where))
        else:
            _model(builder, _typed(data, _Model, where))
        return builder.finish()
    if isinstance(data, list) and "DomainUUID" in data[0]:
        for host in _typed(data, list[_Host], where):
            builder.hosts([host.Name], domain=host.DomainUUID)
        return builder.finish()
    for netq in _typed(data, list[_NetQ], where)[:1]:
        _netq(builder, netq)
    return builder.finish(every_link=True)


def _typed(data: object, kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {error}") from None


def _model(builder: Builder, model: _Model) -> None:
    for name, switch in model.switches.items():
        builder.above(name, switch.switches)
    for block in model.blocks:
        builder.switch(block.switch)
        for nodes in block.nodes:
            builder.hosts(expand(nodes, builder.where), block.switch, _domain(block.annotations))


def _instances(builder: Builder, data: _Instances) -> None:
    for instance in data.instances:
        layers = instance.network_layers or []
        if len(layers) > MOST_LEVELS:
            raise InputError(f"{builder.where}: {len(layers):,} network layers; at most {MOST_LEVELS} are read")
        for lower, upper in pairwise(layers):
            builder.above(upper, [lower])
        if layers:
            builder.switch(layers[0])
        builder.hosts([instance.id], layers[0] if layers else None, _domain(instance.labels or {}))


def _domain(labels: Mapping[str, str]) -> str | None:
    """The value of the shortest key that names an accelerator's domain: sub-domains have longer ones."""
    keys = [key for key in labels if "accelerator" in key or "clique" in key]
    return labels[min(keys, key=len)] if keys else None


def _netq(builder: Builder, data: _NetQ) -> None:
    names: dict[str, str] = {}
    for device in _devices(data.nodes):
        name = names[device.id] = device.name or device.id
        if device.device_type == "switch":
            builder.switch(name)
        else:
            builder.hosts([name])
    for link in data.links:
        if link.src not in names or link.target not in names:
            raise InputError(
                f"{builder.where}: a link joins {link.src[:40]} and {link.target[:40]}, not both are nodes"
            )
        for _ in range(max(1, len(link.compounded_links))):
            builder.cable(names[link.src], names[link.target])


def _devices(nodes: list[_Device]) -> Iterator[_Device]:
    for node in nodes:
        yield from node.compounded_nodes or [node]
