"""The five stages of a recipe: each from the weights before it, what a stage trains, resumed, left out, refused."""

import json
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

from executor.launch.settings import trained_parts
from longvila import checkpoint, train
from longvila.job import JobError
from longvila.settings import read_settings
from longvila.stages import __main__ as command
from longvila.stages.__main__ import compared, main, make_stages, planned_model, planned_parts, recipe_files
from longvila.synthetic import Corpus, write
from planner.command import cli as plan_command
from planner.question.options import question
from tests.longvila.commands import ran

TINY = Corpus(short=6, long=2, text=6, short_frames=6, long_frames=12, long_text_bytes=200)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A corpus, and the shipped recipe cut to one step a stage."""
    folder = tmp_path_factory.mktemp("stages")
    write(folder / "corpus", TINY)
    (folder / "recipe").mkdir()
    for file in recipe_files("tiny"):
        settings = {**yaml.safe_load(file.read_text()), "steps": 1, "max_tokens": 400}
        (folder / "recipe" / file.name).write_text(yaml.safe_dump(settings))
    return folder


def run(made, *more):
    corpus, recipe = str(made / "corpus"), str(made / "recipe")
    return CliRunner().invoke(main, ["run", "--corpus", corpus, "--recipe", recipe, *map(str, more)])


def moved(before, after):
    """The parts with a tensor that differs."""
    return {
        part
        for part in ("llm", "vision_tower", "mm_projector")
        for name, tensor in load_file(before / part / "model.safetensors").items()
        if not tensor.equal(load_file(after / part / "model.safetensors")[name])
    }


def test_each_stage_goes_on_from_the_one_before_and_moves_its_parts(made):
    out = made / "out"
    done = run(made, "--run", out, "--to", 3)
    assert done.exit_code == 0, done.output
    done = run(made, "--run", out)
    assert done.exit_code == 0, done.output
    assert done.output.count("done, its weights are in") == 3
    names = ["1-alignment", "2-pretraining", "3-short", "4-context", "5-long"]
    weights = [out / name / "weights" for name in names]
    assert moved(weights[0], weights[1]) == {"mm_projector", "llm"}
    assert moved(weights[1], weights[2]) == {"mm_projector", "llm", "vision_tower"}
    assert moved(weights[2], weights[3]) == {"llm"}
    assert json.loads((weights[3] / "llm" / "config.json").read_text())["rope_parameters"]["rope_theta"] == 4000.0


def test_a_stage_that_was_cut_off_goes_on_and_one_left_out_is_passed(made, tmp_path):
    corpus = made / "corpus"
    for folder in ("1-alignment", "2-pretraining"):  # the second was cut off while its first checkpoint was written
        (tmp_path / folder / "train" / "checkpoints" / "step-000002.partial").mkdir(parents=True)
    (tmp_path / "1-alignment" / "train" / "checkpoints" / "step-000001").mkdir()
    (tmp_path / "1-alignment" / "train" / "checkpoints" / "step-000001" / checkpoint.MARKER).touch()
    stages = make_stages("tiny", corpus, tmp_path, 1, 5, [4])
    assert [stage.name for stage in stages] == ["1-alignment", "2-pretraining", "3-short", "5-long"]
    assert stages[0].settings["resume"] == "latest"
    assert "resume" not in stages[1].settings
    assert Path(stages[3].settings["weights"]) == tmp_path / "3-short" / "weights"
    assert stages[3].settings["data"] == [str(corpus / "long.jsonl")]


def test_a_stage_cut_off_in_a_step_ends_with_the_losses_and_weights_of_an_unbroken_one(made, tmp_path, monkeypatch):
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    settings = yaml.safe_load((made / "recipe" / "1-alignment.yaml").read_text())
    (recipe / "1-alignment.yaml").write_text(yaml.safe_dump({**settings, "steps": 4, "checkpoint_every": 2}))
    asked = ["run", "--corpus", str(made / "corpus"), "--recipe", str(recipe), "--run"]
    assert CliRunner().invoke(main, [*asked, str(tmp_path / "whole")]).exit_code == 0
    update = train.Run.update

    def cut(run, step, loss):
        if step == 4:
            raise KeyboardInterrupt
        return update(run, step, loss)

    with monkeypatch.context() as patch:
        patch.setattr(train.Run, "update", cut)
        assert CliRunner().invoke(main, [*asked, str(tmp_path / "cut")]).exit_code != 0
    assert CliRunner().invoke(main, [*asked, str(tmp_path / "cut")]).exit_code == 0
    runs = [tmp_path / name / "1-alignment" for name in ("whole", "cut")]
    whole, again = ([json.loads(line)["loss"] for line in (run / "train/metrics.jsonl").open()] for run in runs)
    assert again == pytest.approx(whole, rel=1e-6) and len(whole) == 4
    ends = [load_file(run / "weights/mm_projector/model.safetensors") for run in runs]
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor)


def test_each_stage_is_planned_with_the_parts_that_it_trains():
    for file in recipe_files("tiny"):
        settings = read_settings(train.TrainSettings, yaml.safe_load(file.read_text()), file.name)
        flags = shlex.split("--gpus 2 --cluster local --ctx 2K " + " ".join(planned_parts(settings)))
        work = question(plan_command.make_context("plan", flags).params).workload
        assert sorted(trained_parts(work)) == sorted(settings.trained), file.name
        if settings.lora_rank:
            assert (work.lora_rank, work.lora_targets) == (settings.lora_rank, settings.lora_targets)


def test_the_machine_is_measured_once_and_each_stage_planned_for_its_own_model(made, tmp_path, monkeypatch):
    called, priced = [], []
    monkeypatch.setattr(command, "_call", lambda line: called.append(shlex.split(line)))
    monkeypatch.setattr(command, "layout", lambda plan: "ring=2")
    monkeypatch.setattr(command, "_told", lambda line: priced.append(shlex.split(line)) or '{"step_s": 1.0}')
    monkeypatch.setattr(command, "compared", lambda priced_s, metrics: f"{priced_s}")
    monkeypatch.setattr(command.os, "getloadavg", lambda: (9.0, 0.0, 0.0))
    monkeypatch.setattr(command.os, "cpu_count", lambda: 2)
    done = run(made, "--run", tmp_path / "a b", "--ranks", 2, "--from", 1, "--to", 1)
    assert done.exit_code == 0 and "others use this machine (load 9.0 on 2 cores)" in done.output
    profile = str(tmp_path / "a b" / "profile-2.json")
    assert called[0] == ["executor", "profile", "--quick", "--ranks", "2", "-o", profile]
    assert called[1][called[1].index("--profile") + 1] == profile and "longvila-tiny" in called[1]
    flags = called[1][called[1].index("--cluster") : called[1].index("--profile")]
    work = question(plan_command.make_context("plan", flags).params).workload
    assert 0 < work.attended_fraction < 0.5  # rows are priced as they are packed
    frames = int(called[1][called[1].index("--frames") + 1])
    for line in priced:  # rows as they usually are; the plan has the most frames of any
        asked = question(
            plan_command.commands["price"].make_context("price", line[2 : line.index("--profile")] + line[-5:]).params
        ).workload
        assert asked.frames <= frames and asked.attended_fraction == work.attended_fraction
    Path(profile).touch()
    assert command.measured(2, tmp_path / "a b") == profile and len(called) == 3
    read = {"data": ["x"], "weights": "some/weights", "model": "tiny"}
    assert planned_model(read_settings(train.TrainSettings, read, "")) == "some/weights"
    with pytest.raises(JobError, match=r"model: own\.yaml cannot be planned"):
        planned_model(read_settings(train.TrainSettings, {"data": ["x"], "model": "own.yaml"}, ""))


def test_a_plan_is_priced_again_in_its_own_layout(tmp_path):
    plan = tmp_path / "plan.json"
    asked = ["--cluster", "local", "--gpus", "2", "--model", "longvila-tiny", "--ctx", "512", "--frames", "9"]
    assert CliRunner().invoke(plan_command, [*asked, "--fix", "ring=2,recompute=mlp", "-o", str(plan)]).exit_code == 0
    done = CliRunner().invoke(plan_command, ["price", *asked, "--strategy", command.layout(plan), "--json"])
    planned = json.loads(plan.read_text())["priced"]
    assert json.loads(done.stdout)["step_s"] == pytest.approx(planned["step_s"])


def test_prediction_and_measurement_stand_side_by_side(tmp_path):
    lines = [json.dumps({"seconds": 9.0 if step < 5 else 0.2, "host_seconds": 0.02}) for step in range(8)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    said = compared(0.3, tmp_path / "metrics.jsonl")
    assert said.startswith("step predicted 300 ms, measured 200 ms (+50%); each process reads and decodes 20 ms")


@pytest.mark.parametrize(("given", "told"), [
    (["--recipe=none"], "--recipe 'none' is neither a folder of stage files nor one of dramas, tiny"),
    (["--from=6", "--to=7"], "--from 6 --to 7: tiny has no such stage"),
])  # fmt: skip
def test_what_cannot_be_run_is_one_line(tmp_path, given, told):
    assert ran(main, "run", "--corpus", tmp_path, "--run", tmp_path, *given) == (2, f"longvila: {told}")
