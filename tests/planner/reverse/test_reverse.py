"""`plan --longest`, `--finish` and `--goodput` as typed, and their answers against the planner's own."""

import json
from dataclasses import replace

import pytest

from cost_models import Cluster, Model, Workload
from cost_models.errors import InputError
from planner import NothingFits
from planner.reverse.command import first_nodes, state_bytes
from planner.reverse.finish import Goal, fewest
from planner.reverse.longest import STEP_TOKENS, longest_context
from planner.reverse.recipe import Planned, Recipe
from planner.solve import solve
from planner.targets.target import MMSP

TINY = Workload(Model.load("longvila-1.5b"), context_tokens=8192)


def test_one_step_more_than_the_longest_row_does_not_fit():
    cluster = Cluster.load("dgx-a100", gpus=2)
    longest = longest_context(cluster, TINY)
    assert longest.context_tokens % STEP_TOKENS == 0
    assert solve(cluster, longest, keep=1).best[0].cost.fits
    more = Workload(TINY.model, context_tokens=longest.context_tokens + STEP_TOKENS)
    with pytest.raises(NothingFits):
        solve(cluster, more, keep=1)


def test_no_row_at_all_is_said():
    with pytest.raises(InputError, match="not even a row of 1024 tokens fits"):
        work = Workload(Model.load("llama-3-70b"), context_tokens=1024)
        longest_context(Cluster.load("dgx-a100", gpus=1), work, target=replace(MMSP, levers=()))


def test_one_node_fewer_does_not_reach_the_goal():
    work = Workload(TINY.model, context_tokens=8192, global_batch=64)
    goal = Goal.read("50B tokens in 2 days")
    answer = fewest("dgx-h100", work, goal, dollars_per_gpu_hour=2.0)
    assert answer.gpus % 8 == 0 and answer.gpus > 8

    def seconds(nodes):
        cost = solve(Cluster.load("dgx-h100", nodes=nodes), work, keep=1).best[0].cost
        return goal.tokens * cost.step_s / cost.tokens

    nodes = answer.gpus // 8
    assert seconds(nodes) == answer.seconds <= goal.seconds < seconds(nodes - 1)
    assert answer.dollars == pytest.approx(2.0 * answer.gpus * answer.seconds / 3600)


def test_whole_nodes_are_counted_and_paid_for():
    """A layout pinned to three GPUs still takes a node of eight."""
    fixed = {"data": 1, "ring": 3, "ulysses": 1, "microbatches": 1}
    answer = fewest("dgx-h100", TINY, Goal.read("1M tokens in 1 week"), fixed=fixed, dollars_per_gpu_hour=1.0)
    assert (answer.nodes, answer.gpus, answer.used) == (1, 8, 3)
    assert answer.dollars == pytest.approx(8 * answer.seconds / 3600)


def test_a_goal_that_no_number_of_gpus_reaches_says_the_most():
    answer = fewest("dgx-h100", TINY, Goal.read("3T tokens in 1 hour"))
    assert "is the most" in answer.problem and "--batch" in answer.problem


@pytest.mark.parametrize(
    "text", ["3T", "3T tokens", "tokens in 3 days", "0 in 3 days", "3X tokens in 2 days", "-1T in 3 days"]
)
def test_a_goal_is_tokens_in_time(text):
    with pytest.raises(InputError, match="--finish"):
        Goal.read(text)


def test_fewer_nodes_are_the_first_ones():
    cluster = Cluster.load("dgx-h100", nodes=4)
    assert first_nodes(cluster, 4) == cluster
    assert (first_nodes(cluster, 3).gpus, first_nodes(cluster, 3).slots) == (24, 4)


def test_a_checkpoint_holds_masters_and_two_moments_in_fp32():
    assert state_bytes(TINY) == 12 * TINY.model.params


