"""Host memory that the ranks of one node need for what is offloaded there, beside what the node has.

    states        master weights, optimizer states and gradients as wide as the master, of a rank's shard; with
                  offload_states=all the weights in the parameter dtype too
    activations   the inputs of layers whose ranges offload them, of all microbatches in flight
    chunks        attention by chunks: queries, keys, values, output, its gradient, fp32 sum of dQ, log-sum-exp and
                  normed input of one layer (`layer/chunked.py`)

Bytes. Left out: what the processes, the page cache and data loading take, and copies that the pinning allocator keeps
(DeepSpeed's own estimate allows half as much again for buffers).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cost_models.hardware.cluster import Cluster
from cost_models.hardware.placement import Placement
from cost_models.layer.chunked import host_chunk_bytes
from cost_models.layer.sizes import RankSizes
from cost_models.memory.peaks import microbatches_in_flight
from cost_models.memory.states import host_state_bytes
from cost_models.number import Number
from cost_models.strategy import LayerRange


def rank_host_bytes(sizes: RankSizes, ranges: Sequence[LayerRange]) -> Number:
    """Of one rank; an equal share of all layers where the model is cut into stages."""
    if sizes.workload.mode != "train":
        return 0 * sizes.tokens
    offloaded = sum(part.count for part in ranges if part.offload == "activations")
    inputs = offloaded / sizes.degrees.pipeline * sizes.row_bytes * microbatches_in_flight(sizes)
    chunks = host_chunk_bytes(sizes) if sizes.staged else 0
    return host_state_bytes(sizes) + inputs + chunks


def fullest_host(
    cluster: Cluster, runs: Sequence[int], ranks: int, placement: Placement | None, rank_bytes: float
) -> tuple[int, int]:
    """(bytes that its ranks need, bytes it has) of the node that is fullest; it has 0 where that is not known."""
    most = _most_ranks(cluster, runs, ranks, placement)
    nodes = [(round(most[run] * rank_bytes), cluster.runs[run].node.host_memory_bytes) for run in runs]
    known = [one for one in nodes if one[1]]
    return max(known, key=lambda one: one[0] / one[1]) if known else (max(nodes)[0], 0)


def _most_ranks(cluster: Cluster, runs: Sequence[int], ranks: int, placement: Placement | None) -> dict[int, int]:
    """Ranks on the fullest node of each kind in use."""
    if placement is None:
        return {run: min(ranks, cluster.runs[run].node.gpus) for run in runs}
    on_slot = np.bincount(placement.slot_of_rank, minlength=cluster.slots)
    first = np.concatenate([[0], np.cumsum([run.count for run in cluster.runs])])
    return {run: int(on_slot[first[run] : first[run + 1]].max()) for run in runs}
