"""What a playback keeps: where each rank class is in the script, which collectives run, and what is due when.

`playback.py` changes these, `fast_forward.py` compares and moves them. Units: seconds, bytes.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

from msgspec import Struct, field

from planner.simulator.islands import Group
from planner.simulator.network import Batch
from planner.simulator.streams import Rounds, Send, Work


class Running(Struct, eq=False):
    """A collective in progress."""

    group: Group
    todo: Send | Rounds
    k: int  # instance it belongs to
    began: float
    stage: int = 0
    round: int = 0
    round_began: float = 0.0
    unfinished: int = 0
    computing: bool = False
    blocks_s: float = 0.0  # of rounds that are over but not booked yet: at scale 1
    exposed_s: float = 0.0  # … what they lasted longer than their blocks


class RankState(Struct, eq=False):
    """Where one rank class is in the script."""

    k: int = 0
    action: int = -1  # -1: at the gate; behind the last: slowed by the sharding stream, then by the host
    gathered: int = -1  # last instance whose weights are there
    sending: bool = False
    copying: bool = False
    queue: deque[tuple[Send, int, bool]] = field(default_factory=deque)  # (what, instance, whether it is a gather)
    main_ended: float = 0.0
    ended: float = -1.0


class Event(Struct, eq=False):
    """Computation of rank classes ends; or a ring's blocks do; or a batch of flows starts."""

    time: float = 0.0
    serial: int = 0
    ranks: tuple[int, ...] = ()  # of one island, in the same action since the same moment
    work: Work | None = None  # what they computed; else …
    part: str = ""  # … what their time is booked to
    running: Running | None = None
    batch: Batch | None = None
    size: float = 0.0


class Agenda(Struct, eq=False):
    """What is under way in one island, or between islands."""

    running: dict[int, Running] = field(default_factory=dict)  # by number of the group
    arrived: dict[int, int] = field(default_factory=dict)  # members that wait, by number of the group
    due: dict[int, Event] = field(default_factory=dict)  # by serial


class Mark(Struct, frozen=True, kw_only=True):
    """A moment of an island's first rank class that comes again: it begins instance `k`, or a round of a ring."""

    kind: Literal["segment", "round"]
    island: int
    k: int
    running: Running | None = None
