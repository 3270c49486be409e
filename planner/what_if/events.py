"""What is lost, degraded or slow: `--lose`, `--degrade` and `--slow` of a what-if question as axes.

    --lose node:3                 nodes, cards, GPUs, leaves or leaf uplinks that are gone: a count, or a share below 1
    --lose link:slot3.nic2        one link by name: a card, `slot3.gpu0-1` what joins two GPUs, `slot3.gpu0` one NVLink
                                  of a GPU to the switches, `leaf1` an uplink; several that die together by +
    --degrade link:0.5@0.1        rates of cards times 0.5, on 10% of the nodes; without @ on every node
    --degrade link:0.5@slot3.nic2 of one card; @slot3 of one node
    --slow node:0.3@2             two nodes whose clock is 30% lower; @slot3 that one

Which nodes are hit is drawn by a seed, so that the same question has the same answer. NCCL's collectives go at the pace
of the slowest GPU: a GPU that lost one of its L links slows its node to (L - 1) / L, on a mesh of n GPUs to
(n - 2) / (n - 1). Left out: what a failure does before it is noticed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.links import LINKS, LINKS_OF_GPU
from cost_models.hardware.node import Node
from planner.what_if.axes import Axis, Value, distinct, every_node, number_of, with_nic_rate, with_scale_up

EVENTS: dict[str, tuple[str, ...]] = {
    "lose": ("node", "nic", "gpu", "leaf", "uplink", "link"),
    "degrade": ("link", "nvlink"),
    "slow": ("node",),
}
_PLACE = re.compile(r"slot([0-9]{1,9})(?:\.(?:nic([0-9]{1,4})|gpu([0-9]{1,4})(?:-([0-9]{1,4}))?))?|leaf([0-9]{1,9})")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A node, a card, a GPU, a pair of GPUs or a leaf, by number."""

    text: str
    slot: int | None = None
    nic: int | None = None
    gpu: int | None = None
    other: int | None = None
    leaf: int | None = None

    @classmethod
    def read(cls, text: str) -> Place:
        """
        >>> Place.read("slot3.gpu0-1").other, Place.read("leaf2").leaf
        (1, 2)
        """
        match = _PLACE.fullmatch(text)
        if match is None:
            raise InputError(f"{text[:40]!r} is no place; legal: slot3, slot3.nic2, slot3.gpu0, slot3.gpu0-1, leaf1")
        slot, nic, gpu, other, leaf = (int(part) if part else None for part in match.groups())
        return cls(text=text, slot=slot, nic=nic, gpu=gpu, other=other, leaf=leaf)

    def node(self, cluster: Cluster) -> Node:
        """The node that this is or is in, with the numbers checked."""
        assert self.slot is not None
        if self.slot >= cluster.slots:
            raise InputError(f"{self.text}: slots are 0 to {cluster.slots - 1}")
        node = cluster.node(self.slot)
        for name, number, count in (
            ("nic", self.nic, node.nics.count), ("gpu", self.gpu, node.gpus), ("gpu", self.other, node.gpus)
        ):  # fmt: skip
            if number is not None and number >= count:
                raise InputError(f"{self.text}: slot {self.slot} has {name} 0 to {count - 1}")
        return node


def event(flag: str, text: str) -> Axis:
    """`--lose node:3`, `--degrade link:0.5@0.1`, `--slow node:0.3@2`: several amounts by commas are several values."""
    kind, colon, amounts = (part.strip() for part in text.partition(":"))
    if not colon or kind not in EVENTS[flag]:
        raise InputError(f"--{flag} {text!r}: legal: {', '.join(f'{name}:AMOUNT' for name in EVENTS[flag])}")
    values = distinct(_amount(flag, kind, part.strip()) for part in amounts.split(","))
    changes = {"lose": _lose, "degrade": _degrade, "slow": _slow}

    def change(cluster: Cluster, value: Value, seed: int) -> Cluster:
        return changes[flag](cluster, kind, value.text, random.Random(seed))

    return Axis(name=f"{flag} {kind}", values=values, change=change)


