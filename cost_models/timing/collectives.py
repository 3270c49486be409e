"""Time of one collective inside a scale-up domain (NVLink, NVSwitch, PCIe of a node), by link, ranks and bytes.

`bytes_per_rank` is what each rank puts on the wire, the number that the byte formulas of the step use; `wire_bytes`
turns a buffer into it (B the buffer in bytes as NCCL's tests count it, n ranks):
    all_to_all  B·(n−1)/n  (B: all that one rank sends from)     all_reduce  2·B·(n−1)/n  (ring)
    all_gather, reduce_scatter  B·(n−1)/n  (B: the full tensor)  send_recv   B
Measured tables (2, 4, 8 ranks; 512 B to 512 MiB) are read in log-log; below them the latency holds, above them the
rate. More than 8 ranks keep the rate of 8 and add latency as from 4 to 8. An unmeasured link keeps its relative's
latency and scales what is above it by the one-way rate that a group of its size reaches (`links.py`). Left out:
copy-engine paths, bridges and sockets inside a node (`loads.py`), contention with other traffic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from cost_models.curves.grid import LogGrid, unpack
from cost_models.curves.samples import COLLECTIVES, Correction, Sample
from cost_models.errors import InputError
from cost_models.hardware.device import Device
from cost_models.hardware.links import LINKS, Link
from cost_models.number import Number, larger
from cost_models.timing.packed import FOLDER

MOST_MEASURED = 8


class Collectives:
    """Collective times over one kind of link.

    >>> nvlink = Collectives.of("nvlink4")
    >>> 400e9 < wire_bytes("all_reduce", 8, 2**29) / nvlink.intra_s("all_reduce", 8, wire_bytes("all_reduce", 8, 2**29))
    True
    >>> nvlink.intra_s("all_to_all", 1, 0)
    0.0
    """

    def __init__(self, name: str, link: Link) -> None:
        self.name = name
        self.link = link
        self._tables = {op: _tables()[f"{link.measured_as}_{op}"] for op in COLLECTIVES}
        self._base_bytes_per_s = LINKS[link.measured_as].bytes_per_s
        self._corrections: Mapping[tuple[str, int], Correction] = {}
        self._latencies: dict[tuple[str, int], float] = {}

    @classmethod
    def of(cls, link: str | Device, samples: Sequence[Sample] = (), bytes_per_s: float | None = None) -> Collectives:
        """By link kind, by device, or by a device preset's name; `samples` of this path replace the tables.

        `bytes_per_s` is the one-way rate of this cluster's link where it differs from the data sheet's.
        """
        name = link.link if isinstance(link, Device) else link
        if name not in LINKS and name in Device.names():
            name = Device.load(name).link
        if name not in LINKS:
            raise InputError(f"link={name!r}; legal: {', '.join(LINKS)}, or a device: {', '.join(Device.names())}")
        if bytes_per_s is not None and bytes_per_s <= 0:
            raise InputError(f"link {name}: bytes_per_s={bytes_per_s} must be above 0")
        known = LINKS[name]
        collectives = cls(name, known if bytes_per_s is None else replace(known, bytes_per_s=bytes_per_s))
        rows = [sample for sample in samples if sample.op in COLLECTIVES and sample.path in ("", name)]
        corrections = {}
        for op, ranks in sorted({(row.op, row.ranks) for row in rows}):
            mine = [row for row in rows if (row.op, row.ranks) == (op, ranks)]
            base = [float(collectives.intra_s(op, ranks, row.bytes)) for row in mine]
            measured = [row.median_s for row in mine]
            corrections[op, ranks] = Correction(work=[row.bytes for row in mine], base_s=base, measured_s=measured)
        collectives._corrections = corrections
        return collectives

    def intra_s(self, op: str, ranks: int, bytes_per_rank: Number) -> Number:
        """Seconds of `op` over `ranks` ranks when each sends `bytes_per_rank` bytes (a number or an array)."""
        self._check(op, ranks)
        if ranks == 1:
            return bytes_per_rank * 0.0
        grid = self._tables[op]
        table_ranks = min(ranks, MOST_MEASURED)
        buffer_bytes = bytes_per_rank / wire_bytes(op, table_ranks, 1.0)
        seconds: Number
        if isinstance(buffer_bytes, np.ndarray):
            seconds, (_, read_many_at) = grid.read_many(table_ranks, np.maximum(buffer_bytes, 1.0))
            seconds = seconds * np.maximum(buffer_bytes / read_many_at, 1.0)
        else:
            seconds, (_, read_at) = grid.read(table_ranks, buffer_bytes)
            seconds *= max(buffer_bytes / read_at, 1.0)
        latency_s = self._latency_s(op, table_ranks)
        seconds = latency_s + (seconds - latency_s) * (self._base_bytes_per_s / self.link.reach(op, ranks))
        if ranks > MOST_MEASURED and op != "send_recv":
            step_s = max(latency_s - self._latency_s(op, MOST_MEASURED // 2), 0.0)
            seconds = seconds + step_s * (ranks - MOST_MEASURED) / (MOST_MEASURED / 2)
        correction = self._nearest(op, ranks)
        if correction is None:
            return seconds
        corrected: Number = seconds * correction.factor(larger(bytes_per_rank, 1.0))
        return corrected

    def _latency_s(self, op: str, ranks: int) -> float:
        if (op, ranks) not in self._latencies:
            self._latencies[op, ranks] = self._tables[op].read(ranks, 1.0)[0]
        return self._latencies[op, ranks]

    @property
    def many_channels(self) -> bool:
        """Whether NCCL sends to one peer on many SMs at once: 32 over NVSwitch, 2 over PCIe (src/graph/paths.cc).

        >>> Collectives.of("nvlink4").many_channels, Collectives.of("pcie4").many_channels
        (True, False)
        """
        return self.name.startswith("nvlink")

    def source(self, op: str) -> str:
        """Where the times of `op` come from, in words."""
        self._check(op, 2)
        if any(key[0] == op for key in self._corrections):
            return "measured: profile of this cluster"
        relative = LINKS[self.link.measured_as]
        if self.is_estimate(op):
            return f"estimate: {self.link.source}, scaled from {self.link.measured_as} ({relative.source})"
        if op == "send_recv" and self.name.startswith("nvlink"):
            return f"measured: {self.link.source}, as an all-to-all of 2 ranks"
        return f"measured: {self.link.source}"

    def is_estimate(self, op: str, ranks: int = 2) -> bool:
        """True where no measurement of this link (or its profile) backs `op` over that many ranks."""
        self._check(op, ranks)
        if any(key[0] == op for key in self._corrections):
            return False
        return self.link != LINKS[self.link.measured_as] or ranks > MOST_MEASURED

    def _nearest(self, op: str, ranks: int) -> Correction | None:
        """The samples of this op at the nearest number of ranks."""
        keys = [key for key in self._corrections if key[0] == op]
        return self._corrections[min(keys, key=lambda key: abs(math.log(key[1] / ranks)))] if keys else None

    def _check(self, op: str, ranks: int) -> None:
        if op not in COLLECTIVES:
            raise InputError(f"collective={op!r}; legal: {', '.join(COLLECTIVES)}")
        if ranks < 1:
            raise InputError(f"{op}: ranks={ranks} must be at least 1")


def wire_bytes(op: str, ranks: int, buffer_bytes: Number) -> Number:
    """Bytes that each rank sends for a buffer, by the table in this module's docstring.

    >>> wire_bytes("all_reduce", 4, 1000), wire_bytes("all_gather", 4, 1000), wire_bytes("send_recv", 2, 1000)
    (1500.0, 750.0, 1000)
    """
    if op == "send_recv":
        return buffer_bytes
    return buffer_bytes * ((2.0 if op == "all_reduce" else 1.0) * (ranks - 1) / ranks)


@cache
def _tables() -> Mapping[str, LogGrid]:
    """link_op -> seconds by (ranks, buffer bytes)."""
    arrays = unpack(FOLDER / "links.npz")
    axes = [arrays["ranks"], arrays["buffer_bytes"]]
    return {name: LogGrid(axes, table) for name, table in arrays.items() if name not in ("ranks", "buffer_bytes")}
