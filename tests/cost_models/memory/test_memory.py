"""Bytes of one small case by hand, component by component, and what holds for all: monotone, moments not added up.

Case: 2 layers, hidden 64, ffn 128, 4 heads of 16 (2 for KV), vocabulary 1000, 1,024 tokens on ulysses 2, ZeRO-3 over 2.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models import Cluster, LayerRange, Model, Strategy, Workload, price
from cost_models.framework import OURS, Framework
from cost_models.hardware.device import Device
from cost_models.layer.attention import attention_operators
from cost_models.layer.sizes import RankSizes
from cost_models.layer.stages import at_stage
from cost_models.layer.weights import expert_params, gradient_bytes, layer_params
from cost_models.memory import peaks
from cost_models.memory.buffers import collective_bytes, communication_bytes, message_bytes
from cost_models.memory.fragments import OUTLIVED, large_blocks
from cost_models.memory.peaks import kept_bytes, microbatches_in_flight
from cost_models.memory.states import dropped_gradients, states
from cost_models.workload import Precision

SMALL = Model(name="small", layers=2, hidden=64, ffn=128, heads=4, kv_heads=2, head_dim=16, vocab=1000)
TOKENS = 512  # of one of two ranks
LAYER = 64 * (64 * 2 + 32 * 2) + 3 * 64 * 128 + 2 * 64
ROOT = 2 * 64 * 1000 + 64
ROW = 40 * 1024
CLUSTER = Cluster.load("dgx-h100", gpus=8)
RESIDENT = replace(OURS, drops_gradients_to=None)
ZERO_1 = replace(OURS, zero_1_as_2=False, gathers_units=False)
"""ZeRO-1 as Megatron has it: gradients reduced once a step."""
KEEPS = replace(ZERO_1, drops_gradients_to=None)


def of(policy="none", chunk=128, tokens=1024, model=SMALL, **given):
    layers = (LayerRange(recompute=policy, count=model.layers),)
    strategy = Strategy(ulysses=2, shard=2, layers=layers, loss_chunk_tokens=chunk, **given)
    return price(CLUSTER, Workload(model, context_tokens=tokens, global_batch=strategy.microbatches), strategy)


def test_states():
    found, params = of().memory, 2 * LAYER + ROOT
    assert found["parameters"] == 4 * params / 2 and found["gradients"] == 0
    assert of(microbatches=2).memory["gradients"] == 4 * params / 2  # they wait for the next microbatch
    assert found["optimizer"] == 8 * params / 2


def test_activations():
    norms = 2 * (64 * (4 + 2 + 2) + 4)
    attention = 2 * 64 + 2 * 2 * 32 + 2 * 64 + 4 * 4 + 2 * 64  # q, k and v, out, lse, out after its exchange
    mlp = 4 * 2 * 128
    rotary = 2 * 16 * 2 + 8
    assert of("none").memory["activations"] == TOKENS * (2 * (norms + attention + mlp) + rotary)
    assert of("mlp").memory["activations"] == TOKENS * (2 * (norms + attention) + rotary)
    assert of("all_but_attention").memory["activations"] == TOKENS * (2 * (2 * 64 + 2 * 64 + 4 * 4) + rotary)
    assert of("full").memory["activations"] == TOKENS * (2 * 2 * 64 + rotary)


def test_a_layer_s_backward_pass():
    """Recomputed whole: all but the input comes back, also an fp32 copy of it; then gradients of the MLP's inside."""
    cost = of("full")
    assert cost.moment == "layer backward, full"
    again = TOKENS * (2 * (64 * 8 + 4) + 2 * 64 + 2 * 2 * 32 + 2 * 64 + 4 * 4 + 2 * 64 + 4 * 2 * 128)
    products = TOKENS * 2 * 128 * 2 + 2 * 64 * 128 + TOKENS * 2 * 64  # two of f, down's gradient, the residual's
    passing = (4 + 4 / 2) * LAYER - TOKENS * 2 * 64  # the layer before: its gradients' copy and shard, less its input
    made = max(0, 4 * LAYER / 2 - TOKENS * 2 * 64)  # the other layer's gradients, less its input, which is gone by then
    assert cost.memory["working"] == again + products + passing + made + ROW
    assert cost.memory["gathered"] == 2 * (ROOT + 2 * LAYER)
    assert cost.memory["logits"] == 2 * 64 * 1000


