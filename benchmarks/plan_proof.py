"""How good the planner's answers and bounds are on clusters that are broken in several places, by seed.

    python -m benchmarks.plan_proof broken [--seeds 0-37]     gaps of broken clusters, and what local search finds

Broken: 2 to 5 nodes like a DGX H100; 35% of them partly taken, 20% with cards of 40 to 200 Gbit/s, 20% with 1 to 5
cards missing; leaves of 1, 2 or 64 nodes at 1:1 to 4:1; LongVILA 8B or 1.5B, 32K to 128K tokens, batch 1 or 4. The
local search swaps ranks, blocks of ranks and free GPUs of the answer at random and prices each. CPU seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import numpy as np

from cost_models import Cluster, Model, Placement, Workload, price
from cost_models.hardware.cluster import NodeRun
from planner.solve import Choice, NothingFits, solve

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


def seeds_of(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("broken",))
    parser.add_argument("--seeds", default="0-37", metavar="FIRST-LAST")
    parser.add_argument("--swaps", type=int, default=SWAPS, help="random exchanges tried for each of the best three")
    asked = parser.parse_args()
    report_broken(seeds_of(asked.seeds), asked.swaps)


if __name__ == "__main__":
    main()
