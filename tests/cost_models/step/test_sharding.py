"""What happens once a step and what in every microbatch, by the bytes that a rank sends, worked out by hand.

Case: 8B weights, data 8 x 4 microbatches on 8 GPUs, bf16 weights, fp32 reductions.
    ZeRO-3   gathers W twice and reduce-scatters 2 W in every microbatch (W in bf16 bytes; an fp32 gradient is 2 W)
    ZeRO-1   gathers W and reduce-scatters 2 W once a step (Megatron); under FSDP2 it runs as ZeRO-2
"""

from dataclasses import replace

import numpy as np
import pytest

from cost_models import Cluster, LayerRange, Model, Strategy, Workload, price
from cost_models.batch import price_batch
from cost_models.framework import OURS, Framework
from cost_models.hardware.device import Device
from cost_models.layer.attention import attention_phases
from cost_models.layer.decoder import kept_bytes, operators, phases
from cost_models.layer.operators import QUANTISE_BYTES, product_s
from cost_models.layer.sizes import RankSizes
from cost_models.layer.weights import adapter_params
from cost_models.pricing import fold, fold_segment, overlap_cost, sharding_s
from cost_models.program import Compute, Exchange, Segment, StepProgram
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.timing.kernels import Kernels
from cost_models.timing.slowest import pace
from planner import simulate

NODE = Cluster.load("dgx-h100", nodes=1)
NODES = Cluster.load("dgx-h100", nodes=2)
MODEL = Model.load("llama-3-8b")
WORK = Workload(MODEL, context_tokens=8192, global_batch=32)
LAYOUT = Strategy(data=8, shard=8, microbatches=4)
OF_MEGATRON = replace(OURS, zero_1_as_2=False)
LAYERS, ROOT = 32 * MODEL.layer_params, MODEL.embedding_params + MODEL.head_params + MODEL.hidden


@pytest.mark.parametrize(
    ("zero", "framework", "gathers_of_layers", "gathers_of_root", "reductions"),
    [(3, OURS, 8, 4, 4), (2, OURS, 4, 4, 4), (1, OURS, 4, 4, 4), (1, OF_MEGATRON, 1, 1, 1)],
)
def test_gathers_and_reductions_by_zero_stage(zero, framework, gathers_of_layers, gathers_of_root, reductions):
    cost = price(NODE, WORK, replace(LAYOUT, zero=zero), framework=framework)
    gathered = 2 * (gathers_of_layers * LAYERS + gathers_of_root * ROOT) * 7 / 8
    assert cost.sent_bytes["shard all_gather"] == pytest.approx(gathered, rel=1e-12)
    assert cost.sent_bytes["shard reduce_scatter"] == pytest.approx(4 * reductions * (LAYERS + ROOT) * 7 / 8, rel=1e-12)


@pytest.mark.parametrize("zero", [2, 3])
def test_deferred_reductions_come_once_and_wait_whole(zero):
    """FSDP's no_sync: weights are gathered as ever; whole fp32 gradients wait for the last of several microbatches."""
    deferred = replace(OURS, defers_reductions=True)
    before, after = (price(NODE, WORK, replace(LAYOUT, zero=zero), framework=one) for one in (OURS, deferred))
    assert after.sent_bytes["shard all_gather"] == before.sent_bytes["shard all_gather"]
    assert after.sent_bytes["shard reduce_scatter"] == pytest.approx(4 * (LAYERS + ROOT) * 7 / 8, rel=1e-12)
    assert after.memory["gradients"] == pytest.approx(4 * (LAYERS + ROOT), rel=1e-6)
    one = replace(WORK, global_batch=8), replace(LAYOUT, zero=zero, microbatches=1)
    assert price(NODE, *one, framework=deferred).memory == price(NODE, *one, framework=OURS).memory


