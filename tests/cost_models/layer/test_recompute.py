"""Recompute by operators: torchtitan's selective checkpoint keeps every other product's result."""

from dataclasses import replace

import pytest

from cost_models import Model, Strategy, Workload
from cost_models.framework import OURS, Framework
from cost_models.layer.decoder import kept_bytes, operators
from cost_models.layer.operators import product_flops
from cost_models.layer.recompute import run_again
from cost_models.layer.sizes import RankSizes

TOKENS = 4096
WORK = Workload(Model.load("llama-3-8b"), context_tokens=TOKENS)


@pytest.mark.parametrize("framework", ["torchtitan", "torchtitan-eager"])
def test_every_other_product_is_kept_and_only_the_others_run_again(framework):
    """q (4,096), v (1,024), gate (14,336) of q, k, v, out, gate, up, down; an eager checkpoint has down's too."""
    sizes = RankSizes(WORK, Strategy(), Framework.load(framework))
    outputs = 4096 + 1024 + 14336 + (4096 if framework == "torchtitan-eager" else 0)
    attention, lse = 4096, 32 * 4
    kept = kept_bytes(sizes, "other_products")
    assert kept == TOKENS * (2 * (4096 + outputs + attention) + lse)  # with the layer's input
    again = run_again(operators(sizes), "other_products", OURS)
    assert product_flops(again) == 2.0 * TOKENS * 4096 * (1024 + 4096 + 14336)  # k, out, up
    assert not any(one.attends for one in again)


def test_grouped_products_of_experts_are_all_made_again():
    """They are no aten.mm, which the list names: of attention q and v are kept."""
    sizes = RankSizes(replace(WORK, model=Model.load("qwen3-30b-a3b")), Strategy(), Framework.load("torchtitan"))
    table = operators(sizes)
    grouped = [one for one in table if any(p.groups > 1 for p in one.products)]
    again = run_again(table, "other_products", OURS)
    assert grouped and {one.name for one in grouped if one.name != "down"} <= {one.name for one in again}
    width, lse = 2 * (2048 + 4096 + 512 + 4096), 32 * 4  # input, q, v, attention's output
    assert kept_bytes(sizes, "other_products") == pytest.approx(TOKENS * (width + lse), rel=0.03)  # and the router's


def test_a_mixture_runs_again_with_its_exchanges_and_without_attention():
    """Megatron's modules moe and layernorm."""
    work = replace(WORK, model=Model.load("qwen3-30b-a3b"), global_batch=8)
    sizes = RankSizes(work, Strategy(data=8, expert=8), Framework.load("megatron-moe"))
    table = operators(sizes)
    again = run_again(table, "mixture", OURS)
    mixture = [one for one in table if any(p.groups > 1 for p in one.products) or one.name == "router"]
    assert product_flops(again) == product_flops(mixture) > 0
    assert [one.name for one in again if one.exchanges[0]] == ["dispatch", "combine"]
    assert [one.name for one in again if "norm" in one.name] == ["norm", "mlp norm"]
    freed = kept_bytes(sizes, "none") - kept_bytes(sizes, "mixture")
    norms = 2 * TOKENS * 2048 * 2  # both norms' results
    assert freed == norms + sum(one.kept for one in table if one.name in ("router", "activation"))


def test_results_of_norms_and_activation_are_made_again_alone():
    """Megatron's modules moe_act and layernorm: no product and no exchange; three tensors less of a dense layer."""
    sizes = RankSizes(WORK, Strategy(), Framework.load("megatron-te"))
    again = run_again(operators(sizes), "elementwise", OURS)
    assert product_flops(again) == 0 and not any(one.exchanges[0] for one in again)
    freed = kept_bytes(sizes, "none") - kept_bytes(sizes, "elementwise")
    assert freed == TOKENS * 2 * (4096 + 4096 + 14336)


@pytest.mark.parametrize(
    ("model", "given", "left"),
    [
        ("llama-3-8b", {}, {"down", "mlp sum"}),
        ("llama-3-8b", {"lora_rank": 8}, {"mlp sum"}),  # an adapter keeps its input behind the product
        ("qwen3-30b-a3b", {}, set()),
        ("longvila-8b-ssd", {}, {"down", "mlp sum"}),
    ],
)
def test_pytorchs_checkpoint_ends_once_the_last_kept_tensor_is_back(model, given, left):
    """As `tests/executor/test_recompute.py` counts; in slices all runs again, as in every other framework."""
    work = Workload(Model.load(model), context_tokens=TOKENS, **given)
    table = operators(RankSizes(work, Strategy(), OURS))
    assert {one.name for one in table} - {one.name for one in run_again(table, "full", OURS)} == left
    assert run_again(table, "full", Framework.load("megatron-te")) == table
    sliced = operators(RankSizes(work, Strategy(mlp_chunk_tokens=1024), OURS))
    assert run_again(sliced, "full", OURS) == sliced
