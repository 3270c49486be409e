"""Whether the planner finds the fastest layout of attention on real, slow links: every legal layout is run and timed.

    python -m benchmarks.emulated_cluster --nodes 2 --ranks-per-node 2 --rate-mbit 50 --kv-heads 8 --seq 2048

Nodes are network namespaces with shaped links (`benchmarks/namespaces.py`; needs root), ranks are gloo processes of
one thread in them. In these nodes kernels, links inside a node and links between nodes are profiled; `plan` chooses a
layout for a model of one layer whose attention is the operator; then every (ulysses, ring, order) runs forward and
backward in interleaved rounds. Printed for each: measured median, price and simulation of the same operator; then the
rank of the planner's choice and its regret, choice / best - 1, with a bootstrap interval over the rounds.

The nodes share this machine's cores, so kernels are profiled with all ranks at once. `--rate-mbit 50,200` gives nodes
different rates: these are measured pair by pair, and a node's card is its best pair. Sixteen regimes in one command
are `benchmarks.emulated_table`. Left out: host time of a step and matrix products (the operator has none), packed rows,
latency of the links.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from benchmarks.attention_ranks import PATH, Grid, Measured, Shape, profile_cluster, time_layouts
from benchmarks.attention_ranks import measured as measured_of
from benchmarks.gloo_ranks import check_ranges, printed, run_ranks
from benchmarks.namespaces import Namespaces
from cost_models import Cluster, Model, Placement, Profile, Strategy, Workload
from cost_models.errors import InputError
from cost_models.framework import OURS
from cost_models.hardware.cluster import Fabric, NodeRun
from cost_models.hardware.device import Device
from cost_models.hardware.machine import cores
from cost_models.hardware.node import Nics, Node, ScaleUp
from cost_models.layer.attention import attention_operators
from cost_models.layer.decoder import phases
from cost_models.layer.operators import Operator
from cost_models.layer.sizes import RankSizes
from cost_models.pricing import fold
from cost_models.profile import VERSION
from cost_models.program import Exchange, Segment, StepProgram
from cost_models.timing.cluster_costs import ClusterCosts, cluster_costs
from cost_models.workload import Precision
from executor.measure.bench import Order
from planner import Plan, plan
from planner.simulator.simulation import play

FP32 = Precision(param="fp32")
WIDTH = 16
"""Of the planned model beside its attention: so little that its weights, too, cross the links in no time."""
RESAMPLED = 4000
Signature = tuple[object, ...]


@dataclass(frozen=True, kw_only=True)
class Asked:
    nodes: int
    ranks_per_node: int
    rates_mbit: tuple[float, ...]
    shape: Shape
    rounds: int
    window_s: float = 0.05  # of the profile, as `executor profile`
    windows: int = 5

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def alike(self) -> bool:
        return len(set(self.rates_mbit)) == 1

    def node_of(self, process: int) -> int:
        return process // self.ranks_per_node


@dataclass(frozen=True, kw_only=True)
class Row:
    """One layout: milliseconds."""

    grid: Grid
    measured_ms: tuple[float, ...]  # by round
    sent_mb: float  # of a run, over all nodes' links
    priced_ms: float
    simulated_ms: float

    @property
    def median_ms(self) -> float:
        return float(np.median(self.measured_ms))


def grids(asked: Asked) -> list[Grid]:
    """Every (ulysses, ring, order) of all ranks; orders that no link can tell apart once."""
    found: dict[Signature, Grid] = {}
    for ulysses in range(1, min(asked.ranks, asked.shape.q_heads) + 1):
        ring, left = divmod(asked.ranks, ulysses)
        if left:
            continue
        numbers = np.arange(asked.ranks)
        for inner, order in (
            ("ulysses", numbers.reshape(ring, ulysses)),
            ("ring", numbers.reshape(ulysses, ring).T),
        ):
            name = f"ulysses {ulysses} × ring {ring}" + (f", {inner} inside" if min(ulysses, ring) > 1 else "")
            grid = Grid(name=name, process=tuple(map(tuple, order.tolist())))
            found.setdefault(signature(grid, asked), grid)
    return list(found.values())


def signature(grid: Grid, asked: Asked) -> Signature:
    """The same for grids that differ by names of alike nodes, of ring positions or of ulysses positions alone."""
    names = permutations(range(asked.nodes)) if asked.alike else [tuple(range(asked.nodes))]
    nodes = [[asked.node_of(process) for process in row] for row in grid.process]
    forms = []
    for name in names:
        rows = [[name[node] for node in row] for row in nodes]
        columns = [list(column) for column in zip(*rows, strict=True)]
        turned = sorted(min(tuple(one[at:] + one[:at]) for at in range(len(one))) for one in columns)
        forms.append((grid.ring, sorted(tuple(sorted(row)) for row in rows), turned))
    best = min(forms)
    return (best[0], tuple(best[1]), tuple(best[2]))


def cluster_of(asked: Asked, measured: Measured) -> Cluster:
    """The emulated nodes as the planner reads them, with cards at the rates that were measured."""
    cpu = Device.load("cpu")
    share = cores() / asked.ranks
    device = replace(
        cpu,
        memory_bytes=2**34 // asked.ranks,
        memory_bytes_per_s=cpu.memory_bytes_per_s / asked.ranks,
        peak_flops={dtype: flops * share for dtype, flops in cpu.peak_flops.items()},
    )
    runs = []
    for rate, latency_s in measured.cards:
        card = Nics(count=1, bytes_per_s=1e9, latency_s=latency_s, kind="ethernet", gpudirect=False)
        card = replace(card, bytes_per_s=rate * card.bytes_per_s / card.reached_bytes_per_s)
        node = Node(
            device=device,
            gpus=asked.ranks_per_node,
            scale_up=ScaleUp(kind="memory", link=PATH, bytes_per_s=1e9, latency_s=1e-4),
            nics=card,
            host_memory_bytes=2**34,
            host_link_bytes_per_s=5e9,
        )
        runs.append(NodeRun(count=1, node=node))
    if asked.alike:
        runs = [replace(runs[0], count=asked.nodes)]
    return Cluster(name="emulated", runs=tuple(runs), fabric=Fabric(nodes_per_leaf=asked.nodes))


def workload_of(shape: Shape) -> Workload:
    """One layer that is attention, and nearly nothing else."""
    model = Model(
        name="attention", layers=1, hidden=WIDTH, ffn=WIDTH, vocab=WIDTH,
        heads=shape.q_heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim,
    )  # fmt: skip
    return Workload(model, context_tokens=shape.tokens, precision=FP32)


def operators_s(
    costs: ClusterCosts, sizes: RankSizes, table: Iterable[Operator], placement: Placement
) -> tuple[float, float]:
    """(priced, simulated) seconds of these operators alone: exchanges, rings and copies, forward and backward."""
    strategy = sizes.degrees
    kernels = costs.kernels(costs.runs(strategy.ranks, placement), OURS.measured_attention(sizes.workload))
    table, passes = tuple(table), (("forward", False), ("backward", True))
    segments = tuple(Segment(name=name, phases=phases(sizes, kernels, table, grad=grad)) for name, grad in passes)
    program = StepProgram(microbatch=segments, epilogue=(), microbatches=1)
    priced_s = sum(map(float, fold(program, costs.paths(strategy, placement)).seconds.values()))
    return priced_s, play(program, costs.cluster, strategy, placement, rates=costs.rates).step_s


def placed(grid: Grid, each: int) -> Placement:
    """The processes of a grid on nodes of so many."""
    process = np.array(grid.process).reshape(-1)
    return Placement(slot_of_rank=process // each, gpu_of_rank=process % each)


def attention_s(costs: ClusterCosts, work: Workload, grid: Grid) -> tuple[float, float]:
    """(priced, simulated) seconds of attention alone."""
    sizes = RankSizes(work, Strategy(ring=grid.ring, ulysses=grid.ulysses))
    table = (
        one
        for one in attention_operators(sizes)
        if one.attends or any(isinstance(sent, Exchange) and sent.axis == "ulysses" for sent in one.exchanges[0])
    )
    return operators_s(costs, sizes, table, placed(grid, costs.cluster.runs[0].node.gpus))


def planned(cluster: Cluster, work: Workload, profile: Profile, ranks: int) -> tuple[Plan, bool]:
    """The plan for all ranks, and whether the planner uses all of them of its own accord."""
    fixed: dict[str, object] = {"data": 1, "shard": 1, "zero": 0, "recompute": "none", "ring_kind": "zigzag"}
    free = plan(cluster, work, fixed=fixed, profile=profile)
    if free.strategy.ranks == ranks:
        return free, True
    every = [ulysses for ulysses in range(1, work.model.heads + 1) if ranks % ulysses == 0]
    pinned = [
        plan(cluster, work, fixed={**fixed, "ulysses": one, "ring": ranks // one}, profile=profile) for one in every
    ]
    return min(pinned, key=lambda one: one.simulated.step_s), False


def grid_of(chosen: Plan, each: int) -> Grid:
    """The processes of a plan's ranks."""
    process = chosen.placement.slot_of_rank * each + chosen.placement.gpu_of_rank
    rows = process.reshape(chosen.strategy.ring, chosen.strategy.ulysses).tolist()
    name = f"ulysses {chosen.strategy.ulysses} × ring {chosen.strategy.ring}, as planned"
    return Grid(name=name, process=tuple(map(tuple, rows)))