def _amount(flag: str, kind: str, text: str) -> Value:
    amount, at, where = text.partition("@")
    try:
        if kind == "link" and flag == "lose":
            places = [Place.read(part) for part in text.split("+")]
            if any(place.leaf is None and place.nic is None and place.gpu is None for place in places):
                raise InputError(
                    f"{text[:40]!r} is a node, no link; legal: slot3.nic2, slot3.gpu0-1, slot3.gpu0, leaf1"
                )
            return Value(text=text)
        named = [Place.read(part) for part in where.split("+")] if where[:1].isalpha() else []
        number = number_of(amount).number or 0.0
    except InputError as error:
        raise InputError(f"--{flag} {kind}:{text}: {error}") from None
    if flag == "lose":
        legal, ok = "a count, or a share below 1", number < 1 or number == int(number)
        ok = ok and not at
    else:
        places_legal = "@slot3" + (", @slot3.nic2" if kind == "link" else "")
        legal = f"a factor above 0 and below 1, then @count, @share of the nodes or {places_legal} if not all"
        ok = 0 < number < 1 and (not at or bool(named) or _is_amount(where))
        ok = ok and all(_may_be_hit(place, flag, kind) for place in named)
    if not ok:
        raise InputError(f"--{flag} {kind}:{text}: legal: {legal}")
    return Value(text=text)


def _may_be_hit(place: Place, flag: str, kind: str) -> bool:
    """Whether one card (or a whole node) can be degraded or slow."""
    return place.leaf is None and place.gpu is None and (place.nic is None or (flag, kind) == ("degrade", "link"))


def _is_amount(text: str) -> bool:
    try:
        number = number_of(text).number or 0.0
    except InputError:
        return False
    return number > 0 and (number < 1 or number == int(number))


def _hit(amount: str, among: int, draw: random.Random) -> list[int]:
    """A count or share of `among` things, drawn; a share hits at least one."""
    number = float(amount)
    count = max(1, round(number * among)) if 0 < number < 1 else int(number)
    if count > among:
        raise InputError(f"{count} of {among} cannot be hit")
    return sorted(draw.sample(range(among), count))


def _gone(node: Node) -> Node:
    return replace(node, gpus=0, missing_bridges=())


def _lose(cluster: Cluster, kind: str, amount: str, draw: random.Random) -> Cluster:
    """The cluster without some nodes, leaves, cards, GPUs or links; slots keep their places."""
    if kind == "link":
        for text in amount.split("+"):
            cluster = _without_link(cluster, Place.read(text))
        return cluster
    if kind == "uplink":
        return _without_uplinks(cluster, amount, draw)
    if kind == "node":
        return _left(cluster, _hit(amount, cluster.slots, draw))
    if kind == "leaf":
        count = int(cluster.leaf_of_slot.max()) + 1
        if count == 1 and float(amount):
            raise InputError(
                "all nodes are under one leaf, nothing would be left; --vary nodes_per_leaf=… or a cluster file says "
                "how many nodes share one"
            )
        hit = _hit(amount, count, draw)
        return _left(cluster, np.flatnonzero(np.isin(cluster.leaf_of_slot, hit)).tolist())
    each = [
        cluster.node(slot).nics.count if kind == "nic" else cluster.node(slot).gpus for slot in range(cluster.slots)
    ]
    places = [(slot, i) for slot, count in enumerate(each) for i in range(count)]
    lost: dict[int, list[int]] = {}
    for index in _hit(amount, len(places), draw):
        slot, i = places[index]
        lost.setdefault(slot, []).append(i)
    if kind == "gpu":
        left = {slot: _with_gpus(cluster.node(slot), each[slot] - len(gone)) for slot, gone in lost.items()}
        return _changed(cluster, left)
    return _changed(cluster, {slot: _without_nics(cluster.node(slot), gone) for slot, gone in lost.items()})


def _left(cluster: Cluster, lost: list[int]) -> Cluster:
    return _changed(cluster, {slot: _gone(cluster.node(slot)) for slot in lost})


def _changed(cluster: Cluster, nodes: dict[int, Node]) -> Cluster:
    """`Cluster.override`, unless nothing would be left."""
    now = sum(cluster.node(slot).gpus for slot in nodes)
    if cluster.gpus - now + sum(node.gpus for node in nodes.values()) <= 0:
        raise InputError(f"none of the {cluster.gpus} GPUs would be left")
    return cluster.override(nodes)


