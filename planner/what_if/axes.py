"""The axes of a what-if question: what changes, through which values, and how a value changes the question.

    --vary ctx=256K..4M           an option of `plan`, or a number of the cluster, through a range or a list of values
    --gpu h200                    another device in every node

A range a..b has `points` values with equal ratios. What is lost, degraded or slow is in `events.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from cost_models import strict
from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster, NodeRun
from cost_models.hardware.device import Device
from cost_models.hardware.node import Node
from cost_models.units import parse_tokens, show_tokens

MOST_VALUES = 1000


@dataclass(frozen=True, kw_only=True)
class Value:
    """One value of an axis: what the user reads, and its number where the axis is numeric."""

    text: str
    number: float | None = None


Change = Callable[[Cluster, Value, int], Cluster]
"""(cluster, value, seed) -> the changed cluster"""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One thing that changes: `option` names the option of `plan` that it sets, or `change` alters the cluster."""

    name: str
    values: tuple[Value, ...] = ()
    option: str | None = None
    change: Change | None = None
    read: Callable[[str], Value] | None = None  # of what the user types
    grain: int = 0  # its numbers are multiples of this; 0: any number

    @property
    def numeric(self) -> bool:
        return self.read is not None and all(value.number is not None for value in self.values)

    def at(self, number: float) -> Value:
        """The value at a number between two others, as a person would write it."""
        assert self.read is not None
        if not self.grain:
            return self.read(f"{number:.4g}")
        grain = self.grain if number >= 64 * self.grain else 1
        return self.read(f"{round(number / grain) * grain}")


def every_node(cluster: Cluster, change: Callable[[Node], Node]) -> Cluster:
    """The cluster with every node changed."""
    return replace(cluster, runs=tuple(NodeRun(count=run.count, node=change(run.node)) for run in cluster.runs))


def with_nic_rate(node: Node, bytes_per_s: float) -> Node:
    """The node with network cards of that rate."""
    return replace(node, nics=replace(node.nics, bytes_per_s=bytes_per_s))


def with_scale_up(node: Node, share: float) -> Node:
    """The node with every rate between its GPUs times `share`."""
    rates = ("bytes_per_s", "pcie_bytes_per_s", "cross_bytes_per_s", "socket_bytes_per_s")
    slower = {name: getattr(node.scale_up, name) * share for name in rates}
    return replace(node, scale_up=replace(node.scale_up, **slower))


def with_memory(node: Node, size: int) -> Node:
    return replace(node, device=replace(node.device, memory_bytes=size))