def test_gathered_logits_are_sent_and_scored_whole():
    """A head whose columns are cut over 4 ranks gives each all logits: one gather forward, none backward."""
    work, layout = replace(WORK, global_batch=2), Strategy(data=2, tensor=4, zero=0, loss_chunk_tokens=None)
    cut, whole = (price(NODE, work, layout, framework=replace(OURS, gathers_logits=one)) for one in (False, True))
    logits = work.context_tokens * MODEL.vocab
    sent = whole.sent_bytes["tensor all_gather"] - cut.sent_bytes["tensor all_gather"]
    assert sent == pytest.approx(2 * logits * 3 / 4, rel=1e-9)
    assert whole.step_s - cut.step_s > Kernels.of("h100-sxm-80gb").memory_bound_s(logits * 3 / 4 * 16, 1)
    assert whole.memory.allocated_bytes - cut.memory.allocated_bytes > logits * 4


def test_whole_sums_of_zero_1_send_twice_what_shares_of_them_do():
    shares, whole = (replace(OF_MEGATRON, sums_whole=one) for one in (False, True))
    sent = [price(NODE, WORK, replace(LAYOUT, zero=1), framework=one).sent_bytes for one in (shares, whole)]
    assert "shard reduce_scatter" not in sent[1]
    moved = sent[1]["shard all_reduce"] - sent[0].get("shard all_reduce", 0)
    assert moved == pytest.approx(2 * sent[0]["shard reduce_scatter"], rel=1e-9)


def test_gathered_inputs_that_stay_are_kept_whole():
    """Of two halves of a layer, 3 of 4 tensor ranks' shares; recomputed layers keep none of it."""
    framework, layers = replace(OURS, keeps_gathered=True), MODEL.layers
    for recompute, kept in (("none", 2), ("full", 0)):
        layout = Strategy(data=2, tensor=4, zero=0, layers=(LayerRange(count=layers, recompute=recompute),))
        mine = [RankSizes(replace(WORK, global_batch=2), layout, one) for one in (OURS, framework)]
        more = float(kept_bytes(mine[1], recompute)) - float(kept_bytes(mine[0], recompute))
        assert more == kept * 0.75 * WORK.context_tokens * MODEL.hidden * 2


def test_tensor_exchanges_along_the_second_dimension_copy_whole_tensors():
    """Each of 8 exchanges of a layer reads and writes them; gradients of QKV's and of gate's and up's inputs add up."""
    kernels, copying = Kernels.of("h100-sxm-80gb"), replace(OURS, copies_exchanged=True)

    def computed_s(framework, layout, grad):
        sizes = RankSizes(replace(WORK, global_batch=1), layout, framework)
        made = phases(sizes, kernels, operators(sizes), grad=grad)
        return sum(one.seconds for one in made if isinstance(one, Compute))

    whole = WORK.context_tokens * MODEL.hidden * 2
    for grad, passes, launches in ((False, 8, 4), (True, 8 + 3 * 3, 7)):
        added = computed_s(copying, Strategy(tensor=4), grad) - computed_s(OURS, Strategy(tensor=4), grad)
        assert added == pytest.approx(kernels.memory_bound_s(whole * passes, launches), rel=1e-9)
        assert computed_s(copying, Strategy(), grad) == computed_s(OURS, Strategy(), grad)


def test_scores_in_memory_are_moved_as_often_as_operators_read_and_write_them():
    """20 bytes forward and 28 backward where one kernel has 4 and 6."""
    kernels, joined = Kernels.of("h100-sxm-80gb"), replace(OURS, attention="unfused")
    apart = replace(joined, score_bytes=20, score_gradient_bytes=28)
    work = replace(WORK, global_batch=1)
    sizes = [RankSizes(work, Strategy(), one) for one in (joined, apart)]
    scores = MODEL.heads * WORK.context_tokens**2
    for grad, more in ((False, 16), (True, 22)):
        made = [attention_phases(one, kernels, part="attention", grad=grad)[0].first_s for one in sizes]
        assert made[1] - made[0] == pytest.approx(kernels.memory_bound_s(scores * more, 0), rel=1e-9)


