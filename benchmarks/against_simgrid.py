"""The simulator's flows against SimGrid's: `python benchmarks/against_simgrid.py [--large] [--search N]`.

Flows on the routes of random and of fixed clusters (switched, PCIe and paired nodes, unequal cards, leaves with
oversubscription) are ended by `planner.simulator.transfers` and by SimGrid, which needs Debian's python3-simgrid. It is
set to plain max-min sharing: model CM02, no cross traffic, full updates, links without latency and delayed starts.

    (nothing)     the fixed cases: worst error over all flows, relative to a flow's time
    --large       the all-to-all of 256 hosts and 5,000 flows of random size: CPU seconds of both, and their ratio
    --search N    N random cases, and the one with the largest disagreement
    --golden F    write SimGrid's end times of the fixed cases, which a test compares to
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # SimGrid has one thread too; more only wait, and that is CPU time

import numpy as np

from cost_models.hardware.cluster import Cluster, Fabric
from cost_models.hardware.placement import Placement
from planner.simulator.filling import compiled
from planner.simulator.maxmin import Sharing
from planner.simulator.topology import Floats, Ints, Topology
from planner.simulator.transfers import end_times

PYTHON = "/usr/bin/python3"
CHILD = Path(__file__).with_name("simgrid_child.py")
PRESETS = ("dgx-h100", "dgx-a100", "l40s-pcie", "a100-pcie-pairs", "hgx-h100-1nic")
FIXED = tuple(range(1, 13))
"""Seeds of the cases that are kept as golden data."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """Flows from rank to rank, and the links that each crosses: `flow[e]` crosses `link[e]`."""

    name: str
    source: Ints
    to: Ints
    size: Floats  # whole bytes
    start_s: Floats
    flow: Ints
    link: Ints
    capacity: Floats

    def ends(self) -> Floats:
        """End times by the project's engine."""
        sharing = Sharing(
            flow=self.flow, link=self.link, count=np.ones(len(self.flow)), capacity=self.capacity, flows=len(self.size)
        )
        return end_times(sharing, self.size, self.start_s)

    def json(self) -> str:
        """For SimGrid; every pair of ranks is one route."""
        pair = self.source * (int(self.to.max()) + 1) + self.to
        _, first, route = np.unique(pair, return_index=True, return_inverse=True)
        crossed = np.split(self.link, np.flatnonzero(np.diff(self.flow)) + 1)
        routes = [[int(self.source[f]), int(self.to[f]), crossed[f].tolist()] for f in first.tolist()]
        return json.dumps(
            {
                "capacity": self.capacity.tolist(),
                "routes": routes,
                "route": route.tolist(),
                "bytes": [int(size) for size in self.size],
                "start_s": self.start_s.tolist(),
            }
        )


def case(
    name: str, cluster: Cluster, ranks: Ints, source: Ints, to: Ints, size: Floats, start_s: Floats | None = None
) -> Case:
    """Flows between the GPUs `ranks` of `cluster`. By default each starts after the latency of its route."""
    everywhere = Placement.in_order(cluster, cluster.gpus)
    placement = Placement(slot_of_rank=everywhere.slot_of_rank[ranks], gpu_of_rank=everywhere.gpu_of_rank[ranks])
    topology = Topology(cluster, placement)
    routes = topology.routes(source, to)
    flow, step = np.nonzero(routes.unit >= 0)
    kind = np.array(routes.kind, dtype=np.int64)[step]
    number = kind * (int(routes.unit.max()) + 1) + routes.unit[flow, step]
    used, first, link = np.unique(number, return_index=True, return_inverse=True)
    capacity = np.empty(len(used))
    for i, entry in enumerate(first.tolist()):
        capacity[i] = topology.rate(int(kind[entry]), routes.unit[flow[entry], step[entry]][None])[0]
    return Case(
        name=name,
        source=source,
        to=to,
        size=size,
        start_s=routes.latency_s if start_s is None else start_s,
        flow=flow,
        link=link,
        capacity=capacity,
    )


def random_case(seed: int) -> Case:
    """A small cluster with something odd in it, and flows of one of three patterns."""
    rng = np.random.default_rng(seed)
    preset = PRESETS[rng.integers(len(PRESETS))]
    cluster = Cluster.load(preset, nodes=int(rng.integers(1, 7)))
    good = cluster.runs[0].node
    if cluster.slots > 1 and rng.random() < 0.6:
        slower = replace(good.nics, bytes_per_s=good.nics.bytes_per_s * float(rng.choice([0.2, 0.5, 0.9])))
        odd = replace(good, nics=slower)
        if good.nics.count > 1 and rng.random() < 0.5:
            odd = replace(good, missing_nics=(int(rng.integers(good.nics.count)),))
        cluster = cluster.override({int(rng.integers(cluster.slots)): odd})
    leaves = int(rng.choice([1, 2, 3])), float(rng.choice([1.0, 2.0, 4.0]))
    fabric: Fabric = replace(cluster.fabric, nodes_per_leaf=leaves[0], oversubscription=leaves[1])
    cluster = replace(cluster, fabric=fabric)
    ranks = np.sort(rng.permutation(cluster.gpus)[: int(rng.integers(2, min(cluster.gpus, 17) + 1))])
    here = np.arange(len(ranks))
    pattern = ("all-to-all", "ring", "random sizes")[rng.integers(3)]
    if pattern == "all-to-all":
        source, to = (grid.ravel() for grid in np.meshgrid(here, here, indexing="ij"))
        source, to = source[source != to], to[source != to]
        size = np.full(len(source), float(rng.integers(1, 100)) * 1e6)
    elif pattern == "ring":
        source, to = here, np.roll(here, -1)
        size = np.full(len(source), float(rng.integers(1, 100)) * 1e6)
    else:
        many = 10 if seed > FIXED[-1] and seed % 4 == 0 else 1  # which are ended by `filling.drain`
        source = rng.integers(0, len(here), int(rng.integers(2, 60)) * many)
        to = (source + rng.integers(1, len(here), len(source))) % len(here)
        size = rng.integers(1_000_000, 100_000_000, len(source)).astype(np.float64)
    start = np.round(rng.random(len(source)) * 0.01, 6) if rng.random() < 0.3 else None
    nodes = f"{cluster.slots} x {preset}, leaves of {leaves[0]} at {leaves[1]:g}:1"
    return case(f"seed {seed}: {pattern}, {len(ranks)} GPUs of {nodes}", cluster, ranks, source, to, size, start)


