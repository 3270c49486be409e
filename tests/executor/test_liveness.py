"""A rank that is stopped or cut off is named, with its host and last collective; one that is paused or done is not."""

import os
import re
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed import HashStore

from benchmarks.namespaces import Namespaces
from cost_models import InputError, Strategy
from executor.launch.liveness import End, Liveness, last_collective
from executor.mmsp import exchange
from tests.executor.planned import Command, save_plan
from tests.executor.test_launch import _gone, _options, _pids, free_port, two_hosts, two_slots
from tests.executor.test_worker import torchrun
from tests.forked import forked

SILENCE = "--silence=3"


@pytest.mark.parametrize(
    ("what", "collective", "options"),
    [
        ("collective", "all_?reduce of ", [SILENCE]),
        ("transfer", "transfer of context", [SILENCE]),
        ("transfer", "transfer of context", ["--silence=8", "--timeout=5"]),
    ],
)
def test_a_stopped_rank_is_named_with_its_host_and_collective(tmp_path, what, collective, options):
    """Long before `--timeout`, also where a rank that waits for it meets that first; it hears no signal but one."""
    plan = save_plan(tmp_path, Strategy(ulysses=2, shard=2))
    process = Command("launch", plan, *_options(tmp_path, what), *options, folder=tmp_path)
    pids = _pids(tmp_path, 2, process)
    time.sleep(1.0)  # a few beats
    os.kill(pids[1], signal.SIGSTOP)
    done = process.end(25)
    assert done.returncode == 1
    assert re.search(
        rf"executor: rank 1 on \S+ is silent for [38] s: .* last collective: {collective}.*\[0, 1\]", done.stderr
    )
    assert _gone(pids)


def test_a_job_that_is_paused_as_a_whole_goes_on(tmp_path):
    plan = save_plan(tmp_path, Strategy(ulysses=2, shard=2))
    process = Command("launch", plan, *_options(tmp_path, "until_told"), "--silence=2", folder=tmp_path)
    pids = _pids(tmp_path, 2, process)
    time.sleep(0.5)
    process.signal(signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4.0)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    process.signal(signal.SIGCONT)
    time.sleep(1.0)
    (tmp_path / "told").touch()
    done = process.end(25)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGKILL, "rank 1 failed: killed by signal 9"), (signal.SIGSTOP, "rank 1 on 127.0.0.2 is silent")],
)
def test_a_rank_that_is_lost_on_one_host_ends_the_launch_on_the_other(tmp_path, number, reason):
    """The plan puts rank 1 on the first host."""
    hosts = two_hosts(tmp_path, [SILENCE], [SILENCE], what="collective")
    pids = _pids(tmp_path, 2, hosts[0])
    time.sleep(1.0)
    os.kill(pids[1], number)
    for process in hosts:
        done = process.end(25)
        assert done.returncode == 1 and reason in done.stderr and "127.0.0.2" in done.stderr
    assert _gone(pids)


def _torchrun_into(log: Path, command: list[str], folder: Path) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    torchrun(command, folder)


def test_under_torchrun_a_killed_rank_is_named_on_the_other_host(tmp_path):
    """Where nobody speaks for the killed rank, its silence does; the lost connection is not the reason."""
    plan, hosts, agents = two_slots(tmp_path), ("a", "b"), []
    for number, host in enumerate(hosts):
        command = ["--nnodes=2", f"--node-rank={number}", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
        command += [f"--master-port={free_port()}" if number == 0 else agents[0][1]]
        command += ["--module", "executor.launch.worker", str(plan), f"--host={host}", "--hosts=a,b", SILENCE]
        command += [*_options(tmp_path, "collective")]
        agents.append((forked(_torchrun_into, tmp_path / host, command, tmp_path), command[4]))
    try:
        pids = _pids(tmp_path, 2, None)
        os.kill(pids[0], signal.SIGKILL)  # on host b: the plan puts rank 0 on the second slot
        agents[0][0].join(40)
        assert "executor: rank 0 on b is silent for 3 s" in (tmp_path / "a").read_text()
    finally:
        for agent, _ in agents:
            agent.kill()
            agent.join()
    assert _gone(pids)


@pytest.fixture
def cable():
    """Two network namespaces with links between them."""
    try:
        with Namespaces([None, None]) as nodes:
            yield nodes
    except InputError as error:
        pytest.skip(str(error))


def test_a_network_that_is_cut_ends_both_sides_and_each_names_what_it_lost(tmp_path, cable):
    """The plan puts rank 1 on the first host, which holds the meeting store."""
    where = {"hosts": cable.addresses, "namespaces": cable.names}
    hosts = two_hosts(tmp_path, [SILENCE], [SILENCE], what="transfer", **where)
    pids = _pids(tmp_path, 2, hosts[0])
    time.sleep(1.0)
    cable.cut(1)
    first, second = (process.end(25) for process in hosts)
    assert first.returncode == second.returncode == 1
    assert "rank 0 on 10.77.0.2 is silent for 3 s" in first.stderr and "transfer of context" in first.stderr
    assert re.search("rank 0 on 10.77.0.2 (has no answer from|lost) the meeting store", second.stderr)
    assert _gone(pids)


class Meeting:
    """A store in this process that may stop to answer."""

    def __init__(self) -> None:
        self._store, self.cut = HashStore(), threading.Event()

    def clone(self) -> "Meeting":
        return self

    def __getattr__(self, name: str):
        while self.cut.is_set():
            time.sleep(0.05)
        return getattr(self._store, name)


def _rank(meeting: Meeting, rank: int, ends: list[End]) -> Liveness:
    alive = Liveness(meeting, rank=rank, world=2, host=f"host{rank}", silence_s=1.0, leave=ends.append)  # type: ignore[arg-type]
    alive.start()
    return alive


def test_a_rank_without_an_answer_from_the_store_says_that_it_is_cut_off():
    meeting, ends = Meeting(), []
    alive = _rank(meeting, 0, ends)
    meeting.cut.set()
    deadline_s = time.monotonic() + 20
    while not ends and time.monotonic() < deadline_s:
        time.sleep(0.05)
    meeting.cut.clear()
    alive.done()
    assert ends[0].reason.startswith("rank 0 on host0 has no answer from the meeting store for 1 s")


def test_a_group_that_is_gone_is_named_without_its_ranks(monkeypatch):
    class Gone:
        group_desc = "ring"

    monkeypatch.setattr(exchange, "LAST", SimpleNamespace(at_ns=2**63, what="transfer", group=Gone()))
    assert last_collective() == "transfer of ring"


def test_a_rank_that_is_done_or_has_not_come_yet_is_not_missed():
    meeting, ends = Meeting(), []
    first = _rank(meeting, 0, ends)
    time.sleep(1.5)
    _rank(meeting, 1, ends).done()
    time.sleep(1.5)
    first.done()
    assert not ends
