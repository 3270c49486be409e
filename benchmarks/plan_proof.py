"""How good the planner's answers and bounds are on clusters that are broken in several places, by seed.

    python -m benchmarks.plan_proof broken [--seeds 0-37]     gaps of broken clusters, and what local search finds
    python -m benchmarks.plan_proof exact --seeds 0-499       answers against an enumeration by GPU
    python -m benchmarks.plan_proof monotone --seeds 0-999    never worse with a faster link, more memory, a node more
    python -m benchmarks.plan_proof prices --seeds 0-9999     no price of a layout rises with something faster

Broken: 2 to 5 nodes like a DGX H100; 35% of them partly taken, 20% with cards of 40 to 200 Gbit/s, 20% with 1 to 5
cards missing; leaves of 1, 2 or 64 nodes at 1:1 to 4:1; LongVILA 8B or 1.5B, 32K to 128K tokens, batch 1 or 4. The
local search swaps ranks, blocks of ranks and free GPUs of the answer at random and prices each. CPU seconds.

Exact: 2 to 8 GPUs that prices tell apart (PCIe trees, bridged pairs, two clocks, two links, slow, missing or unlike
cards), and every fifth seed 9 or 10 GPUs that they do not; `tests/planner/brute_force.py` shares no code with the
planner and lists placements by GPU. Monotone: one change of such a cluster for the better, or its slots renumbered.
Prices: four changes of each random question of `tests/cost_models/mixed.py`, layout and placement as they were.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from dataclasses import replace

import numpy as np

from cost_models import Cluster, Model, Placement, Workload, price
from cost_models.hardware.cluster import NodeRun
from cost_models.room import DEFAULT_ROOM
from planner.solve import Choice, NothingFits, solve
from planner.targets.target import MMSP
from tests.cost_models.mixed import Draw
from tests.planner import brute_force

SWAPS = 900
GBIT = 1e9 / 8


def broken(seed: int) -> tuple[Cluster, Workload]:
    """A cluster broken in several places, and a question."""
    rng = np.random.default_rng(seed)
    base = Cluster.load("dgx-h100", nodes=1)
    runs = []
    for _ in range(int(rng.integers(2, 6))):
        node = base.node(0)
        if rng.random() < 0.35:
            node = replace(node, gpus=int(rng.integers(1, 8)))
        if rng.random() < 0.2:
            node = replace(node, nics=replace(node.nics, bytes_per_s=float(rng.choice([40, 100, 200])) * GBIT))
        if rng.random() < 0.2:
            lost = rng.choice(8, int(rng.integers(1, 6)), replace=False)
            node = replace(node, missing_nics=tuple(sorted(map(int, lost))))
        runs.append(NodeRun(count=1, node=node))
    leaf, oversubscription = int(rng.choice([1, 2, 64])), float(rng.choice([1, 1.5, 2, 4]))
    fabric = replace(base.fabric, nodes_per_leaf=leaf, oversubscription=oversubscription)
    model = Model.load(str(rng.choice(["longvila-8b", "longvila-1.5b"])))
    work = Workload(model, context_tokens=2 ** int(rng.integers(15, 18)), global_batch=int(rng.choice([1, 4])))
    return replace(base, name=f"broken-{seed}", runs=tuple(runs), fabric=fabric), work


def shuffled(cluster: Cluster, choice: Choice, rng: np.random.Generator) -> Placement:
    """The placement with two ranks, two blocks of ranks, or a rank and a free GPU exchanged."""
    slots, gpus = choice.placement.slot_of_rank.copy(), choice.placement.gpu_of_rank.copy()
    free = [(s, g) for s in range(cluster.slots) for g in range(cluster.node(s).gpus)]
    free = sorted(set(free) - set(zip(slots.tolist(), gpus.tolist(), strict=True)))
    one = choice.strategy
    kind, block = int(rng.integers(3)), int(rng.choice([1, one.ulysses, one.context]))
    if kind == 2 and free:
        rank = int(rng.integers(one.ranks))
        slots[rank], gpus[rank] = free[int(rng.integers(len(free)))]
    else:
        size = block if kind else 1
        first, second = (int(at) * size for at in rng.integers(one.ranks // size, size=2))
        a, b = np.arange(first, first + size), np.arange(second, second + size)
        for of in (slots, gpus):
            of[np.concatenate([a, b])] = of[np.concatenate([b, a])]
    return Placement(slot_of_rank=slots, gpu_of_rank=gpus)


def found_by_swaps(cluster: Cluster, work: Workload, choice: Choice, swaps: int, seed: int) -> float:
    """The least seconds that a random local search comes to."""
    rng, best = np.random.default_rng(seed), choice
    for _ in range(swaps):
        placement = shuffled(cluster, best, rng)
        cost = price(cluster, work, choice.strategy, placement)
        if cost.fits and cost.step_s < best.cost.step_s:
            best = Choice(strategy=choice.strategy, placement=placement, cost=cost)
    return best.cost.step_s


def report_broken(seeds: range, swaps: int) -> None:
    gaps, gains = [], []
    print(f"{'seed':>4} {'nodes':<24} {'gap':>7} {'swaps find':>10} {'CPU s':>6}  answer")
    for seed in seeds:
        cluster, work = broken(seed)
        began = time.process_time()
        try:
            found = solve(cluster, work)
        except NothingFits:
            print(f"{seed:>4} nothing fits", flush=True)
            continue
        took, best = time.process_time() - began, found.best[0].cost.step_s
        least = min([best, *(found_by_swaps(cluster, work, one, swaps, seed) for one in found.best[:3] if swaps)])
        gaps.append(found.gap)
        gains.append(1 - least / best)
        nodes = ",".join(str(run.node.gpus) for run in cluster.runs)
        print(f"{seed:>4} {nodes:<24} {found.gap:>7.2%} {gains[-1]:>10.2%} {took:>6.2f}  "
              f"{found.best[0].strategy.describe()}", flush=True)  # fmt: skip
    print(f"gap: median {statistics.median(gaps):.2%}, worst {max(gaps):.2%}; swaps find up to {max(gains):.2%}")


TINY = Model(name="tiny", layers=2, hidden=1024, ffn=2048, heads=6, kv_heads=2, head_dim=64, vocab=512)


def small(seed: int, most: int = 8) -> tuple[Cluster, Workload]:
    """A cluster of at most so many GPUs, each its own, or (every fifth seed) of 9 or 10 that are alike by node."""
    rng, of_cards = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    base = Cluster.load("dgx-h100", nodes=1)
    alike, runs, left = seed % 5 == 4, [], int(rng.integers(2, most + 1))
    if alike:
        left = int(rng.integers(9, 11))
    pcie = Cluster.load("a100-pcie-pairs", gpus=8).node(0).scale_up
    while left:
        gpus = left if alike and len(runs) == 1 else min(left, int(rng.integers(1, 9 if alike else 5)))
        node = replace(base.node(0), gpus=gpus, nics=replace(base.node(0).nics, count=1 if alike else 4))
        if not alike:
            fault = int(rng.integers(6))
            if fault == 0:
                kind = "pairs" if rng.random() < 0.5 else "pcie"
                node = replace(node, scale_up=replace(pcie, kind=kind, gpus_per_switch=2, cross_bytes_per_s=12e9))
            if fault == 1:
                node = replace(node, device=node.device.at_clock(float(rng.choice([0.9e9, 1.4e9]))))
            if fault == 2:
                node = replace(node, scale_up=replace(node.scale_up, link="xgmi-mi300x", bytes_per_s=110e9))
            if fault == 3:
                node = replace(node, missing_nics=(int(rng.integers(4)),))
            if fault == 4:
                node = replace(node, nics=replace(node.nics, bytes_per_s=float(rng.choice([1e9, 5e9]))))
            if fault == 5:
                node = replace(node, nic_shares=tuple(of_cards.choice([1, 0.3, 0.1], 4).tolist()))
        runs.append(NodeRun(count=1, node=node))
        left -= gpus
    model = replace(TINY, kv_heads=int(rng.choice([2, 6])), layer_kinds=())
    work = Workload(model, context_tokens=int(rng.choice([10_007, 2**14, 2**16])), global_batch=int(rng.choice([1, 2])))
    fabric = replace(base.fabric, nodes_per_leaf=int(rng.choice([1, 64])), oversubscription=float(rng.choice([1, 2])))
    return replace(base, name=f"small-{seed}", runs=tuple(runs), fabric=fabric), work


def optimum(cluster: Cluster, work: Workload) -> float | None:
    """`brute_force.best_value` where no price tells the GPUs of a node apart: ranks are listed by node."""
    best, listed = None, {}
    mixes = [tuple(mix) for mix in brute_force.layer_mixes(work.model)]
    for strategy in brute_force.strategies(cluster, work):
        if strategy.ranks not in listed:
            listed[strategy.ranks] = by_node(cluster, strategy.ranks)
        for placement in brute_force.distinct_placements(cluster, strategy, *listed[strategy.ranks]):
            costs = (price(cluster, work, replace(strategy, layers=mix), placement) for mix in mixes)
            first = next((cost.step_s for cost in costs if DEFAULT_ROOM.holds(cost)), None)
            best = first if best is None or (first is not None and first < best) else best
    return best


def by_node(cluster: Cluster, ranks: int) -> tuple[np.ndarray, np.ndarray]:
    """Slots and GPUs of every choice of which ranks each node has; shapes (placements, ranks)."""
    rows = [np.full(ranks, -1)]
    for slot in range(cluster.slots):
        longer = []
        later = sum(cluster.node(other).gpus for other in range(slot + 1, cluster.slots))
        for row in rows:
            open_to = np.flatnonzero(row < 0).tolist()
            for count in range(max(0, len(open_to) - later), min(len(open_to), cluster.node(slot).gpus) + 1):
                for mine in itertools.combinations(open_to, count):
                    longer.append(row.copy())
                    longer[-1][list(mine)] = slot
        rows = longer
    slots = np.array(rows)
    gpus = np.zeros_like(slots)
    for slot in range(cluster.slots):
        here = slots == slot
        gpus[here] = (np.cumsum(here, axis=1) - 1)[here]
    return slots, gpus


def exact(seed: int, most: int = 8) -> tuple[float, float, float]:
    """(answer, optimum by enumeration, bound), seconds, without levers of memory; infinite where nothing fits."""
    cluster, work = small(seed, most)
    expected = optimum(cluster, work) if seed % 5 == 4 else brute_force.best_value(cluster, work)
    try:
        found = solve(cluster, work, target=replace(MMSP, levers=()))
    except NothingFits:
        return np.inf, np.inf if expected is None else expected, np.inf
    return found.best[0].cost.step_s, np.inf if expected is None else expected, found.bound


def improved(cluster: Cluster, rng: np.random.Generator) -> tuple[Cluster, str]:
    """The cluster with one change after which no optimum may be worse."""
    at, what = int(rng.integers(len(cluster.runs))), int(rng.integers(4))
    run = cluster.runs[at]
    runs = list(cluster.runs)
    if what == 0:
        nics = replace(run.node.nics, bytes_per_s=run.node.nics.bytes_per_s * 2)
        runs[at] = replace(run, node=replace(run.node, nics=nics))
    elif what == 1:
        memory = int(run.node.device.memory_bytes * 1.2)
        runs[at] = replace(run, node=replace(run.node, device=replace(run.node.device, memory_bytes=memory)))
    elif what == 2:
        runs.append(NodeRun(count=1, node=run.node))
    else:
        runs = [runs[i] for i in rng.permutation(len(runs))]
    names = ("a faster card", "more memory", "one more node", "other slots")
    fabric = replace(cluster.fabric, nodes_per_leaf=64)
    return replace(cluster, runs=tuple(runs), fabric=fabric), names[what]


def monotone(seed: int, most: int = 8) -> tuple[float, float, str]:
    """(seconds before, seconds after, what changed for the better)."""
    cluster, work = small(seed, most)
    cluster = replace(cluster, fabric=replace(cluster.fabric, nodes_per_leaf=64))
    better, what = improved(cluster, np.random.default_rng(seed))
    return solve(cluster, work).best[0].cost.step_s, solve(better, work).best[0].cost.step_s, what


def dearer(seed: int) -> list[str]:
    """What a price of this seed's question rises with, although it is for the better."""
    draw, found = Draw(seed), []
    cluster, question, before = draw.question()
    for _ in range(4):
        what, better = draw.better(cluster)
        after = question.step_s(better)
        if after > before * (1 + 1e-9):
            found.append(f"seed {seed}: {what}: {before:.6g} -> {after:.6g} s ({after / before - 1:.2%} dearer)")
    return found


