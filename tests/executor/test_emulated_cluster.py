"""The emulated cluster: its layouts, its regret, and one that runs to the end and leaves nothing behind."""

import os
import subprocess

import pytest

from benchmarks import emulated_table
from benchmarks.attention_ranks import Grid, Shape
from benchmarks.emulated_cluster import Asked, Row, grids, main, regret, run
from benchmarks.namespaces import check_possible
from cost_models import InputError


def asked(nodes: int, each: int, *rates_mbit: float, q_heads: int = 2, rounds: int = 1) -> Asked:
    shape = Shape(q_heads=q_heads, kv_heads=2, head_dim=8, tokens=32)
    return Asked(
        nodes=nodes, ranks_per_node=each, rates_mbit=rates_mbit, shape=shape, rounds=rounds, window_s=1e-3, windows=1
    )


def test_every_layout_that_links_can_tell_apart_once():
    assert [one.name for one in grids(asked(2, 2, 50, 50, q_heads=8))] == [
        "ulysses 1 × ring 4",
        "ulysses 2 × ring 2, ulysses inside",
        "ulysses 2 × ring 2, ring inside",
        "ulysses 4 × ring 1",
    ]
    assert [one.ulysses for one in grids(asked(2, 2, 50, 50))] == [1, 2, 2]  # no more than heads
    one_each, mixed = grids(asked(4, 1, 50, 50, 50, 50)), grids(asked(4, 1, 50, 50, 50, 200))
    assert (len(one_each), len(mixed)) == (2, 3)


def test_regret_is_of_medians_over_the_same_rounds():
    grid = Grid(name="", process=((0,),))
    rows = [
        Row(grid=grid, measured_ms=times, sent_mb=0.0, priced_ms=0.0, simulated_ms=0.0)
        for times in ((10.0, 10.0, 30.0), (11.0, 11.0, 11.0))
    ]
    assert regret(rows, 0)[0] == 0.0
    lost, low, high = regret(rows, 1)
    assert lost == pytest.approx(0.1) and low == 0.0 and high == pytest.approx(0.1)


def test_a_small_cluster_runs_to_the_end_and_leaves_no_namespace(capfd):
    try:
        check_possible()
        rows, chosen, _ = run(asked(2, 1, 200, 200))
    except InputError as error:
        pytest.skip(str(error))
    assert len(rows) == 2 and 0 <= chosen < 2
    for row in rows:
        assert min(row.median_ms, row.priced_ms, row.simulated_ms) > 0 and row.sent_mb > 0
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert f"mmsp{os.getpid()}" not in left


def test_the_table_goes_on_where_it_stopped_and_sums_up(tmp_path, monkeypatch):
    file = tmp_path / "table.jsonl"
    layouts = [
        {"layout": "ulysses 1 × ring 4", "processes": [[0], [1], [2], [3]], "measured_ms": [300.0, 302.0, 304.0]},
        {"layout": "ulysses 2 × ring 2, ulysses inside", "processes": [[0, 1], [2, 3]], "measured_ms": [100.0] * 3},
    ]
    found = {
        "layouts": [{**one, "priced_ms": 151.0, "simulated_ms": 100.0} for one in layouts],
        "planned": 1, "regret": 0.0, "regret_95": [0.0, 0.0],
    }  # fmt: skip
    asked = []
    monkeypatch.setattr(emulated_table, "run", lambda regime: [asked.append(regime)])
    monkeypatch.setattr(emulated_table, "as_data", lambda *_: found)
    emulated_table.run_missing(file, emulated_table.REGIMES[:1])
    file.write_text(file.read_text() + '{"regime": "cut o')
    emulated_table.run_missing(file, emulated_table.REGIMES[:2])
    assert [one.rates_mbit for one in asked] == [(50, 50), (200, 200)]
    first, _ = emulated_table.stored(file).values()
    told = emulated_table.summary([first])
    assert "1 of 2" in told and "3.02" in told and "1.00" in told
    assert "1 of 1 regimes; median error over 2 layouts: price 50%, simulation 33%" in told


def test_regimes_are_sixteen_and_each_is_one_that_can_be_asked_for():
    assert len({emulated_table.named(one) for one in emulated_table.REGIMES}) == 16
    for one in emulated_table.REGIMES:
        assert len(grids(emulated_table.asked_of(one))) > 1


@pytest.mark.parametrize(
    ("option", "says"),
    [("--nodes=9", "--nodes 9; legal: 2 to 4"), ("--rate-mbit=50,60,70", "--rate-mbit 50,60,70; legal: ")],
)
def test_a_mistake_is_one_line(option, says, capsys):
    assert main([option]) == 2
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1


def test_without_root_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main([]) == 2
    assert capsys.readouterr().err == (
        "emulated_cluster: nodes of network namespaces need root: run this command as root\n"
    )
