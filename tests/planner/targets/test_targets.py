"""Targets as typed: what each may plan, what is refused, what a server answers, and what another target would bring."""

import json
from dataclasses import replace

import numpy as np
import pytest

from cost_models import Cluster, InputError, LayerRange, Model, Placement, Strategy, Workload, price
from cost_models.framework import Framework
from cost_models.room import DEFAULT_ROOM
from planner.plan_file import Plan
from planner.planning import plan
from planner.screens import plan_lines
from planner.screens.target_lines import kernel_lines, target_lines
from planner.search.space import Space
from planner.solve import NothingFits, solve
from planner.targets.elsewhere import elsewhere
from planner.targets.executed import unsupported
from planner.targets.target import Target

TINY = replace(Model.load("longvila-1.5b"), layers=4, layer_kinds=("attention",) * 4)
WORK = Workload(TINY, context_tokens=2**13, global_batch=8)
NODE = Cluster.load("dgx-h100", nodes=1)


@pytest.mark.parametrize("name", Target.names())
def test_every_target_prices_a_framework_of_steps_and_plans_within_its_words(name: str) -> None:
    target = Target.load(name)
    assert target.code.scope == "step" and not target.code.owned_tensors, "bounds do not read its gradient axis"
    mode = target.modes[0]
    found = solve(NODE, replace(WORK, mode=mode, global_batch=8 if mode == "train" else 1), target=target, keep=2)
    best = found.best[0].strategy
    for degree in ("data", "ring", "ulysses", "tensor", "pipeline"):
        assert getattr(best, degree) == 1 or degree in target.degrees
    assert (best.zero in {stage for _, stage in target.shardings}) and best.ring_kind in (target.ring_kind, "zigzag")
    policies = {part.recompute for part in best.layer_ranges(4)}
    assert any(policies <= {*several} for several in target.recompute)
    assert found.bound <= found.best[0].cost.step_s * (1 + 1e-12)


def test_the_space_of_a_target_without_cross_products() -> None:
    swift = Space(cluster=NODE, workload=WORK, pins={}, target=Target.load("ms-swift"))
    assert {family.ulysses for family in swift.families} == {1, 2}, "TINY has 2 KV heads"
    one, two = (swift.allows(np.array(2 * [u]), np.array([2, 3])).tolist() for u in (1, 2))
    assert (one, two) == ([False, True], [True, True]), "of two ranks ulysses has both"
    apart = Space(cluster=NODE, workload=WORK, pins={}, target=Target.load("accelerate"))
    assert all(family.most_ring == 1 for family in apart.families if family.ulysses > 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--for", "vllm"), "--for vllm has no mode=train; legal: mode=prefill, decode (for train: acc"),
        (("--for", "megatron", "--mode", "decode"), "--for megatron has no mode=decode; legal: mode=train"),
        (("--for", "megatrom"), "--for 'megatrom' is unknown; did you mean megatron?"),
        (("--for", "deepspeed", "--fix", "ring=2"), "ring=2 does not exist with --for deepspeed; legal: 1"),
        (("--for", "torchtitan", "--fix", "recompute=mlp"), "recompute=mlp does not exist with --for torch"),
        (("--for", "megatron", "--precision", "fp32"), "--precision 'fp32' with --for megatron, which has its own"),
        (("--for", "megatron", "--goodput"), "--for megatron with --goodput; legal: mmsp"),
        (("--mode", "decode", "--fix", "shard=8"), "shard=8 in decode: every rank has all weights; legal: 1"),
        (("--mode", "decode", "--fix", "zero=3"), "zero=3 in decode: every rank has all weights; legal: 0"),
    ],
)  # fmt: skip
def test_what_a_target_does_not_have_is_one_line(typed, words: tuple[str, ...], message: str) -> None:
    length = () if "--longest" in words else ("--ctx", "8K")
    code, _, told = typed("--gpus", "8", *length, *words)
    assert code == 2 and message in told and len(told.splitlines()) == 1


def test_serving_offers_more_gpus_with_other_degrees_but_not_what_is_fixed() -> None:
    """70B and 1M tokens: three GPUs hold no shard of either; nine have tensor 8."""
    work = Workload(Model.load("llama-3-70b"), context_tokens=2**20, mode="decode")
    told = []
    for fixed in ({}, {"tensor": 1, "pipeline": 1}):
        with pytest.raises(NothingFits) as caught:
            solve(Cluster.load("dgx-h100", gpus=3), work, target=Target.load("vllm"), fixed=fixed)
        told.append(any("6 GPUs more (9) fit" in one for one in caught.value.remedies))
    assert told == [True, False]


