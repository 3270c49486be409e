"""A list of hosts, one a line, as MPI, DeepSpeed and pdsh take it -> FabricTree: all hosts under one switch.

    gpu001 slots=8          gpu002:8          gpu[003-010]          # a comment

Counts of slots must be equal: they say how many GPUs a host has, which the printed host or the preset says too.
"""

from __future__ import annotations

import re
from collections import Counter

from cost_models.errors import InputError
from cost_models.hardware.readers.fabric_tree import Builder, FabricTree
from cost_models.hardware.readers.hostlist import expand

_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._,\[\]-]*)(?:\s+(?:slots|max_slots)=[0-9]{1,4})*(?::[0-9]{1,4})?\s*")


def _lines(text: str) -> list[str]:
    return [line for raw in text.splitlines() if (line := raw.partition("#")[0].strip())]


def is_hostfile(text: str) -> bool:
    lines = _lines(text)
    return bool(lines) and all(_LINE.fullmatch(line) for line in lines)


def read(text: str, where: str) -> FabricTree:
    builder = Builder(where)
    builder.switch("network")
    names = [name for line in _lines(text) for name in expand(_LINE.fullmatch(line)[1], where)]  # type: ignore[index]
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise InputError(f"{where} names host {name} {times} times")
    builder.hosts(names, "network")
    return builder.finish()
