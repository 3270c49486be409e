"""Published collectives over several nodes, as calls on clusters: what was timed, on which machine, and its prediction.

    cell    the rows of one table, machine, operation, number of ranks, setting and size; its time is their median
            (single rows are up to four times off)
    where   inside a scale-up domain · over PCIe · across nodes

Predicted by the closed form (`timing/paths.py`) over all ranks in order, one group. Cards beyond one for each GPU are
bundled into one for each. A table with a row whose rate exceeds what its links carry is an error of the data: refused.
Left out: rows that force an algorithm which NCCL would not take (they say what a tuned choice gains), expert dispatch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median

from cost_models.hardware.cluster import Cluster
from cost_models.hardware.networks import NetworkKind
from cost_models.program import Op
from cost_models.strategy import Axis, Strategy
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.timing.collectives import wire_bytes
from validation.fit.rows import read_rows

PRESETS = (
    ("A100", "EFA", "aws-p4de"), ("H100", "EFA", "aws-p5"), ("H200", "EFA", "aws-p5en"),
    ("GH200", "Slingshot", "alps-gh200"), ("GB200", "", "gb200-nvl72"), ("GB300", "", "gb300-nvl72"),
    ("B300", "", "dgx-b300"), ("MI355X", "", "mi355x-8"), ("H100", "TCPXO", "gcp-a3-mega"),
    ("H100", "TCPX", "gcp-a3"), ("H200", "RoCE", "gcp-a3-ultra"), ("B200", "InfiniBand", "dgx-b200"),
    ("A100", "InfiniBand", "dgx-a100"), ("H100", "InfiniBand", "dgx-h100"), ("H200", "InfiniBand", "hgx-h200"),
    ("H20", "RoCE", "hgx-h20"), ("B200", "RoCE", "gcp-a4"),
)  # fmt: skip
"""What the columns `gpu` and `nic` contain, and the preset whose nodes these are; the first that fits."""
OPS: dict[str, tuple[Axis, Op]] = {
    "all_reduce": ("shard", "all_reduce"), "all_gather": ("shard", "all_gather"), "alltoall": ("ulysses", "all_to_all"),
    "reduce_scatter": ("shard", "reduce_scatter"), "sendrecv": ("ring", "send"), "send_recv": ("ring", "send"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One timed collective: buffer bytes as nccl-tests counts them, median seconds over its rows."""

    source: str
    machine: str
    cluster: Cluster
    op: str
    ranks: int
    setting: str
    buffer_bytes: float
    seconds: float
    rows: int

    @property
    def across(self) -> bool:
        return bool(len(set(self.cluster.domain_of_slot.tolist())) > 1)

    @property
    def predicted_s(self) -> float:
        axis, op = OPS[self.op]
        layouts = {"ulysses": Strategy(ulysses=self.ranks), "ring": Strategy(ring=self.ranks)}
        layout = layouts.get(axis, Strategy(data=self.ranks, shard=self.ranks))
        return float(cluster_costs(self.cluster).paths(layout).exchange_s(axis, op, self.buffer_bytes))

    @property
    def error(self) -> float:
        """Signed: predicted over measured, minus one."""
        return self.predicted_s / self.seconds - 1


NOT_NCCLS_CHOICE = ("CollNet", "device kernel", "NCCL_ALGO=")
"""Settings whose time is no default's: sums inside InfiniBand switches, another library, one algorithm at any cost."""
FORCED = ("algo=", "ring, default", "tree;")


def multinode(folder: Path) -> list[Cell]:
    """The scored rows of kernels_comm_multinode.csv; of algorithms forced one after the other the fastest."""
    rows = [row for row in read_rows(folder, "kernels_comm_multinode.csv") if row["score"] == "yes"]
    found: dict[tuple[object, ...], Cell] = {}
    for cell in cells(rows, _multinode):
        if any(word in cell.setting for word in NOT_NCCLS_CHOICE):
            continue
        setting = "fastest" if cell.setting.startswith(FORCED) else cell.setting
        key = (cell.source, cell.machine, cell.cluster, cell.op, cell.ranks, setting, cell.buffer_bytes)
        if key not in found or cell.seconds < found[key].seconds:
            found[key] = replace(cell, setting=setting)
    return list(found.values())


