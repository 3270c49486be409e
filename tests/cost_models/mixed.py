"""Random questions by seed: a cluster of unlike nodes, a layout with any levers on it, and a change for the better.

Nodes differ in device, clock, kind and rate of links, PCIe trees, bridges, cards and what is broken of them; fabrics in
leaves, spines, rails and dead uplinks. Left out of changes: a card that works again in a rail-only fabric or at a share
of its rate, which leads bytes another way and not always a better one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from cost_models import Cluster, Model, Placement, Strategy, Workload, price
from cost_models.errors import InputError
from cost_models.framework import OURS, Framework
from cost_models.hardware.cluster import Fabric, NodeRun
from cost_models.hardware.device import Device
from cost_models.hardware.links import LINKS
from cost_models.hardware.node import Nics, Node, ScaleUp
from cost_models.models.ssd import Ssd
from cost_models.strategy import LayerRange

GB = 1e9
DEVICES = tuple(map(Device.load, ("h100-sxm-80gb", "a100-sxm-80gb", "b200-sxm-180gb", "l40s")))
PLAIN = Model.load("longvila-1.5b")
MODELS = (
    PLAIN, PLAIN, *map(Model.load, ("longvila-8b", "mixtral-8x7b", "deepseek-v2-lite")),
    replace(PLAIN, window=4096, layer_kinds=("window", "attention") * (PLAIN.layers // 2)),
    replace(PLAIN, ssd=Ssd(heads=24, head_size=64, state=64), layer_kinds=("ssd", "attention") * (PLAIN.layers // 2)),
)  # fmt: skip
Change = Callable[[Cluster, int, float], Cluster]
"""Of a cluster: at the nodes of one run, so many times as good."""
Made = TypeVar("Made")
SWITCHED = ("nvlink2", "nvlink3", "nvlink4", "nvlink5", "nvlink3-quad", "xgmi-mi300x")


@dataclass(frozen=True)
class Question:
    workload: Workload
    strategy: Strategy
    placement: Placement
    framework: Framework

    def step_s(self, cluster: Cluster) -> float:
        return price(cluster, self.workload, self.strategy, self.placement, framework=self.framework).step_s


class Draw:
    """Random choices by seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def one(self, *several: Any) -> Any:
        return several[int(self.rng.integers(len(several)))]

    def often(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def link(self) -> ScaleUp:
        kind, latency_s = self.one("switch", "switch", "pcie", "pairs"), self.one(1e-6, 3e-6, 8e-6)
        if kind == "switch":
            name = self.one(*SWITCHED)
            rate = LINKS[name].bytes_per_s * self.one(0.25, 0.5, 1.0)
            return ScaleUp(kind=kind, link=name, bytes_per_s=rate, latency_s=latency_s)
        pcie = kind == "pcie"
        made = ScaleUp(
            kind=kind, link="pcie4" if pcie else "nvlink3-bridge", bytes_per_s=25 * GB if pcie else 300 * GB,
            latency_s=latency_s, pcie_bytes_per_s=0.0 if pcie else self.one(12.0, 25.0) * GB,
            peer_to_peer=self.often(0.6),
        )  # fmt: skip
        tiers = self.one(0, 1, 2)
        if tiers:
            made = replace(made, gpus_per_switch=2, cross_bytes_per_s=self.one(8.0, 20.0) * GB)
            made = replace(made, direct_under_switch=not made.peer_to_peer and self.often(0.5))
        if tiers == 2:
            made = replace(made, gpus_per_socket=4, socket_bytes_per_s=self.one(6.0, 16.0) * GB)
        return made

    def node(self) -> Node:
        gpus, cards, device, link = self.one(*range(1, 9)), self.one(1, 2, 4, 4, 8), self.one(*DEVICES), self.link()
        if self.often(0.3):
            device = device.at_clock(device.clock_hz * self.one(0.5, 0.9))
        nics = Nics(
            count=cards, bytes_per_s=self.one(1.0, 5.0, 12.5, 25.0, 39.0, 50.0, 100.0) * GB,
            latency_s=self.one(1e-6, 5e-6, 2e-5), gpudirect=self.often(0.85),
            kind=self.one("infiniband", "infiniband", "roce", "efa", "slingshot", "tcpx"),
        )  # fmt: skip
        made = Node(
            device=device, gpus=gpus, scale_up=link, nics=nics, host_memory_bytes=2**40,
            host_link_bytes_per_s=self.one(10.0, 25.0, 55.0) * GB,
        )  # fmt: skip
        if cards > 1 and self.often(0.25):
            lost = self.rng.choice(cards, int(self.rng.integers(1, cards)), replace=False)
            made = replace(made, missing_nics=tuple(sorted(map(int, lost))))
        if self.often(0.2):
            made = replace(made, nic_shares=tuple(self.one(0.25, 0.5, 1.0) for _ in range(cards)))
        if link.kind == "pairs" and gpus > 1 and self.often(0.4):
            made = replace(made, missing_bridges=(int(self.rng.integers(gpus // 2)),))
        return made

    def cluster(self) -> Cluster:
        first, alike, runs = self.node(), self.often(0.3), self.one(1, 2, 3, 4, 5)
        nodes = tuple(NodeRun(count=self.one(1, 2), node=first if alike else self.node()) for _ in range(runs))
        fabric = Fabric(
            nodes_per_leaf=self.one(1, 2, 3, 64), oversubscription=self.one(1.0, 1.0, 1.5, 4.0),
            hop_latency_s=self.one(0.0, 3e-7, 2e-6),
        )  # fmt: skip
        if self.often(0.25):
            fabric = replace(fabric, leaves_per_spine=self.one(1, 2), spine_oversubscription=self.one(1.0, 2.0))
        if self.often(0.15):
            fabric = replace(fabric, rail_only=True)
        elif self.often(0.2):
            fabric = replace(fabric, missing_uplinks=(0,) * self.one(1, 2))
        return Cluster(name="mixed", runs=nodes, fabric=fabric, nodes_per_domain=self.one(1, 1, 1, 2))

    def strategy(self, mode: str, model: Model) -> Strategy:
        trains, layers, experts = mode == "train", model.layers, model.experts is not None
        degrees = {
            "data": self.one(1, 1, 2, 3, 4), "ring": self.one(1, 1, 2, 3, 4, 6), "ulysses": self.one(1, 1, 2, 3, 4, 8),
            "tensor": self.one(1, 1, 1, 2, 4), "pipeline": self.one(1, 1, 1, 2),
        }  # fmt: skip
        whole = degrees["data"] * degrees["ring"] * degrees["ulysses"]
        cut, words = int(self.rng.integers(1, layers)), ("none", "mlp", "full", "all_but_attention", "core_attention")
        kept = (
            LayerRange(recompute=self.one(*words), offload=self.one("none", "activations"), count=cut),
            LayerRange(recompute=self.one(*words), count=layers - cut),
        )
        schedule = self.one("1f1b", "gpipe", "interleaved") if degrees["pipeline"] > 1 else "1f1b"
        return Strategy(
            **degrees,
            shard=self.one(*(size for size in range(1, whole + 1) if whole % size == 0)),
            zero=self.one(0, 1, 2, 3, 3),
            microbatches=self.one(1, 1, 2),
            schedule=schedule,
            virtual=2 if schedule == "interleaved" else 1,
            ring_kind=self.one("zigzag", "contiguous", "striped", "all_gather", "double", "balanced"),
            grad_ring_dtype=self.one("fp32", "bf16"),
            attention_head_chunks=self.one(1, 1, 2),
            expert=self.one(1, 2, 4) if experts else 1,
            cache_context=1 if trains else self.one(1, 1, 2),
            ssd=self.one("states", "mixed", "heads"),
            ssd_pass=self.one("gather", "chain", "tree"),
            attention_chunk_tokens=None if mode == "decode" else self.one(None, None, None, 4096),
            mlp_chunk_tokens=self.one(None, None, 2048),
            offload_states=self.one("none", "none", "optimizer", "all") if trains else "none",
            layers=kept if self.often(0.7) else (),
        )

    def workload(self, strategy: Strategy, model: Model, mode: str) -> Workload:
        return Workload(
            model, context_tokens=self.one(8192, 40_028, 2**16, 2**18), mode=mode,
            global_batch=strategy.data * strategy.microbatches * self.one(1, 2),
            frames=self.one(0, 0, 0, 1, 6) if model.vision else 0, lengths=self.one((), (), ((1000, 3), (5000, 2))),
            lora_rank=self.one(0, 0, 0, 16) if mode == "train" else 0,
        )  # fmt: skip

    def placement(self, cluster: Cluster, ranks: int) -> Placement:
        everywhere, order = Placement.in_order(cluster, cluster.gpus), np.arange(ranks)
        if self.often(0.6):
            order = self.rng.permutation(cluster.gpus)[:ranks]
            order = np.sort(order) if self.often(0.5) else order
        return Placement(slot_of_rank=everywhere.slot_of_rank[order], gpu_of_rank=everywhere.gpu_of_rank[order])

    def question(self) -> tuple[Cluster, Question, float]:
        """One that has a price on a cluster, and that, in seconds."""
        cluster = self.until(self.cluster)

        def priced() -> tuple[Cluster, Question, float]:
            mode, model = self.one("train", "train", "train", "decode", "prefill"), self.one(*MODELS)
            strategy = self.strategy(mode, model)
            if not min(2, cluster.gpus) <= strategy.ranks <= cluster.gpus:
                raise InputError("too many ranks, or a rank alone")
            framework = OURS if self.often(0.7) else Framework.load(self.one(*Framework.names("step")))
            placement, workload = self.placement(cluster, strategy.ranks), self.workload(strategy, model, mode)
            asked = Question(workload, strategy, placement, framework)
            return cluster, asked, asked.step_s(cluster)

        return self.until(priced)

    def until(self, make: Callable[[], Made]) -> Made:
        """The first that can exist."""
        while True:
            try:
                return make()
            except InputError:
                continue

    def better(self, cluster: Cluster) -> tuple[str, Cluster]:
        """(what is better, the cluster with it)."""
        while True:
            name = self.one(*CHANGES)
            at, times = self.one(*range(len(cluster.runs))), self.one(1.05, 1.3, 2.0, 8.0)
            made = CHANGES[name](cluster, at, times)
            if made != cluster:
                return name, made


def _node(cluster: Cluster, at: int, **changes: Any) -> Cluster:
    runs = list(cluster.runs)
    runs[at] = replace(runs[at], node=replace(runs[at].node, **changes))
    return replace(cluster, runs=tuple(runs))


def _cards(name: str, faster: bool) -> Change:
    def change(cluster: Cluster, at: int, times: float) -> Cluster:
        nics = cluster.runs[at].node.nics
        value = getattr(nics, name) * (times if faster else 1 / times)
        return _node(cluster, at, nics=replace(nics, **{name: value}))

    return change


def _link(name: str, faster: bool = True) -> Change:
    def change(cluster: Cluster, at: int, times: float) -> Cluster:
        link = cluster.runs[at].node.scale_up
        value = getattr(link, name) * (times if faster else 1 / times)
        return _node(cluster, at, scale_up=replace(link, **{name: value}))

    return change


def _fabric(change: Callable[[Fabric, float], dict[str, object]]) -> Change:
    return lambda cluster, at, times: replace(cluster, fabric=replace(cluster.fabric, **change(cluster.fabric, times)))


def _clock(cluster: Cluster, at: int, times: float) -> Cluster:
    device = cluster.runs[at].node.device
    whole = Device.load(device.name)
    return _node(cluster, at, device=whole.at_clock(min(whole.clock_hz, device.clock_hz * times)))


def _device(name: str) -> Change:
    def change(cluster: Cluster, at: int, times: float) -> Cluster:
        device = cluster.runs[at].node.device
        value = getattr(device, name) * times
        return _node(cluster, at, device=replace(device, **{name: type(getattr(device, name))(value)}))

    return change


def _card_found(cluster: Cluster, at: int, times: float) -> Cluster:
    node = cluster.runs[at].node
    led_another_way = cluster.fabric.rail_only or node.nic_shares
    return cluster if led_another_way else _node(cluster, at, missing_nics=node.missing_nics[1:])


CHANGES: dict[str, Change] = {
    "card's rate": _cards("bytes_per_s", True),
    "card's latency": _cards("latency_s", False),
    "GPUDirect": lambda cluster, at, _: _node(cluster, at, nics=replace(cluster.runs[at].node.nics, gpudirect=True)),
    "a card that works again": _card_found,
    "cards' shares": lambda cluster, at, times: _node(
        cluster, at, nic_shares=tuple(min(1.0, share * times) for share in cluster.runs[at].node.nic_shares)
    ),
    "link's rate": _link("bytes_per_s"),
    "link's latency": _link("latency_s", False),
    "PCIe's rate": _link("pcie_bytes_per_s"),
    "switches' rate": _link("cross_bytes_per_s"),
    "sockets' rate": _link("socket_bytes_per_s"),
    "peer to peer": lambda cluster, at, _: _node(
        cluster, at, scale_up=replace(cluster.runs[at].node.scale_up, peer_to_peer=True, direct_under_switch=False)
    ),
    "a bridge that works again": lambda cluster, at, _: _node(
        cluster, at, missing_bridges=cluster.runs[at].node.missing_bridges[1:]
    ),
    "host's link": lambda cluster, at, times: _node(
        cluster, at, host_link_bytes_per_s=cluster.runs[at].node.host_link_bytes_per_s * times
    ),
    "clock": _clock,
    "memory's rate": _device("memory_bytes_per_s"),
    "memory": _device("memory_bytes"),
    "an uplink that works again": _fabric(lambda fabric, _: {"missing_uplinks": fabric.missing_uplinks[1:]}),
    "leaves' uplinks": _fabric(lambda fabric, times: {"oversubscription": max(1.0, fabric.oversubscription / times)}),
    "spines' uplinks": _fabric(
        lambda fabric, times: {"spine_oversubscription": max(1.0, fabric.spine_oversubscription / times)}
    ),
    "switches between rails": _fabric(lambda fabric, _: {"rail_only": False}),
    "hops": _fabric(lambda fabric, times: {"hop_latency_s": fabric.hop_latency_s / times}),
}
