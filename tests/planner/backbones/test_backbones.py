"""`plan --backbones`: rows are prices of layouts that fit, the front is one, and mistakes are told in one line."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster
from cost_models.longest import longest_tokens
from cost_models.pricing import price
from cost_models.quality import backbone
from cost_models.room import DEFAULT_ROOM
from cost_models.strategy import LayerRange, Strategy
from cost_models.workload import Workload
from planner.backbones.front import front, named, trained
from planner.backbones.widths import Shapes, depths
from planner.command import cli

ASKED = Shapes(
    cluster=Cluster.load("dgx-h100", gpus=64),
    workload=Workload(backbone(16, 2048, 8192), context_tokens=2**17, global_batch=32),
    profile=None,
    room=DEFAULT_ROOM,
)


@pytest.fixture(scope="module")
def widths():
    return {
        (hidden, ffn): depths(ASKED, hidden, ffn, range(16, 100, 6)) for hidden, ffn in ((4096, 12288), (8192, 8192))
    }


def test_a_depth_between_the_priced_ones_is_its_price_and_fits(widths):
    mixed = 0
    for (hidden, ffn), here in widths.items():
        for layers, step_s, strategy in zip(here.layers.tolist(), here.step_s, here.strategies, strict=True):
            if strategy is None:
                continue
            cost = price(ASKED.cluster, replace(ASKED.workload, model=backbone(layers, hidden, ffn)), strategy)
            assert cost.step_s == pytest.approx(step_s, rel=1e-9)
            assert ASKED.room.holds(cost)
            mixed += len(strategy.layers) > 1
    assert mixed >= 5


def test_the_longest_row_is_that_of_its_layout(widths):
    here = widths[4096, 12288]
    for index in (0, 5, 10):
        layers = int(here.layers[index])
        layout = Strategy(ring=8, ulysses=8, shard=64, layers=(LayerRange(recompute="full", count=layers),))
        work = replace(ASKED.workload, model=backbone(layers, 4096, 12288), global_batch=1)
        most = longest_tokens(ASKED.cluster, work, layout, room=ASKED.room)
        assert 0.97 * most <= here.longest[index] <= most


def test_nothing_of_the_front_is_beaten():
    found = trained(ASKED, named("16x2048x8192,32x2048x8192,40x4096x8192,64x4096x12288"), days=30)
    best = front(found)
    assert 3 < len(best) < len(found)
    tenths = [round(one.quality.mmlu, 1) for one in best]
    assert tenths == sorted(tenths, reverse=True)
    for one in best:
        for other in best:
            assert other is one or not (
                other.quality.mmlu > one.quality.mmlu + 0.1
                and other.days < one.days * 0.9
                and other.longest_tokens > one.longest_tokens * 1.1
            )
    for one in found:
        assert 0.1e12 <= one.tokens <= one.params * 1e3 * (1 + 1e-9) and one.days <= 30 * (1 + 1e-9)


def test_the_command_prints_a_table_or_json():
    asked = ["--backbones", "--gpus", "64", "--days", "30", "--ctx", "128K", "--shapes", "24x2048x8192,32x4096x14336"]
    told = CliRunner().invoke(cli, [*asked, "--price-per-gpu-hour", "2"])
    assert told.exit_code == 0 and "an estimate" in told.output and "dollars" in told.output
    assert max(map(len, told.output.split("longest\n")[1].splitlines())) <= 120, "as in a pipe"
    assert len(next(line for line in told.output.splitlines() if line.endswith("longest"))) <= 100
    rows = json.loads(CliRunner().invoke(cli, [*asked, "--json"]).output)
    assert "an estimate" in rows["note"] and rows["front"]
    assert all(row["low"] < row["mmlu"] < row["high"] and row["longest_tokens"] > 2**17 for row in rows["front"])


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ([], "--days is missing"),
        (["--days", "0"], "--days '0' is not a number above 0"),
        (["--days", "0.001", "--shapes", "32x4096x14336"], "begins at 0.1; give more --days"),
        (
            ["--days", "30", "--shapes", "200x4096x14336"],
            "layers=200 is outside Performance Law's domain; legal: 16 to 126",
        ),
        (["--days", "30", "--shapes", "32x4000x14336"], "legal: multiples of 1024"),
        (["--days", "30", "--shapes", "deep"], "is not LAYERSxHIDDENxFFN"),
        (["--days", "1e9"], "--days '1e9' is not a number above 0 and below 1e9"),
        (["--days", "30", "--shapes", "32x4096x14336", "--batch", "1e8"], "--batch '1e8'"),
        (["--days", "30", "--shapes", "32x4096x14336", "--batch", "100000000"], "a step has 13; give a smaller"),
        (["--days", "30", "--model", "llama-3-8b"], "--model with --backbones would be ignored"),
        (["--days", "30", "--longest"], "ask one at a time"),
        (["--days", "30", "--shapes", "120x16384x53248", "--headroom", "78GiB"], "no layout of any shape fits"),
    ],
)
def test_a_mistake_is_told_in_one_line(more, named):
    told = CliRunner().invoke(cli, ["--backbones", "--gpus", "8", "--ctx", "128K", *more])
    assert isinstance(told.exception, InputError) and named in str(told.exception)


def test_short_rows_have_several_in_a_microbatch():
    asked = ["--backbones", "--gpus", "64", "--days", "30", "--ctx", "8K", "--shapes", "24x8192x16384,32x4096x14336"]
    rows = json.loads(CliRunner().invoke(cli, [*asked, "--json"]).output)["front"]
    assert rows and all(row["tokens"] >= 1e11 for row in rows)


def test_days_need_backbones():
    told = CliRunner().invoke(cli, ["--gpus", "8", "--ctx", "8K", "--days", "30"])
    assert isinstance(told.exception, InputError) and "--days without --backbones" in str(told.exception)
