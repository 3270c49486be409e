"""The command line: a user's mistake is one line and exit code 2; a dry run shows everything and starts nothing."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

import numpy as np
import pytest

from cost_models import Cluster, LayerRange, Placement, Strategy
from cost_models.hardware.machine import Host
from cost_models.workload import Precision
from executor.command import main
from tests.executor.planned import edit_plan, make_plan, save_plan


def _run(*arguments) -> tuple[int, str]:
    """(exit code, everything printed); in this process, for commands that start none."""
    printed = io.StringIO()
    with (
        redirect_stdout(printed),
        redirect_stderr(printed),
        patch.object(sys, "argv", ["executor", *map(str, arguments)]),
    ):
        try:
            main()
        except SystemExit as stop:
            return stop.code or 0, printed.getvalue()


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return save_plan(tmp_path, Strategy(ring=2, ulysses=2, shard=4), tokens=512, batch=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set=rows_per_step=3"], "rows_per_step=3 conflicts with the plan: the plan's global batch is 2"),
        (["--set=precision=bf16"], "precision=bf16 conflicts with the plan"),
        (["--set=trained=[llm]"], "conflicts with the plan, which trains llm, projector, tower; --train plans others"),
        (["--set=max_tokens=1024"], "max_tokens=1024 conflicts with the plan's context of 512; plan with --ctx 1024"),
        (["--set=steps"], "--set 'steps' is not key=value"),
        (["--set=steps=[1"], "--set steps is not valid YAML"),
        (["--set=a={b: &x 1, c: *x}"], "aliases"),
        (["--set=a=!!python/object/apply:os.system [ls]"], "not valid YAML"),
        (["--set=a={b: 1, b: 2}"], "--set a is not valid YAML: the key b is given twice"),
        (["--set=a=" + "9" * 5000], "--set a is not valid YAML: a number of 5,000 digits is not read"),
        (["--config=no.yaml"], "--config 'no.yaml': no such file"),
        (["--job=../evil"], "is not a dotted module name"),
        (["--job=os;ls"], "is not a dotted module name"),
        (["--backend=nccl"], "--backend nccl: this plan is for CPU processes, which talk over gloo"),
        (["--hosts=a,b"], "the plan uses 1 hosts; --hosts names 2"),
        (["--hosts=gpu[001-004]"], "the plan uses 1 hosts; --hosts names 4: gpu001, gpu002, gpu003, gpu004"),
        (["--node-rank=x"], "--node-rank 'x' is neither a number nor auto"),
        (["--node-rank=4"], "legal: 0 to 0, auto"),
    ],
)
def test_mistakes(plan, tmp_path, arguments, message):
    code, output = _run("launch", plan, *arguments)
    assert code == 2 and message in output, output
    assert len(output.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_of_another_version(plan):
    code, output = _run("launch", edit_plan(plan, version=99))
    assert code == 2 and "plan version 99 is not 2" in output


@pytest.mark.parametrize(("number", "message"), [("NaN", "NaN is no number"), ("9" * 5000, "more than 4,300 digits")])
def test_numbers_that_are_none_are_not_read(plan, number, message):
    plan.write_text(plan.read_text().replace('"version": 2', f'"version": {number}', 1))
    code, output = _run("launch", plan)
    assert code == 2 and message in output and len(output.splitlines()) == 1


def test_a_plan_with_other_groups_is_refused(plan):
    import json

    groups = json.loads(plan.read_text())["groups"]
    code, output = _run("launch", edit_plan(plan, groups={**groups, "ring": [[0, 1], [2, 3]]}))
    assert code == 2 and "groups.ring is not what the degrees" in output


def test_a_plan_for_gpus_names_every_difference(tmp_path, monkeypatch):
    monkeypatch.setattr("cost_models.hardware.machine.gpus", lambda: ())
    plan = make_plan(
        Strategy(ulysses=8, shard=8, layers=(LayerRange(recompute="core_attention", count=4),)),
        cluster=Cluster.load("dgx-h100", nodes=1),
        precision=Precision(),
    )
    plan.save(tmp_path / "plan.json")
    code, output = _run("launch", tmp_path / "plan.json")
    assert code == 2
    assert "recompute=core_attention is not executed" in output
    assert "the plan was made for h100-sxm-80gb, no GPU is here" in output


def test_a_plan_for_another_machines_cores_and_memory(plan, monkeypatch):
    small = Host(
        name="small", cores=3, memory_bytes=2**30, free_bytes=2**20, versions={"torch": "2.1.0", "transformers": "5"}
    )
    monkeypatch.setattr("executor.launch.launch.discover", lambda: small)
    code, output = _run("launch", plan)
    assert code == 2
    for part in ("torch 2.1.0 is too old", "3 are here", "4 ranks need", "1.00 MiB are free"):
        assert part in output


def test_dry_run_shows_everything_and_starts_nothing(plan, tmp_path):
    code, output = _run("launch", plan, "--dry-run", "--set=steps=3")
    assert code == 0
    for part in ("ring 2 × ulysses 2", "[0 1] [2 3]", "[0 2] [1 3]", "rank 3", '"rows_per_step": 2', '"steps": 3'):
        assert part in output
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_compile_says_what_it_is_beside_the_plan_and_needs_a_compiler(plan, monkeypatch):
    code, output = _run("launch", plan, "--compile", "--dry-run")
    assert code == 0 and "layers under torch.compile; the plan's time and memory are those of eager layers" in output
    monkeypatch.setenv("CXX", "no-such-compiler")
    code, output = _run("launch", plan, "--compile", "--dry-run")
    assert code == 2 and "--compile needs a C++ compiler, no-such-compiler is not here; CXX names another" in output
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    code, output = _run("launch", plan, "--compile", "--dry-run")
    assert code == 2 and "TORCHDYNAMO_DISABLE" in output


def test_several_hosts_get_a_line_each(tmp_path):
    cluster = Cluster.load("dgx-h100", nodes=2)
    placement = Placement(slot_of_rank=1 - np.arange(16) // 8, gpu_of_rank=np.arange(16) % 8)
    strategy = Strategy(ring=2, ulysses=8, shard=16)
    plan = make_plan(strategy, cluster=cluster, placement=placement, precision=Precision())
    plan.save(tmp_path / "plan.json")
    code, output = _run("launch", tmp_path / "plan.json", "--hosts=h1,h2", "--set=run=a b")
    assert code == 0
    lines = [line for line in output.splitlines() if "torchrun" in line]
    assert len(lines) == 2 and all("--master-addr=h1" in line and "'--set=run=a b'" in line for line in lines)
    assert "--node-rank=0 --nproc-per-node=8" in lines[0] and "--host=h1" in lines[0]


def test_fp64_runs_wider_and_says_so(plan):
    code, output = _run("launch", plan, "--dry-run", "--set=precision=fp64")
    assert code == 0 and "computes in fp64, wider than the plan's fp32" in output
