"""How fast `price` and `price_batch` answer, without torch: one strategy at a time against all of them at once.

    python benchmarks/pricing.py [--strategies 20000] [--gpus 256] [--ctx-k 2048]

Distinct strategies (every data, ring, ulysses, shard and ZeRO stage, four recompute policies), shuffled by a fixed
seed; nothing is priced twice. Prints the median of one price, strategies per second both ways and their ratio; exits
with 1 above 1 ms for one or below 25,000 per second in a batch, or if the two disagree.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time

import numpy as np

from cost_models import Cluster, LayerRange, Model, Strategy, Workload, price, price_batch
from cost_models.strategy import Recompute
from planner.search.space import divisors

ONE_S, PER_SECOND = 1e-3, 25_000
POLICIES: tuple[Recompute, ...] = ("none", "mlp", "all_but_attention", "full")


def strategies(gpus: int, batch: int, heads: int, layers: int) -> list[Strategy]:
    """All layouts that use every GPU, times policies in up to two ranges of layers."""
    found = []
    for data in divisors(min(gpus, batch)):
        for ulysses in (part for part in divisors(gpus // data) if part <= heads):
            ring = gpus // data // ulysses
            for shard in divisors(gpus):
                for zero in (0,) if shard == 1 else (1, 2, 3):
                    for policy in POLICIES:
                        for count in range(0, layers, 4):
                            ranges = [LayerRange(recompute=policy, count=layers - count)]
                            ranges += [LayerRange(recompute="none", count=count)] if count else []
                            found.append(
                                Strategy(
                                    data=data, ring=ring, ulysses=ulysses, shard=shard, zero=zero,
                                    microbatches=batch // data, layers=tuple(ranges),
                                )
                            )  # fmt: skip
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", type=int, default=20_000)
    parser.add_argument("--gpus", type=int, default=256)
    parser.add_argument("--ctx-k", type=int, default=2048)
    asked = parser.parse_args()
    cluster, model = Cluster.load("dgx-h100", gpus=asked.gpus), Model.load("longvila-8b")
    work = Workload(model, context_tokens=asked.ctx_k * 1024, global_batch=8)
    every = strategies(asked.gpus, 8, model.heads, model.layers)
    random.Random(0).shuffle(every)
    every = every[: asked.strategies]
    alone = every[:1000]
    seconds, one_by_one = [], []
    for strategy in alone:
        start = time.perf_counter()
        one_by_one.append(price(cluster, work, strategy).step_s)
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    batch = price_batch(cluster, work, every)
    batch_s = time.perf_counter() - start
    worst = float(np.abs(batch.step_s[: len(alone)] / np.array(one_by_one) - 1).max())
    one_s, rate = statistics.median(seconds), len(every) / batch_s
    print(
        f"one by one  {len(alone):>6} strategies  median {one_s * 1e3:.3f} ms  {len(alone) / sum(seconds):>9,.0f} per s"
    )
    print(f"batch       {len(every):>6} strategies  {batch_s:.3f} s           {rate:>9,.0f} per s")
    print(f"ratio {rate * sum(seconds) / len(alone):.1f}; largest relative difference {worst:.1e}")
    print(f"torch imported: {'torch' in sys.modules}; targets: one at most 1 ms, batch at least {PER_SECOND:,} per s")
    return int(one_s > ONE_S or rate < PER_SECOND or worst > 1e-9 or "torch" in sys.modules)


if __name__ == "__main__":
    sys.exit(main())