def large_cases() -> Iterator[Case]:
    """The two whose time is compared: hosts of one GPU and one card in leaves."""
    host = replace(Cluster.load("dgx-h100", nodes=1).runs[0].node, gpus=1)
    host = replace(host, nics=replace(host.nics, count=1))
    made = Cluster.load("dgx-h100", nodes=256)
    hosts = replace(made, runs=(replace(made.runs[0], node=host),))
    everyone = np.arange(256)
    source, to = (grid.ravel() for grid in np.meshgrid(everyone, everyone, indexing="ij"))
    source, to = source[source != to], to[source != to]
    leaves = replace(hosts, fabric=replace(hosts.fabric, nodes_per_leaf=16, oversubscription=2.0))
    yield case("all-to-all of 256 hosts, leaves of 16 at 2:1", leaves, everyone, source, to, np.full(len(to), 1e6))
    rng = np.random.default_rng(7)
    degraded = replace(host, nics=replace(host.nics, bytes_per_s=host.nics.bytes_per_s / 4))
    few = replace(hosts, runs=(replace(hosts.runs[0], count=64),)).override({5: degraded})
    source = rng.integers(0, 64, 5000)
    to = (source + rng.integers(1, 64, 5000)) % 64
    size = rng.integers(1_000_000, 100_000_000, 5000).astype(np.float64)
    yield case("5,000 flows of random size, 64 hosts, one slow", few, np.arange(64), source, to, size, np.zeros(5000))


def has_simgrid() -> bool:
    try:
        return subprocess.run([PYTHON, "-c", "import simgrid"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def simgrid(cases: Sequence[Case]) -> list[tuple[Floats, float]]:
    """End times by SimGrid, and the CPU seconds of each run."""
    lines = "".join(one.json() + "\n" for one in cases)
    done = subprocess.run([PYTHON, str(CHILD)], input=lines, capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(cases) and None not in answers, done.stderr[-2000:]
    return [(np.array(answer["end_s"]), float(answer["cpu_s"])) for answer in answers]


def worst_error(one: Case, ends: Floats) -> float:
    return float(np.abs(one.ends() / ends - 1).max())


def search(times: int) -> None:
    """Look for the largest disagreement among `times` random cases."""
    worst, where = 0.0, "none differs at all"
    for first in range(1000, 1000 + times, 100):
        cases = [random_case(seed) for seed in range(first, min(first + 100, 1000 + times))]
        for one, (ends, _) in zip(cases, simgrid(cases), strict=True):
            if (error := worst_error(one, ends)) > worst:
                worst, where = error, one.name
                print(f"{error:.1e}  {where}", flush=True)
    print(f"worst of {times}: {worst:.1e}, {where}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="compare the time of two large cases")
    parser.add_argument("--search", type=int, metavar="N", help="random cases to look through")
    parser.add_argument("--golden", metavar="FILE", help="write SimGrid's end times of the fixed cases")
    given = parser.parse_args()
    if not has_simgrid():
        sys.exit(f"{PYTHON} has no module simgrid: apt-get install python3-simgrid")
    if given.search:
        search(given.search)
    elif given.large:
        began = time.process_time()
        with_numba = "compiled by numba, loaded in" if compiled() else "without numba, looked for in"
        print(f"Ends one after another: {with_numba} {time.process_time() - began:.2f} s of CPU")
        for one in large_cases():
            one.ends()  # where numba has compiled nothing yet, it does now
            began = time.process_time()
            ours = one.ends()
            ours_s = time.process_time() - began
            ((ends, theirs_s),) = simgrid([one])
            error = float(np.abs(ours / ends - 1).max())
            ratio = f"{theirs_s / ours_s:.1f} times as fast"
            print(f"{one.name}: SimGrid {theirs_s:.2f} s, here {ours_s:.3f} s, {ratio}, error {error:.1e}", flush=True)
    else:
        cases = [random_case(seed) for seed in FIXED]
        found = simgrid(cases)
        for one, (ends, _) in zip(cases, found, strict=True):
            print(f"{worst_error(one, ends):.1e}  {len(ends):4d} flows  {one.name}")
        if given.golden:
            golden = {one.name: ends.tolist() for one, (ends, _) in zip(cases, found, strict=True)}
            Path(given.golden).write_text(json.dumps(golden, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
