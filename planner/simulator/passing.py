"""The flows of states that are handed on through the stretches of a row (`program.Passed`).

    tree    a round: from each stretch to the one `reach` further on, all at once and at one pace; where NCCL does not
            queue them, those of later steps too that wait for nothing (`cost_models.timing.passing.ready`)
    chain   from each to the next, one after another: one flow over the links of all hops, of as many times the bytes
            as the hops take one by one, so that it ends when the last would

Units: seconds, and shares of what a stretch sends. Left out: that a chain leaves each link alone most of the time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace

from cost_models.hardware.wiring import NIC_IN, NIC_OUT
from cost_models.program import Op
from cost_models.timing.passing import ready
from cost_models.timing.protocols import START_S
from planner.simulator.flows import Hops, Pattern, silent
from planner.simulator.topology import Floats, Ints, Topology


def passed(topology: Topology, groups: Ints, op: Op, order: Sequence[tuple[int, int]], reach: int) -> Pattern:
    """`order`: (member of a group, its stretch) in the row's order."""
    made, members = silent(topology, groups, op), [member for member, _ in order]
    pairs = _pairs(members, reach, early=op == "tree" and not topology.rates.has_protocols)
    if not pairs:
        return made
    hops = tuple(_hops(topology, groups, some) for some in _apart(pairs))
    share = topology.rates.ring_share[topology.run]
    source, to = (groups[:, list(ends)] for ends in zip(*pairs, strict=True))  # (groups, pairs)
    latency = topology.latency_s(source.ravel(), to.ravel())
    crosses = topology.domain[source.ravel()] != topology.domain[to.ravel()]
    latency = (latency + np.where(crosses & topology.rates.has_protocols, START_S, 0.0)).reshape(source.shape)
    if op == "tree":
        delay_s, share_of_hop = latency.max(axis=1), np.ones(len(groups))
    else:
        delay_s = latency.sum(axis=1)
        share_of_hop = np.array([_in_turns(topology, *ends, share) for ends in zip(source, to, strict=True)])
    return replace(made, hops=hops, hop_share=share_of_hop, delay_s=delay_s, card_share=share)


def _pairs(members: Sequence[int], reach: int, *, early: bool) -> list[tuple[int, int]]:
    """(from, to) of a round. `early`: of all steps whose messages can be sent in it."""
    found = []
    for step in range(number := reach.bit_length() - 1, len(members).bit_length() if early else number + 1):
        for stretch, (one, other) in enumerate(zip(members, members[2**step :], strict=False)):
            if one != other and (not early or ready(stretch, step) == number):
                found.append((one, other))
    return found


def _apart(pairs: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Parts in which no member sends or receives twice."""
    parts: list[list[tuple[int, int]]] = []
    for source, to in pairs:
        for part in parts:
            if all(source != one and to != other for one, other in part):
                part.append((source, to))
                break
        else:
            parts.append([(source, to)])
    return parts


def _hops(topology: Topology, groups: Ints, pairs: Sequence[tuple[int, int]]) -> Hops:
    to, count = np.arange(topology.ranks), np.zeros(topology.ranks, dtype=np.int64)
    for source, other in pairs:
        to[groups[:, source]] = groups[:, other]
        count[groups[:, source]] = 1
    return Hops(to=to, count=count)


def _in_turns(topology: Topology, source: Ints, to: Ints, share: Floats) -> float:
    """Seconds of the hops one by one over those of all at once, by the link that most of them cross."""
    routes, alone = topology.routes(source, to), np.zeros(len(source))
    load: dict[tuple[int, int], float] = {}
    for step, kind in enumerate(routes.kind):
        unit = routes.unit[:, step]
        used = np.flatnonzero(unit >= 0)
        rate = topology.rate(kind, unit[used]) * (share[source[used]] if kind in (NIC_OUT, NIC_IN) else 1.0)
        alone[used] = np.maximum(alone[used], 1 / rate)
        for one, seconds in zip(unit[used].tolist(), (1 / rate).tolist(), strict=True):
            load[kind, one] = load.get((kind, one), 0.0) + seconds
    return float(alone.sum() / max(load.values()))