def _with_gpus(node: Node, gpus: int) -> Node:
    bridges = tuple(pair for pair in node.missing_bridges if pair < gpus // 2)
    return replace(node, gpus=gpus, missing_bridges=bridges)


def _without_nics(node: Node, lost: list[int]) -> Node:
    """A node with no card left is cut off: none of its GPUs can be used."""
    missing = tuple(sorted({*node.missing_nics, *lost}))
    return replace(node, missing_nics=missing) if len(missing) < node.nics.count else _gone(node)


def _without_uplinks(cluster: Cluster, amount: str, draw: random.Random) -> Cluster:
    """Drawn from the uplinks of all leaves, a card's rate each."""
    leaves = int(cluster.leaf_of_slot[-1]) + 1
    if leaves == 1:
        raise InputError("all nodes are under one leaf, which has no uplinks")
    cards = np.zeros(leaves, dtype=np.int64)
    np.maximum.at(cards, cluster.leaf_of_slot, [cluster.node(slot).nics.count for slot in range(cluster.slots)])
    each = (np.bincount(cluster.leaf_of_slot) * cards / cluster.fabric.oversubscription).astype(np.int64)
    leaf_of = np.repeat(np.arange(leaves), each)
    dead = leaf_of[_hit(amount, len(leaf_of), draw)].tolist()
    fabric = cluster.fabric
    return replace(cluster, fabric=replace(fabric, missing_uplinks=(*fabric.missing_uplinks, *dead)))


def _without_link(cluster: Cluster, place: Place) -> Cluster:
    if place.leaf is not None:
        fabric = cluster.fabric
        if int(cluster.leaf_of_slot[-1]) == 0:
            raise InputError(f"{place.text}: all nodes are under one leaf, which has no uplinks")
        return replace(cluster, fabric=replace(fabric, missing_uplinks=(*fabric.missing_uplinks, place.leaf)))
    node = place.node(cluster)
    assert place.slot is not None
    left = _without_nics(node, [place.nic]) if place.nic is not None else _without_nvlink(node, place)
    return _changed(cluster, {place.slot: left})


def _without_nvlink(node: Node, place: Place) -> Node:
    link, first, other = node.scale_up, place.gpu, place.other
    mesh = LINKS[link.link].pair_bytes_per_s is not None
    if link.kind == "pairs":
        if other is None or first is None or first % 2 or other != first + 1:
            raise InputError(f"{place.text}: bridges join GPUs 2i and 2i + 1, such as slot{place.slot}.gpu0-1")
        return replace(node, missing_bridges=tuple(sorted({*node.missing_bridges, first // 2})))
    if link.kind != "switch":
        raise InputError(f"{place.text}: no NVLink joins its GPUs")
    if mesh != (other is not None) or first == other:
        legal = "a pair such as gpu0-1: its GPUs are joined pair by pair" if mesh else "one GPU: switches join its GPUs"
        raise InputError(f"{place.text}: legal: {legal}")
    links = node.gpus - 1 if mesh else LINKS_OF_GPU.get(link.link.partition("-")[0], 0)
    if links < 2:
        raise InputError(f"{place.text}: {link.link} has no link to spare; legal: --degrade nvlink:F@slot{place.slot}")
    return with_scale_up(node, (links - 1) / links)


def _degrade(cluster: Cluster, kind: str, amount: str, draw: random.Random) -> Cluster:
    factor, _, where = amount.partition("@")

    def change(node: Node, nic: int | None) -> Node:
        if kind == "nvlink":
            return with_scale_up(node, float(factor))
        if nic is None:
            return with_nic_rate(node, node.nics.bytes_per_s * float(factor))
        shares = node.nic_shares or (1.0,) * node.nics.count
        return replace(node, nic_shares=(*shares[:nic], shares[nic] * float(factor), *shares[nic + 1 :]))

    return _some(cluster, where, change, draw)


def _slow(cluster: Cluster, kind: str, amount: str, draw: random.Random) -> Cluster:
    share, _, where = amount.partition("@")

    def change(node: Node, nic: int | None) -> Node:
        clock = node.device.clock_hz
        if clock is None:
            raise InputError(f"--slow node: {node.device.name} has no clock to lower")
        return replace(node, device=node.device.at_clock(clock * (1 - float(share))))

    return _some(cluster, where or "1", change, draw)


def _some(cluster: Cluster, where: str, change: Callable[[Node, int | None], Node], draw: random.Random) -> Cluster:
    """Changed on all nodes, on a count or share of them, or at named places."""
    if not where:
        return every_node(cluster, lambda node: change(node, None))
    if not where[:1].isalpha():
        return cluster.override({slot: change(cluster.node(slot), None) for slot in _hit(where, cluster.slots, draw)})
    for text in where.split("+"):
        place = Place.read(text)
        node = place.node(cluster)
        assert place.slot is not None
        cluster = cluster.override({place.slot: change(node, place.nic)})
    return cluster