@pytest.mark.parametrize("chunk", [128, 512])
def test_the_loss(chunk):
    shape = RankSizes(Workload(SMALL, context_tokens=1024), Strategy(ulysses=2, shard=2, loss_chunk_tokens=chunk))
    found = peaks.loss(shape)
    norm = TOKENS * 64 * (4 + 2 + 2 + 2)
    assert found.logits == 4 * 64 * 1000 + chunk * 1000 * (2 + 4 + 4) + norm
    assert found.gathered == 2 * (ROOT + LAYER)


def test_the_reduction_of_the_root_s_gradients():
    """bf16 and its fp32 copy, when the inputs of both layers are gone."""
    found = peaks.root_gradients(RankSizes(Workload(SMALL, context_tokens=1024), Strategy(ulysses=2, shard=2)), 1000)
    assert found.total == ROOT * (2 + 4) + 4 * (2 * LAYER + ROOT) / 2 - 1000


def test_the_vision_side():
    model = Model.load("longvila-tiny")
    vision = model.vision
    frames, tokens = 4, 4 * vision.tokens_per_frame
    strategy = Strategy(ulysses=2, shard=2)
    cost = price(CLUSTER, Workload(model, context_tokens=1024, frames=2 * frames), strategy)
    patch = 3 * vision.patch_size**2 * 2 + vision.layers * (
        (8 * vision.hidden + 2 * vision.ffn) * 2 + 4 * (vision.heads + 4)
    )
    projector = 2 * (vision.projector_in + vision.projector_hidden) * 2 + 8
    received = 2 * tokens * model.hidden * 2  # the rank that owns all of them
    assert cost.memory["vision"] == frames * vision.patches * patch + tokens * projector + received


def test_a_tower_in_chunks_holds_one_of_them_behind_the_layers():
    """1,400 frames over 16 ranks: 88 each, six chunks of 15. As counted by `executor check` at full shape, on 16 H100:
    17,039 MiB beside what is kept where every layer recomputes and its input lies in host memory."""
    work = Workload(Model.load("longvila-8b"), context_tokens=275 * 1024, frames=1400)
    layers = (LayerRange(recompute="full", offload="activations", count=32),)
    layout = Strategy(ring=2, ulysses=8, shard=16, layers=layers, mlp_chunk_tokens=4096)
    cost = price(Cluster.load("dgx-h100", nodes=2), work, layout)
    assert cost.moment == "tower backward"
    moving = cost.memory["gathered"] + cost.memory["working"] + cost.memory["logits"]
    assert moving / 2**20 == pytest.approx(17_039, rel=0.01)
    assert cost.memory["vision"] / 2**20 == pytest.approx(211, rel=0.02)
    at_once = price(Cluster.load("dgx-h100", nodes=2), work, layout, framework=replace(OURS, frames_per_chunk=None))
    assert at_once.memory["vision"] > 50 * 2**30
    assert cost.seconds["vision"] > 1.2 * at_once.seconds["vision"]  # forward once more, of three times as much in all


def test_moments_are_not_added_up():
    cost = of("none", chunk=512)
    assert cost.moment == "loss"
    assert cost.memory["working"] == ROW  # nothing of a layer's backward pass beside the logits