def test_what_is_cast_before_it_is_gathered_travels_in_its_bytes():
    """Half of the gathers' bytes over tensor ranks (but embedding and head) and over shards; reductions stay."""
    fp8 = replace(OURS, product_dtype="fp8")
    layout = Strategy(data=2, tensor=4, shard=2, zero=3)
    work = replace(WORK, global_batch=2)
    wide, narrow = (price(NODE, work, layout, framework=replace(fp8, narrow_gathers=one)) for one in (False, True))
    root = 2 * 2 * work.context_tokens * MODEL.hidden * 3 / 4  # the head's input, the embedding's gradient
    sent = [one.sent_bytes["tensor all_gather"] - root for one in (wide, narrow)]
    assert sent[1] == pytest.approx(sent[0] / 2, rel=1e-9)
    assert narrow.sent_bytes["tensor reduce_scatter"] == wide.sent_bytes["tensor reduce_scatter"]
    assert narrow.sent_bytes["shard all_gather"] < 0.75 * wide.sent_bytes["shard all_gather"]
    assert narrow.step_s < wide.step_s


@pytest.mark.parametrize("zero", [1, 2])
def test_frozen_weights_are_gathered_by_zero_3_alone(zero):
    """Below ZeRO-3 the memory has them whole on every rank, so adapters alone are gathered after their update."""
    work = replace(WORK, lora_rank=16)
    adapters = 32 * adapter_params(RankSizes(work, LAYOUT))
    sent = price(NODE, work, replace(LAYOUT, zero=zero), framework=OF_MEGATRON).sent_bytes
    passes = 4 if zero == 2 else 1
    assert sent["shard all_gather"] == pytest.approx(2 * passes * adapters * 7 / 8, rel=1e-12)
    whole = price(NODE, work, LAYOUT).sent_bytes["shard all_gather"]
    assert whole == pytest.approx(2 * 4 * (2 * (LAYERS + adapters) + ROOT) * 7 / 8, rel=1e-12)


def test_frozen_weights_of_a_tower_are_gathered_by_zero_3_alone():
    model = Model.load("longvila-8b")
    work = Workload(model, frames=64, text_tokens=1024, global_batch=8, trainable=("projector",))
    layout = Strategy(data=8, shard=8, zero=2)
    projector = model.vision.projector_params(model.hidden)
    sent = price(NODE, work, layout).sent_bytes
    assert sent["shard all_gather"] == pytest.approx(2 * projector * 7 / 8, rel=1e-12)


def test_a_frozen_weight_is_not_quantised_again():
    """Each forward product reads and writes its input alone; a trained weight is quantised as well."""
    kernels, framework = Kernels.of("h100-sxm-80gb"), replace(OURS, product_dtype="fp8")
    sizes = RankSizes(WORK, LAYOUT, framework)
    rows, out, inside = 8192, 8192, 4096
    added = (product_s(sizes, kernels, rows, out, inside, False, trained=t) for t in (True, False))
    trained_s, frozen_s = added
    moved = QUANTISE_BYTES["fp8"] * out * inside
    both, input_alone = (kernels.memory_bound_s(QUANTISE_BYTES["fp8"] * rows * inside + m, 2) for m in (moved, 0))
    assert trained_s - frozen_s == pytest.approx(both - input_alone, rel=1e-9)


def test_zero_1_of_this_executor_is_zero_2():
    """FSDP2 shards gradients as it reduces them: the same time, the same memory."""
    one, two = (price(NODE, WORK, replace(LAYOUT, zero=zero)) for zero in (1, 2))
    assert (one.seconds, one.memory) == (two.seconds, two.memory)
    batch = price_batch(NODE, WORK, [replace(LAYOUT, zero=zero) for zero in (1, 2, 3)])
    assert batch.step_s[0] == batch.step_s[1] == pytest.approx(one.step_s)


@pytest.mark.parametrize("zero", [2, 3])
def test_replicas_sum_their_shards_once_a_step(zero):
    layout = Strategy(data=16, shard=8, zero=zero, microbatches=2)
    sent = price(NODES, WORK, layout).sent_bytes["replicate all_reduce"]
    assert sent == pytest.approx(2 * (1 / 2) * 4 * (LAYERS + ROOT) / 8, rel=1e-12)


