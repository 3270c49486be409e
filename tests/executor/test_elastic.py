"""An elastic launch goes on after a lost rank with its plan, after a lost host with another; losses are unbroken."""

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cost_models import Cluster, Strategy
from executor.launch.elastic import _Rounds, gpus_left, launch_of, reduced
from executor.launch.launch import Request, prepare
from longvila import checkpoint, train
from longvila.job import Job
from tests.executor.planned import Command, make_plan
from tests.executor.test_launch import free_port, two_slots
from tests.executor.test_worker import _losses, _settings

STEPS = 10


def _wait_for_checkpoint(folder: Path, processes: list[Command]) -> None:
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s and all(process.running for process in processes):
        if checkpoint.complete(folder / "checkpoints"):
            return
        time.sleep(0.02)
    raise AssertionError([process.end(1) for process in processes])


def _ranks(folder: Path) -> list[int]:
    """The processes of a launch's ranks, by their logs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "fd" / "2").startswith(f"{folder}/") and "rank-" in os.readlink(
                process / "fd" / "2"
            ):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def test_a_job_goes_on_after_a_lost_rank_on_either_host(tmp_path):
    settings = {**_settings(tmp_path), "steps": STEPS, "rows_per_step": 1, "precision": "fp64"}
    torch.set_num_threads(1)
    train.main(Job(config={**settings, "run": str(tmp_path / "alone")}))
    plan, port, out = two_slots(tmp_path), free_port(), tmp_path / "run"
    settings |= {"run": str(out), "checkpoint_every": 2}
    sets = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    hosts = [
        Command(
            "launch", plan, *sets, "--hosts=127.0.0.2,127.0.0.1", f"--node-rank={node}", f"--port={port}",
            f"--run-dir={tmp_path / str(node)}", "--timeout=60", "--elastic=1", folder=tmp_path,
        )
        for node in range(2)
    ]  # fmt: skip
    _wait_for_checkpoint(out, hosts)
    os.kill(_ranks(tmp_path / "1")[0], signal.SIGKILL)
    ends = [process.end(90) for process in hosts]
    assert [done.returncode for done in ends] == [0, 0], ends
    assert "rank 0 failed: killed by signal 9" in ends[1].stderr and "starts again (1 of 1)" in ends[1].stderr
    for done in ends:
        assert "round 1: data 1 × ring 1 × ulysses 2, zero-3 over 2, as before, from the last checkpoint" in done.stderr
    assert _losses(out) == pytest.approx(_losses(tmp_path / "alone"), rel=1e-13)


class _Store:
    def add(self, name, amount):
        return 2


def test_what_a_lost_host_leaves_is_planned_again(tmp_path):
    """The same workload on the other host; the job's checkpoint is taken up where there is one."""
    run = tmp_path / "run"
    (run / "checkpoints" / "step-000002").mkdir(parents=True)
    (run / "checkpoints" / "step-000002" / checkpoint.MARKER).touch()
    request = Request(
        plan=two_slots(tmp_path), sets=(f"run={run}", "data=[x]"), hosts=("a", "b"), host="b", elastic=1,
        run_dir=tmp_path / "launch",
    )  # fmt: skip
    first = prepare(request)
    rounds = SimpleNamespace(_store=_Store(), _first=first)
    whole = _Rounds._decide(rounds, {"a": 0, "b": 0})
    assert (whole.plan, whole.resume, whole.fault) == ("", True, "")
    left = _Rounds._decide(rounds, {"b": 0})
    launch = launch_of(first, left)
    assert (launch.binding.hosts, launch.host, launch.plan.strategy.ranks, launch.round) == (("b",), "b", 1, 1)
    assert launch.plan.workload == first.plan.workload
    assert launch.settings.values["resume"] == "intact"
    assert "no GPU is left" in _Rounds._decide(rounds, {}).fault


def test_gpus_that_are_gone_are_counted_by_host():
    cluster = Cluster.load("dgx-h100", nodes=3)
    left = reduced(cluster, {0: 8, 2: 5})
    assert [left.node(slot).gpus for slot in range(3)] == [8, 0, 5]
    plan = make_plan(Strategy(ring=16, shard=16), cluster=Cluster.load("dgx-h100", nodes=2), tokens=4096)
    launch = SimpleNamespace(plan=plan, binding=SimpleNamespace(host_of_slot={0: "a", 1: "b"}))
    assert gpus_left(launch, {"a": 8, "b": 5}) == {0: 8, 1: 5}
    assert gpus_left(launch, {"a": 9}) == {0: 8, 1: 0}
