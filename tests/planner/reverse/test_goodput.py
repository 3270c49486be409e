"""Failures in closed form against failures played one by one, and against limits that can be worked out by hand."""

import math
import random
import statistics

import pytest

from cost_models.errors import InputError
from planner.reverse.goodput import Failures, fleets, most_away, rate_with

HOURLY = Failures(between_s=3600, checkpoint_s=60, restart_s=300, repair_s=7200)


def played_s(failures, interval_s, work_s, seed):
    """Wall seconds of `work_s` seconds of work, failures drawn one by one."""
    draw = random.Random(seed)
    clock, done = 0.0, 0.0
    fails_at = draw.expovariate(1 / failures.between_s)
    while done < work_s:
        work = min(interval_s, work_s - done)
        ends = clock + work + failures.checkpoint_s
        if ends <= fails_at:
            clock, done = ends, done + work
            continue
        clock = fails_at
        while True:  # a restart may fail too
            fails_at = clock + draw.expovariate(1 / failures.between_s)
            if fails_at >= clock + failures.restart_s:
                clock += failures.restart_s
                break
            clock = fails_at
    return clock


@pytest.mark.parametrize("interval_s", [120.0, 600.0, 3000.0])
def test_wall_time_equals_failures_played_one_by_one(interval_s):
    intervals, seeds = 400, range(30)
    played = [played_s(HOURLY, interval_s, intervals * interval_s, seed) / intervals for seed in seeds]
    error = statistics.stdev(played) / math.sqrt(len(played))
    assert abs(statistics.mean(played) - HOURLY.wall_s(interval_s)) < 4 * error


def test_without_failures_only_checkpoints_take_time():
    calm = Failures(between_s=1e15, checkpoint_s=60, restart_s=300)
    assert calm.wall_s(600) == pytest.approx(660)
    assert played_s(calm, 600, 6000, seed=0) == pytest.approx(6600)


def test_the_best_interval_is_a_maximum_and_near_young_s_root():
    rare = Failures(between_s=1e6, checkpoint_s=10, restart_s=10)
    best = rare.interval_s()
    assert best == pytest.approx(math.sqrt(2 * 10 * 1e6), rel=0.01)
    assert rare.goodput(best) >= max(rare.goodput(best * 0.9), rare.goodput(best * 1.1))


def test_failures_faster_than_a_checkpoint_leave_nothing():
    assert Failures(between_s=1, checkpoint_s=1e4, restart_s=1).goodput(10) == 0


def test_nodes_that_are_away_are_poisson():
    assert sum(HOURLY.away(count) for count in range(60)) == pytest.approx(1)
    assert sum(count * HOURLY.away(count) for count in range(60)) == pytest.approx(2)  # repair / between
    assert Failures(between_s=1, checkpoint_s=1, restart_s=1).away(0) == 1
    assert sum(HOURLY.away(count) for count in range(most_away(HOURLY) + 1)) > 1 - 1e-6


def test_spares_pay_where_waiting_is_the_only_other_way():
    rates = [1000.0 - 100 * fewer for fewer in range(8)]
    waiting = [fleet for fleet in fleets(HOURLY, rates, nodes=10) if not fleet.replans]
    assert waiting[0].spares > 0
    replanning = [fleet for fleet in fleets(HOURLY, rates, nodes=10) if fleet.replans]
    assert replanning[0].spares == 0  # going on with fewer nodes loses no more than a spare does
    assert replanning[0].tokens_per_s >= waiting[0].tokens_per_s


def test_a_rate_is_weighted_by_how_often_so_many_nodes_are_away():
    # two nodes, mean one away: P(0) = P(1) = e^-1; with one spare both run at the rate of one node
    one = Failures(between_s=100, checkpoint_s=1e-9, restart_s=1e-9, repair_s=100)
    rate = rate_with(one, [2.0, 1.0], nodes=2, spares=1, replans=False, interval_s=1e-3)
    assert rate == pytest.approx(2 * math.exp(-1), rel=1e-4)


@pytest.mark.parametrize("field", ["between_s", "checkpoint_s", "restart_s"])
def test_times_must_be_above_0(field):
    with pytest.raises(InputError, match=field):
        Failures(**{"between_s": 1, "checkpoint_s": 1, "restart_s": 1, field: 0})