def regret(rows: Sequence[Row], chosen: int) -> tuple[float, float, float]:
    """(choice / best - 1, and its 95% interval): medians over the rounds, and over rounds drawn again."""
    times = np.array([row.measured_ms for row in rows])
    drawn = np.random.default_rng(0).integers(times.shape[1], size=(RESAMPLED, times.shape[1]))
    medians = np.median(times[:, drawn], axis=2)
    again = medians[chosen] / medians.min(axis=0) - 1
    middle = np.median(times, axis=1)
    low, high = np.percentile(again, [2.5, 97.5])
    return float(middle[chosen] / middle.min() - 1), float(low), float(high)


def run(asked: Asked) -> tuple[list[Row], int, bool]:
    """(all layouts, which of them the planner chose, whether it wanted all ranks)."""
    shape = asked.shape
    with Namespaces(asked.rates_mbit) as nodes:
        homes = [nodes.names[asked.node_of(rank)] for rank in range(asked.ranks)]
        every = grids(asked)
        order = Order(
            window_s=asked.window_s, windows=asked.windows, loads=(asked.ranks,), cores=cores(), path=PATH, cuda=False
        )
        measured = run_ranks(profile_cluster, (asked.nodes, _blocks(shape, every), order, asked.alike), homes)[0]
        profile = Profile(version=VERSION, device="cpu", machine="emulated cluster", samples=measured.samples)
        cluster, work = cluster_of(asked, measured), workload_of(shape)
        chosen, all_ranks = planned(cluster, work, profile, asked.ranks)
        own = grid_of(chosen, asked.ranks_per_node)
        known = [signature(grid, asked) for grid in every]
        if signature(own, asked) not in known:
            every.append(own)
            known.append(signature(own, asked))
        timed = run_ranks(time_layouts, (shape, every, asked.rounds), homes)
    costs = cluster_costs(cluster, profile)
    rows = []
    for index, grid in enumerate(every):
        times, sent_mb = measured_of(timed, index, asked.ranks_per_node)
        priced_s, simulated_s = attention_s(costs, work, grid)
        rows.append(
            Row(grid=grid, measured_ms=times, sent_mb=sent_mb, priced_ms=1e3 * priced_s, simulated_ms=1e3 * simulated_s)
        )
    return rows, known.index(signature(own, asked)), all_ranks


