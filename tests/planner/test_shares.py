"""Unequal shares of a row where GPUs are unlike: taken where the price is lower, stated, and said of the bound."""

from dataclasses import replace

import pytest
from msgspec import structs

from cost_models import Cluster, InputError, Model, Workload, price
from cost_models.hardware.device import Device
from cost_models.room import DEFAULT_ROOM
from planner import plan_file
from planner.checking import check_plan
from planner.planning import plan
from planner.prove.proof import check, proven
from planner.reverse.longest import longest_words
from planner.screens.plan_lines import _equal_shares, bound_words, plan_lines
from planner.search.searched import Searched
from planner.shares import _Trials, with_shares
from planner.solve import solve
from planner.targets.target import Target


def _work(**asked):
    return Workload(Model.load("longvila-1.5b"), **{"context_tokens": 2**18, **asked})


def _mixed():
    """Two nodes of two kinds, four GPUs each."""
    where = Cluster.load("dgx-h100", nodes=2)
    one = replace(where.node(0), gpus=4)
    return where.override({0: one, 1: replace(one, device=Device.load("a100-sxm-80gb"))})


@pytest.fixture(scope="module")
def mixed():
    return plan(_mixed(), _work())


def test_a_plan_for_unlike_gpus_gives_the_fast_ones_more_tokens(mixed):
    equal = solve(_mixed(), _work()).best[0]
    shares, device = mixed.strategy.token_shares, [run.node.device.name for run in mixed.cluster.runs]
    assert mixed.cost.step_s < 0.9 * equal.cost.step_s and mixed.simulated.step_s < 0.9 * equal.cost.step_s
    assert mixed.cost.step_s == price(mixed.cluster, mixed.workload, mixed.strategy, mixed.placement).step_s
    slot = mixed.placement.slot_of_rank[mixed.groups["ring"][0]]
    of = {name: {s for s, at in zip(shares, slot, strict=True) if device[mixed.cluster.run_of_slot[at]] == name}
          for name in device}  # fmt: skip
    assert min(of["h100-sxm-80gb"]) > max(of["a100-sxm-80gb"])
    assert DEFAULT_ROOM.holds(mixed.cost)


def test_layouts_of_all_gpus_cut_heads_into_no_more_chunks_than_a_rank_has():
    """`plan --longest` on two models ended in "8 of the 6 query heads of a rank"."""
    solution = solve(_mixed(), _work(), fixed={"ring": 8, "ulysses": 1})
    best = solution.best[0]
    lean = structs.replace(best, strategy=replace(best.strategy, attention_head_chunks=8))
    free = [structs.replace(space, pins={}) for space in solution.spaces]
    several = _Trials(structs.replace(solution, best=(lean,), spaces=tuple(free)), "time", None, DEFAULT_ROOM).layouts()
    assert {one.ulysses: one.attention_head_chunks for one, _ in several} == {1: 8, 2: 6, 4: 3}
    for one, _ in several:
        one.check(_work().model)


def test_a_longest_row_on_unlike_gpus_says_that_its_shares_are_equal():
    assert "262,144 tokens, with equal shares" in longest_words(_mixed(), _work())
    assert longest_words(Cluster.load("dgx-h100", nodes=2), _work()) == ""


def test_shares_are_in_the_file_and_the_bound_speaks_of_them(mixed, tmp_path):
    path = tmp_path / "plan.json"
    mixed.save(path)
    again = plan_file.Plan.load(path)
    assert again.strategy == mixed.strategy and again.to_json() == mixed.to_json()
    assert check_plan(str(path), again, None)
    assert 0.9 * again.cost.step_s < again.bound < again.cost.step_s and again.searched.varied["token_shares"] == "any"
    assert f"(gap {1 - again.bound / again.cost.step_s:.2%})" in bound_words(again)
    assert any("token_shares any" in line for line in plan_lines(again))
    proof = proven(again).proof
    assert proof is not None
    assert check(str(path), again, proof) == proof.bound_s <= again.bound
    wrong = path.read_text().replace('"token_shares": [', '"token_shares": [1, ')
    path.write_text(wrong)
    with pytest.raises(InputError, match="token_shares"):
        plan_file.Plan.load(path)


def test_a_bound_of_equal_shares_is_called_so(mixed, monkeypatch):
    """Of a large space, and of GPU-hours, the bound is the search's: the gap is then below zero."""
    monkeypatch.setattr("planner.search.any_shares.MOST_LAYOUTS", 1)
    large = plan(_mixed(), _work())
    assert large.strategy == mixed.strategy and large.bound > large.cost.step_s and large.gap < -0.1
    assert "with equal shares of a row; this one is" in bound_words(large)
    assert any("token_shares equal" in line for line in plan_lines(large))
    proof = proven(large).proof
    assert proof is not None and check("it", large, proof) <= mixed.bound


def test_equal_shares_stay_where_nothing_else_is_possible():
    alike = solve(Cluster.load("dgx-h100", nodes=1), _work())
    assert with_shares(alike, "time", None, DEFAULT_ROOM) is None
    for work, fixed in (
        (_work(mode="prefill"), {}),
        (_work(), {"ring_kind": "contiguous"}),
        (_work(), {"ring": 1}),
        (_work(context_tokens=2**14, lengths=((2**12, 4),)), {}),
    ):
        assert with_shares(solve(_mixed(), work, fixed=fixed), "time", None, DEFAULT_ROOM) is None
    assert with_shares(solve(_mixed(), _work()), "memory", None, DEFAULT_ROOM) is None


def test_memory_of_the_fast_cards_limits_their_share():
    """Where the fast cards are the small ones, layers recompute more or shares are milder, and it fits."""
    where = _mixed()
    small = where.override({0: replace(where.node(0), device=replace(Device.load("h100-sxm-80gb"), memory_bytes=32e9))})
    solution = solve(small, _work(context_tokens=2**19))
    found = with_shares(solution, "time", None, DEFAULT_ROOM)
    assert found is not None and DEFAULT_ROOM.holds(found.cost)
    assert found.cost.step_s < 0.99 * solution.best[0].cost.step_s


def test_the_screen_says_why_shares_are_equal(mixed):
    held = Searched(held={"token_shares": "equal"})
    equal = replace(mixed, strategy=replace(mixed.strategy, token_shares=()), searched=held)
    assert _equal_shares(equal) == _equal_shares(mixed) == []
    for changed, words in (
        ({"workload": _work(context_tokens=2**14, lengths=((2**12, 4),))}, "rows are packed"),
        ({"target": Target.load("megatron")}, "none are known of megatron"),
        ({"fixed": {"ring_kind": "contiguous"}}, "ring_kind=contiguous is held"),
    ):
        [line] = _equal_shares(replace(equal, **changed))
        assert line.startswith("unequal shares of a row for unlike GPUs") and words in line
