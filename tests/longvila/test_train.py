"""The training job on the example clips: settings, steps, resume, checkpoints, and the answers that it learned."""

import json
import math
import os
import runpy
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from longvila import checkpoint, generate, train
from longvila.dataset import Cursor
from longvila.files import claimed
from longvila.job import Job, JobError
from longvila.model import LongVilaForConditionalGeneration
from longvila.optimizer import Optimizer, learning_rate
from tests.longvila.clips import EXAMPLES, MEDIA

CLIPS = str(EXAMPLES / "clips.jsonl")
MARKER = checkpoint.Marker(step=1, cursor=Cursor(), model={}, settings={})


def settings(run, **changes):
    base = {"data": [CLIPS], "media": str(MEDIA), "run": str(run), "steps": 4, "frames": 2, "max_tokens": 256}
    return {**base, **changes}


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    return [line["loss"] for line in metrics(run)]


def run_job(run, **changes):
    train.main(Job(config=settings(run, **changes)))
    return losses(run)


def test_metrics_hold_what_they_promise(tmp_path):
    run_job(tmp_path, steps=3, rows_per_step=2)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert 0 < line["loss"] < 10 and line["grad_norm"] > 0 and line["seconds"] > 0
        assert line["tokens"] > line["label_tokens"] > 0
        assert line["peak_memory_bytes"] > 10**8  # torch alone is resident in more
    assert lines[0]["loss"] == pytest.approx(math.log(264), rel=0.05)  # an untrained model knows nothing of 264 ids


def test_accumulated_rows_are_the_mean_over_the_step(tmp_path):
    """Seven samples in one row or in seven: the same tokens, so the same first loss and norm."""
    one = {"steps": 1, "precision": "fp64"}
    run_job(tmp_path / "packed", max_tokens=2048, rows_per_step=1, **one)
    run_job(tmp_path / "apart", pack=False, rows_per_step=7, **one)
    (packed,), (apart,) = metrics(tmp_path / "packed"), metrics(tmp_path / "apart")
    assert packed["loss"] == pytest.approx(apart["loss"], rel=1e-12)
    assert packed["grad_norm"] == pytest.approx(apart["grad_norm"], rel=1e-9)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-12), ("fp32", 1e-6), ("bf16", 1e-6)])
def test_a_resumed_run_has_the_losses_of_an_unbroken_one(tmp_path, precision, tolerance):
    same = {"precision": precision, "schedule": "cosine", "warmup": 0.3, "steps": 4, "weight_decay": 0.1, "frames": 1}
    whole = run_job(tmp_path / "whole", checkpoint_every=2, **same)
    broken = tmp_path / "broken"
    run_job(broken, checkpoint_every=2, **same)
    # as a run killed in step 3 leaves it: metrics past the checkpoint, the last checkpoint half-written
    last = broken / "checkpoints/step-000004"
    last.rename(last.with_suffix(".partial"))
    resumed = run_job(broken, resume="latest", **same)
    assert len(resumed) == 4
    assert resumed == pytest.approx(whole, rel=tolerance)
    assert not list((broken / "checkpoints").glob("*.partial"))


