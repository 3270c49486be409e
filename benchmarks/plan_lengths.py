"""How long a batch of documents takes to be dealt to 256 GPUs, and how far that is from the bound.

    python benchmarks/plan_lengths.py [--gpus 256] [--ctx 128K] [--tokens 4M] [--batches 5]

Published histograms of lengths; the table of a cluster (`planner/lengths/group_costs.py`) is made once. Timed is what
a run would do for each batch: groups of any size, the one layout that is best for the first batch, and the bound. Best
of the batches' CPU times and median of their gaps. Left out: reading the file and drawing batches.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from cost_models import Cluster, Model, Workload
from cost_models.room import DEFAULT_ROOM
from cost_models.units import parse_tokens
from planner.lengths.dealing import Batch, best_dynamic
from planner.lengths.group_costs import group_costs
from planner.lengths.histogram import Histogram
from planner.lengths.verdict import dealt_best, layouts

FILES = sorted((Path(__file__).parents[1] / "measurements").glob("lengths_*.csv"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gpus", type=int, default=256)
    parser.add_argument("--ctx", default="128K")
    parser.add_argument("--tokens", default="4M")
    parser.add_argument("--batches", type=int, default=5)
    given = parser.parse_args()
    limit, tokens = parse_tokens(given.ctx), parse_tokens(given.tokens, "--tokens")
    cluster = Cluster.load("dgx-h100", gpus=given.gpus)
    costs = group_costs(cluster, Workload(Model.load("longvila-8b"), context_tokens=limit), limit, DEFAULT_ROOM)
    print(f"{given.gpus} GPUs, documents of at most {given.ctx}, steps of {given.tokens} tokens")
    print(f"{'histogram':24}{'documents':>10}{'CPU ms':>8}{'step s':>9}{'groups s':>10}{'bound s':>9}{'gap':>8}")
    for path in FILES:
        drawn = [Histogram.load(path).draw(tokens, limit, seed) for seed in range(given.batches)]
        (_, policy, shape), *_ = layouts(Batch.of(drawn[0], costs), {})
        took, gaps = [], []
        for lengths in drawn:
            began = time.process_time()
            batch = Batch.of(lengths, costs)
            groups, layout = best_dynamic(batch), dealt_best(batch, policy, shape)
            bound = batch.bound_s
            took.append(time.process_time() - began)
            best = min(one.step_s for one in (groups, layout) if one is not None)
            gaps.append(1 - bound / best)
        free = "-" if groups is None else f"{groups.step_s:.3f}"
        name = path.stem.removeprefix("lengths_")
        gap = statistics.median(gaps)
        print(f"{name:24}{len(lengths):10}{min(took) * 1e3:8.1f}{best:9.3f}{free:>10}{bound:9.3f}{gap:8.1%}")


if __name__ == "__main__":
    main()
