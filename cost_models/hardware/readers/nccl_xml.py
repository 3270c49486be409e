"""NCCL's topology XML (NCCL_TOPO_DUMP_FILE, NCCL_TOPO_FILE) -> HostTree.

    system > cpu > pci (class 0x0604: a bridge) > pci (0x0302: a GPU, 0x02…: a card) > gpu > nvlink, nic > net

A GPU's PCI identifier names its preset, else `sm` its generation. `net speed` is in Mbit/s; a net that is named as
Ethernet cards are (eth0) is TCP's. Link speeds of bridges are not read: virtual machines print "2.5 GT/s x1" there.
Machines that hide the other card of a bridged pair print NVLinks from a GPU to itself: its neighbour is then taken as
the partner. Files that are handed to NCCL often leave out `gpu` and `nvlink`: NCCL finds those itself.
Document types, entities and nesting beyond 32 levels are refused.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from xml.etree import ElementTree

import networkx as nx

from cost_models.errors import InputError
from cost_models.hardware.readers.host_tree import ROOT, HostTree

MOST_CHARACTERS = 2**22
MOST_DEPTH = 32
MOST_GPUS = 64
MOST_VERTICES = 1024
DEVICES = MappingProxyType(
    {
        "0x1db1": "v100-sxm2-16gb", "0x1db5": "v100-sxm2-32gb", "0x1db4": "v100-pcie-16gb", "0x1db6": "v100-pcie-32gb",
        "0x1eb8": "t4", "0x20b0": "a100-sxm-40gb", "0x20b2": "a100-sxm-80gb", "0x20b5": "a100-pcie-80gb",
        "0x20f1": "a100-pcie-40gb", "0x2235": "a40", "0x2236": "a10", "0x2237": "a10g", "0x20b7": "a30",
        "0x2204": "rtx3090", "0x2230": "rtxa6000", "0x2330": "h100-sxm-80gb", "0x2331": "h100-pcie-80gb",
        "0x2321": "h100-nvl-94gb", "0x2335": "h200-sxm-141gb", "0x233b": "h200-nvl-141gb", "0x2324": "h800",
        "0x2329": "h20", "0x2342": "gh200", "0x2684": "rtx4090", "0x26b5": "l40", "0x26b9": "l40s", "0x26ba": "l20",
        "0x27b8": "l4", "0x2901": "b200-sxm-180gb", "0x2941": "gb200", "0x2bb5": "rtx6000-pro", "0x74a1": "mi300x",
    }
)  # fmt: skip
"""Presets by PCI device identifier (the PCI ID repository)."""
_GPU, _CARD, _BRIDGE = ("0x0302", "0x0300", "0x1200"), "0x02", "0x0604"


def is_topology(text: str) -> bool:
    """Whether the text is XML; `read` refuses other XML than NCCL's."""
    return text.lstrip().startswith("<")


def read(text: str, where: str) -> HostTree:
    """The host that `NCCL_TOPO_DUMP_FILE` describes. InputError: other or broken XML, entities, deep nesting."""
    reader = _Reader(where)
    reader.walk(_parse(text, where), ROOT)
    return reader.finish()


def _parse(text: str, where: str) -> ElementTree.Element:
    if len(text) > MOST_CHARACTERS:
        raise InputError(f"{where} has {len(text):,} characters; at most {MOST_CHARACTERS:,} are read")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{where}: document types and entities are not read; leave them out")
    depth = 0
    for tag in re.finditer(r"<(/?)[A-Za-z][^<>]*?(/?)>", text):
        depth += -1 if tag[1] else 0 if tag[2] else 1
        if depth > MOST_DEPTH:
            raise InputError(f"{where} nests deeper than {MOST_DEPTH} levels")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise InputError(f"{where} is not valid XML: {error}") from None
    if root.tag != "system":
        raise InputError(f"{where}: the outermost element is {root.tag[:40]!r}; NCCL's is system")
    return root