def test_an_intact_resume_names_damaged_checkpoints_and_takes_the_one_before(tmp_path, capsys):
    """A flipped bit in the newest, a cut marker in the next: the third's run has the losses of an unbroken one."""
    same = {"precision": "fp64", "pack": False, "frames": 1, "steps": 4, "checkpoint_every": 1, "keep_checkpoints": 3}
    whole = run_job(tmp_path, **same)
    *_, third, fourth = checkpoint.complete(tmp_path / "checkpoints")
    shard = next(fourth.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    (third / checkpoint.MARKER).write_text("{")
    with pytest.raises(JobError, match="SHA-256"):
        run_job(tmp_path, **{**same, "steps": 5}, resume="latest")
    capsys.readouterr()
    resumed = run_job(tmp_path, **{**same, "steps": 5}, resume="intact")
    assert resumed[:4] == whole
    told = capsys.readouterr().err
    assert "step-000004 cannot be read" in told and "step-000003 is taken instead" in told
    assert "step-000003: its complete.json is damaged" in told and "step-000002 is taken instead" in told


def test_checkpoints_are_kept_to_the_number(tmp_path):
    run_job(tmp_path, steps=4, checkpoint_every=1, keep_checkpoints=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000003", "step-000004"]


def test_a_resume_that_does_not_match_says_what_differs(tmp_path):
    run_job(tmp_path, steps=1)
    other = tmp_path / "reversed.jsonl"
    other.write_text("\n".join(reversed(Path(CLIPS).read_text().splitlines())))
    for change, message in (
        ({"seed": 7}, "setting seed is 7, .* trained with 0"),
        ({"frames": 3}, "setting frames is 3, .* trained with 2"),
        ({"rope_theta": 5e5}, r"model llm.rope_parameters.rope_theta is 500000.0, .* trained with 10000.0"),
        ({"data": [str(other)]}, "the data are not those of .*: names, turns, names of media or weights differ"),
        ({"steps": 1}, "has done 1 steps, steps is 1: raise steps"),
    ):
        with pytest.raises(JobError, match=message):
            run_job(tmp_path, **{"steps": 2, "resume": "latest", **change})
    with pytest.raises(JobError, match="holds checkpoints: set resume to latest"):
        run_job(tmp_path, steps=2)
    file = checkpoint.latest(tmp_path) / checkpoint.MARKER
    marker = json.loads(file.read_text())
    for change, message in (
        (lambda m: m["settings"].update(gone=1), "was written with setting gone, which this version does not know"),
        (lambda m: m.update(format=2), "of another format version; this one reads 3: export it with"),
    ):
        odd = json.loads(json.dumps(marker))
        change(odd)
        file.write_text(json.dumps(odd))
        with pytest.raises(JobError, match=message):
            run_job(tmp_path, steps=2, resume="latest")
    del marker["model"]["time_tokens"], marker["settings"]["lora_rank"]  # of a version that knew neither
    file.write_text(json.dumps(marker))
    assert len(run_job(tmp_path, steps=2, resume="latest")) == 2
    with pytest.raises(JobError, match="holds no complete checkpoint"):
        run_job(tmp_path / "new", resume="latest")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepz": 3}, r"unknown setting 'stepz' \(did you mean 'steps'\?\); known: data, media"),
        ({"steps": "many"}, "steps: 'many' is not a whole number"),
        ({"steps": 0}, "steps 0 must be at least 1"),
        ({"seed": -1}, "seed -1 must be 0"),
        ({"pack": 1}, "pack: 1 is neither true nor false"),
        ({"data": "clips.jsonl"}, "data: 'clips.jsonl' is not a list"),
        ({"data": []}, r"data \[\] must be one JSON or JSONL file or more"),
        ({"lr": -1}, "lr -1.0 must be positive"),
        ({"schedule": "linear"}, "schedule 'linear' must be one of constant, cosine"),
        ({"precision": "fp8"}, "precision 'fp8' is none of fp32, bf16, fp64"),
        ({"trained": ["head"]}, "trained part 'head' is none of projector, llm, tower"),
        ({"model": "huge"}, "neither a preset"),
        ({"model": "longvila-8b"}, "tokenizer comes with its weights"),
        ({"max_frames": 3}, "max_frames 3 must be used with fps only"),
        ({"max_tokens": 20}, "raise max_tokens or take fewer frames"),
    ],
)
def test_wrong_settings_are_refused_and_nothing_is_written(tmp_path, change, message):
    with pytest.raises(JobError, match=message) as fault:
        run_job(tmp_path / "run", **change)
    assert "\n" not in str(fault.value)
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_settings_need_data():
    with pytest.raises(JobError, match="missing setting 'data'"):
        train.main(Job(config={}))


