"""Pipeline schedules against the formulas of their papers, with p stages, m microbatches and v chunks a stage.

bubble / ideal time   (p - 1) / m for GPipe and 1F1B, (p - 1) / (v m) interleaved   (arXiv 2104.04473, section 2.2)
activations           m / p of all layers for GPipe; L for 1F1B; L (1 + (p - 1) / (p v)) interleaved, of L layers
                      (arXiv 2205.05198, section 4.2.3 with its m for our v)
"""

from dataclasses import replace

import pytest

from cost_models import Cluster, InputError, LayerRange, Model, Strategy, Workload, price
from cost_models.framework import OURS
from cost_models.layer.sizes import RankSizes
from cost_models.layer.stages import runs, stage
from cost_models.memory.components import peak
from cost_models.memory.peaks import kept_bytes
from cost_models.timing.kernels import Kernels

NODE = Cluster.load("dgx-h100", nodes=1)
MODEL = Model(name="only-layers", layers=32, hidden=4096, ffn=14336, heads=32, kv_heads=8, head_dim=128, vocab=64)
ROTARY = 8192 * (2 * 128 * 2 + 8)
"""Cosines, sines and positions."""
SCHEDULES = [("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("interleaved", 4)]


def cost_of(schedule, virtual, microbatches, stages=4):
    layout = Strategy(pipeline=stages, schedule=schedule, virtual=virtual, microbatches=microbatches, zero=0)
    work = Workload(MODEL, context_tokens=8192, global_batch=microbatches)
    return price(NODE, work, layout), RankSizes(work, layout)


@pytest.mark.parametrize(("schedule", "virtual"), SCHEDULES)
@pytest.mark.parametrize("microbatches", [4, 8, 32])
def test_the_bubble_is_the_papers(schedule, virtual, microbatches):
    cost, _ = cost_of(schedule, virtual, microbatches)
    optimizer = cost.seconds["optimizer"] + cost.seconds["sharding"]
    twice, _ = cost_of(schedule, virtual, 2 * microbatches)
    ideal = twice.step_s - cost.step_s  # as many microbatches again, without another bubble
    bubble = cost.step_s - optimizer - ideal
    assert bubble / ideal == pytest.approx(3 / (virtual * microbatches), rel=0.01)


@pytest.mark.parametrize(("schedule", "virtual"), SCHEDULES)
def test_activations_in_flight_are_the_papers(schedule, virtual):
    cost, shape = cost_of(schedule, virtual, 8)
    of_all_layers = 32 * float(kept_bytes(shape, "none"))
    expected = {"gpipe": 8 / 4, "1f1b": 1.0, "interleaved": 1 + 3 / (4 * virtual)}[schedule]
    assert cost.memory["activations"] == pytest.approx(expected * of_all_layers + ROTARY, rel=1e-6)


def test_fewer_microbatches_than_stages_are_all_in_flight():
    cost, shape = cost_of("1f1b", 1, 2)
    assert cost.memory["activations"] == pytest.approx(2 / 4 * 32 * float(kept_bytes(shape, "none")) + ROTARY, rel=1e-6)


def test_a_boundary_is_sent_once_for_each_chunk_and_direction():
    for virtual in (1, 2):
        schedule = "interleaved" if virtual > 1 else "1f1b"
        cost, _ = cost_of(schedule, virtual, 8)
        assert cost.sent_bytes["pipeline send"] == pytest.approx(8 * 2 * virtual * 8192 * 4096 * 2)


def test_the_head_is_on_one_stage():
    """Its time fills no bubble: the other stages have none."""
    big = replace(MODEL, vocab=128256)
    layout = Strategy(pipeline=4, microbatches=8, zero=0)
    small = price(NODE, Workload(MODEL, context_tokens=8192, global_batch=8), layout)
    large = price(NODE, Workload(big, context_tokens=8192, global_batch=8), layout)
    assert large.step_s > small.step_s
    assert large.seconds["pipeline"] == pytest.approx(small.seconds["pipeline"], rel=1e-6)


def test_stages_are_counted_apart():
    """The first stage holds all microbatches in flight and the embedding, the last one microbatch and the head."""
    big = replace(MODEL, vocab=128256)
    layout = Strategy(pipeline=4, microbatches=8, zero=0)
    work = Workload(big, context_tokens=8192, global_batch=8)
    device = NODE.runs[0].node.device
    shape, ranges = RankSizes(work, layout), layout.layer_ranges(32)
    apart = peak(shape, ranges, device)
    weights = 8 * big.layer_params + big.embedding_params
    assert float(apart["gradients"]) == pytest.approx(4 * weights)
    assert float(apart["activations"]) == pytest.approx(4 * 8 * float(kept_bytes(shape, "none")) + ROTARY)
    assert float(apart["logits"]) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"virtual": 2}, "virtual=2 needs schedule=interleaved, not 1f1b; legal here: 1"),
        ({"virtual": 2, "schedule": "gpipe"}, "virtual=2 needs schedule=interleaved, not gpipe"),
    ],
)
def test_schedules_that_cannot_be_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        Strategy(pipeline=4, **given)