def test_the_first_stage_holds_no_logits():
    """Of two stages the first has twice the activations; the last one's loss is beside half of them."""
    model = Model.load("llama-3-8b")
    work = Workload(model, context_tokens=8192, global_batch=8, precision=Precision())
    strategy = Strategy(pipeline=2, microbatches=8, zero=1, loss_chunk_tokens=None)
    shape = RankSizes(work, strategy, Framework.load("megatron-te"))
    alone = RankSizes(work, replace(strategy, pipeline=1), Framework.load("megatron-te"))
    assert microbatches_in_flight(shape) == 2
    inputs = 16 * 8192 * 4096 * 2  # the least that one microbatch keeps in a stage
    assert peaks.loss(alone).logits - peaks.loss(shape).logits == inputs


def test_dropped_gradients_come_while_activations_go():
    work = Workload(SMALL, context_tokens=1024)
    strategy = Strategy(ulysses=2, shard=2, zero=1)
    drops = RankSizes(work, strategy, replace(OURS, drops_gradients_to=2))
    assert states(drops)["gradients"] == 0
    assert dropped_gradients(drops) == states(RankSizes(work, strategy, RESIDENT))["gradients"]
    assert dropped_gradients(RankSizes(work, replace(strategy, zero=3), drops.framework)) == 0
    several = RankSizes(replace(work, global_batch=2), replace(strategy, microbatches=2), drops.framework)
    assert dropped_gradients(several) == 0


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 2**14),
    more=st.integers(1, 2**14),
    policy=st.sampled_from(["none", "mlp", "all_but_attention", "full"]),
    ulysses=st.sampled_from([1, 2, 4]),
    ring=st.sampled_from([1, 2]),
)
def test_memory_never_falls_with_tokens(tokens, more, policy, ulysses, ring):
    layers = (LayerRange(recompute=policy, count=SMALL.layers),)
    strategy = Strategy(ulysses=ulysses, ring=ring, shard=ulysses * ring, layers=layers)
    short = price(CLUSTER, Workload(SMALL, context_tokens=tokens), strategy)
    long = price(CLUSTER, Workload(SMALL, context_tokens=tokens + more), strategy)
    assert short.memory_bytes <= long.memory_bytes


def test_arrays_are_the_numbers_side_by_side():
    work = Workload(SMALL, context_tokens=4096, global_batch=4)
    shared = {"data": 1, "ring": 1, "ulysses": 2, "microbatches": 4}
    arrays = {name: np.array([value] * 3) for name, value in shared.items()}
    many = Strategy().varied(**arrays, shard=np.array([2, 2, 1]), zero=np.array([3, 2, 0]))
    found = peaks.peak(RankSizes(work, many), ["full"])
    for index, (shard, zero) in enumerate(((2, 3), (2, 2), (1, 0))):
        one = peaks.peak(RankSizes(work, Strategy(**shared, shard=shard, zero=zero)), ["full"])
        for part in ("gathered", "working", "logits"):
            assert np.broadcast_to(getattr(found, part), 3)[index] == getattr(one, part)


def test_an_offloaded_input_is_there_again_in_backward():
    shape = RankSizes(Workload(SMALL, context_tokens=1024), Strategy(ulysses=2, shard=2, zero=1), KEEPS)
    here, away = (LayerRange(recompute="full", offload=where, count=1) for where in ("none", "activations"))
    back = peaks.layer_backward(shape, away).total - peaks.layer_backward(shape, here).total
    assert back == TOKENS * 64 * 2  # kept here, it is among the activations


def test_a_reentrant_checkpoint_holds_the_layer_s_result():
    work, layout = Workload(SMALL, context_tokens=1024), Strategy(ulysses=2, shard=2)
    ends, stops = RankSizes(work, layout, replace(OURS, reentrant=True)), RankSizes(work, layout)
    for policy, more in (("full", TOKENS * 64 * 2), ("none", 0)):
        assert peaks.layer_backward(ends, policy).total - peaks.layer_backward(stops, policy).total == more


