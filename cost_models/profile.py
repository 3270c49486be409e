"""A profile: what was measured on the user's cluster, as `executor profile` writes it. It overrides any curve.

    profile.json   {"version": 1, "device": "cpu", "machine": …, "versions": {…}, "samples": [{op, shape, dtype, …}]}

Samples: see `curves/samples.py`; `path` is a link kind inside a node, or `network` between nodes. Data from outside:
strictly read, no unknown keys. What was extrapolated from few nodes is marked where a price shows its estimates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cost_models import strict
from cost_models.curves.samples import Sample
from cost_models.errors import InputError

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Medians that `executor profile` measured on a machine. InputError: of another version, or without samples."""

    version: int
    device: str
    machine: str
    versions: Mapping[str, str] = field(default_factory=dict)
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise InputError(f"profile version {self.version} is not {VERSION}; measure again with `executor profile`")
        if not self.samples:
            raise InputError("samples: 0 are given; at least 1 is needed, as `executor profile` measures them")

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        return strict.read(cls, strict.read_json(path, "--profile"), str(path))

    def to_dict(self) -> dict[str, object]:
        return strict.plain(self)  # type: ignore[no-any-return]

    def __hash__(self) -> int:
        return hash((self.device, self.machine, len(self.samples)))

    @property
    def digest(self) -> str:
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def network(samples: tuple[Sample, ...]) -> tuple[float, float] | None:
    """(bytes/s, latency) between two nodes from samples of `send_recv` on the path `network`; None without any.

    InputError: messages of one size alone, of which no line can be drawn.
    """
    rows = sorted((s.bytes, s.median_s) for s in samples if s.op == "send_recv" and s.path == "network")
    if not rows:
        return None
    if rows[0][0] == rows[-1][0]:
        raise InputError(
            "profile: send_recv on the path network has messages of 1 size; at least 2 give a rate and a latency"
        )
    latency = min(seconds for _, seconds in rows)
    size, seconds = rows[-1]
    return size / max(seconds - latency, seconds * 0.5), latency