def test_the_longest_row_is_planned(typed):
    code, out, err = typed("--gpus", "2", "--cluster", "dgx-a100", "--model", "longvila-1.5b", "--longest", "--json")
    assert (code, err) == (0, "")
    plan = json.loads(out)
    assert plan["workload"]["context_tokens"] == longest_context(Cluster.load("dgx-a100", gpus=2), TINY).context_tokens


def test_goodput_names_interval_and_spares(typed):
    asked = ["--gpus", "32", "--ctx", "32K", "--model", "longvila-1.5b", "--goodput", "--mtbf-hours", "8"]
    code, out, _ = typed(*asked)
    assert code == 0
    assert "Checkpoint every" in out and "spare" in out
    code, out, _ = typed(*asked, "--json")
    answer = json.loads(out)
    assert answer["fleets"][0]["tokens_per_s"] < answer["rates"][0]


def test_every_stage_of_a_recipe_is_planned_and_counted(typed, monkeypatch):
    """Also the one whose search looks at ranges of rings with states on the host."""
    whole = Recipe.load("longvila-8b")
    stages = [stage for stage in whole.stages if stage.name in ("4 context 64K", "5 long 256 frames")]
    short = replace(whole, stages=(*stages, replace(stages[0], name="too long", context=2**31)))
    monkeypatch.setattr(Recipe, "load", lambda name: short)
    code, out, err = typed("--recipe", "longvila-8b", "--gpus", "32", "--price-per-gpu-hour", "2", "--json")
    assert (code, err) == (0, "")
    *found, nothing = json.loads(out)["stages"]
    assert nothing["problem"].startswith("nothing fits")
    for stage, one in zip(stages, found, strict=True):
        assert (one["stage"], one["problem"]) == (stage.name, "")
        assert one["gpu_hours"] == pytest.approx(stage.steps * one["step_s"] / 3600 * 32)
        assert one["dollars"] == pytest.approx(2 * one["gpu_hours"])
    assert found[1]["published_gpu_hours"] == 832
    (stage_4,) = whole.published
    planned = [Planned(stage=name, gpu_hours=hours) for name, hours in (("4 context 64K", 1.0), ("4 context 1M", 46.0))]
    assert stage_4.beside([*planned, Planned(stage="5 long", gpu_hours=9.0)]).startswith(
        "47 GPU-hours (published: about 336 on A100, for 17B tokens"
    )
    assert json.loads(out)["published"][0]["gpu_hours"] == 336


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "longvila-8b", "--gpus", "8", "--ctx", "8K"], "--ctx is what --recipe has for every stage"),
        (["--recipe", "longvila", "--gpus", "8"], "--recipe 'longvila' is unknown"),
        (["--goodput", "--gpus", "8", "--ctx", "8K"], "--mtbf-hours is missing"),
        (["--goodput", "--gpus", "8", "--ctx", "8K", "--mtbf-hours", "0"], "--mtbf-hours '0' is not a number above 0"),
        (["--longest", "--gpus", "8", "--ctx", "8K"], "--ctx is what --longest asks for"),
        (["--longest", "--goodput", "--gpus", "8"], "ask one at a time"),
        (["--finish", "1T in 2 days", "--gpus", "8", "--ctx", "8K"], "--gpus is what --finish asks for"),
        (["--gpus", "8", "--ctx", "8K", "--mtbf-hours", "3"], "--mtbf-hours without --goodput; legal with it"),
        (["--gpus", "8", "--ctx", "8K", "--price-per-gpu-hour", "3"], "--price-per-gpu-hour without --finish or"),
        (["--finish", "1T in 2 days", "--ctx", "8K", "--hosts", "a"], "--hosts with --finish would be ignored"),
        (["--goodput", "--gpus", "8", "--ctx", "8K", "-o", "x.json"], "--output with --goodput would be ignored"),
        (["--recipe", "longvila-8b", "--gpus", "8", "--batch", "2"], "--batch with --recipe would be ignored"),
        (["--gpus", "8", "--ctx", "8K", "--explain", "--json"], "--explain with --json"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(typed, words, message):
    code, out, err = typed(*words)
    assert (code, out) == (2, "")
    assert message in err
