"""The last step of a plan: ties go to the least regret and less memory, the simulator can object, all is said."""

import dataclasses

import pytest

from cost_models import Cluster, Model, Workload
from cost_models.units import show_seconds
from planner import plan
from planner.choosing import ALIKE
from planner.screens.plan_lines import bound_words, choice_words, modelled
from planner.simulator.simulation import simulate
from planner.solve import solve

HEADLINE = Workload(Model.load("longvila-8b"), context_tokens=2 * 2**20)
DGX_256 = Cluster.load("dgx-h100", gpus=256)


def test_headline_fits_without_recompute_and_keeps_room():
    """LongVILA, abstract: 8B, 2M tokens, 256 GPUs of 80 GB, no recompute."""
    found = plan(DGX_256, HEADLINE)
    assert found.cost.fits
    assert [part.recompute for part in found.strategy.layer_ranges(32)] == ["none"]
    assert found.strategy.zero == 3  # whole weights on every GPU save less than ALIKE of the time
    assert found.simulated.step_s == pytest.approx(found.cost.step_s, rel=0.02)
    assert all(other.reason for other in found.alternatives)


def test_a_tie_is_shown_with_what_it_gives_away():
    """The optimum by price is among the alternatives, the gap counts what the choice gives away, and all is said."""
    found = plan(DGX_256, HEADLINE)
    best = modelled(found)
    assert found.chosen_by == "regret" and found.regret is not None and best is not None
    tied = [other for other in found.alternatives if other.regret is not None]
    assert found.regret.tied == len(tied) + 1
    assert found.regret.most <= min(other.regret for other in tied) + ALIKE
    assert found.bound <= best.step_s < found.cost.step_s
    assert found.gap == pytest.approx(1 - found.bound / found.cost.step_s)
    words = "; ".join(choice_words(found))
    assert f"loses at most {found.regret.most:.1%}, with {found.regret.scenario}" in words
    assert f"is {found.cost.step_s / best.step_s - 1:.1%} faster if all is as modelled" in words
    least = show_seconds(found.bound, 4)
    assert (
        bound_words(found) == f"No layout of this space is priced below {least} on any placement (gap {found.gap:.2%}):"
    )


def test_the_model_can_be_trusted():
    """`trust_model` takes the proven optimum by price."""
    found, solved = plan(DGX_256, HEADLINE, trust_model=True), solve(DGX_256, HEADLINE)
    assert found.strategy == solved.best[0].strategy
    assert (found.chosen_by, found.regret, found.gap) == ("model", None, solved.gap)
    assert choice_words(found) == ["Chosen by the model"]


def test_the_simulator_can_object(monkeypatch: pytest.MonkeyPatch):
    """Where the chosen layout alone takes 10% longer in the simulator than priced, another one is taken."""
    before = plan(DGX_256, HEADLINE)

    def slower(cluster, workload, strategy, placement, **more):
        found = simulate(cluster, workload, strategy, placement, **more)
        return dataclasses.replace(found, step_s=found.step_s * (1.1 if strategy == before.strategy else 1.0))

    monkeypatch.setattr("planner.planning.simulate", slower)
    after = plan(DGX_256, HEADLINE)
    assert after.chosen_by == "simulator"
    assert after.strategy != before.strategy
    lost = next(other for other in after.alternatives if other.strategy == before.strategy)
    assert lost.simulated_s > after.simulated.step_s * 1.05


def test_memory_as_objective_has_no_ties():
    found = plan(
        Cluster.load("dgx-h100", gpus=8),
        dataclasses.replace(HEADLINE, context_tokens=2**15, text_tokens=None),
        objective="memory",
    )
    assert found.regret is None
    assert found.chosen_by == "model"


def test_a_pinned_zero_stage_stays():
    found = plan(DGX_256, HEADLINE, fixed={"zero": 2})
    assert found.strategy.zero == 2
    assert all(other.strategy.zero == 2 for other in found.alternatives if other.regret is not None)


def test_time_that_is_worth_the_memory_is_taken():
    """A short context on few tokens a GPU: gathering weights again is exposed, so they stay whole."""
    found = plan(
        Cluster.load("dgx-h100", gpus=64), dataclasses.replace(HEADLINE, context_tokens=8192, text_tokens=None)
    )
    assert found.strategy.zero < 3


def test_the_choice_says_what_decides_where_another_loses_less() -> None:
    found = plan(Cluster.load("dgx-h100", nodes=8), Workload(Model.load("longvila-8b"), context_tokens=2**19))
    assert found.regret and any(
        other.regret < found.regret.most for other in found.alternatives if other.regret is not None
    )
    assert "losses within 1% are alike: " in choice_words(found)[1]


class Clock:
    """A clock that is a second further at each reading, and the names of what began after the limit."""

    def __init__(self, limit):
        self.now, self.limit, self.late = 0.0, limit, []

    def monotonic(self):
        self.now += 1.0
        return self.now

    def watched(self, name, function):
        def called(*given, **asked):
            if self.now > self.limit + 1:  # the first reading is where it began
                self.late.append(name)
            return function(*given, **asked)

        return called


@pytest.mark.parametrize("limit_s", [0.5, 3, 6, 9])
def test_after_the_time_limit_nothing_begins_but_one_simulation(limit_s, monkeypatch):
    """Counted in readings of the clock, wherever in search, choice or simulation the limit falls."""
    clock = Clock(limit_s)
    for module in ("planning", "solve", "search.best_first", "search.with_levers"):
        monkeypatch.setattr(f"planner.{module}.time", clock)
    for module, name in (("planning", "simulate"), ("planning", "ties"), ("planning", "with_shares")):
        watched = clock.watched(name, getattr(__import__(f"planner.{module}", fromlist=[name]), name))
        monkeypatch.setattr(f"planner.{module}.{name}", watched)
    found = plan(Cluster.load("dgx-h100", nodes=64), HEADLINE, time_limit_s=limit_s)
    assert clock.late.count("simulate") <= 1 and not {"ties", "with_shares"} & {*clock.late}
    assert not found.reproducible and found.cost.fits and 0 < found.bound <= found.cost.step_s
    assert found.bound > 0.5 * found.cost.step_s
