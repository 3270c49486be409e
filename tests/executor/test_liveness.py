"""A rank that is stopped or cut off is named, with its host and last collective; one that is paused or done is not."""

import os
import re
import signal
import threading
import time

import pytest
from torch.distributed import HashStore

from cost_models import Strategy
from executor.launch.liveness import End, Liveness
from tests.executor.planned import Command, save_plan
from tests.executor.test_launch import _gone, _options, _pids, two_hosts

SILENCE = "--silence=3"


@pytest.mark.parametrize(
    ("what", "collective"), [("collective", "all_?reduce of "), ("transfer", "transfer of context")]
)
def test_a_stopped_rank_is_named_with_its_host_and_collective(tmp_path, what, collective):
    """Long before `--timeout`, and it is ended although it hears no signal but one."""
    plan = save_plan(tmp_path, Strategy(ulysses=2, shard=2))
    process = Command("launch", plan, *_options(tmp_path, what), SILENCE, folder=tmp_path)
    pids = _pids(tmp_path, 2, process)
    time.sleep(1.0)  # a few beats
    os.kill(pids[1], signal.SIGSTOP)
    done = process.end(25)
    assert done.returncode == 1
    assert re.search(
        rf"executor: rank 1 on \S+ is silent for 3 s: .* last collective: {collective}.*\[0, 1\]", done.stderr
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


def test_a_rank_that_is_done_or_has_not_come_yet_is_not_missed():
    meeting, ends = Meeting(), []
    first = _rank(meeting, 0, ends)
    time.sleep(1.5)
    _rank(meeting, 1, ends).done()
    time.sleep(1.5)
    first.done()
    assert not ends
