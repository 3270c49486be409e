"""A step as a list of segments that every rank runs: the one description that `price` folds and `simulate` plays.

    step = (microbatches - 1) x [ segments ] + [ segments of the last microbatch ] + epilogue
    segments = prologue · layers forward · head and loss · layers backward

A segment runs its phases in order. On the sharding stream, concurrently with the phases, weights are gathered ahead of
the segment and gradients are reduced after it. What happens once a step happens in `Segment.last`. All sizes are per
rank; a number may be a numpy array over candidates.

    Compute     seconds on the compute stream
    Exchange    a collective over one axis; `bytes` is the buffer that one rank contributes (all_to_all, all_reduce: the
                local buffer; all_gather, reduce_scatter: the full, unsharded buffer; send: what is sent)
    Broadcasts  every owner's weights to its group, one tensor after another
    Passed      states of stretches of the row, handed on through a group in the row's order
    Ring        attention in `pieces` blocks; while block i computes, the next block's bytes are in flight
    Staged      attention in blocks whose tensors move between the GPU and host memory concurrently with them
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cost_models.models.model import LayerKind
from cost_models.number import Number
from cost_models.strategy import Axis as Axis
from cost_models.strategy import SsdPass

Op = Literal["all_to_all", "all_gather", "reduce_scatter", "all_reduce", "send", "chain", "tree"]
"""The last two are how `Passed` is played: a message to the next of a row's stretches, or to one further on."""


class Compute(NamedTuple):
    """Seconds of computation."""

    part: str  # a key of `cost.PARTS`
    seconds: Number


class Exchange(NamedTuple):
    """A collective over every group of an axis at once; `bytes` is the buffer of one rank."""

    part: str
    axis: Axis
    op: Op
    bytes: Number
    copies: int = 1  # of each value; where there are more, a value goes once to a domain and once to each rank there
    beside: Number = 0  # ranks that all copies of a value go to, beside each other; 0: any, at random


class Broadcasts(NamedTuple):
    """Tensors that their owners send to all ranks of their groups, one after another."""

    part: str
    axis: Axis
    bytes: float  # of all tensors together
    owners: int  # each waits for its chain of ranks


class Passed(NamedTuple):
    """States of all stretches of the row reach those behind them: rank to rank, or in rounds of doubling reach."""

    part: str
    axis: Axis
    way: SsdPass  # "least": whichever of them takes least
    state_bytes: Number  # of one stretch
    summary_bytes: Number  # … with its decays
    slots: Number  # most stretches of a rank
    stretches: Number  # of all ranks of a group
    reach: Number  # of a tree: to go so many stretches on leads nowhere, or back to the same rank
    turns: Number  # whether the row goes up through the ranks and back (zigzag)
    chained: Number  # whether each rank has one stretch of any row
    pass_s: Number = 0.0  # seconds in which a kernel that joins summaries reads or writes one
    back: bool = False  # whether gradients are handed on, so that those of the decays are summed, too
    by_transfers: bool = False  # whether a gather goes around the group message by message (gloo), not as a collective

    @property
    def ways(self) -> tuple[SsdPass, ...]:
        return ("gather", "chain", "tree") if self.way == "least" else (self.way,)

    def gathered(self, ranks: Number) -> Exchange:
        """All ranks of a group get the summaries of all, as many as the rank with the most stretches has."""
        return Exchange(self.part, self.axis, "all_gather", ranks * self.slots * self.summary_bytes)

    @property
    def handed(self) -> Exchange:
        """One of the ranks - 1 steps of a gather by transfers: each rank hands a buffer on to the next."""
        return Exchange(self.part, self.axis, "send", self.slots * self.summary_bytes)


class Ring(NamedTuple):
    """`pieces` blocks of attention in a row: the first is causal, of the rank's keys; then one per hop.

    Hop i (of `pieces` - 1) is sent while block i computes; block i + 1 starts when both are done. Backward adds the
    gradient hops: `gradient_bytes` more in each hop, needed one block later. `double`: rings inside the domains, and
    one over the domains that moves on once the inner ring has gone round.
    """

    part: str  # "attention" or "recompute"
    pieces: Number
    first_s: Number
    piece_s: Number
    hop_bytes: Number
    gradient_bytes: Number = 0.0
    hiding: Number = 1.0  # share of a block's time that a hop inside a domain can hide behind
    double: bool = False


class Staged(NamedTuple):
    """`blocks` equal pieces of attention in a row; during each, `bytes` go over the host's link in either direction."""

    part: str  # "attention" or "recompute"
    blocks: Number
    seconds: Number  # of one
    bytes: Number


Phase = Compute | Exchange | Broadcasts | Passed | Ring | Staged


class Segment(NamedTuple):
    """`repeat` equal pieces of work in a row; each gathers its weights and reduces its gradients."""

    name: str  # for people; nothing depends on it
    phases: tuple[Phase, ...]
    repeat: Number = 1
    sharding: tuple[Exchange, ...] = ()  # concurrent with the phases of each repeat: gathers, then reductions
    last: Segment | None = None  # this segment in a step's last microbatch; `None` means that it is the same there
    offload_bytes: Number = 0.0  # to host memory or, if `from_host`, from there, concurrent with each repeat
    from_host: bool = False
    host_update_bytes: Number = 0.0  # of host memory that the CPU reads and writes to update this rank's weights
    host_s: Number = 0.0  # what the host needs to launch one repeat, without the hops of its rings
    host_hop_s: Number = 0.0  # … and for each hop
    overlap_cost: float = 0.0  # seconds by which each hidden second of sharding lengthens the phases
    kind: LayerKind | None = None  # of the layer, where it is one
    elsewhere: Number | None = None  # repeats that other stages run of a microbatch; `None`: as many on each as here

    def fill(self, stages: Number) -> Number:
        """Repeats of one microbatch on all other pipeline stages together: what its way through them takes."""
        return self.repeat * (stages - 1) if self.elsewhere is None else self.elsewhere

    def launching_s(self) -> Number:
        """Host time of one repeat; the rings of a segment have equally many pieces."""
        pieces = next((phase.pieces for phase in self.phases if isinstance(phase, Ring)), 1)
        return self.host_s + self.host_hop_s * (pieces - 1)


@dataclass(frozen=True, kw_only=True)
class StepProgram:
    """One optimizer step of one rank."""

    microbatch: tuple[Segment, ...]  # run in every microbatch but the last
    epilogue: tuple[Segment, ...]  # run once, after the last microbatch
    microbatches: Number
    pipeline: Number = 1  # stages; the bubble is what `Segment.fill` says, over `virtual`
    virtual: Number = 1
    longest: Number = 0.0  # share of all layers on the longest stage, which may take longer than the last one, above

    @property
    def last(self) -> tuple[Segment, ...]:
        """The last microbatch."""
        return tuple(segment.last or segment for segment in self.microbatch)

    def segments(self) -> Iterator[tuple[Segment, Number]]:
        """Every segment with how often a step runs it (repeats included)."""
        for segment in self.microbatch:
            yield segment, (self.microbatches - (segment.last is not None)) * segment.repeat
        for segment in (*filter(None, (one.last for one in self.microbatch)), *self.epilogue):
            yield segment, segment.repeat
