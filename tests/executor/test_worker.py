"""Training through a launch equals training in one process; under torchrun the binding decides who is which rank."""

import json
import os
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed.run
import yaml
from torch.distributed import HashStore

from cost_models import Cluster, InputError, LayerRange, Placement, Strategy
from executor.launch.agent import is_mistake, one_line
from executor.launch.worker import _agree, job_main
from longvila import train
from longvila.assemble import build_model
from longvila.config import load_config
from longvila.job import Job, JobError
from longvila.sharding import OneProcess
from longvila.weights import save_weights
from planner.plan_file import Plan
from tests.executor.planned import ROOT, make_plan, run, save_plan
from tests.executor.sharded_step import Case, make_sharding
from tests.forked import forked
from tests.ranks import run_ranks


def _settings(folder: Path) -> dict[str, object]:
    lines = []
    for number in range(4):
        turns = [{"from": "human", "value": f"say {number}"}, {"from": "gpt", "value": f"{number} " * (20 + number)}]
        lines.append(json.dumps({"id": str(number), "conversations": turns}))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return {"data": [str(folder / "rows.jsonl")], "steps": 3, "rows_per_step": 2, "max_tokens": 128}


def _losses(run_folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def test_launched_training_equals_one_process(tmp_path):
    settings = _settings(tmp_path)
    torch.set_num_threads(1)
    train.main(Job(config={**settings, "run": str(tmp_path / "alone"), "precision": "fp64"}))
    alone = _losses(tmp_path / "alone")
    assert len(alone) == 3 and alone[2] < alone[0]
    recompute = (LayerRange(recompute="all_but_attention", count=2), LayerRange(recompute="full", count=2))
    adapted = {"lora_rank": 2, "lora_targets": ["qkv", "up"], "trained": ["lora", "norms", "projector", "tower"]}
    train.main(Job(config={**settings, **adapted, "run": str(tmp_path / "adapted"), "precision": "fp64"}))
    beside = {"lora_rank": 2, "lora_targets": ("qkv", "up"), "lora_beside": ("norms",)}
    for name, strategy, asked in (
        ("four", Strategy(data=2, ulysses=2, shard=4, layers=recompute, loss_chunk_tokens=16), {}),
        ("levers", Strategy(ulysses=2, shard=2, offload_states="optimizer", mlp_chunk_tokens=16), beside),
    ):
        plan = save_plan(tmp_path, strategy, tokens=128, batch=2, **asked)
        sets = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
        out = tmp_path / name
        done = run("launch", plan, *sets, f"--set=run={out}", "--set=precision=fp64", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "step 3/3" in done.stderr and "another model" not in done.stderr
        assert _losses(out) == pytest.approx(_losses(tmp_path / "adapted") if asked else alone, rel=1e-13)


def test_a_model_with_state_space_layers_trains_as_its_plan_splits_them(tmp_path):
    model = yaml.safe_load((resources.files("longvila") / "presets/tiny.yaml").read_text())
    model["llm"] |= {"layer_types": ["ssd", "full_attention", "ssd", "ssd"]}
    model["llm"] |= {"ssd": {"heads": 4, "head_size": 16, "state": 8, "chunk": 16}}
    (tmp_path / "hybrid.yaml").write_text(yaml.safe_dump(model))
    settings = {**_settings(tmp_path), "model": str(tmp_path / "hybrid.yaml"), "precision": "fp64"}
    torch.set_num_threads(1)
    train.main(Job(config={**settings, "run": str(tmp_path / "alone")}))
    recompute = (LayerRange(recompute="all_but_attention", count=2), LayerRange(recompute="full", count=2))
    strategy = Strategy(ulysses=2, ring=2, shard=4, layers=recompute, ssd="mixed", ssd_pass="tree")
    plan = save_plan(tmp_path, strategy, tokens=128, batch=2)
    assert json.loads(plan.read_text())["strategy"]["ssd"] == "mixed"
    sets = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    done = run("launch", plan, *sets, f"--set=run={tmp_path / 'four'}", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert _losses(tmp_path / "four") == pytest.approx(_losses(tmp_path / "alone"), rel=1e-13)
    weights = Plan.load(plan).workload.model.layer_params
    assert f"its decoder layers have 4 × {weights:,} weights, this one's 3 × " in done.stderr


def torchrun(command: list[str], folder: Path) -> None:
    os.environ |= {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    os.chdir(folder)
    torch.distributed.run.main(command)


def test_torchrun_numbers_decide_nothing(tmp_path):
    """Two torchrun agents with swapped node ranks: the places in the plan win."""
    one = Cluster.load("local", gpus=2)
    cluster = replace(one, runs=(replace(one.runs[0], count=2),))
    placement = Placement(slot_of_rank=np.array([1, 0, 1, 0]), gpu_of_rank=np.array([0, 1, 1, 0]))
    plan = tmp_path / "plan.json"
    make_plan(Strategy(ulysses=4, shard=4), cluster=cluster, placement=placement).save(plan)
    agents = []
    for number, host in enumerate(("b", "a")):
        command = ["--nnodes=2", f"--node-rank={number}"]
        command += ["--nproc-per-node=2", "--master-addr=127.0.0.1", "--master-port=29533"]
        command += ["--module", "executor.launch.worker", str(plan), f"--host={host}", "--hosts=a,b"]
        command += ["--job=tests.executor.launched_jobs", f"--set=out={tmp_path}"]
        agents.append(forked(torchrun, command, tmp_path))
    try:
        for agent in agents:
            agent.join(90)
            assert agent.exitcode == 0
    finally:
        for agent in agents:
            agent.kill()
    local_ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text())["local_rank"] for rank in range(4)]
    assert local_ranks == ["0", "1", "1", "0"]


def test_an_unknown_job_is_named():
    for name, message in (("no.such", "no module no;"), ("os.path", "no function main"), ("a b", "dotted module name")):
        with pytest.raises(InputError, match=message):
            job_main(name)


def test_ranks_with_another_plan_job_or_settings_do_not_start():
    """Or they would make groups that do not fit and wait for ever."""

    def launch(plan="p", job="j", compiled=False, **settings):
        request, values = SimpleNamespace(job=job, compile=compiled), SimpleNamespace(values=settings)
        return SimpleNamespace(plan=SimpleNamespace(digest=plan), request=request, settings=values)

    def agree(mine):
        store = HashStore()
        _agree(launch(lr=1), SimpleNamespace(rank=0, host="a"), store)
        _agree(mine, SimpleNamespace(rank=1, host="b"), store)

    agree(launch(lr=1))
    for mine, what in (
        (launch("q", lr=1), "plan is 'q' for rank 1 on b, 'p' for rank 0"),
        (launch(job="k", lr=1), "job is 'k'"),
        (launch(compiled=True, lr=1), "compile is True"),
        (launch(), "setting lr is None for rank 1 on b, 1 for rank 0"),
        (launch(lr=1, seed=2), "setting seed is 2"),
    ):
        with pytest.raises(InputError, match=f"hosts disagree: {what}"):
            agree(mine)


def _other_files(folder):
    """What each rank says that finds other content than the other rank under the same names."""
    sharding, rank = make_sharding(Case(ulysses=2)), torch.distributed.get_rank()
    here = folder / f"host{rank}"
    here.mkdir()
    os.chdir(here)
    settings = {**_settings(here), "data": ["rows.jsonl"], "run": str(folder / "run"), "model": "model.yaml"}
    text = (resources.files("longvila") / "presets/tiny.yaml").read_text()
    rows = Path("rows.jsonl").read_text().splitlines()
    said = []
    for data, model in ((rows[:: 1 - 2 * rank], text), (rows, text.replace("10000.0", f"{rank + 1}e4"))):
        Path("rows.jsonl").write_text("\n".join(data))
        Path("model.yaml").write_text(model)
        with pytest.raises(JobError) as fault:
            train.main(Job(config=settings, sharding=sharding))
        said.append(str(fault.value))
    Path("model.yaml").write_text(text)
    save_weights(build_model(load_config("tiny"), Job(), dtype=torch.float32, seed=rank, weights=None, trained=()),
                 Path("weights"), OneProcess())  # fmt: skip
    with pytest.raises(JobError) as fault:
        train.main(Job(config={**settings, "weights": "weights"}, sharding=sharding))
    return [*said, str(fault.value)]


def test_ranks_that_find_other_files_under_the_same_names_do_not_start(tmp_path):
    for said in run_ranks(_other_files, 2, tmp_path):
        assert said == [f"hosts disagree: the {what} is not the same for all ranks; give every host the same files"
                        for what in ("data", "model", "weights")]  # fmt: skip


def test_kinds_of_failure():
    assert is_mistake(JobError("x")) and is_mistake(InputError("x")) and not is_mistake(ValueError("x"))
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
