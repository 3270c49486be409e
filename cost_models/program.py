"""A step as a list of segments that every rank runs: the one description that `price` folds and `simulate` plays.

    step = microbatches x [ prologue · layers forward · head and loss · layers backward ] · epilogue

A segment is a run of phases in order. Weights of a segment are gathered ahead of it and gradients scattered after
it, on the sharding stream, beside the phases. All sizes are per rank; a number may be a numpy array over candidates.

    Compute   seconds on the compute stream
    Exchange  a blocking collective over one axis; `bytes` is the buffer that one rank contributes (all_to_all,
              all_reduce: the whole local buffer; all_gather, reduce_scatter: the full, unsharded buffer; send: sent)
    Ring      attention in `pieces` blocks; while block i computes, the next block's bytes are in flight
    Staged    attention in blocks whose tensors come from and go to host memory, beside them
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cost_models.models.model import LayerKind

Number = float | NDArray[np.float64]
Op = Literal["all_to_all", "all_gather", "reduce_scatter", "all_reduce", "send"]
Axis = Literal[
    "ulysses", "ring", "context", "shard", "replicate", "tensor", "pipeline",
    "expert", "expert_shard", "expert_replicate",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Compute:
    part: str  # "attention", "matmul", "memory_bound", "vision", "loss", "optimizer", "recompute"
    seconds: Any


@dataclass(frozen=True, kw_only=True)
class Exchange:
    part: str  # "all_to_all", "ring", "embeddings", "tensor", "pipeline", "experts", "gradients"
    axis: Axis
    op: Op
    bytes: Any


@dataclass(frozen=True, kw_only=True)
class Ring:
    """`pieces` blocks of attention in a row: the first (own, causal) block, then one per hop.

    Hop i (of `pieces` - 1) is sent while block i computes; block i + 1 starts when both are done. Backward adds the
    gradient hops: `gradient_bytes` more in each hop, needed one block later. `double`: rings inside the domains, and
    one over the domains that moves on once the inner ring has gone round.
    """

    part: str  # "attention" or "recompute"
    pieces: Any
    first_s: Any
    piece_s: Any
    hop_bytes: Any
    gradient_bytes: Any = 0.0
    beside: Any = 1.0  # share of a block's time that a hop inside a domain can hide behind
    double: bool = False


@dataclass(frozen=True, kw_only=True)
class Staged:
    """`blocks` equal pieces of attention in a row; beside each, `bytes` go over the host's link in either direction."""

    part: str  # "attention" or "recompute"
    blocks: Any
    seconds: Any  # of one
    bytes: Any


Phase = Compute | Exchange | Ring | Staged


@dataclass(frozen=True, kw_only=True)
class Segment:
    """`repeat` equal pieces of work in a row, each with its own weights to gather and gradients to scatter."""

    name: str  # "vision forward", "layer forward", "layer backward mlp", …
    phases: tuple[Phase, ...]
    repeat: Any = 1
    gather_bytes: Any = 0.0  # full weights gathered over `shard` before each of the repeats
    scatter_bytes: Any = 0.0  # full gradients reduce-scattered over `shard` after each
    replicate_bytes: Any = 0.0  # gradient shard all-reduced over `replicate` after each
    offload_bytes: Any = 0.0  # to or from host memory beside each
    host_update_bytes: Any = 0.0  # of host memory that the CPU reads and writes to update this rank's weights
    host_s: Any = 0.0  # what the host needs to launch one repeat, without the hops of its rings
    host_hop_s: Any = 0.0  # … and for each hop
    overlap_cost: float = 0.0  # seconds by which each second of sharding that hides behind the phases lengthens them
    expert_gather_bytes: Any = 0.0  # the same three for the experts that one rank holds, over `expert_shard`
    expert_scatter_bytes: Any = 0.0
    expert_replicate_bytes: Any = 0.0  # … and over `expert_replicate`
    kind: LayerKind | None = None  # of the layer, where it is one
    elsewhere: Any = None  # repeats that the other stages run of one microbatch; none: as many on each as here

    def fill(self, stages: Any) -> Any:
        """Repeats of one microbatch on all other pipeline stages together: what its way through them takes."""
        return self.repeat * (stages - 1) if self.elsewhere is None else self.elsewhere

    def launching_s(self) -> Any:
        """Host time of one repeat; the rings of a segment have equally many pieces."""
        pieces = next((phase.pieces for phase in self.phases if isinstance(phase, Ring)), 1)
        return self.host_s + self.host_hop_s * (pieces - 1)

    def without_sharding(self) -> Segment:
        """The work alone: nothing gathered, nothing reduced."""
        alone = replace(self, gather_bytes=0.0, scatter_bytes=0.0, replicate_bytes=0.0)
        return replace(alone, expert_gather_bytes=0.0, expert_scatter_bytes=0.0, expert_replicate_bytes=0.0)


@dataclass(frozen=True, kw_only=True)
class StepProgram:
    """One optimizer step of one rank."""

    microbatch: tuple[Segment, ...]  # run `microbatches` times
    epilogue: tuple[Segment, ...]  # run once
    microbatches: Any
    pipeline: Any = 1  # stages; the bubble is what `Segment.fill` says, over `virtual`
    virtual: Any = 1

    def segments(self) -> Iterator[tuple[Segment, Any]]:
        """Every segment with how often a step runs it (repeats included)."""
        for segment in self.microbatch:
            yield segment, self.microbatches * segment.repeat
        for segment in self.epilogue:
            yield segment, segment.repeat