def test_parts_that_are_not_trained_stay(tmp_path):
    run_job(tmp_path / "a", steps=2, trained=["projector"], export=str(tmp_path / "weights"))
    model_settings = {"steps": 1, "weights": str(tmp_path / "weights"), "export": str(tmp_path / "again")}
    run_job(tmp_path / "b", **model_settings, trained=["llm", "tower"])
    from safetensors.torch import load_file

    def part(folder, name):
        return load_file(tmp_path / folder / name / "model.safetensors")

    torch.manual_seed(0)
    from longvila.config import load_config
    from longvila.model import LongVilaForConditionalGeneration

    start = LongVilaForConditionalGeneration(load_config("tiny"))
    assert torch.equal(part("weights", "llm")["model.norm.weight"], start.llm.model.norm.weight)
    assert not torch.equal(part("weights", "mm_projector")["layers.2.weight"], start.projector.layers[2].weight)
    for name, value in part("again", "mm_projector").items():
        assert torch.equal(value, part("weights", "mm_projector")[name])
    with pytest.raises(JobError, match="again exists already; name a new folder"):
        run_job(tmp_path / "c", **model_settings)
    assert not torch.equal(part("again", "llm")["lm_head.weight"], part("weights", "llm")["lm_head.weight"])


def test_the_example_is_learned_and_answered_word_for_word(tmp_path, capsys):
    """The example's settings, fewer steps and frames; answers come back from checkpoint and exported weights."""
    config = yaml.safe_load((EXAMPLES / "train.yaml").read_text())
    config |= {"data": [CLIPS], "media": str(MEDIA), "run": str(tmp_path / "run"), "frames": 1, "steps": 90}
    train.main(Job(config={**config, "export": str(tmp_path / "weights")}))
    assert losses(tmp_path / "run")[-1] < 0.1
    wanted = [json.loads(line)["conversations"][-1]["value"] for line in Path(CLIPS).read_text().splitlines()]
    asked = {"questions": CLIPS, "media": str(MEDIA), "frames": 1}
    for source in ({"checkpoint": str(tmp_path / "run"), "batch": 2}, {"weights": str(tmp_path / "weights")}):
        capsys.readouterr()
        generate.main(Job(config={**asked, **source, "answers": str(tmp_path / "answers.jsonl")}))
        assert capsys.readouterr().out.splitlines() == wanted
        answers = (tmp_path / "answers.jsonl").read_text().splitlines()
        assert [json.loads(line)["answer"] for line in answers] == wanted
    one = {"checkpoint": str(tmp_path / "run"), "video": str(MEDIA / "rabbit.mp4"), "frames": 1}
    generate.main(Job(config={**one, "question": "<video>\nWhat does the rabbit do?"}))
    assert capsys.readouterr().out.strip() == wanted[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "set checkpoint to a run or weights"),
        ({"checkpoint": "gone"}, "set question, or questions"),
        ({"checkpoint": "gone", "question": "q"}, "holds no complete checkpoint"),
        ({"weights": "gone", "question": "q"}, "gone is not a folder"),
        ({"checkpoint": "gone", "question": "q", "video": "gone.mp4"}, "gone.mp4: no such file"),
        ({"checkpoint": "gone", "question": "q", "max_new_tokens": 0}, "max_new_tokens 0 must be at least 1"),
        ({"checkpoint": "gone", "question": "q", "top_p": 0.0}, "top_p 0.0 must be above 0 and at most 1"),
    ],
)
def test_wrong_questions_are_refused(change, message):
    with pytest.raises(JobError, match=message):
        generate.main(Job(config=change))


def test_learning_rate_rises_then_follows_its_schedule():
    def rates(**how):
        return [learning_rate(step, steps=10, peak=2.0, **how) for step in range(10)]

    assert rates(schedule="constant", warmup_steps=4) == [0.5, 1.0, 1.5, 2.0, *[2.0] * 6]
    cosine = rates(schedule="cosine", warmup_steps=0)
    assert cosine[0] == 2.0 and cosine[5] == pytest.approx(1.0) and cosine == sorted(cosine, reverse=True)