UNSEEN: tuple[tuple[str, str, NetworkKind | None, float | None], ...] = (
    ("aws_awsome_distributed_training", "EFA", None, 15e-6), ("p5en_gin_worklog", "EFA", "efa-v1", 15e-6),
    ("cscs_alps", "Slingshot", "roce", 4e-6), ("gcp_cluster_toolkit", "TCPXO", None, 35e-6),
    ("gcp_cluster_toolkit", "TCPX ", None, 380e-6), ("gke_docs", "TCPX ", None, 430e-6),
    ("dstack_clusters", "TCPX ", None, 410e-6), ("together_use3a_ss", "InfiniBand", "roce", None),
)  # fmt: skip
"""Source, network, and what would be taken for its cards without it: the kind whose share other sources give, and the
latency that these show (least median error), or that the preset had before. The other sources of a kind agree without
any one of them."""


def left_out(folder: Path) -> list[Cell]:
    """Cells across nodes, each source on a network that was described without it.

    Cells of one domain of NVLink 5 shaped its table (`rates.larger_messages`) and are dropped. SLOWER and START_S of
    `timing/protocols.py` stay as fitted to all sources together.
    """
    return [_unseen(cell) for cell in multinode(folder) if cell.across or not cell.machine.startswith(BLACKWELL)]


BLACKWELL = ("B200", "GB200", "B300", "GB300")


def _unseen(cell: Cell) -> Cell:
    for source, network, kind, latency_s in UNSEEN:
        if cell.source == source and network in cell.machine:
            run = cell.cluster.runs[0]
            nics = run.node.nics
            nics = replace(nics, kind=kind or nics.kind, latency_s=nics.latency_s if latency_s is None else latency_s)
            runs = (replace(run, node=replace(run.node, nics=nics)),)
            return replace(cell, cluster=replace(cell.cluster, runs=runs))
    return cell


def _multinode(row: dict[str, str]) -> Cell:
    gpu, nic, nodes, per_node = row["gpu"], row["nic"], int(row["nodes"]), int(row["gpus_per_node"])
    preset = next(name for g, n, name in PRESETS if gpu.startswith(g) and n in nic)
    rate = float(row["nic_gbps"]) * 1e9 / 8 if row["nic_gbps"] else None
    domain = nodes // 3 if row["scaleup"].startswith("3 separate") else None
    cards = 1 if row["env"] == "rails=1" else int(row["nics_per_node"])
    where = machine(preset, nodes, per_node, cards, rate, domain)
    return Cell(
        source=row["source_id"], machine=f"{gpu.split(' ')[0]} {nic}", cluster=where, op=row["op"],
        ranks=int(row["ranks"]), setting=row["env"], buffer_bytes=float(row["bytes"]),
        seconds=float(row["time_us"]) * 1e-6, rows=1,
    )  # fmt: skip


VIDUR = {
    "a100_dgx": "dgx-a100", "h100_dgx": "dgx-h100", "a100_pairwise_nvlink": "a100-pcie-pairs",
    "h100_pairwise_nvlink": "h100-nvl", "a40_pairwise_nvlink": "a40-pairs",
}  # fmt: skip
UNBRIDGED = "a40_pairwise_nvlink"
"""Its two GPUs of one node exchange 4 GB/s: no bridge joins these."""
AICONFIGURATOR = {
    "NVIDIA A100-SXM4-80GB": "dgx-a100", "NVIDIA H100 80GB HBM3": "dgx-h100", "NVIDIA B200": "dgx-b200",
    "NVIDIA H200": "hgx-h200", "NVIDIA GB200": "gb200-nvl72", "NVIDIA L40S": "l40s-pcie",
}  # fmt: skip


def vidur(folder: Path) -> list[Cell]:
    """kernels_comm_vidur.csv: all-reduces and sends of one node; the cards between two are not stated."""
    rows = [row for row in read_rows(folder, "kernels_comm_vidur.csv") if row["nodes"] == "1"]
    return cells(rows, _vidur)


