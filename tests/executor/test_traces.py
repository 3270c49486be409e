"""Traces of a real run: written by `executor launch --trace`, read by `plan compare`, and what they say of the ring."""

import errno
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from cost_models import InputError, Strategy
from executor.launch.tracing import RECORDED, SKIPPED, traced
from longvila.assemble import model_config
from planner.command import cli
from planner.plan_file import Plan
from planner.simulator.compare import read_trace
from tests.executor.planned import run, save_plan

TOKENS = 4096
SAID = "What goes up the hill and down the hill and never moves at all, however long one waits? " * 44


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks, which are a ring; a trace of each is in `traces`."""
    made = tmp_path_factory.mktemp("traced")
    plan = save_plan(made, Strategy(ring=2, shard=2), tokens=TOKENS)
    turns = [{"from": "human", "value": SAID}, {"from": "gpt", "value": "A road."}]
    (made / "data.json").write_text(json.dumps([{"id": "riddle", "conversations": turns}]))
    settings = {"data": "[data.json]", "max_tokens": TOKENS, "steps": SKIPPED + RECORDED + 1, "run": "run"}
    sets = [f"--set={name}={value}" for name, value in settings.items()]
    done = run("launch", plan, *sets, "--trace", "traces", folder=made)
    assert done.returncode == 0, done.stderr
    return made


def events(path: Path) -> list[dict[str, Any]]:
    found = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return sorted((one for one in found if one.get("ph") == "X"), key=lambda one: one["ts"])


@pytest.mark.parametrize("rank", [0, 1])
def test_the_next_block_is_in_flight_while_a_tile_is_computed(folder: Path, rank: int) -> None:
    """In each layer, forward and backward: keys and values are on their way when the tiles at home begin. A few may
    have come by then, from a rank that was ahead; sent after the tiles, half of them never are."""
    found = events(folder / "traces" / f"rank-{rank}.json.gz")
    tiles = [one["ts"] for one in found if one["name"].startswith("aten::_scaled_dot_product_flash_attention_for_cpu")]
    hops = [one for one in found if one["name"] == "gloo:recv"]
    layers = model_config("tiny", None, None).llm["num_hidden_layers"]
    assert len(hops) == RECORDED * layers * 3  # keys and values twice, their gradient once
    hidden = [hop for hop in hops if any(hop["ts"] < tile < hop["ts"] + hop["dur"] for tile in tiles)]
    assert RECORDED * layers * 2 >= len(hidden) > RECORDED * layers * 1.5


def test_kernels_of_a_real_run_are_matched(folder: Path) -> None:
    measured = read_trace(str(folder / "traces" / "rank-0.json.gz"))
    assert measured.ranks == 2
    classes = {"attention", "products", "element-wise", "all_gather", "reduce_scatter", "all_to_all and hops"}
    assert classes <= {name for name, seconds in measured.seconds.items() if seconds > 0}
    assert sum(measured.seconds[name] for name in ("attention", "products", "element-wise")) < measured.step_s


def test_compare_names_the_three_largest_differences(folder: Path) -> None:
    done = CliRunner().invoke(cli, ["compare", str(folder / "plan.json"), str(folder / "traces"), "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert len(rows["largest_differences"]) == 3
    assert rows["seconds"]["attention"]["measured"] > 0 < rows["seconds"]["attention"]["simulated"]


def test_a_trace_of_another_plan_is_refused(folder: Path, tmp_path: Path) -> None:
    other = save_plan(tmp_path, Strategy(ring=2, shard=2), tokens=2 * TOKENS)
    done = CliRunner().invoke(cli, ["compare", str(other), str(folder / "traces")])
    assert done.exit_code != 0
    assert "a trace of another plan" in str(done.exception)


def test_a_job_with_too_few_steps_says_so(folder: Path, tmp_path: Path) -> None:
    plan = Plan.load(folder / "plan.json")
    message = f"the job did 2 steps; a trace takes {SKIPPED + RECORDED}"
    with pytest.raises(InputError, match=message), traced(tmp_path, plan, 0, torch.device("cpu")) as step_done:
        for _ in range(2):
            step_done()


def test_a_full_disk_is_named_and_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(profiler: object, path: str) -> None:
        Path(path).write_text("begun")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", export)
    plan = Plan.load(folder / "plan.json")
    with (
        pytest.raises(InputError, match=r"--trace .* cannot be written: No space left on device"),
        traced(tmp_path, plan, 0, torch.device("cpu")) as step_done,
    ):
        for _ in range(SKIPPED + RECORDED):
            step_done()
    assert not [*tmp_path.iterdir()]