def _blocks(shape: Shape, every: Sequence[Grid]) -> list[tuple[int, int, int, int]]:
    """Of each layout the causal block of its ring, and a block of half the tokens."""
    found = set()
    for grid in every:
        heads, kv_heads = -(-shape.q_heads // grid.ulysses), -(-shape.kv_heads // grid.ulysses)
        block = -(-shape.tokens // grid.ring)
        heads = -(-heads // kv_heads) * kv_heads
        found |= {(max(1, tokens), heads, kv_heads, shape.head_dim) for tokens in (block, block // 2)}
    return sorted(found)


def report(rows: Sequence[Row], chosen: int, all_ranks: bool) -> str:
    """The table, the best layout first, and the planner's rank and regret."""
    order = sorted(range(len(rows)), key=lambda index: rows[index].median_ms)
    lines = [f"{'layout':<34}{'measured ms (quartiles)':>26}{'sent MB':>9}{'priced':>16}{'simulated':>16}"]
    for index in order:
        row = rows[index]
        low, high = np.percentile(row.measured_ms, [25, 75])
        predicted = "".join(
            f"{value:>9.0f} {value / row.median_ms - 1:>+6.0%}" for value in (row.priced_ms, row.simulated_ms)
        )
        spread = f"{row.median_ms:.0f} ({low:.0f}-{high:.0f})"
        mark = "  < planned" if index == chosen else ""
        lines.append(f"{row.grid.name:<34}{spread:>26}{row.sent_mb:>9.1f}{predicted}{mark}")
    lost, low, high = regret(rows, chosen)
    errors = [
        float(np.median([abs(value(row) / row.median_ms - 1) for row in rows]))
        for value in (lambda row: row.priced_ms, lambda row: row.simulated_ms)
    ]
    lines.append(
        f"planner's choice: {order.index(chosen) + 1} of {len(rows)}, regret {lost:.1%} "
        f"(95%: {low:.1%} to {high:.1%}); median error of the price {errors[0]:.0%}, of the simulation {errors[1]:.0%}"
    )
    if not all_ranks:
        lines.append("the planner would leave ranks idle; shown is its best layout of all ranks")
    return "\n".join(lines)


def as_data(rows: Sequence[Row], chosen: int, all_ranks: bool) -> dict[str, object]:
    lost, low, high = regret(rows, chosen)
    layouts = [
        {
            "layout": row.grid.name, "processes": row.grid.process, "measured_ms": row.measured_ms,
            "sent_mb": row.sent_mb, "priced_ms": row.priced_ms, "simulated_ms": row.simulated_ms,
        }
        for row in rows
    ]  # fmt: skip
    return {"layouts": layouts, "planned": chosen, "all_ranks": all_ranks, "regret": lost, "regret_95": [low, high]}


def parse(arguments: Sequence[str]) -> tuple[Asked, bool]:
    """What to run, and whether to print every round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2, help="2 to 4")
    parser.add_argument("--ranks-per-node", type=int, default=2, help="1 to 4")
    parser.add_argument("--rate-mbit", default="50", help="of every node's link, or one for each: 50,200")
    for name, value in (("q-heads", 8), ("kv-heads", 8), ("head-dim", 64), ("seq", 2048), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", action="store_true", help="every round's times")
    given = parser.parse_args(arguments)
    check_ranges(
        given, nodes=range(2, 5), ranks_per_node=range(1, 5), q_heads=range(1, 257),
        kv_heads=range(1, given.q_heads + 1), head_dim=range(1, 257), seq=range(1, 2**20 + 1), rounds=range(1, 1001),
    )  # fmt: skip
    if given.q_heads % given.kv_heads:
        raise InputError(f"--kv-heads {given.kv_heads} does not divide --q-heads {given.q_heads}; legal: a divisor")
    shape = Shape(q_heads=given.q_heads, kv_heads=given.kv_heads, head_dim=given.head_dim, tokens=given.seq)
    rates = _rates(given.rate_mbit, given.nodes)
    asked = Asked(
        nodes=given.nodes, ranks_per_node=given.ranks_per_node, rates_mbit=rates, shape=shape, rounds=given.rounds
    )
    return asked, given.json


def _rates(text: str, nodes: int) -> tuple[float, ...]:
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = ()
    if len(rates) not in (1, nodes) or not all(1 <= rate <= 1e5 for rate in rates):
        raise InputError(f"--rate-mbit {text}; legal: one number of 1 to 100000, or {nodes} with commas between")
    return rates * nodes if len(rates) == 1 else rates


def main(arguments: Sequence[str]) -> int:
    def told() -> str:
        asked, as_json = parse(arguments)
        found = run(asked)
        return json.dumps(as_data(*found), ensure_ascii=False) if as_json else report(*found)

    return printed("emulated_cluster", told)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
