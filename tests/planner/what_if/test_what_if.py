"""`plan what-if`: what a change does to the cluster, the old plan kept, thresholds, files, stopping and going on."""

import csv
import json
from dataclasses import replace

import pytest

from cost_models import Cluster, LayerRange, Placement, Strategy, price
from cost_models.bands import odds
from cost_models.errors import InputError
from cost_models.layer.sizes import RankSizes
from cost_models.memory.peaks import kept_bytes
from planner import plan
from planner.choosing import ROOM
from planner.question import options
from planner.solve import solve
from planner.what_if import axes
from planner.what_if.cliffs import LEVELS, cliffs
from planner.what_if.events import event
from planner.what_if.scenario import Sweep, outcome, planned, traits
from planner.what_if.sweep import Part, Store, run

SMALL = {
    "gpus": "16",
    "ctx": "32K",
    "model": "longvila-1.5b",
    "cluster": "dgx-h100",
    "fabric": (),
    "hosts": None,
    "device": None,
    "mode": "train",
    "batch": "1",
    "frames": "0",
    "lora_rank": "0",
    "lora_beside": "",
    "lora_targets": "qkv,out,up,down",
    "trained": "llm,projector,tower",
    "precision": None,
    "kernel": None,
    "confidence": None,
    "headroom": None,
    "frame_pixels": None,
    "documents": None,
    "profile": None,
}


def sweep(*changes, **given):
    return Sweep(given={**SMALL, **given}, axes=changes, fixed={})


def cluster_after(axis, seed=0, **given):
    return axis.change(options.question({**SMALL, **given}).cluster, axis.values[0], seed)


def test_the_axes_read_every_option_that_a_question_reads():
    assert set(SMALL) == set(options.NAMES)
    options.question(SMALL)


def test_unlike_gpus_get_unequal_shares_as_in_a_plan(tmp_path):
    """Also in a scenario, with the gap to the bound of any shares."""
    mixed = tmp_path / "mixed.yaml"
    mixed.write_text("base: dgx-h100\nnodes: [{count: 1}, {count: 1, device: a100-sxm-80gb}]\n")
    asked = sweep(axes.vary("inter_node_gb_per_s=25", 2), cluster=str(mixed), ctx="256K", gpus=None)
    old = planned(asked, asked.question(asked.now()))
    again = outcome(asked, asked.now(), old)
    expected = plan(Cluster.load(str(mixed)), asked.question(asked.now()).workload)
    assert old.best[0].strategy == expected.strategy and expected.strategy.token_shares
    assert again.step_s == again.kept_s == expected.cost.step_s and again.gap == expected.gap < 0.01


def test_a_range_has_equal_ratios_and_exact_ends():
    assert [value.text for value in axes.vary("ctx=256K..4M", 5).values] == ["256K", "512K", "1M", "2M", "4M"]
    rates = [value.number for value in axes.vary("inter_node_gb_per_s=12.5..100", 4).values]
    assert rates == [12.5, 25, 50, 100]
    assert [value.text for value in axes.vary("oversubscription=2:1,4", 5).values] == ["2:1", "4:1"]


def test_a_rate_replaces_every_card_s():
    nodes = [run.node for run in cluster_after(axes.vary("inter_node_gb_per_s=25", 2)).runs]
    assert [node.nics.bytes_per_s for node in nodes] == [25e9]
    inside = cluster_after(axes.vary("intra_node_gb_per_s=100", 2)).runs[0].node.scale_up
    assert inside.bytes_per_s == pytest.approx(100e9)
    assert cluster_after(axes.vary("memory_gib=40", 2)).runs[0].node.device.memory_bytes == 40 * 2**30


def test_lost_things_are_gone_where_they_stood_and_nothing_else_moves():
    whole = Cluster.load("dgx-h100", gpus=64)
    node = cluster_after(event("lose", "node:3"), gpus="64")
    assert (node.gpus, node.slots) == (40, whole.slots)
    cards = cluster_after(event("lose", "nic:0.25"), gpus="64")
    assert sum(run.count * len(run.node.missing_nics) for run in cards.runs) == 16
    assert cards.gpus == 64
    assert cluster_after(event("lose", "gpu:5"), gpus="64").gpus == 59
    assert cluster_after(event("lose", "node:0"), gpus="64") == whole


def test_a_node_without_cards_is_lost():
    cut = cluster_after(event("lose", "nic:1"), gpus="16", cluster="hgx-h100-1nic")
    assert cut.gpus == 8


def test_a_lost_leaf_takes_its_nodes():
    # dgx-h100 has 32 nodes on a leaf: 64 nodes are two leaves
    assert cluster_after(event("lose", "leaf:1"), gpus="512").gpus == 256


