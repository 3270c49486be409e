"""One layout or groups: every dealing is whole and within memory, the bound is below all, the table is near `price`."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from cost_models import Cluster, Model, Workload, price
from cost_models.room import DEFAULT_ROOM
from planner.command import cli
from planner.lengths.dealing import Batch, best_dynamic, dynamic, one_layout
from planner.lengths.group_costs import Shape, group_costs
from planner.lengths.histogram import Histogram
from planner.lengths.verdict import joined, verdict
from planner.plan_file import Plan
from planner.question.options import Question

MODEL = Model.load("longvila-1.5b")
LIMIT = 32 * 1024


def _asked(gpus: int, model: Model = MODEL) -> Question:
    work = Workload(model, context_tokens=LIMIT)
    return Question(cluster=Cluster.load("dgx-h100", gpus=gpus), workload=work, profile=None, room=DEFAULT_ROOM)


@pytest.fixture(scope="module")
def costs():
    asked = _asked(8)
    return group_costs(asked.cluster, asked.workload, LIMIT, asked.room)


@pytest.fixture(scope="module")
def few():
    asked = _asked(2)
    return group_costs(asked.cluster, asked.workload, LIMIT, asked.room)


def _unlike(seed: int, tokens: int = 2**19) -> np.ndarray:
    random = np.random.default_rng(seed)
    lengths = np.exp(random.uniform(4, np.log(LIMIT), 4000)).astype(np.int64)
    return lengths[: int(np.searchsorted(np.cumsum(lengths), tokens))]


@pytest.mark.parametrize("seed", range(3))
def test_every_document_is_dealt_once_within_memory_and_not_below_the_bound(costs, seed):
    batch = Batch.of(_unlike(seed), costs)
    tried = 0
    for policy, waves in batch.tries():
        layouts = [one_layout(batch, policy, waves, shape) for shape in range(0, len(costs.shapes), 5)]
        for dealt in filter(None, [dynamic(batch, policy, waves), *layouts]):
            tried += 1
            assert (dealt.group >= 0).all() and len(dealt.group) == len(batch.lengths)
            density = batch.lengths.sum() / (waves * costs.gpus)
            for group, shape in enumerate(dealt.shapes):
                row = dealt.row(group)
                assert row.sum() <= shape.gpus * policy.cap
                took = costs.seconds(policy, [costs.shapes.index(shape)], row, density).sum() if len(row) else 0.0
                assert took == pytest.approx(dealt.group_s[group], rel=1e-9, abs=1e-12)
            assert sum(shape.gpus for shape in dealt.shapes) <= costs.gpus * waves
            assert batch.bound_s <= dealt.step_s * (1 + 1e-9)
    assert tried > 5


def test_a_hundred_thousand_shortest_documents_are_few_and_cost_the_same(costs):
    lengths = np.concatenate([np.full(100_000, 1), np.full(3000, 100), [129, 9000]])
    together = joined(lengths)
    assert len(together) < 4096 and together.sum() == lengths.sum() and together.max() == 9000
    policy, every = costs.policies[0], range(len(costs.shapes))
    alone = costs.seconds(policy, every, lengths, 16384).sum(axis=1)
    assert costs.seconds(policy, every, together, 16384).sum(axis=1) == pytest.approx(alone, rel=1e-9)


def test_no_dealing_of_few_documents_is_below_the_bound(few):
    """All partitions of both GPUs, all dealings of five documents, in one wave and in two, under every policy."""
    lengths = np.array([20_000, 9_000, 8_000, 1_500, 300])
    batch = Batch.of(lengths, few)
    whole = [place for place, one in enumerate(few.shapes) if one.gpus == 2]
    single = few.shapes.index(Shape(1, 1))
    least = np.inf
    for policy, waves in itertools.product(few.policies, (1, 2)):
        density = lengths.sum() / (2 * waves)
        took = few.seconds(policy, range(len(few.shapes)), lengths, density)
        for opened in itertools.product([*((one,) for one in whole), (single, single)], repeat=waves):
            groups = [(wave, shape) for wave, shapes in enumerate(opened) for shape in shapes]
            for dealt in itertools.product(range(len(groups)), repeat=len(lengths)):
                load, held = np.zeros(len(groups)), np.zeros(len(groups))
                for document, group in enumerate(dealt):
                    load[group] += took[groups[group][1], document]
                    held[group] += lengths[document]
                if any(held[g] > few.sizes[shape] * policy.cap for g, (_, shape) in enumerate(groups)):
                    continue
                slowest = [max(load[g] for g, (w, _) in enumerate(groups) if w == wave) for wave in range(waves)]
                step = sum(max(few.gathers_s, policy.alone_s + one) for one in slowest) + few.once_s
                least = min(least, step)
    found = best_dynamic(batch)
    assert batch.bound_s <= least * (1 + 1e-9)
    assert found is not None and least * (1 - 1e-9) <= found.step_s <= 1.1 * least


def test_one_layout_with_a_ring_that_knows_documents_suffices_and_the_table_is_near_the_price(tmp_path):
    path = tmp_path / "lengths.csv"
    path.write_text("tokens,count\n300,400\n2000,100\n9000,10\n30000,4\n")
    found = verdict(_asked(8), Histogram.load(path), 30_000, 2**20, {})
    assert found.suffices and found.bound_s <= found.dynamic_s <= found.layout_s
    assert found.layout_s <= found.in_order_s * 1.02 and found.layout_s < found.unpacked_s
    assert found.priced_s == pytest.approx(found.layout_s, rel=0.1)
    assert [one.limit for one in found.borders] == [16384, 30000]


def test_groups_win_over_one_layout_without_a_ring(costs):
    """Ulysses alone keeps a document on its group: one long document makes all groups large, or its group late."""
    lengths = np.array([LIMIT] * 1 + [512] * 200)
    batch = Batch.of(lengths, costs)
    layouts = [
        one_layout(batch, policy, 1, place)
        for policy in costs.policies
        for place, one in enumerate(costs.shapes)
        if one.ring == 1
    ]
    best = min(one.step_s for one in layouts if one is not None)
    assert best_dynamic(batch).step_s <= best


def test_the_command_plans_the_one_layout_and_says_what_groups_would_bring(tmp_path):
    path = tmp_path / "lengths.csv"
    path.write_text("bucket_from,bucket_to_exclusive,count\n1,2000,1000\n2000,20000,20\n")
    given = ["--gpus", "8", "--model", "longvila-1.5b", "--batch", "40", "--lengths", str(path)]
    found = CliRunner().invoke(cli, [*given, "--json", "-o", str(tmp_path / "plan.json")])
    assert found.exit_code == 0, found.output
    told, plan = json.loads(found.output), Plan.load(str(tmp_path / "plan.json"))
    assert told["lengths"]["tokens"] == 40 * 19_999
    assert told["lengths"]["bound_s"] <= told["lengths"]["groups_s"] <= told["lengths"]["one_layout_s"]
    assert plan.workload.lengths and plan.fixed["ring"] == str(plan.strategy.ring)
    assert plan.cost.step_s == pytest.approx(told["lengths"]["priced_s"], rel=0.05)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--mode", "decode"), "--mode decode with --lengths; legal: train"),
        (("--frames", "3"), "--frames 3 with --lengths"),
        (("--fix", "tensor=2"), "--fix tensor with --lengths; legal: data, ring, ulysses, recompute"),
        (("--ctx", "100"), "--ctx 100 with --lengths; legal: at least 1024"),
        (("--longest",), "ask one at a time"),
        (("--batch", "999999999"), "tokens on 8 GPUs"),
    ],
)
def test_what_does_not_go_with_lengths_is_refused(tmp_path, given, said):
    path = tmp_path / "lengths.csv"
    path.write_text("tokens,count\n9000,10\n")
    found = CliRunner().invoke(cli, ["--gpus", "8", "--lengths", str(path), *given])
    assert found.exception is not None and said in str(found.exception)


def test_rows_are_planned_as_packed_with_given_documents(tmp_path):
    path, asked = (
        tmp_path / "documents.csv",
        ["--gpus", "2", "--cluster", "local", "--model", "longvila-tiny", "--ctx", "2K"],
    )
    path.write_text("tokens,count\n100,3\n200,0\n250,10\n")
    done = CliRunner().invoke(
        cli, [*asked, "--frames", "50", "--documents", str(path), "-o", str(tmp_path / "plan.json")]
    )
    assert done.exception is None
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.workload.lengths == ((100, 3), (250, 10)) and plan.workload.frames == 50
    assert "packed with documents of 100 to 250 tokens" in done.output
    one = price(plan.cluster, replace(plan.workload, lengths=()), plan.strategy)
    assert plan.cost.seconds["compute"] < 0.7 * one.seconds["compute"]
    for text, flags, said in (
        ("tokens,count\n4000,1\n", (), "one of 4,000 tokens is longer than a row; legal: up to 2,048"),
        ("tokens,share\n400,0.5\n", (), "its columns must be tokens,count, with whole counts"),
        ("bucket_from,bucket_to_exclusive,count\n1,400,2\n", (), "its columns must be tokens,count"),
        ("tokens,count\n400,1\n", ("--lengths", str(path)), "--documents with --lengths"),
    ):
        path.write_text(text)
        found = CliRunner().invoke(cli, [*asked, "--documents", str(path), *flags])
        assert found.exception is not None and said in str(found.exception)
