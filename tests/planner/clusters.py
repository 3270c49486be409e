"""Small clusters and programs for the simulator's tests: every rate and size is made up, round, and easy on the eye."""

from dataclasses import replace

from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster, Fabric, NodeRun
from cost_models.hardware.device import Device
from cost_models.hardware.node import Nics, Node, ScaleUp
from cost_models.program import Compute, Exchange, Ring, Segment, StepProgram

GB = 1e9


def node(gpus: int = 4, cards: int = 4, **changes: object) -> Node:
    """`gpus` on a switch of 100 GB/s, NICs of 10 GB/s, 2 and 5 microseconds."""
    made = Node(
        device=Device.load("h100-sxm-80gb"),
        gpus=gpus,
        scale_up=ScaleUp(kind="switch", link="nvlink4", bytes_per_s=100 * GB, latency_s=2e-6),
        nics=Nics(count=cards, bytes_per_s=10 * GB, latency_s=5e-6),
        host_memory_bytes=2**40,
        host_link_bytes_per_s=20 * GB,
    )
    return replace(made, **changes)


def cluster(*nodes: Node, leaf: int = 64, oversubscription: float = 1.0, domain: int = 1, **more: object) -> Cluster:
    fabric = Fabric(nodes_per_leaf=leaf, oversubscription=oversubscription, hop_latency_s=1e-6, **more)
    runs = tuple(NodeRun(count=1, node=one) for one in nodes)
    return Cluster(name="test", runs=runs, fabric=fabric, nodes_per_domain=domain)


PCIE = ScaleUp(
    kind="pcie", link="pcie4", bytes_per_s=20 * GB, latency_s=8e-6, gpus_per_switch=2, cross_bytes_per_s=25 * GB
)
PAIRS = replace(PCIE, kind="pairs", bytes_per_s=100 * GB, pcie_bytes_per_s=20 * GB)
STAGED = replace(PCIE, peer_to_peer=False)
TIERS = replace(PCIE, gpus_per_socket=4, socket_bytes_per_s=12 * GB)
DEGRADED = Nics(count=4, bytes_per_s=3 * GB, latency_s=5e-6)


def layers(
    ring: int,
    repeat: int,
    *,
    compute_s: float = 1e-3,
    block_s: float = 4e-4,
    exchange: float = 4e6,
    hop: float = 3e6,
    gradient: float = 0.0,
    gather: float = 0.0,
    scatter: float = 0.0,
    replicate: float = 0.0,
    offload: float = 0.0,
    host_s: float = 0.0,
    overlap_cost: float = 0.0,
    name: str = "layer forward",
) -> Segment:
    """A layer with both exchanges and a ring."""
    phases = (
        Compute(part="matmul", seconds=compute_s),
        Exchange(part="all_to_all", axis="ulysses", op="all_to_all", bytes=exchange),
        Ring(
            part="attention",
            pieces=ring,
            first_s=0.6 * block_s,
            piece_s=block_s,
            hop_bytes=hop,
            gradient_bytes=gradient,
        ),
        Exchange(part="all_to_all", axis="ulysses", op="all_to_all", bytes=exchange / 2),
        Compute(part="memory_bound", seconds=compute_s / 2),
    )
    return Segment(
        name=name,
        phases=phases,
        repeat=repeat,
        sharding=sharding(gather, scatter, replicate),
        offload_bytes=offload,
        host_s=host_s,
        host_hop_s=host_s / 8,
        overlap_cost=overlap_cost,
    )


def sharding(gather: float = 0.0, scatter: float = 0.0, replicate: float = 0.0) -> tuple[Exchange, ...]:
    """Concurrent with a segment, of so many bytes; what has none is left out."""
    every = (
        ("shard", "all_gather", gather),
        ("shard", "reduce_scatter", scatter),
        ("replicate", "all_reduce", replicate),
    )
    return tuple(Exchange(part="sharding", axis=axis, op=op, bytes=size) for axis, op, size in every if size)


def step(*segments: Segment, microbatches: int = 1, **more: object) -> StepProgram:
    update = Segment(
        name="optimizer",
        phases=(
            Compute(part="optimizer", seconds=3e-4),
            Exchange(part="gradients", axis="shard", op="all_reduce", bytes=4.0),
        ),
    )
    return StepProgram(microbatch=segments, epilogue=(update,), microbatches=microbatches, **more)


FABRICS: tuple[dict[str, object], ...] = (
    {}, {}, {}, {"rail_only": True}, {"leaves_per_spine": 2, "spine_oversubscription": 2.0},
    {"leaves_per_spine": 1, "spine_oversubscription": 3.0, "rail_only": True}, {"missing_uplinks": (0,)},
)  # fmt: skip
"""What else a fabric may be: rails without a spine in common, three levels, a leaf that lost an uplink."""


def possible(*nodes: Node, more: dict[str, object], **rest: object) -> Cluster:
    """The cluster with `more` of its fabric, where such nodes can have it."""
    try:
        return cluster(*nodes, **more, **rest)
    except InputError:  # no rail in common, or a leaf with one uplink alone
        return cluster(*nodes, **rest)
