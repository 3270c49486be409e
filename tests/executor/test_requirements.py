"""Which number formats a plan may ask for, and what the user is told about the others."""

from dataclasses import replace
from pathlib import Path

import pytest

from cost_models import Cluster, LayerRange, Model, Strategy
from cost_models.errors import InputError
from cost_models.hardware.device import Device
from cost_models.hardware.machine import Gpu, Host
from cost_models.layer.recompute import KEEPING_INPUT
from cost_models.workload import Precision
from executor.launch.requirements import differences, planned_memory
from executor.launch.settings import merge
from planner.search.levers import VALUES
from planner.targets.executed import unsupported
from planner.targets.target import Target
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


def _choices():
    """Every value of a strategy that a plan for this executor may have, one at a time, and its levers by hand."""
    target = Target.load("mmsp")
    for lever in target.levers:
        yield from ({field: value} for field, value in VALUES[lever] if field != "inputs")
    for policies in target.recompute:
        for policy in policies:
            inputs = "inputs" in target.levers and policy in KEEPING_INPUT
            for offload in ("none", "activations") if inputs else ("none",):
                yield {"layers": (LayerRange(recompute=policy, offload=offload, count=4),)}
    yield from ({"zero": stage} for _, stage in target.shardings)
    yield from ({"ring_kind": kind} for kind in ("zigzag", "contiguous", target.ring_kind))
    yield from ({"loss_chunk_tokens": tokens} for tokens in (None, target.loss_chunk_tokens))
    yield {"offload_states": "optimizer"}


@pytest.mark.parametrize("changes", [*_choices()], ids=str)
def test_launch_takes_every_value_that_a_plan_for_it_may_have(changes):
    plan = make_plan(ONE, precision=FP32)
    chosen = replace(plan, strategy=replace(plan.strategy, **changes))
    assert unsupported(chosen) == []
    adapted = replace(chosen.workload, lora_rank=8, lora_targets=("qkv", "down"), lora_beside=("norms",))
    assert unsupported(replace(chosen, workload=adapted)) == []


@pytest.mark.parametrize("mode", Target.load("mmsp").modes)
def test_launch_takes_every_mode_of_a_plan_for_it(mode):
    plan = make_plan(ONE, precision=FP32)
    assert unsupported(replace(plan, workload=replace(plan.workload, mode=mode))) == []


def test_a_host_needs_the_memory_of_its_own_ranks_where_shares_are_unequal():
    """Two nodes of unlike cards: the small ones hold few tokens, and are not asked for what the large ones hold."""
    where = Cluster.load("dgx-h100", nodes=2)
    small = replace(where.node(0), device=Device.load("a100-sxm-40gb"))
    strategy = Strategy(ring=2, ulysses=8, shard=16, token_shares=(3, 1))
    plan = make_plan(
        strategy, cluster=where.override({1: small}), model="longvila-1.5b", tokens=2**19, precision=Precision()
    )
    large, little = (planned_memory(plan, [rank]).device_bytes for rank in (0, 8))
    assert large == plan.cost.memory_bytes > 2 * little

    def told(slot, free):
        device = plan.cluster.node(slot).device
        gpus = (Gpu(name=device.name, memory_bytes=device.memory_bytes, free_bytes=free),) * 8
        host = Host(name="host", cores=64, memory_bytes=2**40, free_bytes=2**40, gpus=gpus)
        return [text for text in differences(plan, host, slot, 8) if "free" in text]

    assert told(0, large) == told(1, little) == []
    assert len(told(0, large - 1)) == len(told(1, little - 1)) == 8


def test_adapters_of_the_plan_are_the_jobs_settings():
    given = ["data=[x.jsonl]"]
    asked = {"lora_rank": 8, "lora_targets": ("qkv", "down"), "lora_beside": ("embeddings",)}
    plan = make_plan(ONE, precision=FP32, **asked)
    values = merge(plan, "longvila.train", None, given).values
    assert values["trained"] == ["lora", "embeddings", "projector", "tower"]
    assert (values["lora_rank"], values["lora_targets"]) == (8, ["qkv", "down"])
    with pytest.raises(InputError, match="lora_rank=4 conflicts with the plan: its adapters are of rank 8"):
        merge(plan, "longvila.train", None, [*given, "lora_rank=4"])


def test_the_settings_of_the_page_and_every_precision_of_a_plan_agree(tmp_path):
    page = (Path(__file__).parents[2] / "docs/fine-tune.md").read_text()
    (tmp_path / "train.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    for precision, stored in ((FP32, "fp32"), (Precision(), "fp32"), (Precision(master="bf16"), "bf16")):
        plan = make_plan(ONE, tokens=131072, batch=8, precision=precision)
        assert merge(plan, "longvila.train", str(tmp_path / "train.yaml"), []).values["precision"] == stored
        for job in ("longvila.generate", "longvila.evaluate"):
            assert merge(plan, job, None, ["weights=mine"]).values["precision"] == stored


def test_what_no_plan_for_it_has_is_refused_with_the_reason():
    layers = (LayerRange(recompute="mlp", offload="activations", count=4),)
    apart = replace(ONE, offload_states="optimizer", zero=2, layers=layers)
    assert unsupported(make_plan(apart, precision=FP32)) == [
        "offload_states=optimizer with zero=2 is not executed; legal here: zero=3",
        "offload=activations is executed with recompute=all_but_attention, full alone, not mlp",
    ]
