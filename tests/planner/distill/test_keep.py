"""Which layers keep attention: as good as trying every choice, and the command's answers and refusals."""

import itertools
import json
import random

import pytest
from click.testing import CliRunner

from cost_models import Cluster
from cost_models.errors import InputError
from cost_models.room import Room
from planner.command import cli
from planner.distill.keep import Limits, choose_layers, even, left


@pytest.mark.parametrize("seed", range(8))
def test_no_choice_leaves_less(seed):
    draw = random.Random(seed)
    layers = 9
    far = [draw.random() ** 3 for _ in range(layers)]
    seconds = tuple(draw.choice([1.0, 2.5]) for _ in range(layers))
    held = tuple(draw.choice([0.0, 1.0]) for _ in range(layers))
    limits = Limits(
        count=draw.choice([None, 4]), seconds=seconds, room_s=7.0, held=held, room_bytes=draw.choice([None, 2.0]),
        spacing=draw.choice([None, 3]),
    )  # fmt: skip

    def legal(keep):
        return (
            (limits.count is None or len(keep) == limits.count)
            and sum(seconds[layer] for layer in keep) <= 7.0
            and (limits.room_bytes is None or sum(held[layer] for layer in keep) <= limits.room_bytes)
            and (limits.spacing is None or all({*range(a, a + 3)} & {*keep} for a in range(layers - 2)))
        )

    every = [keep for n in range(layers + 1) for keep in itertools.combinations(range(layers), n) if legal(keep)]
    if not every:
        with pytest.raises(InputError, match="no choice"):
            choose_layers(far, limits)
        return
    kept = choose_layers(far, limits)
    assert legal(kept)
    assert left(far, kept) == pytest.approx(min(left(far, keep) for keep in every), abs=1e-9)


def test_even_spacing_is_within_the_model():
    assert even(8, 8) == tuple(range(8)) and even(8, 1) == (4,) and even(8, 0) == ()


def run(*words):
    return CliRunner().invoke(cli, ["distill", *words], catch_exceptions=True)


@pytest.fixture(scope="module")
def distances(tmp_path_factory):
    layers = [{"layer": n, "distance": 1.0 + n, "relative": 1.0, "divergence": float(n in (3, 17))} for n in range(32)]
    path = tmp_path_factory.mktemp("distances") / "distances.json"
    path.write_text(json.dumps({"teacher": "t", "layers": layers}))
    return path


SMALL = ("--model", "longvila-8b", "--gpus", "8", "--ctx", "64K")


def test_the_command_keeps_what_is_missed_and_prices_it(distances):
    found = json.loads(run("keep", str(distances), *SMALL, "--attention", "2", "--json").output)
    assert found["keep"] == [3, 17] and found["left"] == 0 < found["left_even"]
    assert found["step_s"] < found["all_attention_step_s"]
    limit = (found["step_s"] + found["all_attention_step_s"]) / 2
    timed = json.loads(
        run("keep", str(distances), *SMALL, "--step-seconds", str(limit), "--by", "distance", "--json").output
    )
    assert timed["step_s"] <= limit * (1 + 1e-9)
    assert timed["keep"] == [*range(32 - len(timed["keep"]), 32)] and len(timed["keep"]) > 2
    room = Room().limit_bytes(Cluster.load("dgx-h100").runs[0].node.device.allocatable_bytes)
    assert (
        found["memory_bytes"] <= room and timed["memory_bytes"] <= room
    )  # states are kept: 124 GiB where attention fits
    held = json.loads(run("keep", str(distances), *SMALL, "--memory", "60GiB", "--json").output)
    assert held["memory_bytes"] <= 60 * 2**30 and held["left"] == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--attention", "33"), "--attention"),
        (("--step-seconds", "1e-6"), "--step-seconds"),
        (("--attention", "2", "--by", "norm"), "--by 'norm' is unknown; legal: divergence, distance, relative"),
        ((), "give a budget"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(distances, words, says):
    error = run("keep", str(distances), *SMALL, *words).exception
    assert isinstance(error, InputError) and says in str(error)


def test_distances_of_another_model_or_none_are_refused(distances, tmp_path):
    error = run("keep", str(distances), "--model", "longvila-1.5b", *SMALL[2:], "--attention", "2").exception
    assert isinstance(error, InputError) and "of one model" in str(error)
    bad = tmp_path / "x.json"
    bad.write_text("{}")
    error = run("keep", str(bad), *SMALL, "--attention", "2").exception
    assert isinstance(error, InputError) and "no distances.json" in str(error)


def test_distances_whose_sum_is_no_number_are_refused(distances, tmp_path):
    far = json.loads(distances.read_text())
    for layer in far["layers"]:
        layer["divergence"] = 1e308
    (tmp_path / "far.json").write_text(json.dumps(far))
    error = run("keep", str(tmp_path / "far.json"), *SMALL, "--attention", "2").exception
    assert isinstance(error, InputError) and "legal: a finite sum" in str(error)


def test_layers_out_of_order_are_said_to_be_so(distances, tmp_path):
    turned = json.loads(distances.read_text())
    turned["layers"].reverse()
    (tmp_path / "turned.json").write_text(json.dumps(turned))
    error = run("keep", str(tmp_path / "turned.json"), *SMALL, "--attention", "2").exception
    assert isinstance(error, InputError) and "not 0 to 31, each once and in this order" in str(error)


def test_layers_are_packed_by_the_command():
    found = json.loads(run("pack", "--gpus", "8", "--ctx", "2K", "--batch", "16", "--keep", "3,19", "--json").output)
    packed = sorted(layer for worker in found["workers"] for layer in worker["layers"])
    assert packed == [layer for layer in range(32) if layer not in (3, 19)]
    assert found["bound_s"] <= found["seconds"] <= found["bound_s"] * (1 + 1e-6)
    for words, says in (
        (("--ctx", "2K", "--keep", "3,3"), "twice"),
        (("--ctx", "2K", "--mode", "decode"), "--mode with distill pack would be ignored"),
        (("--ctx", "2K", "--lora-rank", "8"), "--lora-rank with distill pack would be ignored"),
        (("--ctx", "2K", "--orient-steps", "0", "--align-steps", "0"), "leaves nothing"),
        (("--ctx", "64K"), "do not fit into 8 GPUs, which one row's matrices fill (layer 31 needs"),
    ):
        error = run("pack", "--gpus", "8", *words).exception
        assert isinstance(error, InputError) and says in str(error)
