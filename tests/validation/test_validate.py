"""Statistics worked out by hand, readers on small files, and the prediction against `price` where they must agree."""

import csv
import json
import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from cost_models import InputError
from cost_models.framework import OURS
from cost_models.layer.sizes import RankSizes
from cost_models.layer.weights import trained_params
from cost_models.step import sharding
from cost_models.timing.kernels import Kernels
from cost_models.timing.slowest import pace
from validation.__main__ import main
from validation.cases import Refused, price_of
from validation.plot import svg
from validation.report import as_json, markdown
from validation.rows import FOLDER, read
from validation.score import score
from validation.standard import case_of
from validation.statistics import Errors, ranking


def rows(file, **wanted):
    return [row for row in read(file) if all(row.cells[name] == value for name, value in wanted.items())]


def test_errors_by_hand():
    found = Errors.of([-0.5, 0.1, 0.2, -0.3, 0.0])
    assert (found.median, found.worst, found.bias, found.rows) == (0.2, 0.5, 0.0, 5)
    assert found.p90 == pytest.approx(0.3 + 0.6 * 0.2)
    assert math.isnan(Errors.of([]).median)


def test_ranking_ignores_ties_and_counts_regret():
    found = ranking("sweep", predicted=[3.0, 1.0, 2.0], measured=[1.0, 1.04, 2.0])
    assert found.pairs == 2  # 1.0 and 1.04 are within 5%
    assert found.tau == 0.0  # one pair agrees, one does not
    assert found.regret == pytest.approx(0.04)
    assert math.isnan(ranking("flat", [1.0, 2.0], [1.0, 1.0]).tau)


def test_copies_cost_what_their_bytes_take():
    """Autocast's copies: 6 B for every weight of a layer, forward and backward, over the memory's rate."""
    row = rows("train_llm_foundry_mpt", row="103")[0]
    case = case_of(row)
    bare = price_of(case, OURS)
    cast = price_of(case, replace(OURS, autocast_bytes=6))
    model, strategy = case.workload.model, case.strategy
    moved = 2 * 6 * model.layer_params * model.layers * strategy.microbatches
    rate = case.cluster.runs[0].node.device.memory_bytes_per_s
    copying = cast.seconds["compute"] - bare.seconds["compute"]
    assert moved / rate < copying < 2 * moved / rate
    assert cast.sent_bytes["shard all_gather"] == 2 * bare.sent_bytes["shard all_gather"]  # weights travel as fp32


def test_hidden_collectives_lengthen_the_computation_and_never_more_than_exposed_ones():
    """A layer's gather of g seconds beside d of work: d + c g while that is longer than g."""
    row = rows("train_llm_foundry_mpt", row="33")[0]
    case = case_of(row)
    free, full = (price_of(case, replace(OURS, overlap_cost=cost)) for cost in (0.0, 1.0))
    half = price_of(case, replace(OURS, overlap_cost=0.5))
    assert free.step_s < half.step_s < full.step_s
    assert half.step_s - free.step_s == pytest.approx((full.step_s - free.step_s) / 2, rel=0.02)
    assert {k: v for k, v in full.seconds.items() if k != "sharding"} == {
        k: v for k, v in free.seconds.items() if k != "sharding"
    }


def test_blocking_collectives_cost_their_bytes_and_lists_two_operators_for_each_rank(monkeypatch):
    """DeepSpeed of 2021, 175B on 768 GPUs: three gathers and a reduction of 96 layers, of four matrices each."""
    case = case_of(rows("train_megatron_sc21_table2", row="9")[0])
    lists = price_of(case)
    monkeypatch.setattr(sharding, "LIST_OPERATORS", 0)
    bare = price_of(case)
    model = case.workload.model
    moved = 4 * 2 * model.layers * model.layer_matmul_params
    assert bare.seconds["sharding"] > moved / (8 * 25e9)
    host_s = 4 * 4 * model.layers * 768 * 2 * 10e-6 * pace([case.cluster.runs[0].node.device], case.cluster.gpus)
    assert lists.step_s - bare.step_s == pytest.approx(host_s, rel=0.01)
    pipeline = case_of(rows("train_megatron_sc21_table2", row="3")[0])
    assert lists.step_s > price_of(pipeline).step_s  # as measured: the same work on as many GPUs