def test_the_seed_draws_which_node_is_hit():
    axis = event("slow", "node:0.3")
    hit = {cluster_after(axis, seed, gpus="64").gpus_of_slot.tobytes() for seed in range(4)}
    places = {tuple(cluster_after(axis, seed, gpus="64").run_of_slot.tolist()) for seed in range(8)}
    assert len(hit) == 1  # slow nodes are still there
    assert len(places) > 1
    slow = cluster_after(axis, gpus="64").runs
    clocks = sorted({run.node.device.clock_hz for run in slow})
    assert clocks[0] == pytest.approx(0.7 * clocks[1])


def test_another_gpu_keeps_the_form_of_the_node():
    assert cluster_after(axes.gpu("h200")).runs[0].node.device.name == "h200-sxm-141gb"
    with pytest.raises(InputError, match="--gpu 'h300' is unknown"):
        axes.gpu("h300")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: axes.vary("ctx", 5), "is not NAME="),
        (lambda: axes.vary("context=1K..2K", 5), "'context' is unknown"),
        (lambda: axes.vary("ctx=4K..2K", 5), "needs 0 < a < b"),
        (lambda: axes.vary("model=a..b", 5), "no range"),
        (lambda: axes.vary("gpus=1e9", 5), "whole number"),
        (lambda: event("lose", "rack:1"), "legal: node:AMOUNT"),
        (lambda: event("lose", "node:1.5"), "a count, or a share below 1"),
        (lambda: event("degrade", "link:2"), "above 0 and below 1"),
        (lambda: event("degrade", "link:0.5@1.5"), "above 0 and below 1"),
        (lambda: sweep(), "nothing changes"),
        (lambda: sweep(event("lose", "node:1"), event("lose", "node:2")), "given twice"),
        (lambda: sweep(axes.vary("ctx=1K..2M", 1000), axes.vary("memory_gib=1..99", 1000)), "at most 100000"),
        (lambda: Part.read("8/8"), "is not K/N"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_the_old_plan_is_priced_where_it_still_runs_and_named_where_not():
    asked = sweep(axes.vary("inter_node_gb_per_s=5", 2), event("lose", "node:0,1"))
    base = options.question(SMALL)
    old = solve(base.cluster, base.workload, keep=1)
    best = old.best[0]
    slow, lost = (outcome(asked, values, old) for values in asked.all())
    changed = asked.question(asked.all()[0])
    expected = price(changed.cluster, changed.workload, best.strategy, best.placement).step_s
    assert slow.kept_s == pytest.approx(expected, rel=1e-12)
    assert slow.regret is not None and slow.regret >= 0
    assert lost.kept_s is None and "that are gone" in lost.kept_problem
    assert lost.gpus == 8


def test_an_old_plan_that_does_not_fit_says_how_much_it_needs():
    asked = sweep(axes.vary("ctx=1M", 2), gpus="16")
    base = options.question(asked.given)
    found = outcome(asked, asked.all()[0], solve(base.cluster, base.workload, keep=1))
    assert found.kept_s is None and found.kept_problem.startswith("it needs ")


def test_a_scenario_that_removes_everything_says_so():
    asked = sweep(event("lose", "node:2"))
    found = outcome(asked, asked.all()[0], None)
    assert "none of the 16 GPUs would be left" in found.problem and not found.possible


def test_bisection_stops_where_the_question_cannot_be_asked():
    rates = axes.vary("inter_node_gb_per_s=1,100", 2)

    def change(cluster, value, seed):
        if 1 < value.number < 100:
            raise InputError("no such card is made")
        return rates.change(cluster, value, seed)

    found = cliffs(sweep(replace(rates, change=change)))
    assert found
    for cliff in found:
        assert (cliff.low.text, cliff.high.text) == ("1", "100")
        assert "nothing fits" not in (cliff.below, cliff.above)


def test_the_threshold_of_memory_is_where_the_planner_itself_stops_fitting():
    asked = sweep(axes.vary("memory_gib=2..80", 3), gpus="8")
    found = [cliff for cliff in cliffs(asked) if cliff.trait == "runs"]
    (cliff,) = found
    assert (cliff.below, cliff.above) == ("nothing fits", "fits")
    below, above = (outcome(asked, [value], None) for value in (cliff.low, cliff.high))
    assert below.problem.startswith("nothing fits") and not above.problem
    assert cliff.high.number / cliff.low.number < 1.02
    low, high = cliff.band
    assert low.number < cliff.low.number and high == cliff.high  # at 95% it fits, so 90% is behind it
    assert cliff.words() == f"memory_gib: a plan fits from {cliff.high.text} (80%: {low.text} to {high.text})"


def test_the_band_of_a_threshold_ends_where_one_plan_is_surely_better():
    """On a slow network ulysses across nodes is surely worse somewhere, and the odds there are what the ends say."""
    asked = sweep(axes.vary("inter_node_gb_per_s=0.1,10", 2), ctx="64K")
    found = cliffs(asked)
    ends = [(cliff, level, end) for cliff in found for level, end in zip(LEVELS, cliff.band, strict=True) if end]
    assert ends, [cliff.words() for cliff in found]
    for cliff, level, end in ends:
        below, above = (planned(asked, asked.question([value])).best[0] for value in (cliff.low, cliff.high))
        there = asked.question([end])
        one, other = (price(there.cluster, there.workload, best.strategy, best.placement) for best in (below, above))
        sure = odds(one, other)
        assert sure >= level if level > 0.5 else sure <= level


def test_a_layer_that_frees_less_than_a_gib_makes_no_other_plan():
    asked = options.question({**SMALL, "ctx": "32K", "model": "longvila-8b", "gpus": "8"})
    placement = Placement.in_order(asked.cluster, 8)

    def recompute(layers: int) -> str:
        counts = {"mlp": layers, "none": 32 - layers}
        mix = tuple(LayerRange(recompute=name, count=many) for name, many in counts.items() if many)
        return traits(asked, Strategy(ulysses=8, shard=8, layers=mix), placement)["recompute"]

    freed = kept_bytes(RankSizes(asked.workload, Strategy(ulysses=8)), "none")
    freed -= kept_bytes(RankSizes(asked.workload, Strategy(ulysses=8)), "mlp")
    enough = int(ROOM / freed) + 1
    assert 1 < enough < 32
    assert [recompute(n) for n in (0, 1, enough - 1, enough, 31)] == ["none", "none", "none", "mlp", "mlp"]


def test_bands_stand_beside_steps_and_memory(typed):
    code, out, _ = typed("what-if", *ASKED, "--vary", "ctx=16K,64K", "--json", "--no-cliffs")
    assert code == 0
    for row in json.loads(out)["scenarios"]:
        assert row["step_band_s"][0] <= row["step_s"] < row["step_band_s"][1]
        assert row["memory_band_bytes"][0] < row["memory_bytes"] < row["memory_band_bytes"][1]
    assert ", 80%)" in typed("what-if", *ASKED, "--vary", "ctx=16K", "--no-cliffs")[1]


def test_processes_and_one_process_give_the_same_answers():
    asked = sweep(axes.vary("ctx=8K..64K", 3), axes.vary("inter_node_gb_per_s=5..50", 3))
    alone, many = Store(None, asked, Part(0, 1)), Store(None, asked, Part(0, 1))
    run(asked, alone, jobs=1)
    run(asked, many, jobs=2)
    assert alone.known == many.known
    assert sorted(alone.known) == list(range(9))


def test_a_stopped_sweep_goes_on_and_parts_are_merged(tmp_path):
    asked = sweep(axes.vary("ctx=8K..64K", 6))
    path = tmp_path / "sweep.json"
    for number in range(2):
        part = Part(number, 3)
        store = Store(path, asked, part)
        run(asked, store, part, jobs=1)
        store.close()
    with (tmp_path / "sweep.json.part-1-of-3").open("a") as file:
        file.write('{"index": 2, "val')  # a process that was killed in the middle of a line
    merged = Store(path, asked, Part(0, 1))
    assert sorted(merged.known) == [0, 1, 3, 4]
    answered = []
    run(asked, merged, jobs=1, on_answer=lambda done, of: answered.append((done, of)))
    assert answered == [(5, 6), (6, 6)]
    alone = Store(None, asked, Part(0, 1))
    run(asked, alone, jobs=1)
    assert merged.known == alone.known
    merged.close(remove=True)
    assert list(tmp_path.iterdir()) == []


def test_answers_to_another_question_are_refused(tmp_path):
    path = tmp_path / "sweep.json"
    Store(path, sweep(axes.vary("ctx=8K..64K", 6)), Part(0, 1)).close()
    with pytest.raises(InputError, match="answers to another question"):
        Store(path, sweep(axes.vary("ctx=8K..32K", 6)), Part(0, 1))
    (tmp_path / "sweep.json.part").write_text("[]\n")
    with pytest.raises(InputError, match="line 1: no answer of a sweep"):
        Store(path, sweep(axes.vary("ctx=8K..64K", 6)), Part(0, 1))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (b"[" * 20_000, "nests too deeply"),
        (b"\xff", "cannot be read"),
        (b'{"index": 0, "values": 3}', "line 2: no answer of this release; remove the file"),
        (b'{"index": 0, "values": ["8K"], "step_s": "fast"}', "line 2: no answer of this release; remove the file"),
        (b'{"index": 0, "values": ["8K"], "step_s": NaN}', "NaN is no number of JSON"),
    ],
)
def test_answers_that_are_none_are_refused(tmp_path, entry, message):
    asked = sweep(axes.vary("ctx=8K..64K", 6))
    Store(tmp_path / "sweep.json", asked, Part(0, 1)).close()
    with (tmp_path / "sweep.json.part").open("ab") as file:
        file.write(entry + b"\n")
    with pytest.raises(InputError, match=message):
        Store(tmp_path / "sweep.json", asked, Part(0, 1))