@pytest.mark.parametrize(("zero", "always", "backward"), [(0, 0, 0), (1, 0, 2000), (2, 0, 2000), (3, 2000, 0)])
def test_a_bucket_of_gradients(zero, always, backward):
    """1,000 values in bf16: with ZeRO-3 beside everything, with 1 and 2 in the backward pass alone."""
    layout = Strategy(ulysses=2, shard=2 if zero else 1, zero=zero)
    work = Workload(SMALL, context_tokens=1024)
    plain, bucket = RankSizes(work, layout), RankSizes(work, layout, replace(OURS, bucket_values=1000))
    assert peaks.peak(bucket).total - peaks.peak(plain).total == always
    assert peaks.layer_backward(bucket, "full").total - peaks.layer_backward(plain, "full").total == backward


def test_repeated_keys_are_exchanged_and_kept_for_every_query_head():
    work, layout = Workload(SMALL, context_tokens=1024), Strategy(ulysses=2, shard=2)
    plain, repeated = RankSizes(work, layout), RankSizes(work, layout, replace(OURS, repeats_kv=True))
    assert (plain.sent_kv_heads, repeated.sent_kv_heads) == (2, 4)
    assert kept_bytes(repeated, "none") - kept_bytes(plain, "none") == TOKENS * 2 * 2 * 16 * 2
    assert layer_params(repeated) == layer_params(plain)


@pytest.mark.parametrize(("ulysses", "data", "share"), [(4, 2, (1.3, 1.5)), (7, 1, (0.9, 1.0)), (8, 1, (0.75, 0.9))])
def test_hugging_face_s_whole_logits_run_out_as_they_did(ulysses, data, share):
    """InternLM/xtuner issue 755: Qwen2-7B at 128K on 8 H800 ran out at degree 4 and at 7 (which fits as priced, but
    not at 95%), and runs at 8."""
    layout = Strategy(
        data=data, ulysses=ulysses, shard=data * ulysses, loss_chunk_tokens=None,
        layers=(LayerRange(recompute="full", count=28),),
    )  # fmt: skip
    framework = Framework.load("deepspeed-hugging-face")
    work = Workload(Model.load("qwen2-7b"), context_tokens=2**17, global_batch=data, precision=framework.precision)
    cost = price(Cluster.load("hgx-h800", gpus=8), work, layout, framework=framework)
    assert share[0] < cost.memory_bytes / cost.capacity_bytes < share[1]


@pytest.mark.parametrize(("ring", "forward", "backward"), [(1, 0, 0), (2, 1, 2), (4, 3, 3), (8, 7, 7)])
def test_a_ring_that_gathers_has_every_block_of_keys_and_a_copy(ring, forward, backward):
    """R + 1 blocks in place of two, or of one in backward without a second hop (torch's _AllGatherRotater)."""
    work, block = Workload(SMALL, context_tokens=1024), 1024 // ring * 2 * 2 * 16 * 2
    hops, gathered = (
        next(one for one in attention_operators(RankSizes(work, Strategy(ring=ring), code)) if one.name == "attention")
        for code in (OURS, replace(OURS, gathers_ring=True))
    )
    assert gathered.working[0] - hops.working[0] == forward * block
    assert gathered.working[1] - hops.working[1] == backward * block
    assert gathered.kept == hops.kept


@pytest.mark.parametrize(("copies", "rows", "extra"), [("never", 2, 0), ("several rows", 1, 0), ("several rows", 2, 1)])
def test_what_attention_keeps_beside_its_kernel_s_tensors(copies, rows, extra):
    """On one rank: the result in the order of tokens, and queries and keys as the joined product made them."""
    strategy = Strategy(layers=(LayerRange(recompute="none", count=2),))
    work = Workload(SMALL, context_tokens=TOKENS, global_batch=rows)
    never = replace(OURS, copies_result="never")
    plain, copied, joined = (
        kept_bytes(RankSizes(work, strategy, framework), "none")
        for framework in (never, replace(never, copies_result=copies), replace(never, keeps_joined=True))
    )
    assert copied - plain == extra * 2 * rows * TOKENS * 64
    assert joined - plain == 2 * rows * TOKENS * (64 + 32)