def report_prices(seeds: range) -> None:
    found = 0
    for done, seed in enumerate(seeds, start=1):
        for words in dearer(seed):
            found += 1
            print(words, flush=True)
        if done % 500 == 0:
            print(f"{done} of {len(seeds)}: {found} of {4 * done} dearer", flush=True)
    print(f"{len(seeds)} questions, {4 * len(seeds)} changes: {found} dearer")


def report_exact(seeds: range) -> None:
    missed, invalid = [], []
    for done, seed in enumerate(seeds, start=1):
        answer, optimum, bound = exact(seed)
        if answer > optimum * (1 + 1e-12):
            missed.append(answer / optimum - 1)
            print(f"seed {seed}: {answer:.6g} s, optimum {optimum:.6g} s ({missed[-1]:.2%} above)", flush=True)
        if bound > optimum * (1 + 1e-12):
            invalid.append(seed)
            print(f"seed {seed}: bound {bound:.6g} s above the optimum of {optimum:.6g} s", flush=True)
        if done % 10 == 0:
            print(f"{done} of {len(seeds)}: {len(missed)} missed, {len(invalid)} bounds too high", flush=True)
    print(f"{len(seeds)} instances: {len(missed)} answers above the optimum, {len(invalid)} bounds above it")


def report_monotone(seeds: range) -> None:
    worse = 0
    for done, seed in enumerate(seeds, start=1):
        before, after, what = monotone(seed)
        if after > before * (1 + 1e-9):
            worse += 1
            print(f"seed {seed}: {what}: {before:.6g} -> {after:.6g} s ({after / before - 1:.2%} worse)", flush=True)
        if done % 50 == 0:
            print(f"{done} of {len(seeds)}: {worse} worse", flush=True)
    print(f"{len(seeds)} trials: {worse} worse")


def seeds_of(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("broken", "exact", "monotone", "prices"))
    parser.add_argument("--seeds", default="0-37", metavar="FIRST-LAST")
    parser.add_argument("--swaps", type=int, default=SWAPS, help="random exchanges tried for each of the best three")
    asked = parser.parse_args()
    seeds = seeds_of(asked.seeds)
    if asked.what == "broken":
        report_broken(seeds, asked.swaps)
    else:
        {"exact": report_exact, "monotone": report_monotone, "prices": report_prices}[asked.what](seeds)


if __name__ == "__main__":
    main()
