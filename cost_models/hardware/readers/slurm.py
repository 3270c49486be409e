"""Slurm's topology -> FabricTree: `topology.conf` (tree or block), `scontrol show topology`, `topology.yaml`.

    SwitchName=s0 Nodes=gpu[001-016,020]      SwitchName=top Switches=s[0-3]       a tree
    BlockName=b1 Nodes=gpu[01-18]             BlockSizes=16,32                      NVLink blocks: scale-up domains

A block is a group of hosts that NVLink (or another fast fabric) joins; Slurm's planning sizes (BlockSizes) are smaller
numbers of hosts that it hands out together and are not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cost_models.errors import InputError
from cost_models.hardware.readers.fabric_tree import Builder, FabricTree
from cost_models.hardware.readers.hostlist import expand

_LINE = re.compile(r"^[ \t]*(SwitchName|BlockName)=", re.I | re.M)
MOST_LINES = 2**16
_WORD = re.compile(r"([A-Za-z]+)=(\S*)")


def is_conf(text: str) -> bool:
    """Whether the text is a `topology.conf`."""
    return bool(_LINE.search(text))


def read_conf(text: str, where: str) -> FabricTree:
    """Switches and blocks of a `topology.conf`. InputError names the line that is neither."""
    builder = Builder(where)
    if (count := text.count("\n")) > MOST_LINES:
        raise InputError(f"{where} has {count:,} lines; at most {MOST_LINES:,} are read")
    for number, raw in enumerate(text.replace("\\\n", " ").splitlines(), 1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        words = {key.lower(): value for key, value in _WORD.findall(line)}
        at = f"{where}, line {number}"
        if "switchname" in words:
            if not {"nodes", "switches"} & set(words):
                raise InputError(f"{at}: switch {words['switchname'][:40]} has neither Nodes nor Switches")
            _switch(builder, words["switchname"], words.get("nodes", ""), words.get("switches", ""), at)
        elif "blockname" in words:
            builder.hosts(expand(words.get("nodes", ""), at), domain=words["blockname"])
        elif "blocksizes" not in words:
            raise InputError(f"{at}: {line[:60]!r} starts with none of SwitchName=, BlockName=, BlockSizes=")
    return builder.finish()


def is_yaml(data: object) -> bool:
    """Whether this is the list of topologies that `topology.yaml` holds."""
    if not isinstance(data, list) or not data:
        return False
    return all(isinstance(item, Mapping) and "topology" in item for item in data)


def read_yaml(data: list[Mapping[str, object]], where: str) -> FabricTree:
    """The topology that is the cluster's default, else the first that is not flat."""
    chosen = sorted(data, key=lambda item: (not item.get("cluster_default"), not {"tree", "block"} & set(item)))
    builder, found = Builder(where), False
    for kind in ("tree", "block"):
        parts = [part for item in chosen if isinstance(part := item.get(kind), Mapping)]
        if not parts:
            continue
        found = True
        for entry in _entries(parts[0].get("switches" if kind == "tree" else "blocks", []), where):
            if kind == "tree":
                nodes, children = str(entry.get("nodes", "")), str(entry.get("children", ""))
                _switch(builder, str(entry.get("switch", "")), nodes, children, where)
            else:
                builder.hosts(expand(str(entry.get("nodes", "")), where), domain=str(entry.get("block", "")))
    if not found:
        raise InputError(f"{where} holds neither a tree nor blocks")
    return builder.finish()


def _entries(data: object, where: str) -> list[Mapping[str, object]]:
    if not isinstance(data, list) or not all(isinstance(item, Mapping) for item in data):
        raise InputError(f"{where}: switches and blocks must be lists of keys and values")
    return data


def _switch(builder: Builder, name: str, nodes: str, switches: str, where: str) -> None:
    for one in expand(name, where):
        builder.switch(one)
        if nodes:
            builder.hosts(expand(nodes, where), one)
        if switches:
            builder.above(one, expand(switches, where))