def test_every_tensor_rank_keeps_what_a_layer_gathers_of_rotary_tables():
    """Cosines and sines of queries and of keys, 16 values each, however few heads a rank has."""
    work = Workload(SMALL, context_tokens=TOKENS)
    for tensor in (1, 2):
        plain, gathered = (
            kept_bytes(RankSizes(work, Strategy(tensor=tensor), replace(OURS, rotary_by_layer=one)), "none")
            for one in (False, True)
        )
        assert gathered - plain == 4 * TOKENS * 16 * 2


def test_a_rank_s_own_logits_and_softmax_s_gradients_are_not_there_together():
    """Of whole logits 14 bytes; when their gradient is cut, kept logits, the rank's share and the head's gradient."""
    strategy = Strategy(tensor=2, data=2, loss_chunk_tokens=None)
    gathers = replace(ZERO_1, gathers_logits=True, cuts_logits=True, logit_bytes=14, drops_gradients_to=None)
    work = Workload(SMALL, context_tokens=TOKENS, global_batch=2)
    found = peaks.loss(RankSizes(work, strategy, gathers)).logits
    unseen = peaks.loss(RankSizes(work, strategy, replace(gathers, logit_bytes=0))).logits
    stacked = peaks.loss(RankSizes(work, strategy, replace(gathers, cuts_logits=False))).logits
    own = TOKENS * 500 * 2 + gradient_bytes(RankSizes(work, strategy, gathers)) * 64 * 500
    assert found - unseen == TOKENS * 1000 * 14 - own and stacked - found == own


def test_experts_that_no_two_ranks_share_are_out_of_fsdp():
    """No copy of them, and sums of microbatches in their own type; where two share them they are as before."""
    model = Model.load("mixtral-8x7b")
    work = Workload(model, context_tokens=TOKENS, global_batch=16, precision=Precision(master="bf16", grad="bf16"))
    code = replace(OURS, defers_reductions=True, drops_gradients_to=None)

    def held(data):
        strategy = Strategy(data=data, shard=data, expert=8, zero=2, microbatches=16 // data)
        plain, apart = (states(RankSizes(work, strategy, replace(code, experts_apart=one))) for one in (False, True))
        experts = RankSizes(work, strategy, code).stage_total(expert_params)
        return [(plain[name] - apart[name]) / experts for name in ("parameters", "gradients")]

    assert held(8) == [2, 2] and held(16) == [0, 0]


def test_a_pipeline_s_buffers_that_keep_results():
    layers = (LayerRange(recompute="none", count=2),)
    strategy = Strategy(pipeline=2, microbatches=8, layers=layers, loss_chunk_tokens=None)
    work = Workload(SMALL, context_tokens=TOKENS, global_batch=8)
    keeps = replace(OURS, keeps_outputs=True)
    first, last = (at_stage(RankSizes(work, strategy, keeps), layers, index) for index in (0, 1))
    assert peaks.stage_outputs(first) == 2 * TOKENS * 64 * 2 and peaks.stage_outputs(last) == 0
    drops = at_stage(RankSizes(work, strategy), layers, 1)
    assert peaks.loss(last).logits - peaks.loss(drops).logits == TOKENS * 1000 * 2
    assert large_blocks(last) == TOKENS * 1000 * 2 * OUTLIVED / 2


def test_communicators_of_pairs_and_of_all_ranks():
    """A pipeline of 4 on 8 cards: a group of all, one of the pipeline, and the pair that the loss travels over."""
    strategy = Strategy(pipeline=4, data=2, shard=2, microbatches=8)
    work, device = Workload(SMALL, context_tokens=TOKENS, global_batch=16), Device.load("h100-sxm-80gb")
    plain, extra = (
        communication_bytes(RankSizes(work, strategy, replace(OURS, extra_groups=one)), device) for one in (False, True)
    )
    assert extra - plain == 2 * collective_bytes(device, 3) + message_bytes(device, 1, 8)
