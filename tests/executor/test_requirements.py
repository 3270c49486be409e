"""Which number formats a plan may ask for, and what the user is told about the others."""

from dataclasses import replace

import pytest

from cost_models import Cluster, LayerRange, Model, Strategy
from cost_models.errors import InputError
from cost_models.workload import Precision
from executor.launch.requirements import unsupported
from executor.launch.settings import merge
from tests.executor.planned import FP32, make_plan

ONE = Strategy(data=1)


@pytest.mark.parametrize("precision", [FP32, Precision(), Precision(reduce="bf16"), Precision(param="fp32")])
def test_formats_that_run_on_a_cpu(precision):
    assert unsupported(make_plan(ONE, precision=precision)) == []


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        (Precision(param="fp16"), "param=fp16 is not executed for mode=train; legal: fp64, fp32, bf16"),
        (Precision(reduce="fp16"), "reduce=fp16 is not executed for mode=train; legal: fp64, fp32, bf16"),
        (Precision(param="fp32", reduce="bf16"), "with a param that differs from master; plan with reduce=fp32"),
        (Precision(grad="bf16"), "grad=bf16 optimizer=fp32 is not executed; legal: all three fp32"),
    ],
)
def test_formats_that_would_go_wrong_or_unused_are_refused(precision, message):
    (found,) = unsupported(make_plan(ONE, precision=precision))
    assert message in found


def test_single_precision_is_refused_on_gpus_before_anything_starts():
    cluster = Cluster.load("dgx-h100", nodes=1)
    (found,) = unsupported(make_plan(Strategy(data=8, shard=8), cluster=cluster, precision=FP32))
    assert "param=fp32 has no attention kernel on GPUs; legal: bf16" in found
    assert unsupported(make_plan(Strategy(data=8, shard=8), cluster=cluster, precision=Precision())) == []


def test_double_precision_is_taken_only_where_it_would_be_computed_in():
    given = ["data=[x.jsonl]", "precision=fp64"]
    settings = merge(make_plan(ONE, precision=FP32), "longvila.train", None, given)
    assert settings.values["precision"] == "fp64" and "wider than the plan's fp32" in settings.notes[0]
    mixed = make_plan(ONE, precision=replace(FP32, param="bf16"))
    with pytest.raises(InputError, match="precision=fp64 conflicts with the plan: the plan stores parameters in fp32"):
        merge(mixed, "longvila.train", None, given)


def test_experts_and_latent_attention_are_refused_with_the_reason():
    plan = make_plan(ONE, precision=FP32)
    mixture = replace(plan, workload=replace(plan.workload, model=Model.load("deepseek-v2")))
    experts, latent = unsupported(mixture)
    assert experts == "deepseek-v2 has experts, which are priced but not executed; plan a dense model"
    assert "latent attention, which is priced but not executed" in latent


def test_adapters_are_refused_with_the_reason():
    plan = make_plan(ONE, precision=FP32)
    adapted = replace(plan, workload=replace(plan.workload, lora_rank=8))
    assert unsupported(adapted) == ["lora_rank=8 is planned but not executed; plan with --lora-rank 0"]


def test_levers_that_run_are_not_refused_and_others_with_the_reason():
    layers = (LayerRange(recompute="full", offload="activations", count=4),)
    levers = replace(ONE, mlp_chunk_tokens=512, attention_head_chunks=2, offload_states="all", zero=3, layers=layers)
    assert unsupported(make_plan(levers, precision=FP32)) == []
    apart = replace(levers, offload_states="optimizer", layers=(replace(layers[0], recompute="mlp"),))
    assert unsupported(make_plan(apart, precision=FP32)) == [
        "offload_states=optimizer is priced but not executed; legal: none, all",
        "offload=activations is executed with recompute=all_but_attention, full alone, not mlp",
    ]


def test_attention_in_chunks_is_refused_with_the_reason():
    plan = make_plan(replace(ONE, attention_chunk_tokens=512), precision=FP32)
    assert unsupported(plan) == ["attention_chunk_tokens=512 is priced but not executed; plan with none"]