def test_only_the_last_microbatch_has_what_happens_once_a_step():
    """3 x 2 s of work and a last one of 2 s that hides 2 of a reduction's seconds; a bubble of the first kind alone."""
    paths = replace(cluster_costs(NODE).paths(Strategy(data=8, shard=8)), pace=1.0)
    reduction = Exchange(part="sharding", axis="shard", op="reduce_scatter", bytes=2e12)
    work = Segment(name="layer", phases=(Compute(part="matmul", seconds=2.0),))
    segment = work._replace(last=work._replace(sharding=(reduction,)))
    program = StepProgram(microbatch=(segment,), epilogue=(), microbatches=4, pipeline=3, virtual=2)
    alone = float(paths.exchange_s("shard", "reduce_scatter", 2e12))
    folded = fold(program, paths)
    assert alone > 2.0
    assert folded.seconds["compute"] == 8.0
    assert folded.seconds["sharding"] == pytest.approx(alone - 2.0)
    assert folded.hidden_s["sharding"] == pytest.approx(2.0)
    assert folded.seconds["pipeline"] == pytest.approx(2.0 * (3 - 1) / 2)
    assert fold_segment(segment, paths).total_s == 2.0


def test_hidden_collectives_take_as_many_multiprocessors_as_cards_keep_busy():
    """Inside a domain as NCCL was measured; between nodes eight cards of 400 Gbit/s as much, one a quarter, and a group
    with one member in each node an eighth of that."""
    shared, whole = Strategy(data=16, shard=8, zero=3), Strategy(data=16, shard=16, zero=3)
    one = Cluster.load("hgx-h100-1nic", nodes=2)
    work = Segment(name="layer", phases=(Compute(part="matmul", seconds=9.0),), overlap_cost=0.6)
    gather = Exchange(part="sharding", axis="shard", op="all_gather", bytes=1e11)
    apart = Exchange(part="sharding", axis="replicate", op="all_reduce", bytes=1e10)
    found = {}
    for name, cluster, layout, sent in (
        ("inside", one, shared, (gather,)), ("8 cards", NODES, whole, (gather,)), ("1 card", one, whole, (gather,)),
        ("both", one, shared, (gather, apart)),
    ):  # fmt: skip
        paths = cluster_costs(cluster).paths(layout)
        segment = work._replace(sharding=sent)
        found[name] = overlap_cost(segment, paths, sharding_s(segment, paths))
    assert found["inside"] == found["8 cards"] == pytest.approx(0.6)
    assert found["1 card"] == pytest.approx(0.6 * 0.92 / 4, rel=1e-3), "a ring gets 0.92 of what a card reaches"
    paths = cluster_costs(one).paths(shared)
    inside, between = (paths.exchange_s(each.axis, each.op, each.bytes) for each in (gather, apart))
    assert found["both"] == pytest.approx((0.6 * inside + 0.6 * 0.92 / 32 * between) / (inside + between), rel=1e-3)


def test_fsdp_copies_what_it_gathers_and_reduces():
    """FSDP2: 4 bytes for each gathered weight, twice under ZeRO-3, and 6 for each gradient; nothing on one rank."""
    bare = replace(OURS, gather_copy_bytes=0, reduce_copy_bytes=0, overlap_cost=0.0)
    full = replace(OURS, overlap_cost=0.0)
    kernels = cluster_costs(NODE).kernels((0,), "fa2")
    added = price(NODE, WORK, LAYOUT, framework=full).seconds["compute"]
    added -= price(NODE, WORK, LAYOUT, framework=bare).seconds["compute"]
    each = kernels.memory_bound_s(4 * MODEL.layer_params, 6) + kernels.memory_bound_s(10 * MODEL.layer_params, 6)
    assert added == pytest.approx(4 * 32 * each * pace([kernels.device], 8), rel=1e-6)
    alone = replace(LAYOUT, data=1, shard=1, microbatches=32)
    assert price(NODE, WORK, alone, framework=full).seconds == price(NODE, WORK, alone, framework=bare).seconds