def test_biases_read_every_output_gradient_once_more():
    case = case_of(rows("train_llm_foundry_mpt", row="103")[0])
    bare, biased = (
        price_of(case, replace(OURS, joined_products=True)),
        price_of(case, replace(OURS, joined_products=True, biases=True)),
    )
    model, strategy = case.workload.model, case.strategy
    tokens = case.workload.global_batch * case.workload.context_tokens / strategy.ranks
    moved = tokens * model.layers * 9 * model.hidden * 2  # Q, K, V 3 h, out h, up 4 h, down h: two bytes each
    rate = case.cluster.runs[0].node.device.memory_bytes_per_s
    assert moved / rate < biased.step_s - bare.step_s < 1.5 * moved / rate


def test_gradients_of_zero_1_are_reduced_once_per_step():
    row = rows("train_simumax_b200", row="1")[0]
    case = case_of(row)
    twice = replace(
        case,
        workload=replace(case.workload, global_batch=2 * case.workload.global_batch),
        strategy=replace(case.strategy, microbatches=2 * case.strategy.microbatches),
    )
    assert price_of(case).seconds["sharding"] == pytest.approx(price_of(twice).seconds["sharding"], rel=1e-9)


def test_scores_follow_the_file(tmp_path):
    path = tmp_path / "train_x.csv"
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerows([["row", "score"], [1, "yes"], [2, "apart: 8- or 4-bit"], [3, "rank only"], [4, "no: why"]])
    found = read("train_x", tmp_path)
    assert [row.score for row in found] == ["yes", "apart", "rank", "no"]
    assert isinstance(case_of(found[3]), Refused)
    path.write_text("row,score\n1,maybe\n")
    with pytest.raises(InputError, match="score='maybe'; legal: yes"):
        read("train_x", tmp_path)


def test_cells_that_are_not_numbers_are_named():
    row = read("train_simumax_b200")[0]
    with pytest.raises(InputError, match="row 1: model='llama3-70b"):
        row.number_of("model")
    with pytest.raises(InputError, match="no column 'colour'"):
        row.text("colour")


def test_command_writes_the_same_bytes_twice(tmp_path):
    runner, arguments = CliRunner(), ["--file", "train_megatron_recompute_2205.05198"]
    for name in ("a", "b"):
        page, data = tmp_path / f"{name}.md", tmp_path / f"{name}.json"
        result = runner.invoke(main, [*arguments, "--markdown", str(page), "--json", str(data)])
        assert result.exit_code == 0, result.output
    assert (tmp_path / "a.md").read_bytes() == (tmp_path / "b.md").read_bytes()
    stored = json.loads((tmp_path / "a.json").read_text())
    assert stored[0]["errors"]["rows"] == 8 and stored[0]["not_predicted"]
    reports = score(["train_megatron_recompute_2205.05198"], FOLDER)
    assert "| train_megatron_recompute_2205.05198 | 8 |" in markdown(reports)
    assert json.loads(as_json(reports)) == stored


def test_plot_has_a_dot_for_every_row_and_parses():
    reports = score(["train_megatron_recompute_2205.05198"], FOLDER)
    picture = ElementTree.fromstring(svg(reports))
    dots = [one for one in picture.iter() if one.tag.endswith("circle") and one.attrib["r"] == "3"]
    assert len(dots) == 8
    first = reports[0].verdicts[0]
    assert f"{first.error:+.1%}" in dots[0][0].text
    assert "circle" not in svg([replace(reports[0], verdicts=())])


def test_chunked_tensor_exchange_exposes_one_chunk():
    row = rows("train_megatron_bridge", row="80")[0]
    case = case_of(row)
    framework = case.framework
    whole = price_of(case, replace(framework, tensor_overlap="none")).seconds["tensor"]
    chunks = price_of(case, framework).seconds["tensor"]
    assert whole / case.strategy.tensor <= chunks < whole / 2  # latency is not divided