def of(**facts):
    return replace(OURS, **facts)


def model_of(layers, vocab=64):
    return replace(MODEL, layers=layers, layer_kinds=(), vocab=vocab)


@pytest.mark.parametrize(
    ("stages", "counts"), [(1, [40]), (2, [21, 19]), (4, [10, 11, 11, 8]), (16, [2] + [3] * 10 + [2] * 4 + [0])]
)
def test_modules_cut_in_equal_numbers(stages, counts):
    """40 layers are 43 modules with embedding, last norm and head; the longer stages come first (16: 3 and 2)."""
    layout = Strategy(pipeline=stages, microbatches=stages, zero=0)
    sizes = RankSizes(Workload(model_of(40), context_tokens=8192), layout, of(cuts_ends=3))
    ranges = layout.layer_ranges(40)
    found = [sum(float(run.layers) for run in stage(sizes, ranges, index)) for index in range(stages)]
    assert found == counts and sum(counts) == 40
    assert [float(run.layers + run.elsewhere) for run in runs(sizes, ranges)] == [40]


@pytest.mark.parametrize(("vocab", "slowest"), [(64, 11), (1_024_000, 8)])
def test_the_longest_stage_sets_the_pace_unless_the_head_does(vocab, slowest):
    """Of stages of 10, 11, 11 and 8 layers the last has the head; more microbatches take that stage's time each."""

    def step_s(microbatches, layers=40, stages=4):
        layout = Strategy(pipeline=stages, microbatches=microbatches, zero=0, loss_chunk_tokens=None)
        work = Workload(model_of(layers, vocab), context_tokens=8192, global_batch=microbatches)
        return price(NODE, work, layout, framework=of(cuts_ends=3)).step_s

    each = (step_s(64) - step_s(32)) / 32
    one = step_s(64, 16, 1) - step_s(32, 16, 1), step_s(64, 8, 1) - step_s(32, 8, 1)
    layer = (one[0] - one[1]) / 8 / 32
    head = one[1] / 32 - 8 * layer
    assert each == pytest.approx(slowest * layer + (head if slowest == 8 else 0), rel=0.02)


def test_a_head_is_recomputed_with_all_layers_alone():
    model, work = replace(MODEL, vocab=128256), {"context_tokens": 8192, "global_batch": 2}
    product = Kernels.of("h100-sxm-80gb").gemm_s(8192, 128256, 4096, "bf16")
    for ranges, more in (
        ((LayerRange(count=32, recompute="full"),), 2 * product),
        ((LayerRange(count=16, recompute="full"), LayerRange(count=16)), 0.0),
    ):
        layout = Strategy(microbatches=2, zero=0, layers=ranges)
        plain, again = (
            price(NODE, Workload(model, **work), layout, framework=of(recomputes_ends=one)).seconds["recompute"]
            for one in (False, True)
        )
        assert again - plain == pytest.approx(more, rel=0.02)


def test_sums_of_gate_and_up_and_whole_sends_are_of_all_reduces_alone():
    """Of 8 microbatches over 2 tensor ranks: one more sum of the hidden states a layer, twice the boundary, and beyond
    two stages as much again that a stage waits for."""
    hidden = 8192 * 4096 * 2
    for stages, waits in ((2, 1), (4, 2)):
        layout = Strategy(tensor=2, pipeline=stages, microbatches=8, zero=0)
        work = Workload(MODEL, context_tokens=8192, global_batch=8)
        facts = {"sums_apart": True, "sends_whole": True, "blocking_sends": True}
        for parallel in (False, True):
            sent = [
                price(NODE, work, layout, framework=of(sequence_parallel=parallel, **more)).sent_bytes
                for more in ({}, facts)
            ]
            sums = sent[1].get("tensor all_reduce", 0) - sent[0].get("tensor all_reduce", 0)
            assert sums == pytest.approx(0 if parallel else 8 * 32 / stages * hidden, rel=1e-9)
            ratio = sent[1]["pipeline send"] / sent[0]["pipeline send"]
            assert ratio == pytest.approx((1 if parallel else 2) * waits)
