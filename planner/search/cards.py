"""Which GPUs of their nodes ranks take where cards are unlike: who sends most out of a domain has the fastest card.

    need of a rank    its ring hops that enter or leave the domain, then the members of its ulysses group elsewhere
    rate of a GPU     its card's, shared with the GPUs before it on that card
    matched           in each node the neediest rank has the fastest GPU, and so on down

A group waits for its slowest rank, so that two ranks with slow cards gain nothing until both are moved: no exchange of
two finds that. Left out: nodes whose GPUs differ by switch or bridge, too; cards of shard groups.
"""

from __future__ import annotations

import numpy as np

from cost_models.hardware.cluster import Cluster
from cost_models.hardware.node import Node
from cost_models.hardware.wiring import Ints
from cost_models.strategy import Strategy, rank_grid


class Cards:
    """Of one cluster; `unlike`: whether it has anything to match."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.unlike = any(_unlike(run.node) for run in cluster.runs)
        most = max(run.node.gpus for run in cluster.runs)
        self.fastest = np.zeros((len(cluster.runs), most), dtype=np.int64)
        for index, run in enumerate(cluster.runs):
            gpus = np.arange(run.node.gpus)
            self.fastest[index, : run.node.gpus] = _fastest(run.node) if _unlike(run.node) else gpus

    def matched(self, strategy: Strategy, slots: Ints, gpus: Ints) -> Ints:
        """The GPUs of the ranks where they are matched; shapes (placements, ranks)."""
        grid = rank_grid(strategy).reshape(-1, strategy.ring, strategy.ulysses * strategy.tensor)
        domain = self.cluster.domain_of_slot[slots][:, grid]
        ring = (domain != np.roll(domain, 1, axis=2)).astype(int) + (domain != np.roll(domain, -1, axis=2))
        apart = (domain[..., :, None] != domain[..., None, :]).sum(axis=-1)
        need = np.empty_like(slots)
        need[:, grid.reshape(-1)] = (ring * (strategy.ulysses * strategy.tensor + 1) + apart).reshape(len(slots), -1)
        row = np.broadcast_to(np.arange(len(slots))[:, None], slots.shape).reshape(-1)
        at = np.lexsort((gpus.reshape(-1), -need.reshape(-1), slots.reshape(-1), row))
        key = row[at] * self.cluster.slots + slots.reshape(-1)[at]
        first = np.flatnonzero(np.diff(key, prepend=-1))
        place = np.arange(len(at)) - np.repeat(first, np.diff(first, append=len(at)))
        taken = np.empty(len(at), dtype=np.int64)
        taken[at] = self.fastest[self.cluster.run_of_slot[slots.reshape(-1)[at]], place]
        return taken.reshape(slots.shape)


def _fastest(node: Node) -> Ints:
    """A node's GPUs, the fastest cards first.

    >>> from dataclasses import replace
    >>> node = Cluster.load("dgx-h100", nodes=1).node(0)
    >>> _fastest(replace(node, nic_shares=(0.5, 1, 0.25, 1, 1, 1, 1, 0.25))).tolist()
    [1, 3, 4, 5, 6, 0, 2, 7]
    """
    nic = np.maximum(node.nic_of_gpu(node.gpus), 0)
    before = np.array([int(np.sum(nic[:gpu] == nic[gpu])) for gpu in range(node.gpus)], dtype=np.int64)
    shares = np.array(node.nic_shares or (1.0,) * max(node.nics.count, 1))[nic] / (1 + before)
    return np.argsort(-shares, kind="stable")


def _unlike(node: Node) -> bool:
    """Whether cards are unlike, and nothing else of the GPUs is."""
    return node.scale_up.kind == "switch" and (len(set(node.nic_shares)) > 1 or bool(node.missing_nics))
