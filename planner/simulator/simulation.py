"""The time of one step by discrete events on the real topology: what `price` cannot see is who waits for whom.

    step_program (price's own) > script > flows of every collective on the links > classes of equal ranks > playback

A pipeline is played as its stages in step, every microbatch through all of them, and its bubble is added (`result.py`).
Links carry what they really reach, as in `price`. Unequal blocks of a ring go round as if all were of their mean.
Gathers and reductions slow the segment that hides them, and a segment lasts as long as its launches take the host, both
as in `price`. What each rank computes is in `played_program.py`. Left out: other stalls of the host.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from msgspec import Struct

from cost_models.framework import OURS, Framework
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.placement import Placement
from cost_models.hardware.wiring import LinkRates
from cost_models.layer.sizes import RankSizes
from cost_models.pricing import fullest_position
from cost_models.profile import Profile
from cost_models.program import StepProgram
from cost_models.ssd_messages import passing_order
from cost_models.step.unequal import positions
from cost_models.strategy import Strategy, rank_groups
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.timing.collectives import Collectives
from cost_models.workload import Workload
from planner.simulator.fast_forward import FastForward
from planner.simulator.flows import Pattern, pattern, twice
from planner.simulator.folding import Partition, averaged, coarse, equitable, singletons, split
from planner.simulator.network import network
from planner.simulator.passing import passed
from planner.simulator.playback import Playback
from planner.simulator.played_program import memory_by_instance, played_program
from planner.simulator.proof import Unlike
from planner.simulator.result import Simulation, card_loads, link_counters, memory_counters, places, result
from planner.simulator.streams import Script, write_script
from planner.simulator.topology import Floats, Topology
from planner.simulator.trace import Recorder, Trace

FEWER = 3
"""Unless coarse classes are so many times fewer than equitable ones, or once plays that failed have taken more than
these would have up to there, equitable ones are played."""
MOST_CLASSES = 512
"""Of layouts that fold to more classes of ranks averaged ones are played: replicas that are nearly alike as one."""


def simulate(
    cluster: Cluster,
    workload: Workload,
    strategy: Strategy,
    placement: Placement | None = None,
    *,
    profile: Profile | None = None,
    framework: Framework = OURS,
    fold: bool = True,
    trace: bool = False,
    jitter: float = 0.0,
    seed: int = 0,
) -> Simulation:
    """One step of `workload` under `strategy`. `fold=False` plays every rank, flow and repeat; `trace` keeps spans.

    `jitter` is the standard deviation of the GPUs' speeds: each computes exp(jitter x normal) times as long, drawn
    once for each rank by `seed`.

    >>> from cost_models import Model
    >>> cluster, model = Cluster.load("dgx-h100", nodes=2), Model.load("longvila-8b")
    >>> found = simulate(cluster, Workload(model, context_tokens=2**17), Strategy(ring=2, ulysses=8, shard=16))
    >>> found.classes, abs(sum(found.seconds.values()) - found.step_s) < 1e-9
    (1, True)
    """
    placement = placement or Placement.in_order(cluster, strategy.ranks)
    program, scale = played_program(cluster, workload, strategy, placement, profile, framework)
    device = cluster.runs[0].node.device
    if strategy.token_shares:
        of_ring = positions(cluster_costs(cluster, profile), workload, strategy, placement, framework)
        held, _ = fullest_position(of_ring)
        memory = memory_by_instance(held.device, held.sizes, program)
    else:
        memory = memory_by_instance(device, RankSizes(workload, strategy, framework.on(device)), program)
    if jitter:
        scale = scale * np.exp(jitter * np.random.default_rng(seed).standard_normal(strategy.ranks))
    costs = cluster_costs(cluster, profile)
    inside = costs.links(costs.runs(strategy.ranks, placement))
    return play(
        program, cluster, strategy, placement, rates=costs.rates, inside=inside,
        compute_scale=scale, memory=memory, fold=fold, trace=trace,
    )  # fmt: skip


def play(
    program: StepProgram,
    cluster: Cluster,
    strategy: Strategy,
    placement: Placement | None = None,
    *,
    rates: LinkRates | None = None,
    inside: Collectives | None = None,
    compute_scale: Floats | None = None,
    memory: Floats | None = None,
    fold: bool = True,
    trace: bool = False,
) -> Simulation:
    """Play `program` on links at `rates` (default: data sheets'), whose collectives inside a domain take `inside`'s
    latency (default: that of their hops).

    `compute_scale` (per rank) stretches computation. `memory` has a rank's bytes during each instance of a segment:
    those of one microbatch, then the epilogue's.
    """
    setup = set_up(program, cluster, strategy, placement, rates=rates, inside=inside, compute_scale=compute_scale)
    playback, jumps = played(setup, fold=fold, trace=trace)
    topology = setup.topology
    made = None
    if playback.recorder:
        made = Trace(
            spans=tuple(playback.recorder.spans),
            places=places(topology, playback.network.partition),
            arrows=tuple(playback.recorder.arrows),
            counters=(*link_counters(playback), *memory_counters(playback, topology, memory)),
        )
    found = result(playback, jumps, memory, made)
    if made is None:
        return found
    carried = playback.transfers.carried
    return replace(found, trace=replace(made, card_loads=card_loads(playback.network, topology, carried, found.step_s)))


class Setup(Struct, frozen=True, kw_only=True, eq=False):
    """A step and where it runs, before its ranks are put into classes."""

    script: Script
    topology: Topology
    patterns: list[Pattern]  # by use
    different: list[Pattern]  # of these, by more than how often a ring goes round
    scale: Floats  # (ranks,)

    def playback(self, partition: Partition) -> Playback:
        """All set up, nothing played."""
        folded = network(self.topology, partition, self.patterns)
        return Playback(self.script, folded, self.scale[partition.representative])


def set_up(
    program: StepProgram,
    cluster: Cluster,
    strategy: Strategy,
    placement: Placement | None = None,
    *,
    rates: LinkRates | None = None,
    inside: Collectives | None = None,
    compute_scale: Floats | None = None,
) -> Setup:
    """The script, links and patterns of a program on a placement; as `play` takes them."""
    placement = placement or Placement.in_order(cluster, strategy.ranks)
    placement.check(cluster, strategy.ranks)
    scale = np.ones(strategy.ranks) if compute_scale is None else np.asarray(compute_scale, dtype=np.float64)
    script = write_script(program, strategy)
    topology = Topology(cluster, placement, rates, inside)
    patterns, different = _patterns(topology, script, strategy)
    return Setup(script=script, topology=topology, patterns=patterns, different=different, scale=scale)


def played(setup: Setup, *, fold: bool = True, trace: bool = False) -> tuple[Playback, int]:
    """The playback at its end, and how often it jumped over repeats; without `fold` each rank is a class of its own.

    Coarse classes, where they are far fewer, are split where `proof.py` finds that they differ, and played anew. Of
    more than MOST_CLASSES, averaged ones are played instead.
    """
    about = setup.topology, setup.different
    enough = np.inf if trace else max(FEWER, 1) * MOST_CLASSES  # then they are not played
    fine = equitable(*about, setup.scale, enough) if fold else singletons(setup.topology.ranks)
    partition = coarse(*about, setup.scale) if fine.classes > 1 and fold else fine
    spent = 0  # rank classes times events of the plays that failed
    while True:
        if partition.classes * FEWER > fine.classes:
            partition = fine
        if partition.classes > MOST_CLASSES and fold and not trace:
            partition = averaged(*about, setup.scale)
        playback, forward = setup.playback(partition), FastForward()
        playback.recorder = Recorder(playback.network) if trace else None
        try:
            playback.play(forward if fold and not trace else None)
            break
        except Unlike as unlike:
            variants = playback.network.variants
            assert variants is not None
            partition = split(*about, partition, variants.ranks(unlike.kinds))
            spent += playback.network.partition.classes * playback.events
            if spent > fine.classes * playback.events:
                partition = fine
    return playback, forward.jumps


def _patterns(topology: Topology, script: Script, strategy: Strategy) -> tuple[list[Pattern], list[Pattern]]:
    """The pattern of each use, and those among them that differ by more than how often a ring goes round."""
    made: dict[tuple[str, str, int], Pattern] = {}
    uses = []
    for use in script.uses:
        op = "all_gather" if use.op in ("reduce_scatter", "all_reduce") else use.op
        key = use.axis, op, use.reach
        if key not in made:
            groups = rank_groups(strategy, use.axis)
            order = passing_order(strategy, use.axis) if op in ("chain", "tree") else ()
            made[key] = passed(topology, groups, op, order, use.reach) if order else pattern(topology, groups, op)
        uses.append(twice(made[key]) if use.op == "all_reduce" else made[key])
    return uses, list(made.values())