def test_a_plan_for_another_target_is_kept_checked_and_not_launched(typed, tmp_path) -> None:
    asked = ("--gpus", "4", "--ctx", "4K", "--batch", "4", "--model", "longvila-1.5b")
    code, out, _ = typed(*asked, "--for", "megatron", "--fix", "tensor=2,pipeline=2")
    assert code == 0 and "for Megatron-LM" in out and "Next: plan export plan.json --to megatron" in out
    assert "Elsewhere" not in out
    stated = json.loads((tmp_path / "plan.json").read_text())
    assert stated["target"] == "megatron" and stated["strategy"]["tensor"] == 2
    code, out, _ = typed("check", "plan.json")
    assert code == 0 and "consistent" in out
    made = Plan.load(tmp_path / "plan.json")
    cost = price(
        made.cluster, made.workload, made.strategy, made.placement, framework=Framework.load("megatron-recipes")
    )
    assert cost.step_s == pytest.approx(stated["priced"]["step_s"], rel=1e-12)
    assert any("the plan is for megatron" in text for text in unsupported(made))


def test_any_is_the_best_of_all_and_says_what_the_others_take() -> None:
    several = [Target.load(name) for name in ("mmsp", "megatron", "vllm")]  # vLLM does not train
    found = plan(NODE, WORK, targets=several, trust_model=True)
    alone = {target.name: solve(NODE, WORK, target=target).best[0].cost.step_s for target in several[:2]}
    assert found.targets == alone
    assert found.cost.step_s == min(alone.values()) == alone[found.target.name]
    other = "mmsp" if found.target.name == "megatron" else "megatron"
    assert f"the best of others: {other} " in " ".join(target_lines(found))
    assert f"nor of those of {other}," in plan_lines.bound_words(found)


def test_a_default_plan_says_what_another_target_would_bring() -> None:
    slow = Cluster.load("hgx-h100-1nic", gpus=16)
    work = Workload(Model.load("longvila-8b"), context_tokens=2**13, global_batch=16)
    found = elsewhere(slow, work, DEFAULT_ROOM)
    assert found is not None and found.cost is not None and found.strategy is not None
    again = price(
        slow, Target.load("megatron").asked(work), found.strategy, framework=Framework.load("megatron-recipes")
    )
    assert again.step_s == found.cost.step_s and found.strategy.ranks == 16
    mine = plan(slow, work)
    line = next(line for line in plan_lines.plan_lines(mine) if "Elsewhere" in line)
    assert "megatron" in line and f"best of {found.tried} priced" in line
    share = found.cost.step_s / mine.cost.step_s - 1
    assert f"{abs(share):.0%} {'slower' if share > 0 else 'faster'}" in line


def test_a_model_too_large_for_a_gpu_is_served_by_tensor_ranks() -> None:
    work = Workload(Model.load("llama-3-70b"), context_tokens=2**17, mode="decode")
    found = plan(NODE, work, targets=[Target.load("vllm")])
    assert found.strategy.tensor == 8 and found.serving is not None and found.serving.apart is not None
    code = found.target.code
    prompt = price(NODE, replace(work, mode="prefill"), found.strategy, framework=code)
    assert found.serving.first_token_s == pytest.approx(prompt.step_s)
    assert found.serving.apart.first_token_s <= prompt.step_s * (1 + 1e-12)
    assert found.serving.apart.cache_bytes == 2 * 8 * 128 * 80 * 2 * 2**17
    rows = found.serving.most_rows
    fits, over = (price(NODE, replace(work, global_batch=n), found.strategy, framework=code) for n in (rows, rows + 1))
    assert DEFAULT_ROOM.holds(fits) and not DEFAULT_ROOM.holds(over)
    assert found.serving.most_tokens_per_s == pytest.approx(rows / fits.step_s)
    longest = replace(work, context_tokens=found.serving.longest_tokens, text_tokens=None)
    longer = replace(work, context_tokens=found.serving.longest_tokens + 1024, text_tokens=None)
    assert DEFAULT_ROOM.holds(price(NODE, longest, found.strategy, framework=code))
    assert not DEFAULT_ROOM.holds(price(NODE, longer, found.strategy, framework=code))


def test_what_does_not_fit_here_is_said_to_fit_there(typed) -> None:
    code, _, told = typed("--gpus", "8", "--ctx", "128K", "--mode", "decode", "--model", "llama-3-70b")
    assert code == 2 and "tensor=" in told and "`plan --for vllm` plans it" in told


