"""This machine's network cards as the kernel lists them: rate, kind and NUMA node of each.

    /sys/class/infiniband/mlx5_0   ports/1/rate "400 Gb/sec (4X NDR)", ports/1/link_layer, device/{numa_node,driver}
    /sys/class/net/eth0            speed (Mbit/s), device/numa_node; virtual devices have no `device`

Where there are RDMA cards, Ethernet's are left out: they are the same ones, or are for storage and logins. A rate that
the kernel does not tell (a virtual card, a cable that is out) is None. Rates in bytes/s one way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cost_models.hardware.networks import NetworkKind

SYS = Path("/sys")


@dataclass(frozen=True, kw_only=True)
class NetworkCard:
    name: str
    kind: NetworkKind
    bytes_per_s: float | None
    numa: int | None


def network_cards(sys: Path = SYS) -> tuple[NetworkCard, ...]:
    """RDMA cards, else Ethernet cards with hardware behind them; by name."""
    found = [_rdma(folder) for folder in sorted(sys.glob("class/infiniband/*"))]
    if not found:
        found = [_ethernet(folder) for folder in sorted(sys.glob("class/net/*")) if (folder / "device").exists()]
    return tuple(found)


def numa_nodes(sys: Path = SYS) -> int:
    """NUMA nodes of this machine; 1 where the kernel lists none."""
    return max(1, len(list(sys.glob("devices/system/node/node[0-9]*"))))


def _rdma(folder: Path) -> NetworkCard:
    rates = [
        float(match[1]) for file in folder.glob("ports/*/rate") if (match := re.match(r"([0-9.]+) Gb/sec", _read(file)))
    ]
    driver, layer = (
        (folder / "device" / "driver").resolve().name,
        _read(next(folder.glob("ports/*/link_layer"), folder)),
    )
    kind: NetworkKind = "roce" if layer == "Ethernet" else "infiniband"
    kind = "efa" if driver == "efa" else "omni-path" if driver == "hfi1" else kind
    return NetworkCard(
        name=folder.name, kind=kind, bytes_per_s=max(rates, default=0.0) * 1e9 / 8 or None, numa=_numa(folder)
    )


def _ethernet(folder: Path) -> NetworkCard:
    speed = _read(folder / "speed")
    rate = int(speed) * 1e6 / 8 if re.fullmatch(r"[0-9]{1,9}", speed) else 0.0
    return NetworkCard(name=folder.name, kind="ethernet", bytes_per_s=rate or None, numa=_numa(folder))


def _numa(folder: Path) -> int | None:
    """-1 is the kernel's word for unknown."""
    text = _read(folder / "device" / "numa_node")
    return int(text) if re.fullmatch(r"[0-9]{1,4}", text) else None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
