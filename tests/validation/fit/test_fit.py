"""The fit: the shipped curves are what the rows give, the same bytes each time, within the errors stated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cost_models.curves.grid import LogGrid, pack, unpack
from cost_models.curves.samples import COLLECTIVES
from cost_models.hardware.device import Device
from cost_models.timing.packed import BASES, FOLDER
from cost_models.timing.power_limit import Busy
from validation.fit import attention, devices, products, rates, rows
from validation.fit.__main__ import main
from validation.fit.rows import rising
from validation.fit.sources import left_out_sources

FILES = {recipe.device: recipe for recipe in devices.RECIPES}
TARGETS = {  # medians on families left out
    "gemm": 0.06, "attention": 0.06, "busy": 0.06, "grouped": 0.08, "unequal": 0.07, "memory-bound": 0.12,
}  # fmt: skip
REACHED = {
    ("b200-sxm-180gb", "memory-bound, sizes"): 0.15,  # two libraries' norms, a fifth apart at equal bytes
    ("b200-sxm-180gb", "unequal dims fwd, rows on b200-sxm-180gb"): 0.14,  # 0.1 ms to 0.5 s: docs/curves.md
    ("b200-sxm-180gb", "attention backward, heads and mask"): 0.115,  # two sources, 13% apart at equal shapes
    ("l40s", "gemm, n and k"): 0.065,  # a coarse grid whose large products are at the board's power limit
    ("l40s", "attention by A100's, one limit"): 0.07,  # another board's kernel, carried over by one number
}


@pytest.mark.parametrize("device", FILES)
def test_packed_errors_on_left_out_families(device: str) -> None:
    left_out = json.loads((FOLDER / f"{device}.json").read_text())["left_out"]
    wanted = {"gemm", "attention forward", "attention backward", "busy products"}
    assert {name.split(",")[0] for name in left_out} >= ({"gemm"} if device == "l40s" else wanted)
    for name, error in left_out.items():
        target = REACHED.get((device, name), TARGETS[name.split(",")[0].split(" ")[0]])
        assert error["median"] <= target, name


def test_the_page_shows_the_packed_errors() -> None:
    page = (Path(__file__).parents[3] / "docs" / "curves.md").read_text()
    packed = {device: json.loads((FOLDER / f"{device}.json").read_text())["left_out"] for device in FILES}
    for curve, families in {**packed, **json.loads((FOLDER / "links.json").read_text())}.items():
        for name, e in families.items():
            assert f"| {curve} | {name} | {e['rows']} | {e['median']:.1%} | {e['p90']:.1%} |" in page


def test_every_estimate_states_how_wrong_such_estimates_were() -> None:
    page = (Path(__file__).parents[3] / "docs" / "curves.md").read_text()
    for device in FILES:
        facts = json.loads((FOLDER / f"{device}.json").read_text())
        for op in ("gemm", "attention_forward", "attention_backward", "memory_bound"):
            e = facts[op]["scaled"]
            assert 0 < e["median"] < 0.15 and e["median"] < e["p90"] < 0.35
            assert f"| {op} | {e['rows']} | {e['median']:.1%} | {e['p90']:.1%} | {e['bias']:+.1%} |" in page


def test_a_busy_board_is_found_again() -> None:
    board = Device.load("a100-pcie-80gb")
    shapes = np.array([(m, n, k) for m in (2048, 8192) for n in (8192, 28672, 57344) for k in (1024, 4096)], float)
    rows_of = np.column_stack([np.tile(shapes, (2, 1)), np.repeat([0.0, 8.0], len(shapes)), np.zeros(2 * len(shapes))])
    burst_s = 2 * rows_of[:, :3].prod(axis=1) / np.linspace(150e12, 300e12, len(rows_of))
    truth = Busy(limit_flops=230e12, slow=1.05, exposed=0.5)
    rows_of[:, 4] = products.busy_s(truth, board, rows_of, burst_s)
    found = products.fit_busy(rows_of, burst_s, board)
    assert found.limit_flops == pytest.approx(230e12, rel=0.02)
    assert found.slow == pytest.approx(1.05, rel=0.02) and found.exposed == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("passes", [1.0, 2.5])
def test_the_softmax_of_a_score_is_found_from_two_head_dims(passes: float) -> None:
    h100 = Device.load("h100-sxm-80gb")
    shapes = np.array([(16384 // s, s, 2048 // d, 2048 // d, d, c) for d in (64, 128) for s in (1024, 4096, 16384)
                       for c in (0, 1)], float)  # fmt: skip
    columns = attention.shapes(shapes[:, 0], shapes[:, 1], shapes[:, 2], shapes[:, 5], shapes[:, 4], 132)
    start = attention.fit_form(columns, np.ones(len(shapes)), h100, passes)
    truth = replace(start, parameters=np.log([3e-6, 0.5, 200.0, 0.5, 80.0, 0.4, 1.4]))
    found, wanted = (one.at() for one in (attention.fit_form(columns, truth.seconds(*columns), h100, passes), truth))
    assert wanted.exponentials == pytest.approx(1.4) and found.exponentials == pytest.approx(1.4, rel=0.15)
    assert found.reached == pytest.approx(wanted.reached, rel=0.1)
    assert found.diagonal + found.half_keys == pytest.approx(wanted.diagonal + wanted.half_keys, rel=0.1)


def test_gemm_refit_without_a_whole_n_family() -> None:
    a100 = Device.load("a100-sxm-80gb")
    measured = rows.gemm(rows.DEFAULT_FOLDER, FILES[a100.name].gemm_file)
    out = np.isin(measured[:, 1], [1024.0, 5120.0, 12288.0])
    predicted = products.gemm_table(measured[~out], a100).read_many(*measured[out, :3].T)[0]
    errors = np.abs(predicted / measured[out, 3] - 1)
    assert out.sum() > 300 and np.median(errors) <= 0.06


def test_attention_refit_without_whole_head_families() -> None:
    h100 = Device.load("h100-sxm-80gb")
    measured = rows.attention_forward(rows.DEFAULT_FOLDER, FILES[h100.name].prefill_file)
    measured = measured[measured[:, 4] == 128]
    out = np.isin(measured[:, 2], [4.0, 12.0, 40.0])
    batch, tokens, heads, kv, _, seconds = measured[out].T
    predicted = attention.forward_table(measured[~out], h100).read_many(tokens, batch, heads, heads / kv)[0]
    assert out.sum() > 500 and np.median(np.abs(predicted / seconds - 1)) <= 0.06


@pytest.mark.parametrize("link", rates.MEASURED)
def test_collectives_without_sizes_and_without_four_ranks(link: str) -> None:
    for name, errors in rates.links_left_out(rows.DEFAULT_FOLDER, link).items():
        assert np.median(np.abs(errors)) <= 0.06, name


def test_the_shipped_links_are_what_the_rows_give(tmp_path: Path) -> None:
    for name in ("one.npz", "two.npz"):
        pack(tmp_path / name, rates.link_tables(rows.DEFAULT_FOLDER))
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    shipped, fresh = unpack(FOLDER / "links.npz"), unpack(tmp_path / "one.npz")
    assert (
        shipped.keys()
        == fresh.keys()
        == {"ranks", "buffer_bytes"} | {f"{link}_{op}" for link in (*rates.MEASURED, "pcie4") for op in COLLECTIVES}
    )
    for name, array in shipped.items():
        assert array == pytest.approx(fresh[name], rel=1e-6), name


def test_the_shipped_a100_is_what_the_rows_give(tmp_path: Path) -> None:
    fitted = devices.fit(rows.DEFAULT_FOLDER, FILES["a100-sxm-80gb"])
    for name in ("one.npz", "two.npz"):
        pack(tmp_path / name, fitted)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    shipped, fresh = unpack(FOLDER / "a100-sxm-80gb.npz"), unpack(tmp_path / "one.npz")
    assert shipped.keys() == fresh.keys()
    for name, array in shipped.items():
        assert array == pytest.approx(fresh[name], rel=1e-3, abs=1e-3), name


def test_the_packed_curves_are_small_and_complete() -> None:
    assert sum(path.stat().st_size for path in FOLDER.glob("*.npz")) < 10**6
    for name in set(BASES.values()):
        facts = json.loads((FOLDER / f"{name}.json").read_text())
        for op in ("gemm", "attention_forward", "attention_backward", "memory_bound"):
            assert facts[op]["source"] and set(facts[op]["measured_on"]) <= set(Device.names())


def test_simumax_counts_causal_flops_in_full() -> None:
    # A100-PCIe sdp_fwd, 64 heads, 8 kv, 4096 tokens: printed 370.346 TFLOP/s, above the 312 peak; half of it is not
    measured = rows.simumax_attention(rows.DEFAULT_FOLDER, "A100-PCIe-80GB", "fwd")
    row = measured[(measured[:, 2] == 64) & (measured[:, 3] == 8)][0]
    assert 4 * 64 * 4096**2 / 2 * 128 / row[6] == pytest.approx(370.346e12 / 2)


def test_a_missing_folder_is_one_line_with_the_fix(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--measurements", str(tmp_path), "--out", str(tmp_path / "out"), "--no-check"])
    assert result.exit_code == 2
    assert "no such file; --measurements must name the folder that holds" in result.output
    assert not list((tmp_path / "out").glob("*.npz"))


tables = st.lists(st.lists(st.floats(-5, 5), min_size=4, max_size=4), min_size=1, max_size=6)


@given(tables)
def test_rising_tables_rise_and_rising_data_stay(cells: list[list[float]]) -> None:
    table = rising(np.array(cells), (0, 1))
    assert (np.diff(table, axis=0) >= -1e-12).all() and (np.diff(table, axis=1) >= -1e-12).all()
    assert rising(table, (0, 1)) == pytest.approx(table)


@given(tables, st.floats(0.5, 20), st.floats(0.5, 20), st.floats(1, 3))
def test_a_grid_reads_its_knots_and_rises_between_them(
    cells: list[list[float]], x: float, y: float, more: float
) -> None:
    table = rising(np.array(cells), (0, 1))
    axes = [np.arange(1.0, len(cells) + 1), np.array([1.0, 2, 4, 8])]
    grid = LogGrid(axes, table)
    assert grid.read(axes[0][-1], 4.0)[0] == pytest.approx(np.exp(table[-1, 2]))
    one, at = grid.read(x, y)
    assert one <= grid.read(x * more, y * more)[0] * (1 + 1e-9)
    many, clamped = grid.read_many(np.array([x]), y)
    assert many[0] == pytest.approx(one) and [np.ravel(c)[0] for c in clamped] == pytest.approx(list(at))


def test_errors_on_sources_left_out_are_those_of_other_sources() -> None:
    found = left_out_sources(rows.DEFAULT_FOLDER)
    assert list(found) == ["attention, measured", "attention, scaled", "products, measured", "products, scaled"]
    medians = {name: {source: float(np.median(np.abs(e))) for source, e in one.items()} for name, one in found.items()}
    # FlashAttention-3's labels and MagiAttention's bars (never fitted) meet cuDNN's on H200 and each other
    assert medians["attention, measured"]["h100-sxm-80gb, MagiAttention's FA3, fwd"] < 0.03
    assert medians["attention, measured"]["h100-sxm-80gb, cuDNN on H200, fwd"] < 0.06
    # a board by another's numbers is further off than by its own
    for kind in ("attention", "products"):
        own, others = (np.median(list(medians[f"{kind}, {how}"].values())) for how in ("measured", "scaled"))
        assert own < others < 0.25
