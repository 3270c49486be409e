"""Distillation: losses as defined, layers that depend on no other and on no interruption, students, refusals."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from longvila import checkpoint, hybrid
from longvila.distill import losses
from longvila.distill.__main__ import main
from longvila.distill.answers import generate, score
from longvila.distill.documents import Document, Rows, padded
from longvila.distill.layers import measure, new_mixers
from longvila.distill.needles import Needles, write
from longvila.distill.settings import DistillSettings
from longvila.distill.student import make_student
from longvila.distill.teacher import load_teacher, watch
from longvila.files import claimed
from longvila.job import JobError
from longvila.settings import read_settings
from tests.longvila.commands import ran

NEEDLES = Needles(haystack=12, cards=3)
SHORT = {"steps": 4, "lr": 1e-2, "rows_per_step": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random teacher and a corpus for it."""
    made = tmp_path_factory.mktemp("distill")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=NEEDLES.vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    hybrid.save(LlamaForCausalLM(config), made / "teacher")
    (made / "teacher" / "tokenizer_config.json").write_text("{}")
    write(made, NEEDLES, documents=24, asked=6)
    return made


@pytest.fixture
def settings(folder, tmp_path):
    given = {
        "teacher": str(folder / "teacher"), "data": [str(folder / "train.jsonl")], "run": str(tmp_path / "run"),
        "keep": [1], "orient": SHORT, "align": SHORT, "transfer": SHORT, "measured_rows": 4, "max_tokens": 64,
    }  # fmt: skip
    (tmp_path / "settings.yaml").write_text(json.dumps(given))
    return read_settings(DistillSettings, given, "test")


def call(settings_folder, *words):
    return CliRunner().invoke(main, [*words[:1], str(settings_folder / "settings.yaml"), *words[1:]])


def result(run, layer, stage="align"):
    file = next((Path(run) / "layers" / f"{layer:02d}" / stage / "checkpoints").glob("*/*.safetensors"))
    return {name: tensor.tolist() for name, tensor in load_file(file).items() if name != "rng"}


def test_losses_are_what_they_are_called():
    torch.manual_seed(1)
    kept = torch.tensor([[True, True, True], [True, True, False]])
    one, other = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    apart = [(one - other)[0, h].norm() for h in range(4)] + [(one - other)[1, h, :2].norm() for h in range(4)]
    assert losses.orientation(one, other, kept) == pytest.approx(float(sum(apart)) / 8, rel=1e-6)
    mine, its = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 5)
    expected = (mine - its).norm(dim=-1)[kept].mean()
    assert losses.alignment(mine, its, kept).item() == pytest.approx(expected.item(), rel=1e-6)
    head, teacher_head = torch.nn.Linear(5, 7, bias=False), torch.nn.Linear(5, 7, bias=False)
    share = teacher_head(its).softmax(-1)
    dense = -(share * head(mine).log_softmax(-1)).sum(-1)[kept].mean()
    chunked = losses.transfer(mine, its, head, teacher_head, kept)
    assert chunked.item() == pytest.approx(dense.item(), rel=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(chunked, [mine, head.weight]), torch.autograd.grad(dense, [mine, head.weight])
    )


def test_the_teacher_is_seen_as_it_computes(settings):
    teacher = load_teacher(settings, matrices=True)
    tokens = torch.randint(0, NEEDLES.vocabulary, (2, 9))
    whole = teacher(tokens, output_attentions=True, output_hidden_states=True)
    seen = watch(teacher, tokens, [1])
    assert set(seen) == {1} and len(teacher.model.layers) == 3
    torch.testing.assert_close(seen[1].matrix_BHLL, whole.attentions[1])
    normed = teacher.model.layers[1].input_layernorm(whole.hidden_states[1])
    torch.testing.assert_close(seen[1].hidden_BLD, normed)


def test_layers_learn_alone_and_go_on_where_they_were_stopped(settings, tmp_path, monkeypatch):
    assert call(tmp_path, "layers").exit_code == 0
    runs = {"apart": [("--layers", "2"), ("--layers", "0,1")], "again": [()]}
    step, stopped = checkpoint.save, []

    def stop_once(folder, *rest, **named):
        step(folder, *rest, **named)
        if "again" in str(folder) and not stopped:
            stopped.append(folder)
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", stop_once)
    assert call(tmp_path, "layers", f"run={tmp_path}/again", "checkpoint_every=2").exit_code != 0
    assert stopped
    for name, options in runs.items():
        for words in options:
            assert call(tmp_path, "layers", f"run={tmp_path / name}", "checkpoint_every=2", *words).exit_code == 0
        for layer in range(3):
            assert result(tmp_path / name, layer) == result(settings.run, layer), (name, layer)
        one, other = (json.loads((Path(run) / "distances.json").read_text()) for run in (settings.run, tmp_path / name))
        assert one == other
    metrics = (Path(settings.run) / "layers" / "02" / "align" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, 2, 3, 4]


def test_distances_tell_a_layer_that_changes_nothing(settings):
    teacher, mixers = load_teacher(settings), new_mixers(settings, load_teacher(settings))
    teacher.model.layers[1].self_attn.o_proj.weight.zero_()
    mixers[1].out_proj.weight.data.zero_()
    rows = np.random.default_rng(0).integers(0, NEEDLES.vocabulary, (3, 12))
    found = measure(settings, Rows(rows=(), measured=tuple(rows), seed=0, device="cpu"), teacher, {1: mixers[1]})
    assert found[0].distance == 0 and found[0].divergence == pytest.approx(0, abs=1e-6)
    found = measure(settings, Rows(rows=(), measured=tuple(rows), seed=0, device="cpu"), teacher, {0: mixers[0]})
    assert found[0].distance > 0 and found[0].divergence > 0


