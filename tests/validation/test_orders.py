"""Orders of layouts by length: pairs, flips, and what the rows of order alone say of the price."""

import pytest

from validation.orders import Timed, art, flip_tokens, maxtext, pairs


def _rows(predicted: float) -> list[Timed]:
    """Layout a costs 1 a token; layout b costs 0.5 a token and 100, or `predicted` once."""
    found = []
    for tokens in (50, 100, 150, 250, 400, 800):
        for layout, measured, priced in (("a", tokens, tokens), ("b", tokens / 2 + 100, tokens / 2 + predicted)):
            found.append(Timed(work=str(tokens), layout=layout, tokens=tokens, measured_s=measured, predicted_s=priced))
    return found


def test_a_constant_left_out_loses_the_pairs_below_the_flip() -> None:
    assert pairs(_rows(100.0)) == (6, 6)
    assert pairs(_rows(0.0)) == (3, 6)


def test_a_flip_lies_between_the_lengths_that_it_parts() -> None:
    assert flip_tokens(_rows(100.0), "b", "a", predicted=False) == pytest.approx((150 * 250) ** 0.5)
    assert flip_tokens(_rows(0.0), "b", "a", predicted=True) is None


def test_tensor_and_context_flip_where_they_were_measured_to():
    """ART on two H200: nine of ten pairs more than 3% apart in the right order, flips within a factor of 1.5."""
    rows = art()
    right, every = pairs(rows)
    assert right / every >= 0.9
    for other in ("tensor 2", "one GPU"):
        measured, predicted = (flip_tokens(rows, "context 2", other, predicted=choice) for choice in (False, True))
        assert measured is not None and predicted is not None
        assert 1 / 1.5 < predicted / measured < 1.5


def test_ring_ulysses_and_all_gather_are_in_the_measured_order():
    right, every = pairs(maxtext())
    assert right / every >= 0.85
