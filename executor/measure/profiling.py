"""`executor profile`: measure this machine under the loads that a plan will have, and write `profile.json`.

    start N ranks running `measuring` -> samples of loads 1 … N (divisors of N) -> profile.json, complete or not written

The ranks are started as for a plan, so a lost rank or Ctrl-C ends all and leaves no file. `path` of a collective is
the link of the local cluster. On a CPU every sample says how many processes ran at once (`ranks`; collectives:
`shape`); the planner takes the samples of its plan's load. Leaves out: the network between hosts.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from cost_models.curves.samples import Sample
from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.machine import Host, discover
from cost_models.profile import VERSION, Profile
from executor.launch.launch import rank_environment
from planner.files import check_target, write_whole

MOST_CPU_RANKS = 16


def loads_of(ranks: int) -> tuple[int, ...]:
    """How many ranks measure at once: the divisors of their number.

    >>> loads_of(4), loads_of(6)
    ((1, 2, 4), (1, 2, 3, 6))
    """
    return tuple(part for part in range(1, ranks + 1) if ranks % part == 0)


def profile(target: Path, ranks: int | None, quick: bool) -> Profile:
    """Measure with `ranks` processes (default: all GPUs, or twice the cores) and write the file."""
    check_target(target, "-o")
    here = discover()
    most = len(here.gpus) if here.gpus else MOST_CPU_RANKS
    count = ranks if ranks is not None else (len(here.gpus) or min(most, 2 * here.cores))
    if not 1 <= count <= most:
        raise InputError(f"--ranks {count}: on this machine from 1 to {most} ranks can measure")
    cluster = Cluster.load("local", gpus=count)
    device = cluster.runs[0].node.device
    measured = Profile(
        version=VERSION,
        device=device.name,
        machine=f"{here.describe()}; {', '.join(map(str, loads_of(count)))} processes at once",
        versions=here.versions,
        samples=_measure(cluster, here, count, quick),
    )
    write_whole(target, json.dumps(measured.to_dict(), indent=1) + "\n")
    return measured


def _measure(cluster: Cluster, here: Host, count: int, quick: bool) -> tuple[Sample, ...]:
    loads, node = loads_of(count), cluster.runs[0].node
    os.environ |= rank_environment(max(1, here.cores // count))
    os.environ["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"
    with tempfile.TemporaryDirectory(prefix="profile-") as name:
        from executor.launch.agent import Team, run_team
        from executor.measure.bench import Order
        from executor.measure.measuring import measure

        cuda = node.device.architecture != "cpu"
        window_s, windows = (0.012, 3) if quick else (0.05, 7)
        path, cores = node.scale_up.link, here.cores
        order = Order(window_s=window_s, windows=windows, loads=loads, cores=cores, path=path, cuda=cuda)
        forked = sys.platform == "linux" and not cuda
        team = Team(ranks=tuple(range(count)), logs=Path(name) / "logs", forked=forked)
        outcome = run_team(measure, order, team)
    if outcome.code == 130:
        raise KeyboardInterrupt
    if outcome.code:
        raise InputError(f"the measurement did not end well: {outcome.reason}")
    return tuple(outcome.value)
