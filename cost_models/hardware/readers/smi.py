"""`nvidia-smi topo -m` and `rocm-smi --showtopo` -> HostTree: a matrix of how near GPUs and cards are.

            GPU0  GPU1  NIC0  CPU Affinity  NUMA Affinity           NV12: joined by 12 NVLinks
    GPU0     X    NV12  PXB   0-31,64-95    0                       PIX PXB PHB NODE SYS: how near over PCIe
    GPU1    NV12   X    PXB   0-31,64-95    0                       XGMI, PCIE: AMD's link types

Columns are told apart by blanks or tabs; cards are named NIC0, mlx5_0 or by any other name. Where NVLink joins two GPUs
the matrix does not say how near they are over PCIe: their NUMA nodes do. GPUs keep their numbers. Where the file also
holds `nvidia-smi -L`, `nvidia-smi` or `rocm-smi --showproductname`, the GPUs have the name printed there.
"""

from __future__ import annotations

import re

import networkx as nx

from cost_models.errors import InputError
from cost_models.hardware.device_names import device_of
from cost_models.hardware.readers.host_tree import NEARNESS, HostTree, grow

MOST_VERTICES = 512
_NVIDIA = re.compile(r"^[ \t]*GPU0\b.*\n\s*GPU0[ \t]+X\b", re.M)
_AMD = re.compile(r"Link Type between two GPUs")
_CELL = re.compile(r"X|NV[0-9]{1,3}|PIX|PXB|PHB|NODE|SYS")
_NAME = re.compile(
    r"^GPU [0-9]{1,3}: (NVIDIA [^(\n]{1,60}) \(UUID"  # nvidia-smi -L
    r"|^\|[ \t]+[0-9]{1,3}[ \t]+(NVIDIA [\w. -]{1,40}?)[ \t]{2,}"  # nvidia-smi
    r"|Card [Ss]eries:[ \t]*(AMD [^\n]{1,60})",  # rocm-smi --showproductname
    re.M,
)
_AMD_NUMA = re.compile(r"GPU\s*\[?(\d{1,3})\]?\s*:.*Numa Node:\s*(\d{1,4})")


def is_topology(text: str) -> bool:
    """Whether the text is the matrix of `nvidia-smi topo -m` or `rocm-smi --showtopo`."""
    return bool(_NVIDIA.search(text) or _AMD.search(text))


def read(text: str, where: str) -> HostTree:
    """The host that the matrix describes. InputError names the row and column that cannot be."""
    return _amd(text, where) if _AMD.search(text) else _nvidia(text, where)


def _nvidia(text: str, where: str) -> HostTree:
    header, *rows_below = text[_NVIDIA.search(text).start() :].splitlines()  # type: ignore[union-attr]
    lines = iter(rows_below)
    names = header.partition("CPU Affinity")[0].split()
    if len(set(names)) < len(names) or len(names) > MOST_VERTICES:
        raise InputError(f"{where}: the heading names {len(names)} GPUs and cards; at most {MOST_VERTICES}, none twice")
    rows: dict[str, list[str]] = {}
    numa: dict[str, str] = {}
    for line in lines:
        words = line.split()
        if not words or words[0] not in names or words[0] in rows:
            break
        cells = words[1 : len(names) + 1]
        if not _is_row(cells, len(names), line) and not (words[0].startswith("GPU")):
            break  # a row of a card that is cut off
        for name, cell in zip(names, cells, strict=False):
            if not _CELL.fullmatch(cell):
                raise InputError(f"{where}: row {words[0]}, column {name}: {cell[:20]!r} is none of X, NV#, {_LEGAL}")
        rows[words[0]] = cells
        rest = words[len(names) + 1 :]
        if words[0].startswith("GPU") and len(rest) >= 2:
            numa[words[0]] = rest[1]
    gpus = [name for name in names if re.fullmatch(r"GPU\d{1,3}", name)]
    for gpu in gpus:
        if len(rows.get(gpu, [])) < len(names):
            raise InputError(f"{where}: the row of {gpu} is missing or shorter than the heading's {len(names)} columns")
    between = {(a, b): cell for a in gpus for b, cell in zip(names, rows[a], strict=True) if b in gpus}
    _check_symmetry(between, where)
    graph = nx.Graph()
    graph.add_nodes_from(gpus, kind="gpu")
    graph.add_nodes_from((name for name in names if name not in gpus), kind="nic")
    near: dict[tuple[str, str], int] = {}
    for gpu in gpus:
        for name, cell in zip(names, rows[gpu], strict=True):
            if cell.startswith("NV"):
                graph.add_edge(gpu, name, kind="nvlink", count=int(cell[2:]))
                alike = gpu in numa and numa.get(gpu) == numa.get(name)
                near[gpu, name] = NEARNESS.index("NODE" if alike else "SYS")
            elif cell != "X":
                near[gpu, name] = NEARNESS.index(cell)
    grow(graph, near)
    for card, name in re.findall(r"^[ \t]*(NIC[0-9]{1,3}):[ \t]*([\w.-]{1,40})[ \t]*$", text, re.M):
        if card in graph:
            graph.nodes[card]["name"] = name
    device, unknown = _named(text, where)
    return HostTree(graph=graph, device=device, unknown=unknown)