class _Reader:
    def __init__(self, where: str) -> None:
        self.where, self.graph = where, nx.Graph()
        self.graph.add_node(ROOT, kind="system")
        self.bridges = 0
        self.devices: list[str] = []
        self.sm: int | None = None
        self.gpu_of_bus: dict[str, str] = {}
        self.targets: list[tuple[str, str, str, int]] = []
        self.unknown: list[tuple[str, str]] = []  # (bus, parent) of entries without a class
        self.has_gpu_elements = False

    def walk(self, element: ElementTree.Element, parent: str) -> None:
        for child in element:
            if child.tag == "cpu":
                name = f"numa {child.get('numaid', len(self.graph))}"
                self._join(name, parent, kind="numa")
                bridge = f"host bridge of {name}"
                self._join(bridge, name, kind="host bridge")
                self.walk(child, bridge)
            elif child.tag == "pci":
                self._pci(child, parent)
            elif child.tag == "nic":
                self._nets(child, parent)

    def _pci(self, element: ElementTree.Element, parent: str) -> None:
        kind, bus = element.get("class", ""), element.get("busid", "")
        if kind.startswith(_GPU) or element.find("gpu") is not None:
            self._gpu(element, bus, parent)
        elif kind.startswith(_BRIDGE) or element.find("pci") is not None:
            self.bridges += 1
            above = self.graph.nodes[parent]["kind"]
            if above == "bridge":
                self.graph.nodes[parent]["kind"] = "bridges"
            self._join(f"bridge {self.bridges}", parent, kind="bridge")
            self.walk(element, f"bridge {self.bridges}")
        elif element.find("nic") is not None:
            self._nets(element, parent)
        elif kind.startswith(_CARD):
            self._join(f"NIC{bus}", parent, kind="nic", network="infiniband" if kind.startswith("0x0207") else None)
        elif not kind:
            self.unknown.append((bus, parent))

    def _gpu(self, element: ElementTree.Element, bus: str, parent: str) -> None:
        inner = element.find("gpu")
        number = len(self.gpu_of_bus) if inner is None else inner.get("dev", str(len(self.gpu_of_bus)))
        name = f"GPU{_whole(str(number), f'{self.where}: gpu dev')}"
        self.gpu_of_bus[bus] = name
        if len(self.gpu_of_bus) > MOST_GPUS:
            raise InputError(f"{self.where} holds more than {MOST_GPUS} GPUs")
        self._join(name, parent, kind="gpu")
        self.devices.append(element.get("device", ""))
        for gpu in element.iter("gpu"):
            self.has_gpu_elements = True
            self.sm = _whole(gpu.get("sm", "0"), f"{self.where}: gpu sm") or None
            for link in gpu.iter("nvlink"):
                count = _whole(link.get("count", "1"), f"{self.where}: nvlink count")
                self.targets.append((name, link.get("target", ""), link.get("tclass", ""), count))

    def _nets(self, element: ElementTree.Element, parent: str) -> None:
        for net in element.iter("net"):
            name, speed = net.get("name", f"net{len(self.graph)}"), net.get("speed", "0")
            rate = _whole(speed, f"{self.where}: net speed") * 1e6 / 8 or None
            network = "ethernet" if re.match(r"(eth|en[a-z]|bond)[0-9]", name) else None
            self._join(name, parent, kind="nic", bytes_per_s=rate, network=network)

    def _join(self, name: str, parent: str, **facts: object) -> None:
        if len(self.graph) > MOST_VERTICES:
            raise InputError(f"{self.where} holds more than {MOST_VERTICES} GPUs, cards and bridges")
        if name in self.graph:
            raise InputError(f"{self.where}: {name[:40]} is listed twice")
        self.graph.add_node(name, **facts)
        self.graph.add_edge(parent, name, kind="pcie")

    def finish(self) -> HostTree:
        notes = self._guess() + self._pair_hidden()
        for gpu, target, kind, count in self.targets:
            if kind.startswith("0x0680"):
                self.graph.add_node(target, kind="nvswitch")
                self.graph.add_edge(gpu, target, kind="nvlink", count=count)
            elif self.gpu_of_bus.get(target, gpu) != gpu:
                self.graph.add_edge(gpu, self.gpu_of_bus[target], kind="nvlink", count=count)
        if not self.gpu_of_bus:
            raise InputError(f"{self.where} holds no GPU (a pci element of class 0x0302)")
        named = {DEVICES.get(device.lower()) for device in self.devices}
        device = named.pop() if len(named) == 1 else None
        return HostTree(
            graph=self.graph,
            device=device,
            sm=self.sm,
            nvlinks_listed=bool(self.targets) or self.has_gpu_elements,
            notes=notes,
        )

    def _pair_hidden(self) -> tuple[str, ...]:
        """Where every GPU's links end at itself: bridges between GPUs 2i and 2i + 1, and the words for it."""
        hidden = [
            (gpu, count) for gpu, target, kind, count in self.targets
            if kind.startswith(_GPU) and self.gpu_of_bus.get(target) == gpu
        ]  # fmt: skip
        gpus = sorted(self.gpu_of_bus.values(), key=lambda name: int(name.removeprefix("GPU")))
        if len(hidden) != len(self.targets) or [gpu for gpu, _ in hidden] != gpus or len(gpus) % 2:
            return ()
        for (first, count), (second, _) in zip(hidden[::2], hidden[1::2], strict=True):
            self.graph.add_edge(first, second, kind="nvlink", count=count)
        return ("NVLinks that the XML prints from each GPU to itself are taken as bridges of GPUs 2i and 2i + 1",)

    def _guess(self) -> tuple[str, ...]:
        """Entries without a class, in files that name buses only: the first power of two are GPUs, the rest cards."""
        if not self.unknown or self.gpu_of_bus:
            return ()
        count = 1 << (len(self.unknown).bit_length() - 1)
        for i, (bus, parent) in enumerate(self.unknown):
            name = f"GPU{i}" if i < count else f"NIC{i - count}"
            if i < count:
                self.gpu_of_bus[bus] = name
            self._join(name, parent, kind="gpu" if i < count else "nic")
        return (f"the XML names no classes: {count} of its {len(self.unknown)} entries are taken as GPUs",)


def _whole(text: str, where: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise InputError(f"{where}={text[:20]!r} is not a whole number")
    return int(text)
