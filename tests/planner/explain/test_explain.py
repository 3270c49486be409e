"""Why a plan is what it is: every statement is what solving again says."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from cost_models import Cluster, Model, Workload
from cost_models.room import DEFAULT_ROOM
from planner.command import cli
from planner.explain.changes import CLOSE, binding
from planner.explain.command import Question
from planner.explain.families import best_of, families
from planner.planning import plan
from planner.solve import solve
from planner.targets.target import Target
from planner.what_if.axes import every_node, with_memory

WORK = Workload(Model.load("longvila-1.5b"), context_tokens=160 * 1024)
NODE = Cluster.load("dgx-h100", gpus=4)


@pytest.fixture(scope="module")
def planned():
    return plan(NODE, WORK, trust_model=True)


@pytest.fixture(scope="module")
def solved():
    known = {}

    def best(cluster, held=None, target=None, room=DEFAULT_ROOM):
        key = (cluster, tuple(sorted((held or {}).items())), target.name if target else "mmsp", str(room))
        if key not in known:
            asked = {} if target is None else {"target": target}
            known[key] = solve(cluster, WORK, fixed=held, keep=1, room=room, **asked)
        return known[key]

    return best


class Everywhere:
    """Asked by a search of the whole space at every amount."""

    def __init__(self, solve):
        self.solve = solve

    def solved(self, cluster, room, words, within, at_most):
        return self.solve(cluster, room=room)

    def guessed(self, cluster, room, words):
        return self.solve(cluster, room=room)

    def of_one(self):
        return self


def layout_and_cost(found):
    return found.best[0].strategy, found.best[0].cost


def test_the_next_amount_is_where_solving_again_finds_another_layout(planned, solved):
    found = binding(NODE, DEFAULT_ROOM, "time", Everywhere(solved))
    now = layout_and_cost(solved(NODE))
    assert {one.resource for one in found.bounds} == {"memory", "links in a node"}
    memory, card = found.bounds[0], NODE.node(0).device
    assert memory.amount == now[1].capacity_bytes / 2**30, "what every screen calls a GPU's memory"
    assert memory.next is not None and memory.next.amount > memory.amount
    times = memory.next.amount / memory.amount

    def with_times(share):
        size = card.driver_bytes + round(card.allocatable_bytes * share)
        return layout_and_cost(solved(every_node(NODE, lambda node: with_memory(node, size))))

    assert with_times(times)[0] == memory.next.layout != now[0]
    assert with_times(1 + (times - 1) * (1 - CLOSE))[0] == now[0]
    assert memory.next.gain == pytest.approx(1 - with_times(times)[1].step_s / now[1].step_s)
    assert memory.free_gain >= memory.next.gain
    assert found.binds == max(found.bounds, key=lambda one: one.free_gain).resource


@pytest.mark.parametrize(("nodes", "context", "target"), [(2, 512, "mmsp"), (1, 1024, "alst")])
def test_few_searches_say_what_a_search_at_every_amount_says(nodes, context, target, monkeypatch):
    work = replace(WORK, context_tokens=context * 1024, text_tokens=None)
    cluster = Cluster.load("dgx-h100", nodes=nodes) if nodes > 1 else NODE
    searched = []

    def whole(cluster, room):
        return solve(cluster, work, keep=1, room=room, target=Target.load(target))

    def counted(*given, **asked):
        searched.extend([asked] * ("kept" not in asked))
        return solve(*given, **asked)

    monkeypatch.setattr("planner.explain.command.solve", counted)
    question = Question(
        SimpleNamespace(
            cluster=cluster, workload=work, objective="time", room=DEFAULT_ROOM, target=Target.load(target)
        ), {}, None, lambda words: None,
    )  # fmt: skip
    assert binding(cluster, DEFAULT_ROOM, "time", question) == binding(cluster, DEFAULT_ROOM, "time", Everywhere(whole))
    assert len(searched) <= 12


def test_computation_binds_where_nothing_else_would_save_anything():
    work = replace(WORK, context_tokens=8 * 1024, text_tokens=None)
    one = Cluster.load("dgx-h100", gpus=1)

    def best(cluster, room):
        return solve(cluster, work, fixed={"recompute": "none"}, keep=1, room=room)

    found = binding(one, DEFAULT_ROOM, "time", Everywhere(best))
    assert found.binds == "computation" and all(bound.next is None for bound in found.bounds)


def test_the_best_of_each_family_is_that_of_a_search_with_its_choices_held(planned, solved):
    several = {
        one.name: best_of(planned, one, {}, lambda held, target: layout_and_cost(solved(NODE, held, target)))
        for one in families(planned)
    }
    assert list(several) == ["pure ring", "pure Ulysses", "LongVILA's rule", "Megatron TP + CP"]
    ring = several["pure ring"]
    assert ring.cost.step_s == pytest.approx(solve(NODE, WORK, fixed={"ulysses": 1}).best[0].cost.step_s)
    assert ring.layout.ulysses == 1 and several["pure Ulysses"].layout.ring == 1
    megatron = solve(NODE, WORK, fixed={"pipeline": 1}, target=Target.load("megatron")).best[0]
    assert several["Megatron TP + CP"].cost.step_s == pytest.approx(megatron.cost.step_s)
    assert any(one.why == "these are the plan's degrees" for one in several.values())
    for one in several.values():
        assert one.ties == one.why.startswith(("ties: ", "these are"))
        assert one.ties or one.why.startswith("loses: ") == (one.cost.step_s > planned.cost.step_s)


def test_what_the_user_fixed_stays_fixed(planned, solved):
    family = next(one for one in families(planned) if one.name == "pure ring")
    found = best_of(planned, family, {"ulysses": 4}, lambda held, target: layout_and_cost(solved(NODE, held, target)))
    assert found.layout is None and found.why == "ulysses is fixed at 4"


def test_the_command_says_it_in_lines_and_as_json(tmp_path, monkeypatch, planned, solved):
    def known(cluster, workload, *, fixed, target, room, **given):
        return solved(cluster, fixed, target, room)

    monkeypatch.setattr("planner.explain.command.solve", known)
    path = str(tmp_path / "plan.json")
    planned.save(path)
    lines, told = (CliRunner().invoke(cli, ["explain", path, *more]) for more in ((), ("--json",)))
    assert lines.exit_code == told.exit_code == 0, lines.output
    found = json.loads(told.output)
    assert f"Binds     {found['binding']['binds']}" in lines.output
    assert all(one["family"] in lines.output and one["why"] in lines.output for one in found["families"])
    assert {one["resource"] for one in found["binding"]["resources"]} == {"memory", "links in a node"}