def test_optimizer_equals_torch_adamw_and_clips():
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizer = Optimizer(dict(ours.named_parameters()), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    groups = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95))
    for step in range(4):
        inputs = torch.randn(7, 5) * 10**step
        ours(inputs).square().sum().backward()
        theirs(inputs).square().sum().backward()
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        assert optimizer.step(0.01, 1.0) == pytest.approx(float(expected), rel=1e-6)
        reference.step()
        reference.zero_grad()
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-5, atol=1e-6)
    assert ours.weight.grad is None


@pytest.mark.parametrize(("scale", "kept"), [(1e-3, 1.0), (2.0, 0.5)])
def test_only_gradients_above_the_limit_are_scaled(scale, kept):
    """Adam's first moment after a step is 0.1 of the gradient that it was given."""
    layer = torch.nn.Linear(1, 1, bias=False)
    optimizer = Optimizer(dict(layer.named_parameters()), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    layer.weight.grad = torch.full_like(layer.weight, scale)
    assert optimizer.step(0.01, 1.0) == pytest.approx(scale)
    assert optimizer.state()["exp_avg"]["weight"].item() == pytest.approx(0.1 * scale * kept)


def test_a_resumed_run_draws_the_random_numbers_of_an_unbroken_one(tmp_path):
    layer = torch.nn.Linear(1, 1)
    optimizer = Optimizer(dict(layer.named_parameters()), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    torch.manual_seed(5)
    checkpoint.save(tmp_path, layer, optimizer, MARKER, rank=0, keep=1)
    drawn = torch.rand(3)
    checkpoint.load(tmp_path / "step-000001", layer, optimizer)
    assert torch.equal(torch.rand(3), drawn)


def test_the_newest_checkpoint_is_that_of_the_highest_step(tmp_path):
    for step in (999_999, 1_000_000):
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / f"step-{step:06d}" / "complete.json").touch()
    assert checkpoint.latest(tmp_path).name == "step-1000000"


def test_half_precision_parameters_follow_float32_masters():
    """A step far below bf16's resolution is not lost: after many, the parameter has moved."""
    layer = torch.nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    torch.nn.init.ones_(layer.weight)
    optimizer = Optimizer(dict(layer.named_parameters()), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    for _ in range(64):
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step(1e-4, None)  # bf16 next below 1 is 1 - 2**-8
    assert layer.weight.item() == pytest.approx(1 - 64e-4, abs=2**-9)


def test_a_checkpoint_without_its_marker_does_not_count(tmp_path):
    run_job(tmp_path, steps=1)
    path = checkpoint.latest(tmp_path)
    (path / "complete.json").unlink()
    with pytest.raises(JobError, match="holds no complete checkpoint"):
        checkpoint.latest(tmp_path)
    with pytest.raises(JobError, match="is not complete"):
        checkpoint.read_marker(path)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": 3}', '{"format": 3, "step": -5, "cursor": {}, "model": {}, "settings": {}}']
)
def test_a_damaged_marker_is_named(tmp_path, content):
    (tmp_path / "complete.json").write_text(content)
    with pytest.raises(JobError, match=r"its complete.json is damaged \("):
        checkpoint.read_marker(tmp_path)


def _flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are in /proc")
def test_a_checkpoint_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    done, fsync, rename = [], os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: done.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name) or fsync(fd))
    monkeypatch.setattr(Path, "rename", lambda path, new: done.append("renamed") or rename(path, new))
    layer = torch.nn.Linear(3, 3)
    optimizer = Optimizer(dict(layer.named_parameters()), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    checkpoint.save(tmp_path, layer, optimizer, MARKER, rank=0, keep=1)
    (shard,) = tmp_path.glob("step-000001/*.safetensors")
    assert done == [shard.name, "complete.json.partial", "step-000001.partial", "renamed", tmp_path.name]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "shard-00001.* is missing, though it is in complete.json"),
        (lambda file: file.with_name("more.safetensors").touch(), "more.safetensors is not named by complete.json"),
        (_flip, "shard-00001.* is not as it was written"),
        (lambda file: file.write_bytes(file.read_bytes()[:-9]), "cannot be read: "),
        (lambda file: file.write_bytes(b"\x80\x04."), "cannot be read: "),
    ],
)
def test_a_damaged_checkpoint_is_one_line(tmp_path, damage, message):
    layer = torch.nn.Linear(300, 300)
    optimizer = Optimizer(dict(layer.named_parameters()), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    checkpoint.save(tmp_path, layer, optimizer, MARKER, rank=0, keep=1)
    assert not list(tmp_path.glob("**/*.distcp")) and not list(tmp_path.glob("**/.metadata")), "no pickle"
    (data,) = tmp_path.glob("step-000001/*.safetensors")
    checkpoint.load(tmp_path / "step-000001", layer, optimizer)
    damage(data)
    with pytest.raises(JobError, match=message) as fault:
        checkpoint.load(tmp_path / "step-000001", layer, optimizer)
    assert "\n" not in str(fault.value) and "Traceback" not in str(fault.value)


def test_a_run_folder_is_one_jobs_at_a_time(tmp_path):
    """Also before the first checkpoint: two jobs would mix their metrics and write one partial checkpoint."""
    with claimed(tmp_path):
        with pytest.raises(JobError, match=rf"another job writes to {tmp_path}: .*\"process\": {os.getpid()}"):
            run_job(tmp_path, steps=1)
        assert not (tmp_path / "metrics.jsonl").exists()
    assert len(run_job(tmp_path, steps=1)) == 1


def test_a_loss_that_is_no_number_names_its_row_and_updates_nothing(tmp_path, monkeypatch):
    forward, calls, updates, step = LongVilaForConditionalGeneration.forward, [], [], Optimizer.step

    def spoilt(*given):
        calls.append(given)
        return forward(*given) * (math.nan if len(calls) == 5 else 1.0)

    monkeypatch.setattr(LongVilaForConditionalGeneration, "forward", spoilt)
    monkeypatch.setattr(Optimizer, "step", lambda *given: updates.append(step(*given)) or updates[-1])
    with pytest.raises(
        JobError, match=r"step 2: the loss is nan on rank 0, in row 1 of the step's 3 \(samples \w+.*\)"
    ):
        run_job(tmp_path, pack=False, rows_per_step=3, steps=3)
    assert len(updates) == 1


def test_a_gradient_norm_that_is_no_number_updates_nothing():
    layer = torch.nn.Linear(2, 2)
    before = [p.detach().clone() for p in layer.parameters()]
    optimizer = Optimizer(dict(layer.named_parameters()), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    layer(torch.full((1, 2), math.inf)).sum().backward()
    assert not math.isfinite(optimizer.step(0.1, 1.0))
    assert all(torch.equal(p, then) for p, then in zip(layer.parameters(), before, strict=True))


def test_a_run_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match=r"file cannot be written: File exists"):
        run_job(tmp_path / "file", steps=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("")
    with pytest.raises(JobError, match=r"checkpoint .* cannot be written \([\d,]+ MiB free\): .*"):
        run_job(tmp_path / "run", steps=1)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "metrics.jsonl").write_text("nonsense\n")
    with pytest.raises(JobError, match="holds a line that is no step's"):
        run_job(tmp_path / "odd", steps=1)


@pytest.mark.parametrize("job", ["longvila.train", "longvila.generate"])
def test_a_job_runs_as_a_command_in_one_process(monkeypatch, capsys, job):
    monkeypatch.setattr("sys.argv", [job])
    with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the module is imported already
        runpy.run_module(job, run_name="__main__")
    assert ended.value.code == 2 and f"usage: python -m {job} settings.yaml" in capsys.readouterr().err
