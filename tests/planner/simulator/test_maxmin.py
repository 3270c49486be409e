"""Max-min rates against exact rational arithmetic, their defining property, and the known counterexample."""

import importlib.util
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.simulator import filling
from planner.simulator.filling import Filling
from planner.simulator.maxmin import Sharing
from planner.simulator.transfers import end_times as end_times_of


def exact_rates(routes: list[list[int]], capacity: list[Fraction]) -> list[Fraction]:
    """One global bottleneck at a time, in fractions: slow and independent of the vectorised solver."""
    rate: dict[int, Fraction] = {}
    left = list(capacity)
    while len(rate) < len(routes):
        load = [sum(link in route for f, route in enumerate(routes) if f not in rate) for link in range(len(left))]
        share, worst = min((left[link] / load[link], link) for link in range(len(left)) if load[link])
        for f, route in enumerate(routes):
            if f not in rate and worst in route:
                rate[f] = share
                for link in route:
                    left[link] -= share
    return [rate[f] for f in range(len(routes))]


def sharing(routes: list[list[int]], capacity: list[float]) -> Sharing:
    pairs = [(f, link) for f, route in enumerate(routes) for link in route]
    return Sharing(
        flow=[f for f, _ in pairs],
        link=[link for _, link in pairs],
        count=[1.0] * len(pairs),
        capacity=capacity,
        flows=len(routes),
    )


def end_times(routes: list[list[int]], capacity: list[float], sizes: list[float]) -> list[float]:
    """Play flows that start together to their ends."""
    network, left, now, ends = sharing(routes, capacity), np.array(sizes), 0.0, [0.0] * len(sizes)
    while np.any(left > 0):
        active = np.flatnonzero(left > 0)
        rate = network.rates(active)
        step = float((left[active] / rate).min())
        left[active] -= rate * step
        left[left < 1e-12] = 0.0
        now += step
        for f in active:
            if left[f] == 0:
                ends[f] = now
    return ends


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    links = draw(st.integers(1, 8))
    capacity = draw(st.lists(st.integers(1, 50), min_size=links, max_size=links))
    route = st.lists(st.integers(0, links - 1), min_size=1, max_size=4, unique=True)
    return draw(st.lists(route, min_size=1, max_size=20)), capacity


@given(networks())
@settings(max_examples=150, deadline=None)
def test_equals_exact_progressive_filling(case: tuple[list[list[int]], list[int]]) -> None:
    routes, capacity = case
    exact = exact_rates(routes, [Fraction(c) for c in capacity])
    got = sharing(routes, [float(c) for c in capacity]).rates(np.arange(len(routes)))
    assert got == pytest.approx([float(rate) for rate in exact], rel=1e-12)


