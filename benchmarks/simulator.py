"""The simulator's time, folded against unfolded, and that both say the same: `python benchmarks/simulator.py`.

One run prints, for growing clusters, the simulated step, its difference between folded and unfolded play (0 up to
rounding), events, classes and seconds of this machine's CPU (best of three folded, one unfolded, pricing included).
Where nodes are broken, also how many times as long the folded play takes as that of the whole cluster.
Unfolded play of the largest ones would take hours and is left out, as `--unfolded-up-to` says. The program is
LongVILA-8B's own step.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import replace

from cost_models.hardware.cluster import Cluster
from cost_models.models.model import Model
from cost_models.strategy import Strategy
from cost_models.workload import Workload
from planner.simulator.result import Simulation
from planner.simulator.simulation import simulate

CASES: tuple[tuple[str, int, Strategy, int], ...] = (
    ("whole", 2, Strategy(ring=2, ulysses=8, shard=16), 2**17),
    ("half-rate NICs in one node", 2, Strategy(ring=2, ulysses=8, shard=16), 2**17),
    ("whole, shard in the node", 8, Strategy(data=4, ring=2, ulysses=8, shard=16), 2**17),
    ("NIC missing in one node", 8, Strategy(data=4, ring=2, ulysses=8, shard=16), 2**17),
    ("whole", 32, Strategy(ring=32, ulysses=8, shard=256), 2**21),
    ("1% of nodes broken", 32, Strategy(ring=32, ulysses=8, shard=256), 2**21),
    ("whole, odd ring", 32, Strategy(ring=185, shard=185), 2**21),
    ("whole", 512, Strategy(data=16, ring=32, ulysses=8, shard=256), 2**21),
    ("1% of nodes broken", 512, Strategy(data=16, ring=32, ulysses=8, shard=256), 2**21),
    ("whole", 2048, Strategy(data=64, ring=32, ulysses=8, shard=256), 2**21),
    ("NIC missing in one node", 2048, Strategy(data=64, ring=32, ulysses=8, shard=256), 2**21),
    ("1% of nodes broken", 2048, Strategy(data=64, ring=32, ulysses=8, shard=256), 2**21),
    ("whole, one ring", 2048, Strategy(ring=2048, ulysses=8, shard=16384), 2**24),
    ("whole", 16384, Strategy(data=512, ring=32, ulysses=8, shard=256), 2**21),
    ("1% of nodes broken", 16384, Strategy(data=512, ring=32, ulysses=8, shard=256), 2**21),
)

BROKEN = ("1% of nodes broken", "NIC missing in one node")


def cluster(kind: str, nodes: int) -> Cluster:
    """DGX H100 nodes, one of them odd or 1% broken (a NIC missing, NICs at half or a quarter), if `kind` says so."""
    made = Cluster.load("dgx-h100", nodes=nodes)
    node = made.runs[0].node
    missing = replace(node, missing_nics=(3,))
    half, quarter = (replace(node, nics=replace(node.nics, bytes_per_s=node.nics.bytes_per_s * f)) for f in (0.5, 0.25))
    if kind.startswith("half"):
        return made.override({nodes // 2: half})
    if kind.startswith("NIC missing"):
        return made.override({nodes // 2: missing})
    if kind.startswith("1%"):
        draw = random.Random(1)
        broken = draw.sample(range(nodes), max(1, nodes // 100))
        return made.override({slot: draw.choice((missing, half, quarter)) for slot in broken})
    return made


def timed(play: Callable[[], Simulation], times: int) -> tuple[Simulation, float]:
    """The simulation and the best CPU time of `times`."""
    best = float("inf")
    for _ in range(times):
        began = time.process_time()
        found = play()
        best = min(best, time.process_time() - began)
    return found, best


def line(cells: tuple[str, ...]) -> str:
    return "".join(cell.rjust(width) for cell, width in zip(cells, (6, 13, 12, 9, 15, 18), strict=True)) + " "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unfolded-up-to", type=int, default=64, metavar="GPUS", help="default: 64")
    most = parser.parse_args().unfolded_up_to
    model = Model.load("longvila-8b")
    columns = ("GPUs", "step s", "difference", "classes", "events", "CPU ms")
    print(line(columns), "layout; cluster")
    whole: dict[int, float] = {}
    for kind, nodes, layout, tokens in CASES:
        where = cluster(kind, nodes)
        work = Workload(model, context_tokens=tokens, global_batch=layout.data)
        folded, folded_s = timed(lambda where=where, work=work, layout=layout: simulate(where, work, layout), 3)
        difference, events, seconds = "-", f"{folded.events}", f"{folded_s * 1e3:.1f}"
        if layout.ranks <= most:
            unfolded, unfolded_s = timed(
                lambda where=where, work=work, layout=layout: simulate(where, work, layout, fold=False), 1
            )
            difference = f"{abs(folded.step_s / unfolded.step_s - 1):.1e}"
            events += f" / {unfolded.events}"
            seconds += f" / {unfolded_s * 1e3:.1f}"
        cells = (str(layout.ranks), f"{folded.step_s:.6f}", difference, str(folded.classes), events, seconds)
        times = f", {folded_s / whole[layout.ranks]:.1f}x whole" if kind in BROKEN and layout.ranks in whole else ""
        if kind == "whole":
            whole[layout.ranks] = folded_s
        print(line(cells), f"{layout.describe()}; {kind}{times}", flush=True)
    print("events and CPU ms: folded / unfolded")


if __name__ == "__main__":
    main()
