"""How the planner grows with the cluster: CPU seconds, memory and gap of a whole plan, 256 to 131,072 GPUs.

    python -m benchmarks.plan_scaling [--gpus 256,4096,16384,131072] [-o scaling.html]

DGX H100, LongVILA-8B, 2M tokens, a row for each 256 GPUs; whole, and with 1% of nodes broken (a GPU or a card missing,
cards at half rate, seed 0) behind leaves at 2:1. `kinds` is 1,280 GPUs whose 160 nodes all have another clock. `mixed`
is 256 GPUs: H100 and A100 nodes, 3 of them partly taken, 5% of the cards at a quarter to three quarters. Every plan is
a process of its own. The last column is how much faster than the GPUs the CPU seconds grow, from the row above: 1 is as
fast. The page plots both; times hang on the machine, exponents hardly do.
In `kinds` and `mixed` rows have unequal shares, and the bound is over any.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cost_models import Cluster, Model, Workload
from cost_models.hardware.cluster import NodeRun
from planner.files import write_whole
from planner.page.page import Page, Section, Table
from planner.planning import plan
from planner.solve import solve

BROKEN = 0.01
HEAD = ("cluster", "GPUs", "batch", "search CPU s", "plan CPU s", "MiB", "gap", "growth")


def cluster_of(what: str, gpus: int) -> Cluster:
    whole = Cluster.load("dgx-h100", nodes=gpus // 8)
    node = whole.node(0)
    if what == "kinds":
        clocks = [1.83e9 - 1e6 * index for index in range(gpus // 8)]
        runs = tuple(NodeRun(count=1, node=replace(node, device=node.device.at_clock(clock))) for clock in clocks)
        return replace(whole, runs=runs)
    if what == "whole":
        return whole
    if what == "mixed":
        return mixed(gpus)
    rng, nodes = np.random.default_rng(0), gpus // 8
    half = replace(node.nics, bytes_per_s=node.nics.bytes_per_s / 2)
    faults = [replace(node, gpus=7), replace(node, missing_nics=(3,)), replace(node, nics=half)]
    bad = rng.choice(nodes, max(1, round(nodes * BROKEN)), replace=False)
    changed = whole.override({int(slot): faults[int(rng.integers(3))] for slot in bad})
    return replace(changed, fabric=replace(changed.fabric, oversubscription=2.0))


def mixed(gpus: int, seed: int = 0) -> Cluster:
    """Two GPU models, 3 nodes partly taken, 5% of the cards degraded."""
    rng, half = np.random.default_rng(seed), gpus // 16
    fast = Cluster.load("dgx-h100", nodes=half)
    several = [fast.node(0)] * half + [Cluster.load("dgx-a100", nodes=half).node(0)] * half
    for slot in rng.choice(2 * half, 3, replace=False).tolist():
        several[slot] = replace(several[slot], gpus=int(rng.integers(3, 8)))
    for card in rng.choice(gpus, round(0.05 * gpus), replace=False).tolist():
        slot, place = divmod(card, 8)
        shares = list(several[slot].nic_shares or (1.0,) * 8)
        shares[place] = float(rng.choice([0.25, 0.5, 0.75]))
        several[slot] = replace(several[slot], nic_shares=tuple(shares))
    return replace(fast, name="mixed", runs=tuple(NodeRun(count=1, node=node) for node in several))


def measure(what: str, gpus: int) -> dict[str, Any]:
    """One plan in this process."""
    cluster = cluster_of(what, gpus)
    work = Workload(Model.load("longvila-8b"), context_tokens=2**21, global_batch=max(1, gpus // 256))
    began = time.process_time()
    if what in ("whole", "broken"):  # a plan merges kinds first
        solve(cluster, work, near=True)
    searched = time.process_time()
    found = plan(cluster, work)
    whole = time.process_time() - searched
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "cluster": what, "GPUs": gpus, "batch": work.global_batch, "search CPU s": searched - began,
        "plan CPU s": whole, "MiB": kib / 1024, "gap": found.gap, "layout": found.strategy.describe(),
    }  # fmt: skip


def rows_of(sizes: Sequence[int]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    print(("{:>8} {:>8} {:>6} {:>13} {:>11} {:>6} {:>7} {:>7}").format(*HEAD), flush=True)
    for what, several in (("whole", sizes), ("broken", sizes), ("kinds", (1280,)), ("mixed", (256,))):
        before: Mapping[str, Any] | None = None
        for gpus in several:
            command = [sys.executable, "-m", "benchmarks.plan_scaling", "--one", f"{what}:{gpus}"]
            row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            row["growth"] = growth(before, row) if before else None
            rows.append(row)
            before = row
            cells = shown(row)
            print(("{:>8} {:>8} {:>6} {:>13} {:>11} {:>6} {:>7} {:>7}").format(*cells), row["layout"], flush=True)
    return rows


def growth(before: Mapping[str, Any], row: Mapping[str, Any]) -> float:
    """Exponent of the CPU seconds in the GPUs."""
    return math.log(row["plan CPU s"] / before["plan CPU s"]) / math.log(row["GPUs"] / before["GPUs"])


def shown(row: Mapping[str, Any]) -> list[str]:
    """
    >>> shown({**dict.fromkeys(HEAD, 1.0), "cluster": "whole", "growth": None})
    ['whole', '1', '1', '1.00', '1.00', '1', '100.00%', '-']
    """
    words = [str(row["cluster"]), f"{row['GPUs']:.0f}", f"{row['batch']:.0f}"]
    words += [f"{row[name]:.2f}" for name in ("search CPU s", "plan CPU s")]
    return [*words, f"{row['MiB']:.0f}", f"{row['gap']:.2%}", "-" if row["growth"] is None else f"{row['growth']:.2f}"]


def page(rows: Sequence[Mapping[str, Any]]) -> Page:
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": [dict(row) for row in rows]},
        "width": "container",
        "height": 320,
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": {"field": "GPUs", "type": "quantitative", "scale": {"type": "log"}},
            "y": {"field": "plan CPU s", "type": "quantitative", "scale": {"type": "log"}},
            "color": {"field": "cluster", "type": "nominal"},
            "tooltip": [{"field": name, "title": name} for name in ("GPUs", "plan CPU s", "MiB", "gap", "layout")],
        },
    }
    table = Table(head=HEAD, rows=[shown(row) for row in rows])
    section = Section(heading="CPU seconds of a plan", pictures={"scaling": spec}, table=table)
    return Page(title="How the planner grows", lines=(__doc__ or "").splitlines()[:1], numbers=(), sections=(section,))


def sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=sizes, default="256,4096,16384,131072", help="multiples of 256")
    parser.add_argument("-o", "--output", metavar="FILE", help="a page with the plot")
    parser.add_argument("--one", metavar="WHAT:GPUS", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        what, _, gpus = asked.one.partition(":")
        print(json.dumps(measure(what, int(gpus))))
        return
    rows = rows_of(asked.gpus)
    if asked.output:
        write_whole(asked.output, page(rows).html(), "-o")


if __name__ == "__main__":
    main()