ASKED = ["--gpus", "16", "--ctx", "32K", "--model", "longvila-1.5b", "--jobs", "1"]


def test_table_csv_and_json_hold_the_same_rows(typed, tmp_path):
    change = ["--vary", "ctx=16K,64K", "--degrade", "link:0.5", "--price-per-gpu-hour", "2.5"]
    code, out, err = typed("what-if", *ASKED, *change, "-o", "a.csv", "--no-cliffs")
    assert (code, err) == (0, "")
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    code, printed, _ = typed("what-if", *ASKED, *change, "--json", "--no-cliffs")
    answer = json.loads(printed)
    assert [row["plan"] for row in rows] == [row["plan"] for row in answer["scenarios"]]
    assert [row["ctx"] for row in rows] == ["now", "16K", "64K"]
    assert answer["searched"] == ["data", "microbatches", "ring", "ulysses", "shard", "zero", "recompute"]
    now = answer["scenarios"][0]
    dollars = 2.5 * now["gpus"] / 3600 * now["step_s"] / now["tokens"] * 1e6
    assert now["dollars_per_million_tokens"] == pytest.approx(dollars)
    assert all(row["plan"] in " ".join(out.split()) for row in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv"]


def test_oversubscription_without_uplinks_is_said_to_change_nothing(typed):
    command = ["what-if", *ASKED, "--oversubscribe", "2:1,4:1", "--no-cliffs"]
    code, out, _ = typed(*command)
    assert code == 0 and "oversubscription changes nothing here: all nodes are under one leaf" in out
    assert len(json.loads(typed(*command, "--json")[1])["notes"]) == 1
    code, out, _ = typed(*command, "--vary", "nodes_per_leaf=1,2")
    assert code == 0 and "changes nothing" not in out


def test_a_batch_script_runs_this_command_in_parts(typed):
    code, out, _ = typed("what-if", *ASKED, "--vary", "ctx=16K..64K", "-o", "a.json", "--slurm", "4")
    assert code == 0
    assert "--array=0-3" in out
    assert '--vary ctx=16K..64K -o a.json --part "$SLURM_ARRAY_TASK_ID/4"' in out
    assert "--slurm" not in out.partition("--part")[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vary", "ctx=16K", "--part", "0/2"], "--part needs -o"),
        (["--vary", "ctx=16K", "--slurm", "2"], "--slurm needs -o"),
        (["--vary", "ctx=16K", "-o", "a.txt"], "neither a .csv nor a .json"),
        (["--vary", "ctx=16K", "--price-per-gpu-hour", "free"], "dollars above 0"),
        (["--lose", "node:1", "--ctx", "64M"], "the question as it is now: nothing fits"),
        (["--lose", "node:2"], "lose node 2: none of the 16 GPUs would be left"),
        (["--lose", "node:1,99"], "lose node 99: 99 of 2 cannot be hit"),
        (["--vary", "model=longvila-8b,nope"], "model nope: --model 'nope' is neither"),
        (["--vary", "memory_gib=0,80"], "memory_gib 0"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(typed, words, message):
    code, out, err = typed("what-if", *ASKED, *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


def test_the_plan_of_now_is_the_plan_that_plan_writes():
    """What keeping the old plan costs is of the plan that its reader has: the same ties are settled the same way."""
    asked = sweep(axes.vary("ctx=1M", 2), gpus="256", ctx="2M", model="longvila-8b")
    question = options.question(asked.given)
    now = outcome(asked, asked.now(), None)
    written = plan(question.cluster, question.workload)
    assert written.strategy.zero == 3
    assert (now.plan, now.memory_bytes) == (written.strategy.describe(), written.cost.memory_bytes)
