"""The program against enumeration of columns and whole layers, on made-up prices."""

import itertools

import numpy as np
import pytest
from msgspec import structs

from planner.search import integer_program
from planner.search.integer_program import GIB, choose
from planner.search.policy_prices import PolicyPrices


def random_columns(seed: int, count: int = 4, layers: int = 5, stages: int = 1) -> tuple[PolicyPrices, np.ndarray]:
    """Unordered prices: policies need not be sensible. Every other seed has hosts that may be too small."""
    rng = np.random.default_rng(seed)
    columns = PolicyPrices(
        policies=("none", "mlp", "all_but_attention", "full"),
        layer_kinds=("attention",) * layers,
        other_s=rng.uniform(1, 2, count),
        layer_s=rng.uniform(1, 2, (count, 4)),
        base_bytes=rng.uniform(5, 20, (count, stages)) * GIB,
        kept_bytes=rng.uniform(0.5, 8, (count, stages, 4)) * GIB,
        again_bytes=rng.uniform(0, 4, (count, stages, 4)) * GIB,
        **no_host(count, 4),
    )
    capacity = rng.uniform(20, 50, count) * GIB
    if seed % 2:
        host = {"host_base": rng.uniform(0, 2, count), "host_kept": rng.uniform(0, 2, (count, 4))}
        host |= {"host_limit": rng.uniform(3, 8, count)}
        columns = structs.replace(columns, **{name: value * GIB for name, value in host.items()})
    return columns, capacity


def no_host(columns: int, choices: int) -> dict[str, np.ndarray]:
    """Nothing lies in host memory."""
    kept = np.zeros((columns, choices))
    return {"host_base": np.zeros(columns), "host_kept": kept, "host_limit": np.full(columns, np.inf)}


def enumerated(columns: PolicyPrices, capacity: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """(least weighted seconds, least bytes) of what fits."""
    seconds = least = np.inf
    for counts in itertools.product(range(len(columns.layer_kinds) + 1), repeat=4):
        if sum(counts) != len(columns.layer_kinds):
            continue
        layers = np.broadcast_to(np.array(counts), columns.layer_s.shape)
        used = columns.bytes_of(layers)
        fits = (used <= capacity - 6) & columns.fits_host(layers)
        seconds = min(seconds, np.where(fits, columns.seconds_of(layers) * weight, np.inf).min())
        least = min(least, np.where(fits, used, np.inf).min())
    return float(seconds), float(least)


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("seed", range(12))
def test_equals_enumeration(seed: int, stages: int) -> None:
    columns, capacity = random_columns(seed, stages=stages)
    weight = np.random.default_rng(seed).uniform(1, 1.5, 4)
    seconds, least = enumerated(columns, capacity, weight)
    answer = choose(columns, capacity, weight)
    if not np.isfinite(seconds):
        assert answer is None
        return
    assert answer is not None and answer.optimal
    assert answer.value == pytest.approx(seconds, rel=1e-9)
    assert answer.bound == pytest.approx(seconds, rel=1e-7)
    assert answer.bound <= answer.value
    smallest = choose(columns, capacity, weight, memory_first=True)
    assert smallest is not None
    assert smallest.value == pytest.approx(least, rel=1e-8)


def random_hybrids(seed: int) -> tuple[PolicyPrices, np.ndarray]:
    """Two kinds of layers of two policies each; transients that decide what fits."""
    rng = np.random.default_rng(seed)
    columns = PolicyPrices(
        policies=("none", "full"),
        layer_kinds=("ssd", "attention", "ssd", "ssd", "attention", "ssd"),
        other_s=rng.uniform(1, 2, 3),
        layer_s=rng.uniform(1, 2, (3, 4)),
        base_bytes=rng.uniform(5, 20, (3, 2)) * GIB,
        kept_bytes=rng.uniform(0.5, 4, (3, 2, 4)) * GIB,
        again_bytes=rng.uniform(0, 8, (3, 2, 4)) * GIB,
        **no_host(3, 4),
    )
    return columns, rng.uniform(35, 45, 3) * GIB


@pytest.mark.parametrize("seed", range(8))
def test_two_kinds_equal_enumeration_also_below_a_value_that_some_answer_has(seed: int) -> None:
    columns, capacity = random_hybrids(seed)
    values = [
        (float(columns.seconds_of(layers)[column]), column, counts)
        for counts in itertools.product(range(5), range(5), range(3), range(3))
        if sum(counts[:2]) == 4 and sum(counts[2:]) == 2
        for layers in [np.broadcast_to(np.array(counts), columns.layer_s.shape)]
        for column in np.flatnonzero(columns.bytes_of(layers) <= capacity - 6)
    ]
    assert values, "a seed of which nothing fits tests nothing"
    best = min(values)
    for at_most in (np.inf, sorted(values)[len(values) // 2][0], best[0]):
        answer = choose(columns, capacity, np.ones(3), at_most=at_most)
        assert answer is not None and answer.optimal
        assert (answer.column, answer.layers) == best[1:]
        assert answer.value == pytest.approx(best[0], rel=1e-9)
        assert answer.bound == pytest.approx(best[0], rel=1e-7)


def test_what_cannot_be_best_is_not_in_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """A column stands in the program for each level of transients; one whose fractions are above a known value does
    not."""
    columns, capacity = random_hybrids(0)
    sizes = []
    made = integer_program._Model.__init__

    def counted(model: integer_program._Model, levels: integer_program._Levels, *args: np.ndarray) -> None:
        sizes.append(len(levels.of))
        made(model, levels, *args)

    monkeypatch.setattr(integer_program._Model, "__init__", counted)
    first = choose(columns, capacity, np.ones(3))
    assert first is not None
    again = choose(columns, capacity, np.ones(3), at_most=first.value)
    assert again == first
    assert 1 <= sizes[1] < sizes[0]


def test_a_transient_counts_once_whatever_the_number_of_layers() -> None:
    """Two policies: 10 s and 8 GiB, or 11 s and 1 GiB with a transient of 6 GiB. 30 GiB hold three of the first."""
    columns = PolicyPrices(
        policies=("none", "full"),
        layer_kinds=("attention",) * 4,
        other_s=np.zeros(1),
        layer_s=np.array([[10.0, 11.0]]),
        base_bytes=np.zeros((1, 1)),
        kept_bytes=np.array([[[8.0, 1.0]]]) * GIB,
        again_bytes=np.array([[[0.0, 6.0]]]) * GIB,
        **no_host(1, 2),
    )
    for room, layers in ((32.1, (4, 0)), (31.1, (3, 1)), (30.9, (2, 2)), (10.1, (0, 4))):
        answer = choose(columns, np.array([room * GIB]), np.ones(1))
        assert answer is not None and answer.layers == layers
    assert choose(columns, np.array([9.9 * GIB]), np.ones(1)) is None


def test_equal_memory_is_settled_by_time() -> None:
    columns = PolicyPrices(
        policies=("none",),
        layer_kinds=("attention",) * 3,
        other_s=np.array([2.0, 1.0]),
        layer_s=np.ones((2, 1)),
        base_bytes=np.full((2, 1), GIB),
        kept_bytes=np.full((2, 1, 1), GIB),
        again_bytes=np.zeros((2, 1, 1)),
        **no_host(2, 1),
    )
    answer = choose(columns, np.full(2, 10 * GIB), np.ones(2), memory_first=True)
    assert answer is not None and answer.column == 1