def test_owner_broadcasts_grow_with_the_group_but_not_beyond_its_tensors():
    case = case_of(rows("train_internevo", row="8")[0])
    none = price_of(case, replace(case.framework, owned_tensors=0))
    sent = price_of(case, case.framework)
    owners = 9 * 32 + 3  # of 1024 ranks
    latency = owners * 1024 * 3e-6  # at least the cards' latency, for every owner and rank of its chain
    found = sent.seconds["sharding"] - none.seconds.get("sharding", 0.0)
    assert latency < found < 3 * latency


def test_an_owner_of_one_tensor_updates_all_of_it():
    """Over 1024 ranks a share is 7.2 M weights, the head alone is 422 M."""
    case = case_of(rows("train_internevo", row="8")[0])
    weights = float(trained_params(RankSizes(case.workload, case.strategy, case.framework)))
    share = price_of(case, replace(case.framework, owned_tensors=0)).seconds["optimizer"]
    whole = price_of(case).seconds["optimizer"]
    assert whole / share == pytest.approx(103168 * 4096 * 1024 / weights, rel=0.02)


def test_gradients_of_owners_are_all_reduced_over_all_ranks():
    """An all-reduce of all weights and their broadcast, against a reduce-scatter and a gather: four thirds or more."""
    case = case_of(rows("train_internevo", row="6")[0])
    owned = price_of(case, replace(case.framework, overlap_cost=1.0))
    scattered = price_of(case, replace(case.framework, owned_tensors=0, overlap_cost=1.0))
    assert owned.sent_bytes["gradient all_reduce"] == pytest.approx(2 * scattered.sent_bytes["shard reduce_scatter"])
    assert owned.seconds["sharding"] > 4 / 3 * scattered.seconds["sharding"]


def test_pipeline_halves_hold_their_own_root_and_microbatches():
    """SimuMax, PP 2: 18 bytes a weight of 6 layers and the embedding, activations of two microbatches of 6 layers.

    The first stage is the fuller one; the final norm and the logits are on the last.
    """
    case = case_of(rows("train_simumax_b200", row="1")[0])
    model = case.workload.model
    held = 6 * model.layer_params + model.embedding_params
    found = price_of(case).memory
    assert found["logits"] == 0
    assert found["gradients"] == pytest.approx(4 * held, rel=1e-9)
    assert found["optimizer"] == pytest.approx(8 * held / 4, rel=1e-9)
    kept = 2 * (4 * 8192 + (64 + 16) * 128 + 64 * 128 + 3 * 28672) + 4 * 64 + 8  # bytes a token and layer
    rotary = 4096 * (2 * 128 * 2 + 8)
    assert found["activations"] == pytest.approx(2 * 6 * 4096 * kept + rotary, rel=1e-9)


def test_command_refuses_an_unknown_file():
    result = CliRunner().invoke(main, ["--file", "train_nothing"])
    assert result.exit_code == 2


def test_root_gradients_are_added_to_their_buffers():
    """Head and layers: by their products, whose buffer shows in part; embedding: its table zeroed, read and added."""
    case = case_of(rows("train_simumax_b200", row="2")[0])
    without = price_of(case, replace(case.framework, accumulator=None)).seconds["compute"]
    found = price_of(case).seconds["compute"] - without
    table, layers = 128256 * 8192 / 2, 12 * (8192 * (2 * 8192 + 2 * 1024) + 3 * 8192 * 28672) / 2
    kernels = Kernels.of(case.cluster.runs[0].node.device)
    shown = kernels.gemm_s(8192, 8192, 4096, accumulate="fp32") - kernels.gemm_s(8192, 8192, 4096)
    moved = kernels.memory_bound_s(4 * table * 12, 4 * 6) + 4 * (table + layers) / 8192**2 * shown
    assert found == pytest.approx(moved * pace([kernels.device], case.strategy.ranks), rel=1e-3)
