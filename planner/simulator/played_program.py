"""The step as it is played: `step_program` at the pace of the slowest device, and each rank's computation over that.

What hidden collectives take from the computation and the CPU's update of states are in it, by where the ranks run. A
device that is slower than another one is so by one factor, its compute seconds over the slowest's. Of a ring of unequal
blocks every rank computes what the slowest does in each phase, as in `price`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cost_models.framework import OURS, Framework
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.device import Device
from cost_models.hardware.placement import Placement
from cost_models.layer.sizes import RankSizes
from cost_models.memory.over_time import over_time
from cost_models.pricing import overlap_cost, sharding_s
from cost_models.profile import Profile
from cost_models.program import Compute, Ring, Segment, Staged, StepProgram
from cost_models.step.assembly import step_program
from cost_models.step.unequal import positions, slowest
from cost_models.strategy import Strategy
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.timing.paths import Paths
from cost_models.workload import Workload
from planner.search.space import check_plannable
from planner.simulator.streams import instances
from planner.simulator.topology import Floats


def played_program(
    cluster: Cluster,
    workload: Workload,
    strategy: Strategy,
    placement: Placement,
    profile: Profile | None,
    framework: Framework = OURS,
) -> tuple[StepProgram, Floats]:
    """The step at the slowest device's pace, and for each rank its computation over that."""
    check_plannable(workload.model)
    strategy.check(workload.model)
    placement.check(cluster, strategy.ranks)
    costs = cluster_costs(cluster, profile)
    runs, paths = costs.runs(strategy.ranks, placement), costs.paths(strategy, placement)
    if strategy.token_shares:
        several = positions(costs, workload, strategy, placement, framework)
        program = slowest([one.program() for one in several])
        return _shared(_updated(program, paths), paths), paths.pace * np.ones(strategy.ranks)
    shape, ranges = RankSizes(workload, strategy, framework), strategy.layer_ranges(workload.model.layers)
    attention = framework.measured_attention(workload)
    program = step_program(shape, costs.kernels(runs, attention), ranges)
    factor, devices = np.ones(len(cluster.runs)), costs.devices(runs)
    first = [devices.index(device) for device in devices]  # run with the same device, by run in use
    if len(set(first)) > 1:
        seconds = {i: compute_s(step_program(shape, costs.kernels((runs[i],), attention), ranges)) for i in set(first)}
        factor[list(runs)] = [seconds[i] / compute_s(program) for i in first]
    played = _shared(_updated(program, paths), paths)
    return played, paths.pace * factor[cluster.run_of_slot[placement.slot_of_rank]]


def _shared(program: StepProgram, paths: Paths) -> StepProgram:
    """With what hidden collectives take from the computation by where they run."""

    def shared(segment: Segment) -> Segment:
        last = None if segment.last is None else shared(segment.last)
        return segment._replace(overlap_cost=float(overlap_cost(segment, paths, sharding_s(segment, paths))), last=last)

    return replace(program, microbatch=tuple(map(shared, program.microbatch)))


def _updated(program: StepProgram, paths: Paths) -> StepProgram:
    """With the CPU's update of states in host memory, if there is one, in seconds, which no slow board stretches."""

    def updated(segment: Segment) -> Segment:
        if not segment.host_update_bytes:
            return segment
        rate = paths.host_memory_bytes_per_s * float(paths.pace)
        host = Compute(part="optimizer", seconds=segment.host_update_bytes / rate)
        return segment._replace(phases=(host, *segment.phases))

    return replace(program, epilogue=tuple(map(updated, program.epilogue)))


def compute_s(program: StepProgram) -> float:
    """Seconds that one rank computes in a step."""
    total = 0.0
    for segment, times in program.segments():
        for phase in segment.phases:
            if isinstance(phase, Compute):
                total += float(phase.seconds * times)
            elif isinstance(phase, Ring):
                total += float((phase.first_s + (phase.pieces - 1) * phase.piece_s) * times)
            elif isinstance(phase, Staged):
                total += float(phase.blocks * phase.seconds * times)
    return total


def memory_by_instance(device: Device, sizes: RankSizes, program: StepProgram) -> Floats:
    """Bytes of a rank while each instance of a microbatch's segments runs, then each of the epilogue's."""
    ranges = sizes.degrees.layer_ranges(sizes.workload.model.layers)
    segments = (*program.microbatch, *program.epilogue)
    found = []
    ends = over_time(sizes, ranges, program, device)
    for segment, (first, last) in zip(segments, ends, strict=True):
        found.append(np.linspace(first, last, instances(segment)))
    return np.concatenate(found)
