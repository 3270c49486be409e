"""Pairs of layouts: runs that their source contradicts judge no order; what else limits the order is told apart."""

import pytest

from cost_models.basis import Basis
from validation import pairs
from validation.ceilings import ROWS, ceilings, most_alike, repeats, table, total
from validation.pairs import contradictions, ranked_pairs, refuted, twins
from validation.steps import Step

BASIS = Basis(board="measured", seconds={"products": 1.0})


def run(name: str, measured_s: float, predicted_s: float, *, sweep: str = "a: x", twin: str = "", exchanged_s=0.0):
    return Step(
        source="s", error=0.0, name=name, label="", basis=BASIS, sweep=sweep, predicted_s=predicted_s,
        measured_s=measured_s, exchanged_s=exchanged_s, twin=twin or name,
    )  # fmt: skip


def test_a_faster_kernel_that_took_longer_contradicts_the_slower():
    slow, fast = run("slow", 10.0, 11.0, twin="t"), run("fast", 12.0, 9.0, twin="t")
    assert contradictions([slow, fast, run("other", 30.0, 9.0)]) == [(fast, slow)]


@pytest.mark.parametrize("measured_s", [9.0, 10.0, 10.29])
def test_what_is_faster_or_within_the_margin_does_not(measured_s):
    both = [run("slow", 10.0, 11.0, twin="t"), run("fast", measured_s, 9.0, twin="t")]
    assert len(twins(both)) == 1 and not contradictions(both)


def test_rows_of_one_price_are_no_twins():
    assert not twins([run("one", 10.0, 9.0, twin="t"), run("two", 20.0, 9.0, twin="t")])


def test_order_is_counted_without_contradicted_rows_and_the_sources_own_with_them():
    rows = [
        run("1", 10.0, 10.0, twin="p"), run("2", 20.0, 15.0, twin="q"), run("3", 30.0, 12.0),
        run("4", 11.0, 11.0, sweep="b: x", twin="p"), run("5", 10.5, 16.0, sweep="b: x", twin="q"),
    ]  # fmt: skip
    assert [both[0].name for both in contradictions(rows)] == ["2"]  # 5 with the slower kernel took half as long
    (here,) = (one for one in ceilings(rows) if one.sweep == "a: x")
    assert (here.pairs, here.right) == (1, 1)  # 1 and 3
    assert (here.again, here.kept) == (1, 0)  # 1 and 2, which were 4 and 5


def test_pairs_and_odds_are_of_rows_that_nothing_refutes(monkeypatch):
    rows = [
        run("1", 10.0, 10.0, twin="p"), run("2", 20.0, 15.0, twin="q"), run("3", 30.0, 12.0),
        run("4", 11.0, 11.0, sweep="b: x", twin="p"), run("5", 10.5, 16.0, sweep="b: x", twin="q"),
    ]  # fmt: skip
    monkeypatch.setattr(pairs, "ranked", lambda reports: rows)
    assert refuted(rows) == {"2", "5"}
    assert len(ranked_pairs(())) == 1  # 1 and 3
    assert len(ranked_pairs((), with_refuted=True)) == 4


def test_exchanges_are_described_by_other_work_alone():
    """Runs whose exchanges take three times what is priced: the one without exchanges is the faster then."""
    other = [run(f"o{k}", 10.0 + 3 * k, 10.0 + k, sweep="a: y", exchanged_s=float(k)) for k in range(ROWS)]
    assert most_alike(other) == pytest.approx(3.0, rel=0.06)
    here = [run("much", 16.0, 12.0, exchanged_s=2.0), run("none", 13.0, 13.0)]
    (found,) = (one for one in ceilings([*other, *here]) if one.sweep == "a: x")
    assert found.times == most_alike(other) and (found.right, found.described) == (0, 1)
    (few,) = ceilings([*other[1:3], *here])[:1]
    assert few.times is None and few.described == few.right


def test_the_total_is_of_all():
    found = ceilings([run("1", 10.0, 10.0), run("2", 20.0, 15.0), run("3", 1.0, 2.0, sweep="b: z"),
                      run("4", 2.0, 1.0, sweep="b: z")])  # fmt: skip
    assert (total(found).pairs, total(found).right) == (2, 1)


def test_wrong_pairs_that_changed_their_order_when_run_again_are_told_as_noise():
    """Of a, 1 against 2 was the other way round in b, whose order is wrong then; 3 was the last in both."""
    rows = [
        run("1", 10.0, 20.0, twin="p"), run("2", 11.0, 19.0, twin="q"), run("3", 14.0, 18.0, twin="r"),
        run("4", 11.5, 22.0, sweep="b: x", twin="p"), run("5", 11.0, 23.0, sweep="b: x", twin="q"),
        run("6", 15.0, 24.0, sweep="b: x", twin="r"),
    ]  # fmt: skip
    rows = [*rows, run("7", 5.0, 9.0, sweep="c: y"), run("8", 6.0, 8.0, sweep="c: y")]  # wrong, never run again
    here = {one.sweep: one for one in ceilings(rows)}
    assert (here["a: x"].pairs, here["a: x"].right) == (3, 0)
    assert (here["a: x"].wrong_again, here["a: x"].wrong_kept) == (3, 2)
    assert (here["c: y"].wrong_again, here["c: y"].wrong_kept) == (0, 0)
    (words,) = (note for note in table(rows).notes if note.startswith("Noise"))
    assert words.startswith("Noise: of 5 pairs in the wrong order 4 were run again; 2 of these changed their order, 2")


def test_runs_of_one_price_are_repeats_within_their_sweep_alone():
    rows = [run("1", 10.0, 9.0), run("2", 10.5, 9.0), run("3", 20.0, 9.0, sweep="b: x"), run("4", 30.0, 8.0)]
    assert repeats(rows) == [pytest.approx(0.05)]
    assert any("1 pairs, 5.0% apart in the median, 1 by more than 3%" in note for note in table(rows).notes)
