"""Real launches: the plan's groups on real processes, failures named, nobody left behind."""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cost_models import Cluster, Placement, Strategy
from executor.launch.launch import rank_environment
from tests.executor.planned import Command, make_plan, run, save_plan

JOB = "--job=tests.executor.launched_jobs"


FREED_AND_TAKEN_AGAIN = """
import ctypes, resource
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def step(sizes=(24, 8, 16)):
    blocks = [(libc.malloc(size << 20), size << 20) for size in sizes]
    for at, size in blocks:
        ctypes.memset(at, 1, size)
    for at, _ in blocks:
        libc.free(at)
step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have other settings")
def test_ranks_keep_the_memory_that_tensors_freed():
    """A step that is run again has no page faults, however its tensors' sizes mix."""

    def faults(more: dict[str, str]) -> int:
        command = [sys.executable, "-c", FREED_AND_TAKEN_AGAIN]
        done = subprocess.run(command, env=os.environ | more, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults(rank_environment(1)) < 100 < 2**10 < faults({"MALLOC_TRIM_THRESHOLD_": str(2**17)})


def _options(folder: Path, what: str = "report") -> list[str]:
    return [JOB, f"--set=out={folder}", f"--set=what={what}"]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _gone(pids: list[int], within_s: float = 5.0) -> bool:
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        if not any(map(_alive, pids)):
            return True
        time.sleep(0.05)
    return False


def _pids(folder: Path, ranks: int, process: Command | None) -> list[int]:
    """Processes of the ranks, once all have come up."""
    files, deadline_s = [folder / f"rank{rank}.json" for rank in range(ranks)], time.monotonic() + 60
    while not all(file.exists() for file in files):
        assert process is None or process.running, process.end()
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    return [json.loads(file.read_text())["pid"] for file in files]


def test_ranks_get_the_groups_of_the_plan(tmp_path):
    strategy = Strategy(ring=2, ulysses=2, shard=4)
    plan = save_plan(tmp_path, strategy)
    done = run("launch", plan, *_options(tmp_path), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "to stdout from 0" in done.stdout and "from 1" not in done.stdout
    assert "to stderr from 0" in done.stderr
    groups = make_plan(strategy).groups
    for rank in range(4):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert found["world"] == 4 and found["device"] == "cpu"
        for axis, ranks in found["axes"].items():
            assert ranks in groups[axis].tolist() and rank in ranks
    assert "from 3" in (tmp_path / "runs/launch/logs/rank-3.log").read_text()


def test_a_users_mistake_in_a_job_is_one_line(tmp_path):
    plan = save_plan(tmp_path, Strategy(ulysses=2, shard=2))
    done = run("launch", plan, *_options(tmp_path, "mistake"), folder=tmp_path)
    assert done.returncode == 2
    assert "executor: data: no such file; name one that is there" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr + done.stdout
    assert any("Traceback" in file.read_text() for file in (tmp_path / "runs/launch/logs").glob("*.traceback"))


def test_the_rank_that_failed_is_named_not_those_that_lost_it(tmp_path):
    plan = save_plan(tmp_path, Strategy(ulysses=2, shard=2))
    done = run("launch", plan, *_options(tmp_path, "fault"), folder=tmp_path)
    assert done.returncode == 1
    assert "rank 1 failed: ValueError: this rank is broken" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_under_the_run_folder_is_named(tmp_path, small_disk):
    plan = save_plan(tmp_path, Strategy(ulysses=2, shard=2))
    done = run("launch", plan, *_options(small_disk, "full"), f"--run-dir={small_disk / 'run'}", folder=tmp_path)
    assert done.returncode == 2
    assert "executor: checkpoint cannot be written: No space left on device" in done.stderr.splitlines()


def test_a_killed_rank_ends_all(tmp_path):
    plan = save_plan(tmp_path, Strategy(ulysses=2, shard=2))
    process = Command("launch", plan, *_options(tmp_path, "collective"), folder=tmp_path)
    pids = _pids(tmp_path, 2, process)
    os.kill(pids[0], signal.SIGSTOP)
    os.kill(pids[1], signal.SIGKILL)
    done = process.end(20)
    assert done.returncode == 1 and "rank 1 failed: killed by signal 9 (SIGKILL)" in done.stderr
    assert _gone(pids)


def test_no_orphans_when_the_launcher_is_killed(tmp_path):
    plan = save_plan(tmp_path, Strategy(ulysses=2, shard=2))
    process = Command("launch", plan, *_options(tmp_path, "wait"), folder=tmp_path)
    pids = _pids(tmp_path, 2, process)
    os.kill(pids[1], signal.SIGSTOP)  # a stopped process sees no other signal
    process.signal(signal.SIGKILL)
    assert process.end(20).returncode == -9
    assert _gone(pids)


def test_the_run_folder_is_one_launchs_and_ctrl_c_ends_all_its_ranks(tmp_path):
    plan = save_plan(tmp_path, Strategy(ulysses=2, shard=2))
    first = Command("launch", plan, *_options(tmp_path, "wait"), folder=tmp_path)
    pids = _pids(tmp_path, 2, first)
    second = run("launch", plan, *_options(tmp_path), folder=tmp_path)
    assert second.returncode == 2 and "another launch is writing to runs/launch/logs" in second.stderr
    os.kill(pids[1], signal.SIGSTOP)  # it would see the signal half a minute late
    first.signal(signal.SIGINT)
    assert first.end(20).returncode == 130
    assert _gone(pids)


def test_a_busy_port_is_named(tmp_path):
    plan = save_plan(tmp_path, Strategy(ulysses=2, shard=2))
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        done = run("launch", plan, *_options(tmp_path), f"--port={port}", folder=tmp_path)
    assert done.returncode == 2
    assert f"--port {port} cannot be used: Address already in use" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_two_hosts_meet_and_places_decide_ranks(tmp_path):
    """Two launchers on one machine stand for two hosts; the plan puts rank 0 on the second slot."""
    for code, output in _on_two_hosts(tmp_path, [], []):
        assert code == 0, output
    logs = [sorted(file.name for file in (tmp_path / node / "logs").glob("*.log")) for node in "01"]
    assert logs == [["rank-1.log"], ["rank-0.log"]]


def test_hosts_that_were_given_other_settings_do_not_start(tmp_path):
    """Or each would update its shards of one model by its own learning rate."""
    outputs = _on_two_hosts(tmp_path, ["--set=lr=0.1"], ["--set=lr=0.2"])
    assert all(code != 0 for code, _ in outputs)
    assert any(code == 2 and "hosts disagree: setting lr is 0.1 for rank 1" in output for code, output in outputs)
    assert not list(tmp_path.glob("rank*.json"))


def _on_two_hosts(folder: Path, *more: list[str]) -> list[tuple[int, str]]:
    return [(done.returncode, done.stdout + done.stderr) for done in (p.end() for p in two_hosts(folder, *more))]


def two_hosts(
    folder: Path,
    *more: list[str],
    what: str = "report",
    hosts: tuple[str, str] = ("127.0.0.2", "127.0.0.1"),
    namespaces: tuple[str | None, str | None] = (None, None),
) -> list[Command]:
    """Launches with these options, of these hosts."""
    plan = two_slots(folder)
    port = free_port()
    return [
        Command(
            "launch",
            plan,
            *_options(folder, what),
            f"--hosts={','.join(hosts)}",
            f"--node-rank={node}",
            f"--port={port}",
            "--timeout=60",
            f"--run-dir={folder / str(node)}",
            *options,
            folder=folder,
            namespace=namespaces[node],
        )
        for node, options in enumerate(more)
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def two_slots(folder: Path) -> Path:
    one = Cluster.load("local", gpus=1)
    cluster = replace(one, runs=(replace(one.runs[0], count=2),))
    placement = Placement(slot_of_rank=np.array([1, 0]), gpu_of_rank=np.array([0, 0]))
    path = folder / "plan.json"
    make_plan(Strategy(ulysses=2, shard=2), cluster=cluster, placement=placement).save(path)
    return path
