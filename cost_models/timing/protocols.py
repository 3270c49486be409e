"""What a collective over the network waits for besides its bytes and the latency of its hops: NCCL's protocols.

    small       low-latency protocols: the hops' latency, `wait`
    large       slower hops that carry the whole rate: another SLOWER[op] waits, hidden in what is still to be sent
    between     wait + sent + SLOWER[op] · wait · √(sent / (sent + 4 · wait))            sent = bytes / rate, seconds
    all-reduce  over three domains and more: that by trees, TREE_SLOWER · sent later, or RING_WAITS · all hops + sent
    messages    sends and all-to-alls: START_S before the first byte, PEER_S for each further rank

Where a network's set-up allows no LL, small messages are as late as its cluster file says, and larger ones wait less
longer than that (`Network.slower`). Checked against `kernels_comm_multinode.csv`, 1 KiB to 16 GiB over 2 to 64 nodes.
Where a profile measured the network, its latency and rate hold everything and none of this counts.
A send has as many channels as that release of NCCL gives one peer of its group (`peer_bytes_per_s`).
Left out: settings (channels, queue pairs, chunks), which one cluster tunes and another does not; several cards of one
GPU; what else a shared network carries at the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from cost_models.hardware.networks import CHANNEL_BYTES_PER_S
from cost_models.number import Array, Number, larger, pick, smaller
from cost_models.program import Op

START_S = 28e-6
"""Before a message leaves a node: sends of 32 to 128 KiB take 27 to 44 us on B200 (together-nccl-tests), an empty
all-to-all over 16 H100 37 us (autoparallel); cards and switches have 4 of them."""
PEER_S = 0.52e-6
"""For each further rank of an all-to-all: empty ones over 16, 32, 64 and 128 H100 take 37, 42, 60 and 98 us."""
SLOWER: Mapping[Op, float] = MappingProxyType(
    {
        "all_reduce": 6.0,
        "all_gather": 2.8,
        "reduce_scatter": 2.8,
        "send": 0.0,
        "all_to_all": 0.0,
        "chain": 0.0,
        "tree": 0.0,
    }
)
"""All-reduces go from trees of the fastest protocol to those of the slowest. Rings of the slowest wait 3.8 times as
long as those of the fastest over nodes of eight, 3.4 times over nodes of four (`HOP_US` in hardware/networks.py); over
32 and 64 nodes of B200 4.6 times, 10 us a rank."""
TREE_SLOWER = 0.18
"""From three domains on trees carry as much as rings, by so much later: 290 against 330 GB/s on B200, 160 against 198
as NCCL reckons for H100. The largest all-reduces therefore go by rings, which wait for every hop."""
PEERS_OF_CHANNEL = 8
MOST_CHANNELS = 16
"""Of a group, by default, on Blackwell (NCCL 2.28.3); others have as many with eight cards a node."""
RING_WAITS = 4
"""Of a ring's hops: two passes of the slowest protocol, twice the fastest one's latency; 2 where no other runs."""


def peer_bytes_per_s(
    ranks: Number,
    cards: Number,
    card_bytes_per_s: Number,
    doubled: Number,
    nccl_minor: int = 29,
    channel_bytes_per_s: Number = CHANNEL_BYTES_PER_S,
) -> Array:
    """What sends to one peer on another node get of the channels of NCCL 2.`nccl_minor` (src/graph/paths.cc).

    A group of `ranks`, with `cards` in its domain that has fewest, has two channels for each card (`doubled`: twice as
    many, up to 16, on Hopper and later: src/graph/connect.cc). A peer gets, each time a power of two,

        from 2.29   one for each CHANNEL_BYTES_PER_S of a card at line rate, halved until PEERS_OF_CHANNEL ranks fit on
                    each channel
        2.20-2.28   two, or one where more than half as many ranks would fit so
        2.12-2.19   two         before: one

    Rings of sends over 2, 4, 8, 16, 32 and 64 nodes of B200 reach 43, 44, 26, 14.7, 14.6 and 14.8 GB/s (NCCL 2.29.7);
    a card reaches 42:

    >>> [float(peer_bytes_per_s(8 * n, np.array(8), np.array(50e9), np.array(True))) / 1e9 for n in (2, 4, 8, 16, 64)]
    [56.0, 56.0, 28.0, 14.0, 14.0]
    >>> [float(peer_bytes_per_s(8 * n, np.array(8), np.array(50e9), np.array(True), 20)) / 1e9 for n in (2, 4, 8, 16)]
    [28.0, 28.0, 14.0, 14.0]
    """
    own = np.minimum(_power(2 * cards), MOST_CHANNELS)
    own = np.where(doubled, np.minimum(2 * own, MOST_CHANNELS), own)
    if nccl_minor >= 29:
        wanted = _power(np.ceil(card_bytes_per_s / CHANNEL_BYTES_PER_S))
        fit = 2.0 ** np.floor(np.log2(own / np.ceil(ranks / PEERS_OF_CHANNEL)))
        channels = np.maximum(np.minimum(wanted, fit), 1.0)
    elif nccl_minor >= 20:
        channels = np.where(2 * ranks > PEERS_OF_CHANNEL / 2 * own, 1.0, 2.0)
    else:
        channels = np.full(np.broadcast(ranks, own).shape, 2.0 if nccl_minor >= 12 else 1.0)
    return np.asarray(channels * channel_bytes_per_s)


def _power(least: Number) -> Array:
    """Of two, from `least` up."""
    return np.asarray(2.0 ** np.ceil(np.log2(np.maximum(least, 1))))


def slower_s(
    op: Op, wait_s: Number, sent_s: Number, ring_s: Number = 0.0, domains: Number = 2, slower: Number = 1.0
) -> Number:
    """Seconds that the protocols of larger messages add; `ring_s`: latency of all hops of a ring, for an all-reduce.

    >>> [round(float(slower_s("all_reduce", 30e-6, sent_s)) * 1e6) for sent_s in (0.0, 30e-6, 1e-3)]
    [0, 80, 170]
    """
    share: Number = (sent_s / larger(sent_s + 4 * wait_s, 1e-30)) ** 0.5
    by_tree: Number = slower * SLOWER[op] * wait_s * share
    if op != "all_reduce":
        return by_tree
    by_ring = larger((2 + (RING_WAITS - 2) * slower) * ring_s - wait_s, 0.0)
    return pick(domains > 2, smaller(by_tree + TREE_SLOWER * sent_s, by_ring), by_tree)