def _check_symmetry(between: dict[tuple[str, str], str], where: str) -> None:
    """Two GPUs are as near from either side; a matrix that says otherwise was edited or cut."""
    for (a, b), cell in between.items():
        if (back := between.get((b, a), cell)) != cell:
            raise InputError(f"{where}: row {a} says {cell} of {b}, row {b} says {back} of {a}; print it again")


def _named(text: str, where: str) -> tuple[str | None, str | None]:
    """(preset, name that no preset has) of the GPUs' printed name; None where none is printed."""
    names = sorted({name.strip() for match in _NAME.finditer(text) for name in match.groups() if name})
    if len(names) > 1:
        raise InputError(f"{where} prints GPUs of several kinds: {', '.join(names)[:80]}")
    for name in names:
        try:
            return device_of(name).name, None
        except InputError:
            return None, name
    return None, None


_LEGAL = ", ".join(NEARNESS)


def _is_row(cells: list[str], columns: int, line: str) -> bool:
    return len(cells) == columns and "\x00" not in line


def _amd(text: str, where: str) -> HostTree:
    block = text[_AMD.search(text).end() :].splitlines()  # type: ignore[union-attr]
    lines = iter(line.split() for line in block[1:])
    names = next((words for words in lines if words[:1] == ["GPU0"]), [])
    links: dict[tuple[str, str], str] = {}
    for words in lines:
        if not words or words[0] not in names:
            break
        if len(words) != len(names) + 1:
            raise InputError(f"{where}: the row of {words[0]} has {len(words) - 1} of {len(names)} columns")
        links.update({(words[0], name): cell for name, cell in zip(names, words[1:], strict=True) if name != words[0]})
    if not names or len(names) > MOST_VERTICES or len(links) != len(names) * (len(names) - 1):
        raise InputError(f"{where}: the block `Link Type between two GPUs` is cut off; print it whole")
    _check_symmetry(links, where)
    numa = {f"GPU{gpu}": node for gpu, node in _AMD_NUMA.findall(text)}
    graph = nx.Graph()
    graph.add_nodes_from(names, kind="gpu")
    near = {}
    for (a, b), link in links.items():
        if link not in ("XGMI", "PCIE"):
            raise InputError(f"{where}: the link between {a} and {b} is {link[:20]!r}; legal: XGMI, PCIE")
        if link == "XGMI":
            graph.add_edge(a, b, kind="nvlink", count=1)
        alike = a in numa and numa.get(a) == numa.get(b)
        near[a, b] = NEARNESS.index("NODE" if alike else "SYS")
    grow(graph, near)
    link = "XGMI" if "XGMI" in links.values() else "PCIE"
    device, unknown = _named(text, where)
    return HostTree(graph=graph, link=link, device=device, unknown=unknown)