def number_of(text: str) -> Value:
    """A number as it was typed. InputError: what is none."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e15:
        raise InputError(f"{text!r} is not a number of at least 0")
    return Value(text=f"{number:g}", number=number)


def _count(text: str) -> Value:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InputError(f"{text!r} is not a whole number")
    return Value(text=text, number=float(text))


def _tokens(text: str) -> Value:
    tokens = parse_tokens(text, "ctx")
    return Value(text=show_tokens(tokens).replace(",", ""), number=float(tokens))


def _ratio(text: str) -> Value:
    """`4:1` or `4`."""
    left, _, right = text.partition(":")
    number = (number_of(left).number or 0.0) / ((number_of(right).number or 0.0) or 1.0 if right else 1.0)
    return Value(text=f"{number:g}:1", number=number)


def _word(text: str) -> Value:
    return Value(text=text)


def _of_nodes(name: str, change: Callable[[Node, float], Node]) -> Axis:
    """A number of every node."""

    def changed(cluster: Cluster, value: Value, seed: int) -> Cluster:
        return every_node(cluster, lambda node: change(node, value.number or 0.0))

    return Axis(name=name, read=number_of, change=changed)


def _fabric(name: str, number: Callable[[float], float]) -> Change:
    """A number of the network."""

    def changed(cluster: Cluster, value: Value, seed: int) -> Cluster:
        new: dict[str, Any] = {name: number(value.number or 0.0)}
        return replace(cluster, fabric=replace(cluster.fabric, **new))

    return changed


QUANTITIES = {one.name: one for one in (
    Axis(name="ctx", read=_tokens, option="ctx", grain=1024),
    Axis(name="gpus", read=_count, option="gpus", grain=1),
    Axis(name="frames", read=_count, option="frames", grain=1),
    Axis(name="batch", read=_count, option="batch", grain=1),
    _of_nodes("inter_node_gb_per_s", lambda node, rate: with_nic_rate(node, rate * 1e9)),
    _of_nodes("intra_node_gb_per_s", lambda node, rate: with_scale_up(node, rate * 1e9 / node.scale_up.bytes_per_s)),
    _of_nodes("memory_gib", lambda node, gib: with_memory(node, round(gib * 2**30))),
    _of_nodes("host_link_gb_per_s", lambda node, rate: replace(node, host_link_bytes_per_s=rate * 1e9)),
    _of_nodes("nic_latency_us", lambda node, us: replace(node, nics=replace(node.nics, latency_s=us * 1e-6))),
    Axis(name="nodes_per_leaf", read=_count, change=_fabric("nodes_per_leaf", round), grain=1),
    Axis(name="oversubscription", read=_ratio, change=_fabric("oversubscription", float)),
    Axis(name="model", read=_word, option="model"),
    Axis(name="cluster", read=_word, option="cluster"),
    Axis(name="mode", read=_word, option="mode"),
)}  # fmt: skip
"""What --vary takes, without values; what each is, docs/what-if.md says."""


def vary(text: str, points: int) -> Axis:
    """`NAME=a..b` or `NAME=a,b,c` -> an axis.

    >>> [value.text for value in vary("ctx=256K..1M", 3).values]
    ['256K', '512K', '1M']
    """
    name, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not values:
        raise InputError(f"--vary {text!r} is not NAME=a..b or NAME=a,b,c (as in ctx=256K..4M)")
    if name not in QUANTITIES:
        raise InputError(f"--vary {name!r} is unknown; {strict.nearest(name, QUANTITIES)}")
    axis = QUANTITIES[name]
    try:
        return replace(axis, values=_values(axis, values, points))
    except InputError as error:
        raise InputError(f"--vary {name}={values}: {str(error).removeprefix('ctx ')}") from None


def _values(axis: Axis, text: str, points: int) -> tuple[Value, ...]:
    assert axis.read is not None
    read = axis.read
    first, dots, last = (part.strip() for part in text.partition(".."))
    if not dots:
        return distinct(read(part.strip()) for part in text.split(","))
    if read is _word:
        raise InputError("has no range; give a list a,b,c")
    low, high = read(first).number or 0.0, read(last).number or 0.0
    if not 0 < low < high:
        raise InputError("a range a..b needs 0 < a < b")
    ratio = (high / low) ** (1 / (points - 1))
    return distinct([read(first), *(axis.at(low * ratio**i) for i in range(1, points - 1)), read(last)])


def distinct(values: Iterable[Value]) -> tuple[Value, ...]:
    kept = tuple(dict.fromkeys(values))
    if len(kept) > MOST_VALUES:
        raise InputError(f"{len(kept)} values; at most {MOST_VALUES}")
    return kept


def gpu(text: str) -> Axis:
    """Other devices in every node: preset names, or the beginning of one (`h200` in an SXM node is h200-sxm-141gb)."""

    def change(cluster: Cluster, value: Value, seed: int) -> Cluster:
        return every_node(
            cluster, lambda node: replace(node, device=Device.load(_device(value.text, node.device.name)))
        )

    values = distinct(Value(text=part.strip()) for part in text.split(","))
    for value in values:
        _device(value.text, "")
    return Axis(name="gpu", values=values, change=change)


def _device(name: str, present: str) -> str:
    """The preset that `name` begins: of several, the one of the same form (sxm, pcie, nvl) as the present device."""
    known = Device.names()
    if name in known:
        return name
    near = [device for device in known if device.startswith(f"{name}-")]
    form = next((form for form in ("sxm", "pcie", "nvl") if f"-{form}" in present), "sxm")
    alike = [device for device in near if f"-{form}" in device] or near
    if not alike:
        raise InputError(f"--gpu {name!r} is unknown; {strict.nearest(name, known)}")
    return alike[-1]