def test_interleaved_stages_send_beside_the_next_chunk():
    """Megatron-Core's overlap_p2p_comm: nothing shows of a send that is shorter than a chunk."""
    framework = Framework.load("megatron-recipes")
    stages = Strategy(data=4, pipeline=4, microbatches=8, shard=4, zero=1)
    chunks = replace(stages, virtual=8, schedule="interleaved")
    plain, interleaved = (price(NODES, WORK, layout, framework=framework) for layout in (stages, chunks))
    shown = price(NODES, WORK, chunks, framework=replace(framework, overlapped_sends=False))
    assert interleaved.sent_bytes["pipeline send"] == shown.sent_bytes["pipeline send"] > 0
    assert interleaved.seconds["pipeline"] < shown.seconds["pipeline"]
    assert interleaved.step_s < shown.step_s < plain.step_s


def test_a_step_runs_at_the_pace_of_its_slowest_board():
    """The same work on each board: computation lasts longer on 512 of them than on 8, by what the slowest takes."""
    several = Cluster.load("dgx-h100", nodes=64)
    few, many = (
        price(several, replace(WORK, global_batch=4 * ranks), Strategy(data=ranks, shard=8, microbatches=4))
        for ranks in (8, 512)
    )
    boards = [Device.load("h100-sxm-80gb")]
    assert many.seconds["compute"] / few.seconds["compute"] == pytest.approx(pace(boards, 512) / pace(boards, 8))
    played = simulate(NODE, WORK, LAYOUT)
    assert played.seconds["compute"] == pytest.approx(price(NODE, WORK, LAYOUT).seconds["compute"])


def test_reductions_that_nothing_hides_are_all_exposed():
    layout = replace(LAYOUT, zero=1)
    exposed = price(NODE, WORK, layout, framework=replace(OF_MEGATRON, reduction="exposed", overlap_cost=0.0))
    hidden = price(NODE, WORK, layout, framework=replace(OF_MEGATRON, overlap_cost=0.0))
    paths = cluster_costs(NODE).paths(layout)
    layer = paths.exchange_s("shard", "all_gather", 2 * MODEL.layer_params)
    layer += paths.exchange_s("shard", "reduce_scatter", 4 * MODEL.layer_params)
    root = paths.exchange_s("shard", "all_gather", 2 * ROOT) + paths.exchange_s("shard", "reduce_scatter", 4 * ROOT)
    norm = paths.exchange_s("shard", "all_reduce", 4.0)
    assert exposed.seconds["sharding"] == pytest.approx(32 * layer + root + norm, rel=1e-9)
    assert hidden.seconds["sharding"] < exposed.seconds["sharding"]


def test_what_zero_2_sends_is_exposed_where_the_framework_says_so_and_zero_3_is_not():
    """DeepSpeed's overlap_comm is true for stage 3 alone; arrays of stages are priced as each stage."""
    work = replace(WORK, precision=Framework.load("deepspeed").precision)
    exposed, hidden = Framework.load("deepspeed"), replace(Framework.load("deepspeed"), reduction="overlapped")
    late = {}
    for zero in (1, 2, 3):
        one = replace(LAYOUT, zero=zero)
        costs = [price(NODE, work, one, framework=framework) for framework in (exposed, hidden)]
        late[zero] = costs[0].seconds["sharding"] - costs[1].seconds["sharding"]
        assert costs[0].sent_bytes == costs[1].sent_bytes
    assert late[2] > 3 * late[1] > 0 and late[3] == 0  # four microbatches, and once a step
    every = price_batch(NODE, work, [replace(LAYOUT, zero=zero) for zero in (1, 2, 3)], framework=exposed)
    single = [price(NODE, work, replace(LAYOUT, zero=zero), framework=exposed).step_s for zero in (1, 2, 3)]
    np.testing.assert_allclose(every.step_s, single, rtol=1e-12)
