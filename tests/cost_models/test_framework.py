"""Frameworks are data: every file is read, every field has its reason, and what no price reads is refused."""

from dataclasses import fields, replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.loss.loss_utils import ForCausalLMLoss

import longvila.model
from cost_models import Cluster, InputError, LayerRange, Model, Strategy, Workload, framework, price
from cost_models.framework import OURS, Framework
from cost_models.layer import sizes
from cost_models.room import DEFAULT_ROOM
from executor.check.footprint import Footprint
from longvila.config import LongVilaConfig

WORK = Workload(Model.load("llama-3-8b"), context_tokens=8192)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of frameworks of its own, beside nothing remembered."""
    monkeypatch.setattr(framework, "FOLDER", tmp_path)
    for cached in (framework._load, framework._read):
        cached.cache_clear()
    yield tmp_path
    for cached in (framework._load, framework._read):
        cached.cache_clear()


def test_every_file_is_read_and_gives_a_reason_for_every_field():
    plain = Framework()
    for name in Framework.names():
        found = Framework.load(name)
        assert found.name == name and found.title
        changed = {
            one.name
            for one in fields(Framework)
            if one.name not in ("name", "title", "scope", "reasons")
            and getattr(found, one.name) != getattr(plain, one.name)
        }
        assert changed <= set(found.reasons), name
        assert all(len(why.split()) >= 2 for why in found.reasons.values()), name
    assert len({Framework.load(name).title for name in Framework.names()}) == len(Framework.names())


def test_what_a_file_does_not_say_is_as_in_the_one_it_is_like():
    above, below = Framework.load("megatron-te"), Framework.load("megatron-recipes")
    assert (below.norm, below.optimizer_bytes) == (above.norm, above.optimizer_bytes) == ("fused", 46)
    assert (above.reduction, below.reduction) == ("exposed", "overlapped")
    assert below.reasons["norm"] == above.reasons["norm"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: t\nfacts:\n  - why: it does\n    nrom: fused\n", "facts.0..nrom is unknown; did you mean norm"),
        ("title: t\nfacts:\n  - norm: fused\n", "facts.0. must say why, in words"),
        ("title: t\nfacts:\n  - why: it does\n", "settle at least one field"),
        ("title: t\nfacts:\n  - why: it does\n    norm: unfused\n", "norm=unfused says what holds without it"),
        ("title: t\nfacts:\n  - {why: a, norm: fused}\n  - {why: b, norm: fused}\n", "norm is given twice"),
        ("title: t\nfacts:\n  - {why: it does, norm: melted}\n", "norm: 'melted' is not one of fused, none, unfused"),
        ("title: t\nlike: x\nfacts: []\n", "framework x is like itself"),
        ("title: t\nlike: torchtitan\nfacts: []\n", "framework 'torchtitan' is unknown"),
        ("title: t\nfacts:\n  - {why: it does, host: abacus}\n", "host='abacus' is unknown; legal: pytorch-2024"),
        ("title: t\nfacts:\n  - {why: it does, norm_copies: true}\n", "counts only for a fused norm"),
        ("title: t\nfacts:\n  - {why: it does, exchange_alone: true}\n", "read for scope=operator alone"),
        ("title: t\nscope: operator\nfacts:\n  - {why: it does, loss_bytes: 4}\n", "is not read for scope=operator"),
        ("title: t\nfacts: []\nspeed: 1\n", "speed is unknown"),
    ],
)
def test_unknown_and_unused_fields_are_refused(folder, text, message):
    (folder / "x.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        Framework.load("x")


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(InputError, match="framework 'torchtitna' is unknown; did you mean torchtitan"):
        Framework.load("torchtitna")
    with pytest.raises(InputError, match="norm='melted' is unknown; legal: unfused, fused, none"):
        Framework(norm="melted")


def test_a_step_is_not_priced_as_an_operator_alone():
    node = Cluster.load("dgx-h100", nodes=1)
    with pytest.raises(InputError, match=r"yunchang is of an attention operator alone; legal: .*torchtitan"):
        price(node, WORK, Strategy(ulysses=8, shard=8), framework=Framework.load("yunchang"))


def test_fused_kernels_take_less_time_and_the_default_is_ours():
    node, layout = Cluster.load("dgx-h100", nodes=1), Strategy(ulysses=8, shard=8)
    ours, fused = (price(node, WORK, layout, framework=one) for one in (OURS, replace(OURS, norm="fused")))
    assert fused.step_s < ours.step_s == price(node, WORK, layout).step_s


@pytest.mark.parametrize(("degree", "fits"), [(4, False), (7, False), (8, True)])
def test_hugging_faces_loss_runs_out_where_it_did(degree, fits):
    """Qwen2-7B at 128K tokens on 80 GB: ulysses 4 and 7 ran out of memory, 8 ran (InternLM/xtuner issue 755)."""
    node, model = Cluster.load("hgx-h800", gpus=8 if degree == 4 else degree), Model.load("qwen2-7b")
    data, layers = 2 if degree == 4 else 1, (LayerRange(recompute="full", count=model.layers),)
    layout = Strategy(data=data, ulysses=degree, shard=data * degree, layers=layers)
    asked = Workload(model, context_tokens=2**17, global_batch=data)
    found = price(node, asked, layout, framework=Framework.load("hf-transformers"))
    assert DEFAULT_ROOM.holds(found) == fits
    assert DEFAULT_ROOM.holds(price(node, asked, layout))  # this executor's loss goes in chunks


@pytest.mark.parametrize(("output", "held"), [(torch.float32, 16), (torch.bfloat16, 14)])
def test_hugging_faces_loss_holds_what_the_file_says(output, held):
    """Of each logit in forward and backward pass, on fake tensors; the caller has the output, in fp32 by accelerate."""
    tokens, vocab = 4096, 32000
    with FakeTensorMode(), Footprint("loss") as footprint:
        inside, head = (torch.empty(n, 8, dtype=torch.bfloat16, requires_grad=True) for n in (tokens, vocab))
        logits = inside @ head.T
        loss = ForCausalLMLoss(logits[None], torch.zeros(1, tokens, dtype=torch.int64), vocab)
        logits = logits.to(output)
        loss.backward()
    assert footprint.peak["loss"] / (tokens * vocab) == pytest.approx(held, rel=0.01)
    assert (output != torch.float32) or Framework.load("hf-transformers").logit_bytes == held


def test_the_tower_s_chunks_are_those_of_the_model_that_is_trained():
    assert Framework.load("ours").frames_per_chunk == LongVilaConfig.__dataclass_fields__["frames_per_chunk"].default
    assert sizes.PARTS_AGAIN == longvila.model.PARTS_AGAIN
