"""What a collective over the network waits for besides its bytes and the latency of its hops: NCCL's protocols.

    small       low-latency protocols: the hops' latency, `wait`
    large       slower hops that carry the whole rate: another SLOWER[op] waits, hidden in what is still to be sent
    between     wait + sent + SLOWER[op] · wait · √(sent / (sent + 4 · wait))            sent = bytes / rate, seconds
    all-reduce  over three domains and more: that by trees, TREE_SLOWER · sent later, or RING_WAITS · all hops + sent
    messages    sends and all-to-alls: START_S before the first byte, PEER_S for each further rank

NCCL reckons with 5, 8.5 and 14 us for a hop between nodes and 0.7, 1.3 and 3.4 inside one, for the protocols LL, LL128
and Simple (src/graph/tuning.cc). Fitted to `kernels_comm_multinode.csv`, 1 KiB to 16 GiB over 2 to 64 nodes. Where a
profile measured the network, its latency and rate hold everything and none of this counts.
Sends from one rail to another (the last GPU of a node to the first of the next) share the few uplinks between the two
rails' leaves: UPLINKS of them for up to LEAF_NODES nodes. Left out: settings (channels, queue pairs), which one cluster
tunes and another does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from cost_models.number import Number, larger, pick, smaller
from cost_models.program import Op

START_S = 28e-6
"""Before a message leaves a node: sends of 32 to 128 KiB take 27 to 44 us on B200 (together-nccl-tests), an empty
all-to-all over 16 H100 37 us (autoparallel); cards and switches have 4 of them."""
PEER_S = 0.52e-6
"""For each further rank of an all-to-all: empty ones over 16, 32, 64 and 128 H100 take 37, 42, 60 and 98 us."""
SLOWER: Mapping[Op, float] = MappingProxyType(
    {"all_reduce": 6.0, "all_gather": 1.0, "reduce_scatter": 1.0, "send": 0.0, "all_to_all": 0.0}
)
"""All-reduces go from trees of the fastest protocol to those of the slowest."""
TREE_SLOWER = 0.18
"""From three domains on trees carry as much as rings, by so much later: 290 against 330 GB/s on B200, 160 against 198
as NCCL reckons for H100. The largest all-reduces therefore go by rings, which wait for every hop."""
RING_WAITS = 4
"""Of a ring's hops: two passes of the slowest protocol, twice the fastest one's latency."""

UPLINKS, LEAF_NODES = 5.3, 16
"""Rings of sends over 2, 4, 8, 16, 32 and 64 nodes of B200 reach 43, 44, 26, 14.7, 14.6 and 14.8 GB/s. One cluster."""


def rail_crowding(domains: Number) -> Number:
    """How many sends between two rails share one uplink, where groups visit so many domains.

    >>> [round(float(rail_crowding(domains)), 1) for domains in (2, 8, 16, 64)]
    [1.0, 1.5, 3.0, 3.0]
    """
    return larger(smaller(domains, LEAF_NODES) / UPLINKS, 1.0)


def slower_s(op: Op, wait_s: Number, sent_s: Number, ring_s: Number = 0.0, domains: Number = 2) -> Number:
    """Seconds that the protocols of larger messages add; `ring_s`: latency of all hops of a ring, for an all-reduce.

    >>> [round(float(slower_s("all_reduce", 30e-6, sent_s)) * 1e6) for sent_s in (0.0, 30e-6, 1e-3)]
    [0, 80, 170]
    """
    share: Number = (sent_s / larger(sent_s + 4 * wait_s, 1e-30)) ** 0.5
    by_tree: Number = SLOWER[op] * wait_s * share
    if op != "all_reduce":
        return by_tree
    by_ring = larger(RING_WAITS * ring_s - wait_s, 0.0)
    return pick(domains > 2, smaller(by_tree + TREE_SLOWER * sent_s, by_ring), by_tree)