@given(networks(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_subset_of_flows_equals_a_network_of_only_those(case: tuple[list[list[int]], list[int]], random) -> None:  # type: ignore[no-untyped-def]
    routes, capacity = case
    chosen = sorted(random.sample(range(len(routes)), random.randint(1, len(routes))))
    whole = sharing(routes, [float(c) for c in capacity]).rates(np.array(chosen))
    alone = exact_rates([routes[f] for f in chosen], [Fraction(c) for c in capacity])
    assert whole == pytest.approx([float(rate) for rate in alone], rel=1e-12)


@given(networks(), st.integers(2, 5))
@settings(max_examples=60, deadline=None)
def test_counts_stand_for_equal_flows(case: tuple[list[list[int]], list[int]], copies: int) -> None:
    routes, capacity = case
    exact = exact_rates([route for route in routes for _ in range(copies)], [Fraction(c) for c in capacity])
    folded = sharing(routes, [float(c) for c in capacity])
    folded.count *= copies
    assert folded.rates(np.arange(len(routes))) == pytest.approx([float(r) for r in exact[::copies]], rel=1e-12)


@given(networks(), st.lists(st.integers(1, 30), min_size=20, max_size=20))
@settings(max_examples=60, deadline=None)
def test_phase_takes_at_least_the_worst_load_over_rate(
    case: tuple[list[list[int]], list[int]], sizes: list[int]
) -> None:
    routes, capacity = case
    load = [sum(size for size, route in zip(sizes, routes, strict=False) if link in route) for link in range(8)]
    bound = max(work / rate for work, rate in zip(load, capacity, strict=False))
    ends = end_times(routes, [float(c) for c in capacity], [float(size) for size in sizes[: len(routes)]])
    assert max(ends) >= bound * (1 - 1e-12)


def test_one_bottleneck_that_all_flows_cross_meets_the_bound() -> None:
    routes = [[0, 1], [0, 2], [0], [0, 1]]
    assert max(end_times(routes, [4.0, 9.0, 8.0], [3.0, 7.0, 2.0, 6.0])) == pytest.approx(18 / 4, rel=1e-12)


def test_a_faster_link_can_end_a_fixed_set_of_flows_later() -> None:
    """Kept so that nobody relies on monotony: worked out by hand (3.5 and 23/6)."""
    routes, sizes = [[0, 1], [1], [0, 2]], [2.0, 3.0, 7.0]
    assert max(end_times(routes, [3.0, 2.0, 2.0], sizes)) == pytest.approx(3.5, rel=1e-12)
    assert max(end_times(routes, [3.0, 4.0, 2.0], sizes)) == pytest.approx(23 / 6, rel=1e-12)


def test_flow_without_links_is_not_limited() -> None:
    assert np.isinf(sharing([[], [0]], [2.0]).rates(np.array([0]))).all()


@given(networks(), st.integers(1, 4), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_rates_changed_by_each_end_equal_rates_found_anew(  # type: ignore[no-untyped-def]
    case: tuple[list[list[int]], list[int]], copies: int, random
) -> None:
    routes, capacity = case
    routes = [route for route in routes for _ in range(copies)]
    network = sharing(routes, [float(c) for c in capacity])
    filling, rows = Filling(network, np.arange(len(routes))), list(range(len(routes)))
    while True:
        left = np.array(rows)
        assert filling.rates(left) == pytest.approx(network.rates(left), rel=1e-11)
        if len(rows) == 1:
            return
        gone = sorted(random.sample(rows, random.randint(1, min(2, len(rows) - 1))))
        rows = [row for row in rows if row not in gone]
        filling.end(np.array(gone))


def test_many_flows_of_different_size_end_as_if_shared_out_anew() -> None:
    """300 flows of 20 hosts: from the eighth end on, each end changes the rates before it."""
    rng = np.random.default_rng(3)
    source = rng.integers(0, 20, 300)
    routes = [[int(s), 20 + int((s + d) % 20)] for s, d in zip(source, rng.integers(1, 20, 300), strict=True)]
    capacity = [10.0] * 40
    capacity[3] = 2.5
    sizes = rng.integers(1, 1000, 300).astype(float)
    found = end_times_of(sharing(routes, capacity), sizes, np.zeros(300))
    assert found == pytest.approx(end_times(routes, capacity, sizes.tolist()), rel=1e-11)


def test_compiled_equals_plain_to_the_last_bit() -> None:
    """1,200 flows of which some cross a third link, one slow; the same source, with and without numba."""
    pytest.importorskip("numba")
    rng = np.random.default_rng(5)
    source, to = rng.integers(0, 20, 1200), rng.integers(0, 20, 1200)
    routes = [[int(s), 20 + int(t), *([40] if s < 3 else [])] for s, t in zip(source, to, strict=True)]
    network, flows = sharing(routes, [10.0] * 20 + [7.0] * 20 + [2.5]), np.arange(1200)
    sizes = rng.integers(1, 1000, 1200).astype(float)
    spec = importlib.util.spec_from_file_location("filling_plain", filling.__file__)
    assert spec and spec.loader and filling.compiled()
    plain_one = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain_one)
    assert hasattr(filling.drain, "py_func") and not hasattr(plain_one.drain, "py_func")
    found = [one.Filling(network, flows).drain(sizes, sizes, 0.0, 4000.0) for one in (plain_one, filling)]
    assert np.isfinite(found[0][0]).sum() > 600 and (found[0][1] > 0).sum() > 100
    for plain, compiled in zip(*found, strict=True):
        assert np.array_equal(plain, compiled)


def test_equal_links_that_the_same_flows_cross_in_different_order() -> None:
    network = sharing([[0, 1], [1, 0], [1]], [4.0, 4.0])
    filling = Filling(network, np.arange(3))
    filling.end(np.array([2]))
    assert filling.rates(np.array([0, 1])).tolist() == [2.0, 2.0]
