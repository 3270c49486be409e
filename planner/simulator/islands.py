"""Which rank classes share nothing but their reductions: data-parallel replicas of a step, each an island.

    tied       by a collective of a layer (exchanges, rings, gathers), or by a link that two of them cross
    between    a reduction of gradients, or anything of the epilogue, whose members or links are in several islands

Between two reductions islands run apart, at different speeds if their nodes differ. So each is fast-forwarded alone
(`fast_forward.py`), and its flows are shared out alone (`transfers.py`), until a collective between islands joins them.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from cost_models.number import distinct
from planner.simulator.network import Batch, Network
from planner.simulator.proof import Kinds
from planner.simulator.streams import Rounds, Script, Send
from planner.simulator.topology import Floats, Ints


class Group(Struct, eq=False):
    """A group class of a collective: who takes part, and what it sends."""

    number: int  # over all collectives
    members: Ints  # rank classes
    ranks: list[int]  # the same
    flows: Ints
    batches: tuple[Batch, ...]
    islands: tuple[int, ...]  # of its members
    between: bool  # whether these are several
    slowest: float  # the largest `scale` of its members
    kinds: Kinds | None  # of group that it stands for, if these are several


class Islands(Struct, frozen=True, kw_only=True, eq=False):
    count: int
    of_class: Ints  # (rank classes,)
    of_flow: Ints  # (flows,): `count` if between islands
    owner: Ints  # (flows,): number of the group that sends it
    groups: tuple[tuple[Group, ...], ...]  # of each collective
    between: frozenset[int]  # collectives with a group between islands


def find_islands(script: Script, network: Network, scale: Floats) -> Islands:
    """The islands of `script` on `network`. `scale` (per rank class) multiplies its compute seconds."""
    collectives = network.collectives
    first = np.cumsum([0, *(len(one.batches) for one in collectives)])
    group_of = [one.group_of_class + start for one, start in zip(collectives, first[:-1], strict=True)]
    flows = [
        np.concatenate([NONE, *(batch.flows for batch in batches)]) for one in collectives for batches in one.batches
    ]
    owner = np.zeros(network.sharing.flows, dtype=np.int64)
    for number, mine in enumerate(flows):
        owner[mine] = number
    tied = np.zeros(int(first[-1]), dtype=bool)
    for use in _tying(script, len(collectives)):
        tied[first[use] : first[use + 1]] = True
    while True:
        label, of_link = _labels(group_of, owner, network, tied)
        touched = _touched(group_of, owner, network, label, of_link, len(tied))
        islands = _touched(group_of, owner, network, label, np.full_like(of_link, -1), len(tied))
        joined = _joined(owner, network, islands)
        # A group in one island ties the links that it crosses. So does one that meets, on a link, flows of an island
        # that it has no member in: such an island would not know when to wait for it.
        tying = [n for n, mine in enumerate(islands) if len(mine) == 1 or mine != touched[n] or mine != joined[n]]
        if tied[tying].all():
            break
        tied[tying] = True
    lowest, of_class = np.unique(label, return_inverse=True)
    groups = tuple(
        tuple(
            Group(
                number=int(first[c]) + g,
                members=members,
                ranks=members.tolist(),
                flows=flows[first[c] + g],
                batches=one.batches[g],
                islands=tuple(np.searchsorted(lowest, islands[first[c] + g]).tolist()),
                between=len(islands[first[c] + g]) > 1,
                slowest=_slowest(scale[members], one.kinds[g]),
                kinds=one.kinds[g],
            )
            for g, members in enumerate(one.members)
        )
        for c, one in enumerate(collectives)
    )
    numbered = [group for of_collective in groups for group in of_collective]
    island = np.array([len(lowest) if group.between else group.islands[0] for group in numbered])
    return Islands(
        count=len(lowest),
        of_class=of_class,
        of_flow=island[owner],
        owner=owner,
        groups=groups,
        between=frozenset(c for c, mine in enumerate(groups) if any(group.between for group in mine)),
    )


def _slowest(scale: Floats, kinds: Kinds | None) -> float:
    slowest = float(scale.max())
    assert kinds is None or kinds.there[:, scale == slowest].any(axis=1).all(), "classes tell slow rings apart"
    return slowest


NONE: Ints = np.zeros(0, dtype=np.int64)


def _tying(script: Script, collectives: int) -> set[int]:
    """Collectives of the cycle that are not reductions after a segment."""
    uses = set()
    for piece in dict.fromkeys((*script.cycle, *script.last)):
        for send in (*piece.actions, piece.gather, piece.offload):
            if isinstance(send, Send | Rounds):
                uses.add(send.use % collectives)
    return uses


def _labels(group_of: list[Ints], owner: Ints, network: Network, tied: np.ndarray) -> tuple[Ints, Ints]:
    """For each rank class the lowest one that it is tied to; the same for each link that tied flows cross (else -1)."""
    classes = network.partition.classes
    label = np.arange(classes)
    flow, link = network.sharing.flow, network.sharing.link
    entry = tied[owner[flow]]
    group, link = owner[flow[entry]], link[entry]
    links = len(network.sharing.capacity)
    while True:
        of_group = np.full(len(tied), classes)
        for mine in group_of:
            np.minimum.at(of_group, mine, label)
        of_link = np.full(links, classes)
        np.minimum.at(of_link, link, of_group[group])
        np.minimum.at(of_group, group, of_link[link])
        lower = label
        for mine in group_of:
            lower = np.where(tied[mine], np.minimum(lower, of_group[mine]), lower)
        if np.array_equal(lower, label):
            return label, np.where(of_link < classes, of_link, -1)
        label = lower


def _joined(owner: Ints, network: Network, islands: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """For each group the islands of all groups between islands that share links with it, directly or not."""
    several = np.array([len(mine) > 1 for mine in islands])
    entry = several[owner[network.sharing.flow]]
    group, link = owner[network.sharing.flow[entry]], network.sharing.link[entry]
    label = np.arange(len(islands))
    while True:
        of_link = np.full(len(network.sharing.capacity), len(islands))
        np.minimum.at(of_link, link, label[group])
        lower = label.copy()
        np.minimum.at(lower, group, of_link[link])
        if np.array_equal(lower, label):
            break
        label = lower
    union: dict[int, set[int]] = {}
    for number in np.flatnonzero(several).tolist():
        union.setdefault(int(label[number]), set()).update(islands[number])
    return [tuple(sorted(union[int(label[number])])) if len(mine) > 1 else mine for number, mine in enumerate(islands)]


def _touched(
    group_of: list[Ints], owner: Ints, network: Network, label: Ints, of_link: Ints, groups: int
) -> list[tuple[int, ...]]:
    """The labels of each group's members and of the links that its flows cross, each once, in order."""
    flow, link = network.sharing.flow, network.sharing.link
    met = [*(mine * len(label) + label for mine in group_of)]
    labelled = of_link[link] >= 0
    met.append(owner[flow[labelled]] * len(label) + of_link[link[labelled]])
    found: list[list[int]] = [[] for _ in range(groups)]
    for pair in distinct(np.concatenate(met)).tolist():
        found[pair // len(label)].append(pair % len(label))
    return [tuple(islands) for islands in found]
