"""Adapters: what they add, what they leave, and the weights that compute the same without them."""

import pytest
import torch
from safetensors.torch import load_file

from longvila import lora
from longvila.job import JobError
from longvila.sharding import OneProcess
from longvila.weights import empty_model, load_weights, materialise, read_config, save_weights
from tests.longvila.test_model import batch_of
from tests.longvila.test_train import run_job
from tests.longvila.test_weights import fresh

CPU = torch.device("cpu")


def test_an_exported_model_computes_what_weights_and_adapters_do(tmp_path):
    model = fresh().double()
    plain = model(batch_of())
    lora.adapt(model.llm, lora.Adapters(rank=4, alpha=8, targets=("qkv", "out", "up", "down")))
    lora.reset(model, seed=1)
    assert torch.equal(model(batch_of()), plain), "new adapters change something"
    for module in model.modules():
        if isinstance(module, lora.LoraLinear):
            torch.nn.init.normal_(module.lora_b, std=0.1)
    adapted = model(batch_of())
    assert abs(adapted - plain) > 1e-3
    save_weights(model, tmp_path / "w", OneProcess())
    back = empty_model(read_config(tmp_path / "w"), "sdpa").double()
    materialise(back, CPU)
    load_weights(back, tmp_path / "w")
    assert back(batch_of()).item() == pytest.approx(adapted.item(), rel=1e-6)  # rotary tables are float32


def test_a_run_moves_attention_embeddings_and_norms_alone(tmp_path):
    save_weights(fresh(), tmp_path / "before", OneProcess())
    run_job(
        tmp_path / "run", steps=1, weights=str(tmp_path / "before"), trained=["lora", "embeddings", "norms"],
        lora_rank=2, rope_theta=5e4, export=str(tmp_path / "after"),
    )  # fmt: skip
    before, after = (load_file(tmp_path / name / "llm" / "model.safetensors") for name in ("before", "after"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    adapted = [name for target in lora.ATTENTION for name in lora.TARGETS[target]]
    assert moved == {n for n in before if any(word in n for word in ("embed_tokens", "norm", *adapted))}
    assert read_config(tmp_path / "after").llm["rope_parameters"]["rope_theta"] == 5e4


def test_an_adapter_without_a_rank_is_refused(tmp_path):
    with pytest.raises(JobError, match="lora_rank None must be given where trained names lora"):
        run_job(tmp_path, trained=["lora"])