def _vidur(row: dict[str, str]) -> Cell:
    where = machine(VIDUR[row["node_sku"]], 1, int(row["devices_per_node"]))
    if row["node_sku"] == UNBRIDGED:
        run = where.runs[0]
        where = replace(where, runs=(replace(run, node=replace(run.node, missing_bridges=(0,))),))
    return Cell(
        source="vidur", machine=row["node_sku"], op=row["op"], ranks=int(row["num_workers"]), setting="",
        cluster=where,
        buffer_bytes=float(row["bytes"]), seconds=float(row["median_ms"]) * 1e-3, rows=1,
    )  # fmt: skip


def aiconfigurator(folder: Path) -> list[Cell]:
    """kernels_comm_aiconfigurator.csv: collectives of one node, half precision."""
    rows = [row for row in read_rows(folder, "kernels_comm_aiconfigurator.csv") if row["nccl_dtype"] == "half"]
    return cells(rows, _aiconfigurator)


def _aiconfigurator(row: dict[str, str]) -> Cell:
    ranks, preset = int(row["num_gpus"]), AICONFIGURATOR[row["device"]]
    per_node = min(ranks, 4 if preset == "gb200-nvl72" else 8)
    return Cell(
        source="aiconfigurator", machine=row["device"], op=row["op"], ranks=ranks, setting="",
        cluster=machine(preset, ranks // per_node, per_node),
        buffer_bytes=float(row["bytes"]), seconds=float(row["latency_ms"]) * 1e-3, rows=1,
    )  # fmt: skip


@cache
def machine(
    preset: str, nodes: int, per_node: int, cards: int | None = None, rate: float | None = None,
    domain: int | None = None,
) -> Cluster:  # fmt: skip
    """A preset with so many nodes, GPUs and cards of them; cards beyond one for each GPU are bundled."""
    base = Cluster.load(preset, nodes=nodes)
    node = replace(base.runs[0].node, gpus=per_node)
    if cards is not None:
        each = node.nics.bytes_per_s if rate is None else rate
        bundle = max(cards // per_node, 1)
        node = replace(node, nics=replace(node.nics, count=cards // bundle, bytes_per_s=each * bundle))
    if domain is None and base.nodes_per_domain > 1:
        domain = nodes if nodes <= base.nodes_per_domain else _rack(base.nodes_per_domain, nodes)
    run = replace(base.runs[0], node=node)
    return replace(base, runs=(run,), nodes_per_domain=domain or 1)


def _rack(most: int, nodes: int) -> int:
    """Nodes of each rack, where a job takes as many from each: whole racks, else 16 of 18."""
    sizes: tuple[int, ...] = (most, 16, *range(most, 0, -1))
    return next(size for size in sizes if nodes % size == 0)


def cells(rows: Iterable[dict[str, str]], read: Callable[[dict[str, str]], Cell]) -> list[Cell]:
    """Rows that say the same thing, as one cell with their median time; tables with an impossible row are left out."""
    tables: dict[tuple[object, ...], dict[float, list[Cell]]] = {}
    for row in rows:
        cell = read(row)
        key = (cell.source, cell.machine, cell.cluster, cell.op, cell.ranks, cell.setting)
        tables.setdefault(key, {}).setdefault(cell.buffer_bytes, []).append(cell)
    return [
        replace(several[0], seconds=median(one.seconds for one in several), rows=len(several))
        for table in tables.values()
        if not any(impossible(cell) for several in table.values() for cell in several)
        for several in table.values()
    ]


def impossible(cell: Cell) -> str:
    """Why no such row can be true: a rank would send more than its links carry; empty if it may be."""
    node = cell.cluster.runs[0].node
    line = node.scale_up.bytes_per_s
    if node.gpus == 1 and cell.cluster.nodes_per_domain == 1 and cell.ranks > 1:
        line = node.nics.bytes_per_s * node.nics.count
    op = {"alltoall": "all_to_all", "sendrecv": "send_recv"}.get(cell.op, cell.op)
    sums = 0.5 if op == "all_reduce" else 1.0  # a switch that sums sends half
    sent = wire_bytes(op, cell.ranks, cell.buffer_bytes) * sums / cell.seconds
    if sent <= line:
        return ""
    return f"{cell.op} over {cell.ranks} ranks: {sent / 1e9:.0f} GB/s over links of {line / 1e9:.0f}"
