"""A list of hosts, one a line, as MPI, DeepSpeed and pdsh take it -> FabricTree: all hosts under one switch.

    gpu001 slots=8          gpu002:8          gpu[003-010]          # a comment

Slots are the GPUs that a job may use of a host. Left out: hosts with unlike numbers of slots, and names that are
numbers or words of YAML (`null`, `true`), which are refused.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from cost_models.errors import InputError
from cost_models.hardware.readers.fabric_tree import Builder, FabricTree
from cost_models.hardware.readers.hostlist import MOST_HOSTS, expand

_LINE = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._,\[\]-]*)(?:\s+(?:slots=([0-9]{1,4})|max_slots=[0-9]{1,4}))*(?::([0-9]{1,4}))?\s*"
)

_VALUE = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:e[-+]?[0-9]+)?|null|none|nan|true|false|inf(?:inity)?", re.IGNORECASE)
"""What files of other kinds hold alone on a line: `null`, `1e400`, a histogram's `8192,3`."""
LOOKED_AT, MOST_LINE = 100, 2**16


def _match(line: str) -> re.Match[str] | None:
    """A line that names hosts, none of them by a number or a word of YAML or JSON."""
    match = _LINE.fullmatch(line)
    names = re.sub(r"\[[^\]]*\]", "[]", match[1]).split(",") if match else []
    return None if any(_VALUE.fullmatch(name) for name in names) else match


def _lines(text: str) -> list[str]:
    return [line for raw in text.splitlines() if (line := raw.partition("#")[0].strip())]


def is_hostfile(text: str) -> bool:
    """Whether the first lines name hosts."""
    lines = _lines(text[:MOST_LINE])[:LOOKED_AT]
    return bool(lines) and all(_match(line) for line in lines)


def read(text: str, where: str) -> FabricTree:
    """The hosts under one switch. InputError: a line that is no host, a host named twice, unlike slots."""
    builder = Builder(where)
    builder.switch("network")
    lines = _lines(text)
    if len(lines) > MOST_HOSTS:
        raise InputError(f"{where} names {len(lines):,} hosts; at most {MOST_HOSTS:,} are read")
    matches = [_match(line) for line in lines]
    if None in matches:
        line = lines[matches.index(None)]
        raise InputError(f"{where}: {line[:60]!r} is no host, such as 'gpu001 slots=8' or 'gpu[003-010]'")
    names = [name for match in matches if match for name in expand(match[1], where)]
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise InputError(f"{where} names host {name} {times} times")
    counts = {int(match[2] or match[3] or 0) for match in matches if match}
    if len(counts) > 1:
        told = ", ".join(str(count) if count else "none" for count in sorted(counts))
        raise InputError(
            f"{where}: hosts have unlike numbers of slots ({told}); give all the same, or write a cluster file"
        )
    builder.hosts(names, "network")
    return replace(builder.finish(), gpus=counts.pop() or None)