def test_a_student_keeps_the_teacher_and_learns_from_it(settings, folder, tmp_path):
    assert call(tmp_path, "run", "mlps=false", f"asked={folder / 'asked.jsonl'}", "asked_every=2").exit_code == 0
    student, teacher = hybrid.load(Path(settings.run) / "student" / "weights"), load_teacher(settings)
    assert (Path(settings.run) / "student" / "weights" / "tokenizer_config.json").is_file()
    assert hybrid.layer_types(student) == ["ssd", "full_attention", "ssd"]
    for mine, its in zip(student.model.layers, teacher.model.layers, strict=True):
        assert torch.equal(mine.mlp.up_proj.weight, its.mlp.up_proj.weight)
    assert not torch.equal(student.lm_head.weight, teacher.lm_head.weight)
    scores = [json.loads(line) for line in (Path(settings.run) / "student" / "answers.jsonl").read_text().splitlines()]
    assert [one["step"] for one in scores] == [0, 2, 4]
    began = make_student(settings)
    assert torch.equal(began.lm_head.weight, teacher.lm_head.weight)
    stored = torch.equal(
        began.model.layers[0].self_attn.in_proj.weight, new_mixers(settings, teacher)[0].in_proj.weight
    )
    assert not stored, "the student starts from what stages 1 and 2 learned"
    told = CliRunner().invoke(main, ["evaluate", f"{settings.run}/student/weights", str(folder / "asked.jsonl")])
    assert json.loads(told.output)["answers"] == 6


def test_a_layer_is_of_one_process(settings, tmp_path):
    with claimed(settings.layer_folder(1, "")):
        error = call(tmp_path, "layers", "--layers", "1,2").exception
    assert isinstance(error, JobError) and "another job writes to" in str(error)


def test_rows_at_a_time_change_no_loss(settings, tmp_path):
    for name, count in (("whole", 4), ("parts", 3)):
        stage = json.dumps({**SHORT, "steps": 2, "rows_at_a_time": count})
        words = (f"run={tmp_path / name}", f"orient={stage}", f"align={stage}", "--layers", "0")
        assert call(tmp_path, "layers", *words).exit_code == 0
    for stage in ("orient", "align"):
        lines = [
            (tmp_path / name / "layers" / "00" / stage / "metrics.jsonl").read_text() for name in ("whole", "parts")
        ]
        one, other = ([json.loads(line)["loss"] for line in text.splitlines()] for text in lines)
        assert one == pytest.approx(other, rel=1e-5)


def test_a_model_is_scored_by_what_it_writes(settings):
    student = make_student(replace(settings, orient={}, align={}, keep=(1,))).eval()
    documents = [Document(tokens=np.arange(3, 9 + n % 2), answer=0) for n in range(4)]
    tokens, _ = padded([document.tokens for document in documents[::2]])
    written = generate(student, tokens, 2).numpy()
    full = student(torch.cat((tokens, torch.from_numpy(written[:, :1])), 1)).logits[:, -1].argmax(-1)
    assert (full.numpy() == written[:, 1]).all()
    right = [
        Document(tokens=np.concatenate((tokens[0].numpy(), answer)), answer=2)
        for answer in (written[0], written[0] ^ 1)
    ]
    assert score(student, right).right == 0.5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("layers", "keep=[7]"), "keep 7 is not one of the 3 layers"),
        (("layers", "--layers", "5"), "layers 5 must be layers of the teacher, 0 to 2"),
        (("layers", "teacher=nowhere"), "no folder of a model"),
        (("layers", "precision=int8"), "one of fp32, bf16, fp64"),
        (("layers", "orient={step: 3}"), "unknown setting 'step' (did you mean 'steps'?)"),
        (("layers", "measured_rows=24"), "are not more than measured_rows 24"),
        (("layers", "device=tpu9"), "is not a device of this machine"),
        (("layers", "ssd={heads: 3, head_size: 5, state: 7}"), "ssd heads 3 must be 4, the attention's"),
        (("student", "student=.."), "student '..' must be a name, of one folder"),
        (("layers", "keep=["), "keep=[ is not YAML"),
        (("layers", "weight_decay=.inf"), "weight_decay inf must be at least 0"),
        (("student",), "run `layers` first"),
    ],
)
def test_mistakes_are_told_in_a_line(settings, tmp_path, words, says):
    error = call(tmp_path, *words).exception
    assert isinstance(error, JobError) and says in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("given", "told"), [(("--documents", "0"), "x>=1"), (("--seed", "-1"), "x>=0"), ((), "File exists")]
)
def test_a_corpus_that_cannot_be_made_is_told_in_a_line(tmp_path, given, told):
    (tmp_path / "taken").touch()
    code, said = ran(main, "needles", tmp_path / "taken", *given)
    assert code == 2 and told in said and "\n" not in said


def test_a_device_that_there_is_not_is_told_in_a_line(folder):
    asked = [str(folder / "teacher"), str(folder / "asked.jsonl"), "--device", "tpu9"]
    error = CliRunner().invoke(main, ["evaluate", *asked]).exception
    assert isinstance(error, JobError) and "'tpu9' is not a device" in str(error)


@pytest.mark.parametrize("line", ["{", "[]", '{"text": ""}', '{"tokens": [999]}', '{"tokens": [1], "answer": [2]}'])
def test_documents_that_are_none_are_refused(settings, tmp_path, line):
    (tmp_path / "bad.jsonl").write_text(line + "\n")
    error = call(tmp_path, "layers", f"data=[{tmp_path}/bad.jsonl]").exception
    assert isinstance(error, JobError)
    assert "bad.jsonl:1" in str(error) or "no tokenizer" in str(error)
