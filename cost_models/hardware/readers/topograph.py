"""Topograph's files -> FabricTree: its models (YAML), its `graph` engine's output, and NetQ's JSON, which it reads.

    model      switches: {core: {switches: [leaf1]}}     blocks: [{switch: leaf1, nodes: ["n[1-8]"], annotations: {…}}]
    graph      {"instances": [{"id": "n1", "network_layers": ["leaf1", "core"], "labels": {…}}]}     nearest layer first
    NetQ       a list with `links` and `nodes`; or a list of hosts with the NVLink domain (DomainUUID) of each

An annotation or label whose key names an accelerator's domain (or a clique) is the host's scale-up domain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from cost_models.errors import InputError
from cost_models.hardware.readers.fabric_tree import Builder, FabricTree
from cost_models.hardware.readers.hostlist import expand


def is_topograph(data: object) -> bool:
    if isinstance(data, Mapping):
        return "instances" in data or ("blocks" in data and "nodes" not in data)
    return (
        isinstance(data, list)
        and bool(data)
        and isinstance(data[0], Mapping)
        and ({"links", "nodes"} <= set(data[0]) or "DomainUUID" in data[0])
    )


def read(data: Any, where: str) -> FabricTree:
    builder = Builder(where)
    try:
        if isinstance(data, Mapping):
            (_instances if "instances" in data else _model)(builder, data)
            return builder.finish()
        if "DomainUUID" in data[0]:
            for host in data:
                builder.hosts([str(host["Name"])], domain=str(host["DomainUUID"]))
            return builder.finish()
        _netq(builder, data[0])
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where} lacks a key of this format, or holds another kind of value: {error}") from None
    return builder.finish(every_link=True)


def _model(builder: Builder, data: Mapping[str, Any]) -> None:
    for name, facts in (data.get("switches") or {}).items():
        builder.above(str(name), [str(lower) for lower in facts.get("switches", [])])
    for block in data["blocks"]:
        switch, domain = str(block["switch"]), _domain(block.get("annotations") or {})
        builder.switch(switch)
        for nodes in block["nodes"]:
            builder.hosts(expand(str(nodes), builder.where), switch, domain)


def _instances(builder: Builder, data: Mapping[str, Any]) -> None:
    for instance in data["instances"]:
        layers = [str(layer) for layer in instance.get("network_layers") or []]
        for lower, upper in pairwise(layers):
            builder.above(upper, [lower])
        if layers:
            builder.switch(layers[0])
        builder.hosts([str(instance["id"])], layers[0] if layers else None, _domain(instance.get("labels") or {}))


def _domain(labels: Mapping[str, Any]) -> str | None:
    """The value of the shortest key that names an accelerator's domain: sub-domains have longer ones."""
    keys = [key for key in labels if "accelerator" in str(key) or "clique" in str(key)]
    return str(labels[min(keys, key=len)]) if keys else None


def _netq(builder: Builder, data: Mapping[str, Any]) -> None:
    names: dict[str, str] = {}
    for node in _devices(data["nodes"]):
        name = names[str(node["id"])] = str(node.get("name") or node["id"])
        if node.get("device_type") == "switch":
            builder.switch(name)
        else:
            builder.hosts([name])
    for link in data["links"]:
        for _ in range(max(1, len(link.get("compounded_links", ())))):
            builder.cable(names[str(link["src"])], names[str(link["target"])])


def _devices(nodes: list[Any]) -> Iterator[Mapping[str, Any]]:
    for node in nodes:
        yield from node["compounded_nodes"] if node.get("compounded_nodes") else [node]
