"""A profile measured here is read back strictly, knows its loads, and decides what a plan for this machine costs."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from cost_models import Cluster, InputError, Model, Profile, Strategy, Workload, price
from cost_models.curves.samples import COLLECTIVES, FRAMEWORK, SCANS, Sample
from cost_models.profile import network
from cost_models.timing.profile_samples import samples_for
from executor.measure.measuring import on_cores
from executor.measure.profiling import loads_of
from tests.executor.planned import FP32, run


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    done = run("profile", "--quick", "--ranks=2", "-o", "p.json", folder=folder, timeout_s=180)
    assert done.returncode == 0, done.stderr
    assert "measured with 2 of 2 ranks at once" in done.stderr
    return Profile.load(folder / "p.json")


def test_everything_is_measured_under_every_load(measured):
    for load in (1, 2):
        ops = {sample.op for sample in measured.samples if sample.op not in COLLECTIVES and sample.ranks == load}
        assert {"gemm", "attention_forward", "attention_backward", "memory_bound", *SCANS, *FRAMEWORK} == ops
    collectives = [sample for sample in measured.samples if sample.op in COLLECTIVES]
    assert {sample.op for sample in collectives} == set(COLLECTIVES)
    assert all(sample.path == "shared-memory" and sample.shape == (2,) for sample in collectives)
    assert all(sample.iqr_s >= 0 and sample.dtype == "fp32" for sample in measured.samples)


def test_more_work_takes_longer(measured):
    gemms = sorted((s.shape[0] * s.shape[1] * s.shape[2], s.median_s) for s in measured.samples if s.op == "gemm")
    assert gemms[-1][1] > 10 * gemms[0][1]


def test_a_price_rests_on_the_profile(measured):
    work = Workload(Model.load("longvila-tiny"), context_tokens=512, precision=FP32)
    cluster = Cluster.load("local", gpus=2)
    cost = price(cluster, work, Strategy(ulysses=2, shard=2), profile=measured)
    assert not [line for line in cost.estimates if line.startswith(("gemm:", "attention:", "memory_bound:", "links"))]
    faster = replace(measured, samples=tuple(replace(s, median_s=s.median_s / 2) for s in measured.samples))
    halved = price(cluster, work, Strategy(ulysses=2, shard=2), profile=faster)
    assert halved.step_s < 0.75 * cost.step_s


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="of Linux")
def test_a_process_knows_how_long_it_waited_for_a_core():
    cores = os.sched_getaffinity(0)
    busy = f"import os\nos.sched_setaffinity(0, {{{min(cores)}}})\nprint('begun', flush=True)\nwhile True: pass"
    others = [subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        assert [other.stdout.readline() for other in others] == [b"begun\n"] * 2
        os.sched_setaffinity(0, {min(cores)})
        began_s, waited_s = on_cores()
        while (ran_s := on_cores()[0] - began_s) < 0.3:
            sum(range(10**5))
        waited_s = on_cores()[1] - waited_s
    finally:
        os.sched_setaffinity(0, cores)
        for other in others:
            other.kill()
            other.communicate()
    assert waited_s / (ran_s + waited_s) > 0.4  # two others compute on its core from before to after: two thirds


def _profile(*samples: Sample) -> Profile:
    return Profile(version=1, device="cpu", machine="", samples=samples)


def test_the_nearest_load_speaks_and_is_scaled_beyond():
    one, four = (Sample(op="gemm", shape=(8, 8, 8), median_s=float(n), ranks=n, dtype="fp32") for n in (1, 4))
    pair, network = (
        Sample(op="all_reduce", median_s=1.0, ranks=2, bytes=8.0, path=path, shape=shape)
        for path, shape in (("shared-memory", (4,)), ("network", ()))
    )
    profile = _profile(one, four, pair, network)
    assert samples_for(profile, Cluster.load("local", gpus=1)) == (one, network)
    assert samples_for(profile, Cluster.load("local", gpus=3)) == (four, pair, network)
    doubled = samples_for(profile, Cluster.load("local", gpus=8))
    assert [sample.median_s for sample in doubled] == [8.0, 2.0, 1.0]
    assert samples_for(profile, Cluster.load("dgx-h100", nodes=1)) == profile.samples
    assert samples_for(None, Cluster.load("local", gpus=2)) == ()


def test_framework_time_is_in_every_layer_and_step():
    work = Workload(Model.load("longvila-tiny"), context_tokens=64, global_batch=3, precision=FP32)
    cluster, strategy = Cluster.load("local", gpus=1), Strategy(microbatches=3)
    rows = [Sample(op=op, median_s=s, dtype="fp32") for op, s in zip(FRAMEWORK, (1.0, 10.0, 100.0), strict=False)]
    added = price(cluster, work, strategy, profile=_profile(*rows)).step_s - price(cluster, work, strategy).step_s
    assert added == pytest.approx(100 + 3 * (10 + 4 * 1))


@pytest.mark.parametrize(("frames", "train", "calls", "moved"), [
    (8, ("llm", "projector", "tower"), 0, 3), (65, ("llm", "projector", "tower"), 5 * 4 / 3 - 1, 4),
    (65, ("projector",), 4 / 3, 1),
])  # fmt: skip
def test_host_time_of_a_tower_is_of_its_calls_and_of_what_its_blocks_move(frames, train, calls, moved):
    """65 frames go in five calls, which a trained tower runs again; a frame is 36 patches, a block 64 and 128 wide."""
    work = Workload(Model.load("longvila-tiny"), context_tokens=2048, frames=frames, trainable=train, precision=FP32)
    cluster, strategy = Cluster.load("local", gpus=1), Strategy()
    for op, told in (("framework_tower", 2 * calls), ("framework_tower_byte", 2 * moved * frames * 36 * 4 * 1536)):
        profile = _profile(Sample(op=op, median_s=1.0, dtype="fp32"))
        added = price(cluster, work, strategy, profile=profile).step_s - price(cluster, work, strategy).step_s
        assert added == pytest.approx(told, rel=1e-6)


def test_mistakes(tmp_path):
    for arguments, message in (
        (["--ranks=0"], "--ranks 0: on this machine from 1 to"),
        (["-o", "no/such/p.json"], "the folder 'no/such' is not there"),
    ):
        done = run("profile", *arguments, folder=tmp_path)
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="version 2 is not 1"):
        Profile(version=2, device="cpu", machine="", samples=())
    with pytest.raises(InputError, match="samples: 0 are given; at least 1 is needed"):
        Profile(version=1, device="cpu", machine="", samples=())
    with pytest.raises(InputError, match="messages of 1 size; at least 2"):
        network((Sample(op="send_recv", median_s=1.0, ranks=2, bytes=8.0, path="network"),) * 2)
    assert loads_of(8) == (1, 2, 4, 8)
