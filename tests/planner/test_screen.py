"""What the default screen says is true, agrees with itself, and fits the terminal."""

import re
from dataclasses import replace

import click
import pytest

from cost_models import Cluster, Model, Workload
from cost_models.units import show_seconds
from cost_models.workload import Precision
from planner import plan
from planner.plan_file import Plan
from planner.screens.plan_lines import choice_words, plan_lines
from planner.targets.elsewhere import elsewhere
from planner.targets.target import Target

SEVEN = Workload(Model.load("longvila-8b"), context_tokens=2**17, global_batch=3)


@pytest.fixture(scope="module")
def seven() -> Plan:
    return plan(Cluster.load("dgx-h100", gpus=7), SEVEN)


@pytest.fixture(scope="module")
def torn() -> Plan:
    """Another layout is faster, and this one needs less memory."""
    found = plan(Cluster.load("dgx-h100", gpus=8), replace(SEVEN, global_batch=1))
    assert found.regret is not None and found.regret.most > 0
    return found


def test_no_line_is_wider_than_the_terminal(typed, monkeypatch: pytest.MonkeyPatch) -> None:
    typed("--gpus", "8", "--ctx", "32K")
    _, whole, _ = typed("show", "plan.json")
    for words in (("show", "plan.json", "--explain"), ("devices",), ("frameworks", "megatron-moe")):
        assert max(map(len, typed(*words)[1].splitlines())) <= 120, "in a pipe, too"
    monkeypatch.setenv("COLUMNS", "60")
    _, narrow, _ = typed("show", "plan.json")
    assert max(map(len, narrow.splitlines())) <= 60 < max(map(len, whole.splitlines())) <= 120
    assert narrow.split() == whole.split(), "the same words, broken elsewhere"


def test_bound_price_and_runners_up_have_digits_that_compare(seven: Plan) -> None:
    """11 s beside a bound of 11.04 s reads as if the plan were below it."""
    lines = click.unstyle("\n".join(plan_lines(seven)))
    assert f"Step      {show_seconds(seven.cost.step_s, 4)} (" in lines
    assert f"priced below {show_seconds(seven.bound, 4)} on" in lines
    assert f"{seven.cost.step_s * 7:.3g} GPU-seconds" in lines or f"{seven.cost.gpu_hours:.4g} GPU-hours" in lines


def test_a_runner_up_that_is_called_as_the_plan_says_what_differs(seven: Plan) -> None:
    name = seven.strategy.describe()
    twins = [other for other in seven.alternatives if other.strategy.describe() == name]
    rows = [line for line in plan_lines(seven) if line.startswith(name)]
    assert twins and not rows
    assert any(line.startswith(f"{name}, recompute by layer: ") for line in plan_lines(seven, explain=True))


def test_what_decided_is_not_bytes_between_nodes_where_memory_did(torn: Plan) -> None:
    words = "; ".join(choice_words(torn))
    assert torn.regret is not None and "less memory decides" in words


def test_faster_is_one_share_in_the_table_and_in_the_sentence(torn: Plan) -> None:
    best = min(torn.alternatives, key=lambda other: other.step_s if other.regret is not None else 1e9)
    share = f"{1 - best.step_s / torn.cost.step_s:.1%} faster"
    assert share in best.reason and share in choice_words(torn)[-1]


@pytest.mark.parametrize(("target", "gpus"), [("mmsp", 9), ("torchtitan", 8)])
def test_no_runner_up_lies_outside_the_space(target: str, gpus: int) -> None:
    """Nine ranks of 32 heads are searched as 8 or 16 alone; torchtitan exchanges no heads."""
    work = Workload(Model.load("llama-3-8b"), context_tokens=2**14, global_batch=2)
    found = plan(Cluster.load("dgx-h100", gpus=gpus), work, targets=[Target.load(target)])
    numbers = [int(one) for one in re.findall(r"[0-9]+", found.searched.varied["ulysses"])]
    degrees = {found.strategy.ulysses, *(other.strategy.ulysses for other in found.alternatives)}
    assert max(degrees) <= max(numbers)


def test_another_program_is_not_compared_at_another_precision() -> None:
    cluster = Cluster.load("dgx-h100", nodes=1)
    half = Workload(Model.load("llama-3-8b"), context_tokens=2**14)
    room = plan(cluster, half).room
    assert elsewhere(cluster, half, room) is not None
    assert elsewhere(cluster, replace(half, precision=Precision(param="fp32")), room) is None


def test_the_simulators_choice_says_what_it_played() -> None:
    found = plan(Cluster.load("dgx-h100", gpus=8), Workload(Model.load("longvila-8b"), context_tokens=196, frames=1))
    assert found.chosen_by == "simulator", "else another question is needed here"
    played = [other for other in found.alternatives if other.simulated_s is not None]
    words = choice_words(found)[0]
    assert all(show_seconds(one, 4) in words for one in (found.simulated.step_s, *(o.simulated_s for o in played)))
    assert all("simulated" in other.reason for other in played if other.simulated_s > found.simulated.step_s)
