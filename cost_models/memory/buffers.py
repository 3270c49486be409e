"""Device memory that libraries take beside tensors: buffers of NCCL's communicators, and the context.

    communicator   28.7 MiB a channel for collectives over three ranks and more, 22.7 over two
    peer           14 MiB a channel for each peer that messages go to (all-to-all: all in the domain; ring: one)
    network        512 MiB once, for a communicator whose messages leave the domain

Channels are NCCL's: twice the NVLink links to a peer, at most 24 for collectives, and a power of two up to 32 for
messages; 4 and 2 over PCIe. Measured: 688 and 544 MiB on 4 A100 (NVIDIA/nccl issue 964); 3.28 GB for an all-to-all
over 8 H100, 7 peers x 32 channels (issue 1685); "16 p2p channels per peer" on H800 (issue 892); the network's buffer in
issue 2363. The contexts are what single processes hold beside PyTorch's memory on A100, L40S, H200 and B200: 0.60,
0.65, 0.64, 0.70 GiB. Bytes of one rank. Left out: NVLink SHARP's buffers (a quarter to one GiB, which many launchers
turn off), domains of more than 8 GPUs (as 8), symmetric memory.
"""

from __future__ import annotations

from cost_models.hardware.device import Device
from cost_models.hardware.links import LINKS
from cost_models.layer.sizes import RankSizes
from cost_models.number import Number, pick, smaller

CONTEXT_BYTES = {"gpu": 660 * 2**20, "cpu": 450 * 2**20}
"""On a CPU the interpreter with its libraries: an estimate."""
CHANNEL_BYTES, PAIR_CHANNEL_BYTES = 688 * 2**20 // 24, 544 * 2**20 // 24
PEER_CHANNEL_BYTES, NETWORK_BYTES = 14 * 2**20, 512 * 2**20
SOCKET_BYTES = 2**20
"""Of a gloo group's pairs: an estimate."""
LINK_BYTES_PER_S = {"nvlink1": 20e9, "nvlink5": 50e9}
"""One way, of one NVLink link; others 25e9."""
DOMAIN = 8


def kind(device: Device) -> str:
    """The kind of device that buffers are listed for."""
    return "cpu" if device.architecture == "cpu" else "gpu"


def context_bytes(device: Device) -> int:
    """Of CONTEXT_BYTES, what this device has."""
    return CONTEXT_BYTES[kind(device)]


def channels(device: Device) -> tuple[int, int]:
    """(of collectives, of messages to one peer) of the device's link.

    >>> [channels(Device.load(name)) for name in ("a100-sxm-80gb", "h800", "l40s")]
    [(24, 32), (16, 16), (4, 2)]
    """
    link = LINKS[device.link]
    if not device.link.startswith("nvlink"):
        return 4, 2
    each = LINK_BYTES_PER_S.get(device.link.partition("-")[0], 25e9)
    links = round((link.pair_bytes_per_s or link.bytes_per_s) / each)
    return min(24, 2 * links), min(32, 1 << (2 * links - 1).bit_length())


def communication_bytes(sizes: RankSizes, device: Device) -> Number:
    """Of all communicators of a rank: one for each axis of several ranks."""
    degrees = sizes.degrees
    collective: tuple[Number, ...] = (degrees.shard, degrees.replicate, degrees.tensor)
    exchanging: tuple[Number, ...] = (degrees.ulysses, degrees.expert)
    passing: tuple[Number, ...] = (degrees.ring, degrees.pipeline)
    if sizes.workload.model.ssd is not None:  # states count as gathered, whichever way they are passed
        split, context = degrees.ssd, degrees.context
        collective = (*collective, {"states": context, "mixed": degrees.ring, "heads": 1}[split])
        exchanging = (*exchanging, context if split == "heads" else 1)
        passing = (*passing, context if split == "states" else 1)
    if kind(device) == "cpu":
        return sum(pick(ranks > 1, SOCKET_BYTES, 0) for ranks in (*collective, *exchanging, *passing))
    total: Number = 0 * degrees.ulysses
    for ranks in collective:
        total = total + pick(ranks > 2, collective_bytes(device, 3), pick(ranks > 1, collective_bytes(device, 2), 0))
    for ranks in exchanging:
        total = total + message_bytes(device, smaller(ranks, DOMAIN) - 1, ranks)
    for ranks in passing:
        total = total + message_bytes(device, pick(ranks > 1, 1, 0), ranks)
    return total + (_extra_bytes(sizes, device) if sizes.framework.extra_groups else 0)


def _extra_bytes(sizes: RankSizes, device: Device) -> Number:
    """Of a group of all ranks and one of a pipeline, and of the pair of its ends, where the loss goes; PyTorch makes a
    communicator for each pair that sends and receives outside a batch of messages (ProcessGroupNCCL)."""
    ranks, stages = sizes.degrees.ranks, sizes.degrees.pipeline
    every = pick(ranks > 2, collective_bytes(device, 3), 0)
    ends = message_bytes(device, 1, ranks)
    line = pick(stages > 2, collective_bytes(device, 3) + ends, collective_bytes(device, 2))
    return every + pick(stages > 1, line, 0)


def collective_bytes(device: Device, ranks: int) -> int:
    return channels(device)[0] * (CHANNEL_BYTES if ranks > 2 else PAIR_CHANNEL_BYTES)


def message_bytes(device: Device, peers: Number, ranks: Number) -> Number:
    """Of a communicator of so many ranks whose messages go to `peers` in the domain."""
    return peers * channels(device)[1] * PEER_CHANNEL_BYTES + pick(ranks > DOMAIN, NETWORK_BYTES, 0)


def most_ring_and_shard_bytes(device: Device, states: bool = False) -> int:
    """The most that a ring and a shard group can add: what a range of rings may hold less than its largest ring.

    `states`: of a model with state-space layers, also the group that exchanges states or heads."""
    if kind(device) == "cpu":
        return (4 if states else 2) * SOCKET_BYTES
    most = 2 * collective_bytes(device, 3) + int(message_bytes(device, 1, DOMAIN + 1))
    further = collective_bytes(device, 3) + int(message_bytes(device, DOMAIN - 1, DOMAIN + 1))
    return most + (further if states else 0)