def test_tensor_ranks_sum_twice_a_layer_in_decode() -> None:
    work = Workload(Model.load("longvila-8b"), context_tokens=2**15, mode="decode")
    vllm = Framework.load("vllm")
    one, two = (price(NODE, work, Strategy(tensor=n), framework=vllm) for n in (1, 2))
    assert one.seconds["tensor"] == 0 < two.seconds["tensor"]
    layers, hidden = work.model.layers, work.model.hidden
    sent = two.sent_bytes["tensor all_reduce"]
    assert sent == pytest.approx((2 * layers + 1) * hidden * 2), "half of two, forth and back; once for the embedding"


def test_a_cache_is_cut_by_tokens_among_ranks_with_the_same_heads() -> None:
    work = Workload(replace(TINY, kv_heads=1), context_tokens=2**17, mode="decode")
    whole, cut = (
        price(NODE, work, Strategy(tensor=4, cache_context=n), framework=Framework.load("vllm")) for n in (1, 4)
    )
    assert whole.memory["cache"] == 4 * cut.memory["cache"]
    assert cut.seconds["compute"] < whole.seconds["compute"] and cut.seconds["tensor"] > whole.seconds["tensor"]
    with pytest.raises(InputError, match="each KV head is on 4 tensor ranks"):
        price(NODE, work, Strategy(tensor=4, cache_context=8))


def test_stages_follow_each_other_in_decode() -> None:
    work = Workload(Model.load("longvila-8b"), context_tokens=2**15, mode="decode")
    here, vllm = Cluster.load("dgx-h100", nodes=2), Framework.load("vllm")
    across = Placement.in_order(here, 16)
    one, two = (
        price(here, work, Strategy(tensor=8, pipeline=n), across if n > 1 else None, framework=vllm) for n in (1, 2)
    )
    assert two.seconds["compute"] == pytest.approx(one.seconds["compute"], rel=1e-2), (
        "16 boards are a little slower than 8"
    )
    assert one.seconds["pipeline"] == 0 < two.seconds["pipeline"] < 1e-3
    assert two.memory["cache"] * 2 == one.memory["cache"]


def test_a_step_of_layers_is_played_as_it_is_priced_for_other_code() -> None:
    from planner.simulator.simulation import simulate

    layers = (LayerRange(recompute="full", count=4),)
    one = Strategy(tensor=4, pipeline=2, microbatches=4, zero=0, layers=layers, loss_chunk_tokens=None)
    code = Framework.load("megatron-recipes")
    work = Target.load("megatron").asked(WORK)
    played = simulate(NODE, work, replace(one, microbatches=8), framework=code)
    assert played.step_s == pytest.approx(
        price(NODE, work, replace(one, microbatches=8), framework=code).step_s, rel=0.1
    )


def test_what_the_other_kernel_would_bring_is_its_price_and_is_told_where_it_may_be_taken() -> None:
    long = Workload(TINY, context_tokens=2**17)
    found = plan(NODE, long, trust_model=True)
    newest = price(NODE, replace(long, kernel="newest"), found.strategy, found.placement).step_s
    (line,) = kernel_lines(found)
    assert newest < found.cost.step_s and f"{1 - newest / found.cost.step_s:.0%} faster" in line, line
    assert kernel_lines(plan(NODE, replace(long, kernel="fa2"), trust_model=True)) == []
    assert kernel_lines(plan(Cluster.load("dgx-a100", nodes=1), long, trust_model=True)) == []


@pytest.mark.parametrize("gpus", [1, 8])
def test_a_plan_with_the_optimizer_on_the_host_is_one_that_the_executor_runs(gpus: int) -> None:
    pins = {"offload_states": "optimizer", "recompute": "full"}
    made = plan(Cluster.load("dgx-h100", gpus=gpus), WORK, fixed=pins)
    assert made.strategy.zero == 3 and unsupported(made) == []


@pytest.mark.parametrize(
    ("pins", "why"),
    [
        ("tensor=2", "tensor=2 is priced but not executed; plan with tensor=1"),
        ("zero=2,offload_states=optimizer", "offload_states=optimizer with zero=2 is not executed; legal here: zero=3"),
    ],
)
def test_a_plan_that_the_executor_refuses_says_so(typed, pins: str, why: str) -> None:
    code, out, _ = typed(
        "--gpus", "8", "--ctx", "8K", "--model", "llama-3-8b", "--batch", "8", "-o", "plan.json", "--fix", pins
    )
    assert code == 0 and f"Wrote plan.json. For comparison; executor launch refuses it: {why}" in " ".join(out.split())
