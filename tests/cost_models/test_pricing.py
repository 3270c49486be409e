"""Ten strategies whose bytes, memory and times are worked out here by hand, from the formulas of their sources.

bytes      Ulysses: (U-1)/U of Q, K, V and of the output, forward and backward (DeepSpeed-Ulysses, arXiv 2309.14509,
           section 3.1); ring: R-1 hops of KV, backward KV and dKV (Ring Attention, arXiv 2310.01889); ZeRO-3: two
           gathers of the weights and one reduce-scatter (ZeRO, arXiv 1910.02054, section 7.2)
memory     states: ZeRO, section 3.1 (here fp32 master, gradient, two Adam moments: 16 bytes a weight)
"""

from dataclasses import replace

import numpy as np
import pytest

from cost_models import Cluster, InputError, LayerRange, Model, Placement, Strategy, Workload, price
from cost_models.batch import price_batch
from cost_models.flops import executed_flops, model_flops
from cost_models.framework import OURS, Framework
from cost_models.layer.sizes import RankSizes
from cost_models.memory.states import states
from cost_models.pricing import fold_segment
from cost_models.program import Exchange
from cost_models.step.assembly import step_program
from cost_models.step.root import head
from cost_models.step.update import update
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.timing.kernels import Kernels

MODEL = Model.load("llama-3-8b")
P_LAYER, P_ROOT, LAYERS = 218_112_000, 1_050_677_248, 32
FULL = (LayerRange(recompute="full", count=32),)
KEEP_ATTENTION = (LayerRange(recompute="all_but_attention", count=32),)

# (strategy, GPUs, context, batch, K' of Llama-3-8B's 8 KV heads at that ulysses degree)
TEN = [
    (Strategy(ring=32, ulysses=8, shard=256), 256, 2**21, 1, 8),
    (Strategy(ring=64, ulysses=4, shard=256), 256, 2**21, 1, 8),
    (Strategy(ring=16, ulysses=16, shard=256), 256, 2**21, 1, 16),
    (Strategy(ring=8, ulysses=32, shard=256), 256, 2**21, 1, 32),
    (Strategy(ring=256, shard=256), 256, 2**21, 1, 8),
    (Strategy(ulysses=8, shard=8), 8, 2**16, 1, 8),
    (Strategy(ring=8, shard=8, zero=2), 8, 2**16, 1, 8),
    (Strategy(data=4, ring=2, ulysses=8, shard=64, microbatches=2), 64, 2**17, 8, 8),
    (Strategy(data=8, ulysses=8, shard=8, layers=FULL), 64, 2**17, 8, 8),
    (Strategy(ring=4, ulysses=8, shard=32, layers=KEEP_ATTENTION), 32, 2**19, 1, 8),
]


def case(index):
    strategy, gpus, context, batch, kv = TEN[index]
    work = Workload(MODEL, context_tokens=context, global_batch=batch)
    return strategy, Cluster.load("dgx-h100", gpus=gpus), work, kv


@pytest.mark.parametrize("index", range(10))
def test_bytes_sent_follow_the_published_formulas(index):
    strategy, cluster, work, kv = case(index)
    cost = price(cluster, work, strategy)
    tokens = work.context_tokens // strategy.context  # per rank and row
    rows = work.global_batch // strategy.data
    policy = strategy.layer_ranges(32)[0].recompute
    u, r = strategy.ulysses, strategy.ring
    qkv, out = (32 + 2 * kv) * 128 * 2, 32 * 128 * 2
    extra = {"none": 0, "full": qkv + out, "all_but_attention": qkv + out}[policy]
    expected = rows * 32 * (u - 1) / u * tokens * (2 * (qkv + out) + extra)
    assert cost.sent_bytes.get("ulysses all_to_all", 0.0) == pytest.approx(expected, rel=1e-12)
    hops = 1 + 1 + (1 if policy == "full" else 0)  # KV forward, KV backward, KV of the recomputed forward
    ring = rows * 32 * (r - 1) * tokens * 2 * kv * 128 * (2 * hops + 4)  # bf16 KV, fp32 dKV
    assert cost.sent_bytes.get("ring send", 0.0) == pytest.approx(ring, rel=1e-12)
    share = (strategy.shard - 1) / strategy.shard * strategy.microbatches
    gathers = 2 if strategy.zero == 3 else 1
    assert cost.sent_bytes["shard all_gather"] == pytest.approx(share * 2 * (32 * P_LAYER * gathers + P_ROOT), rel=1e-9)
    once = (strategy.replicate - 1) / strategy.replicate * 2 * 4 * (32 * P_LAYER + P_ROOT) / strategy.shard
    assert cost.sent_bytes.get("replicate all_reduce", 0.0) == pytest.approx(once, rel=1e-9)
    assert cost.sent_bytes["shard reduce_scatter"] == pytest.approx(share * 4 * (32 * P_LAYER + P_ROOT), rel=1e-9)


@pytest.mark.parametrize("index", range(10))
def test_memory_counts_states_activations_and_logits(index):
    strategy, cluster, work, kv = case(index)
    cost = price(cluster, work, strategy, framework=replace(OURS, drops_gradients_to=None))
    params = 32 * P_LAYER + P_ROOT
    copy = 2 * params if strategy.zero == 2 else 0
    assert cost.memory["parameters"] == pytest.approx(4 * params / strategy.shard + copy, abs=1)
    assert cost.memory["gradients"] == pytest.approx(4 * params / strategy.shard, abs=1)
    assert cost.memory["optimizer"] == pytest.approx(8 * params / strategy.shard, abs=1)
    tokens = work.context_tokens // strategy.context * (work.global_batch // strategy.data // strategy.microbatches)
    kept_kv = 2 * max(kv, 8) * 128 * 2  # K and V of all heads that the exchange carries
    attention = 4096 * 2 * 3 + kept_kv + 4 * 32  # queries, the result, and the result as the product behind it takes it
    by_policy = {
        "none": 2 * (4096 * (4 + 2 + 2) + 4) + attention + 4 * 14336 * 2,
        "full": 2 * 4096,
        "all_but_attention": 2 * 4096 + 2 * 4096 + 4 * 32,
    }
    kept = by_policy[strategy.layer_ranges(32)[0].recompute]
    rotary = tokens * (2 * 128 * 2 + 8)  # cosines, sines, positions
    assert cost.memory["activations"] == pytest.approx(32 * tokens * kept + rotary, rel=1e-9)
    chunk = min(1024, tokens)  # the head's gradient in fp32; logits in bf16, twice in fp32, or one product in bf16
    held = max(chunk * 128256 * 10, chunk * 128256 * 2 + 4096 * 128256 * 2)
    norm = tokens * 4096 * (4 + 2 + 2 + 2)  # the final norm's, and the gradient of its output
    expected = {"loss": 4096 * 128256 * 4 + held + norm, "root gradients": 0}
    assert cost.memory["logits"] == pytest.approx(expected.get(cost.moment, 4096 * 128256 * 2), abs=1)


@pytest.mark.parametrize("index", [0, 1, 2, 4])
def test_exposed_ring_is_what_a_block_cannot_hide(index):
    strategy, cluster, work, kv = case(index)
    cost = price(cluster, work, strategy)
    kernels, here = Kernels.of("h100-sxm-80gb", attention="fa2"), Placement.in_order(cluster, strategy.ranks)
    paths = cluster_costs(cluster).paths(strategy, here)
    row = work.context_tokens // strategy.ring
    shape = {"heads": 32 // strategy.ulysses, "kv_heads": max(1, 8 // strategy.ulysses), "head_dim": 128}
    hop_bytes = work.context_tokens // strategy.context * 2 * kv * 128

    def exposed(backward: bool) -> float:
        first = kernels.attention_s(row, row, causal=True, backward=backward, **shape)
        piece = kernels.attention_s(row, row // 2, causal=False, backward=backward, **shape)
        values = row * 128 * (shape["heads"] + (2 * shape["kv_heads"] if backward else 0))
        piece += kernels.memory_bound_s(values * (10 if backward else 18), 3 if backward else 4)  # merging the block
        piece += kernels.memory_bound_s(values * 12, 2) / (strategy.ring - 1)  # the result to fp32 and back, once
        hop = float(paths.exchange_s("ring", "send", 2 * hop_bytes))
        both = float(paths.exchange_s("ring", "send", 6 * hop_bytes)) if backward else hop
        last = float(paths.exchange_s("ring", "send", 4 * hop_bytes)) if backward else 0.0
        first, piece = first * paths.pace, piece * paths.pace
        return max(0.0, hop - first) + (strategy.ring - 2) * max(0.0, both - piece) + last

    assert cost.seconds["ring"] == pytest.approx(32 * (exposed(False) + exposed(True)), rel=1e-9)


def test_two_nodes_bytes_on_every_link_by_hand():
    """2 x 8 GPUs, ulysses 8 inside, ring 2 across: every NIC carries its own rank's hops, nothing else of attention."""
    cluster = Cluster.load("dgx-h100", nodes=2)
    strategy = Strategy(ring=2, ulysses=8, shard=16)
    paths = cluster_costs(cluster).paths(strategy, Placement.in_order(cluster, 16))
    nic = 50e9 * 0.92
    ringed = nic * 0.92  # a ring fills 0.92 of what a card of 400 Gbit/s reaches
    assert paths.axes["ulysses"].latency_s == 0 and paths.axes["ulysses"].local == 8
    assert 1 / paths.axes["ring"].send_s_per_byte == pytest.approx(ringed)
    assert 1 / paths.axes["shard"].gather_s_per_byte == pytest.approx(16 / 15 * 8 * ringed)  # in at 8 NICs at once
    every = nic * 0.93  # of an all-to-all over InfiniBand; half of the peers are away
    assert 1 / paths.axes["context"].all_to_all_s_per_byte == pytest.approx(16 / 8 * every)
    swapped = Strategy(ring=8, ulysses=2, shard=16)  # ring of 8 with a step of 2 ranks: four hops inside, one out
    far = cluster_costs(cluster).paths(swapped, Placement.in_order(cluster, 16))
    assert 1 / far.axes["ring"].send_s_per_byte == pytest.approx(ringed)
    order = np.arange(16).reshape(2, 8).T.ravel()  # neighbours of the ulysses pairs on different nodes
    place = Placement(slot_of_rank=order // 8, gpu_of_rank=order % 8)
    across = cluster_costs(cluster).paths(swapped, place)
    assert 1 / across.axes["ulysses"].all_to_all_s_per_byte == pytest.approx(2 * every)


def test_shared_missing_and_oversubscribed_network_links_cost_more():
    cluster = Cluster.load("dgx-h100", nodes=4)
    strategy = Strategy(ring=4, ulysses=8, shard=32)
    broken = cluster.override({1: replace(cluster.node(1), missing_nics=(3,))})
    thin = replace(cluster, fabric=replace(cluster.fabric, nodes_per_leaf=2, oversubscription=4.0))

    def send(one: Cluster) -> float:
        place = Placement.in_order(one, 32)
        return float(cluster_costs(one).paths(strategy, place).axes["ring"].send_s_per_byte)

    assert send(broken) == pytest.approx(2 * send(cluster))  # two GPUs on one card
    uplinks = 16 * 46e9 / 4  # 16 NICs of a leaf over 4, 8 flows of a leaf's ring go up
    assert 1 / send(thin) == pytest.approx(uplinks / 8)


def test_headline_fits_without_recompute():
    """LongVILA, abstract: 8B, 2M tokens, 256 GPUs of 80 GB, no recompute."""
    work = Workload(Model.load("longvila-8b"), context_tokens=2 * 2**20)
    cost = price(Cluster.load("dgx-h100", gpus=256), work, Strategy(ring=32, ulysses=8, shard=256))
    assert cost.fits
    assert sum(cost.memory.values()) == cost.memory_bytes
    assert sum(cost.seconds.values()) == cost.step_s
    half = price(Cluster.load("dgx-h100", gpus=128), work, Strategy(ring=16, ulysses=8, shard=128))
    assert not half.fits


def test_flops_by_hand():
    work = Workload(MODEL, context_tokens=4096)
    weights = 2 * 4096 * (32 * P_LAYER - 32 * 2 * 4096 + 128256 * 4096)
    attention = 4 * 32 * 128 * (4096 * 4097 / 2) * 32
    assert model_flops(work) == pytest.approx(3 * (weights + attention), rel=1e-12)
    head, down = 2 * 4096 * 128256 * 4096, 32 * 2 * 4096 * 14336 * 4096
    for chunk in (None, 1024):  # a chunk's logits are not computed again either, nor a layer's last product
        full = Strategy(layers=FULL, loss_chunk_tokens=chunk)
        assert executed_flops(work, full) == pytest.approx(4 * weights - head - down + 4.5 * attention, rel=1e-12)


def test_packed_documents_cost_less_attention():
    whole = Workload(MODEL, context_tokens=2**17)
    packed = Workload(MODEL, context_tokens=2**17, lengths=((2**13, 16),))
    cluster, strategy = Cluster.load("dgx-h100", gpus=8), Strategy(ulysses=8, shard=8)
    assert packed.attended_fraction == pytest.approx(1 / 16)
    assert price(cluster, packed, strategy).step_s < price(cluster, whole, strategy).step_s


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Strategy(ulysses=64, shard=64), "ulysses=64 exceeds the model's 32 query heads; at most 32"),
        (Strategy(ring=64, ulysses=8, shard=512), "512 ranks on 256 free GPUs"),
        (Strategy(data=3, ring=8, shard=24), "does not divide the global batch of 1"),
        (Strategy(ring=8, shard=8, layers=(LayerRange(count=3),)), "layer ranges cover 3 layers; the model has 32"),
    ],
)
def test_impossible_strategies_are_refused(strategy, message):
    work = Workload(MODEL, context_tokens=2**20)
    with pytest.raises(InputError, match=message):
        price(Cluster.load("dgx-h100", gpus=256), work, strategy)


def test_replicas_sum_gradients_once_a_step():
    work = Workload(MODEL, context_tokens=2**15, global_batch=32)
    for microbatches in (1, 2, 4):
        strategy = Strategy(data=8, ulysses=8, shard=16, microbatches=microbatches)
        cost = price(Cluster.load("dgx-h100", gpus=64), work, strategy)
        shard_bytes = 4 * (32 * P_LAYER + P_ROOT) / 16
        assert cost.sent_bytes["replicate all_reduce"] == pytest.approx(2 * 3 / 4 * shard_bytes, rel=1e-9)
        assert cost.sent_bytes["shard reduce_scatter"] == pytest.approx(15 * shard_bytes * microbatches, rel=1e-9)


@pytest.mark.parametrize("zero", [2, 3])
def test_answers_keep_weights_gathered(zero):
    cluster, strategy = Cluster.load("dgx-h100", gpus=8), Strategy(ulysses=8, shard=8, zero=zero)
    costs = {m: price(cluster, Workload(MODEL, context_tokens=2**16, mode=m), strategy) for m in ("prefill", "decode")}
    whole = 2 * (32 * P_LAYER + P_ROOT)
    for cost in costs.values():
        assert cost.memory["parameters"] == pytest.approx(whole * 9 / 8, abs=1)
        assert cost.memory["gathered"] == 0
    assert "shard all_gather" not in costs["decode"].sent_bytes
    assert costs["prefill"].sent_bytes["shard all_gather"] == pytest.approx(7 / 8 * whole, rel=1e-9)


def test_a_whole_loss_reads_and_writes_its_logits_as_autograd_does():
    """Bytes per bf16 logit, product after product: logits r2, fp32 copy w4, log-softmax r4 w4, zeros for the gradient
    w4, backward of the softmax r4 r4 w4, cast r4 w2: 36. A chunked loss has no part in it.
    """
    work = Workload(MODEL, context_tokens=8192)
    shape = RankSizes(work, Strategy(loss_chunk_tokens=None))
    kernels = Kernels.of("h100-sxm-80gb")
    (loss,) = head(shape, kernels).phases
    shapes = ((8192, 128256, 4096), (8192, 4096, 128256), (4096, 128256, 8192))
    products = sum(kernels.gemm_s(*shape) for shape in shapes)
    moved = 8192 * 128256 * (2 + 4 + 8 + 4 + 12 + 4 + 2)
    assert loss.seconds == pytest.approx(products + kernels.memory_bound_s(moved, 8), rel=1e-9)


def test_a_token_of_decode_reads_every_key_and_value_of_its_rank_once():
    """1M tokens on 8 ranks: 131,072 a rank, 8 heads of 128 for keys and for values, bf16: 537 MB a layer."""
    work = Workload(MODEL, context_tokens=2**20, mode="decode")
    layout = Strategy(ulysses=8, shard=8)
    kernels = Kernels.of("h100-sxm-80gb")
    program = step_program(RankSizes(work, layout), kernels, layout.layer_ranges(32))
    layer = next(segment for segment in program.microbatch if segment.repeat == 32)
    (reading,) = [phase for phase in layer.phases if getattr(phase, "part", "") == "attention"]
    assert reading.seconds == pytest.approx(kernels.memory_bound_s(131072 * 2 * 8 * 128 * 2, 1), rel=1e-9)


def test_the_update_reads_and_writes_weights_gradients_and_states_in_fp32():
    """AdamW: weight r4 w4, gradient r4, two states r4 w4 each (28 B); SGD: its momentum r4 w4 (20 B); the norm: r4."""
    kernels = Kernels.of("h100-sxm-80gb")
    params = MODEL.llm_params / 8
    for optimizer, each in (("adamw", 28), ("sgd", 20)):
        work = Workload(MODEL, context_tokens=8192, optimizer=optimizer)
        step = update(RankSizes(work, Strategy(ulysses=8, shard=8)), kernels).phases[0]
        assert step.seconds == pytest.approx(kernels.memory_bound_s(params * (each + 4), 6), rel=1e-9)


def test_an_optimizer_moves_the_states_that_it_keeps_in_memory_under_every_framework():
    """AdamW's second state costs its 4 B of memory per weight, and r4 w4 of traffic."""
    kernels, params, layout = Kernels.of("h100-sxm-80gb"), MODEL.llm_params / 8, Strategy(ulysses=8, shard=8)
    for framework in (OURS, Framework.load("megatron-te")):
        sizes = [
            RankSizes(Workload(MODEL, context_tokens=8192, optimizer=name), layout, framework)
            for name in ("adamw", "sgd")
        ]
        adamw, sgd = (update(one, kernels).phases[0].seconds for one in sizes)
        assert adamw - sgd == pytest.approx(kernels.memory_bound_s(params * 8) - kernels.memory_bound_s(0), rel=1e-6)
        kept, less = (states(one)["optimizer"] for one in sizes)
        assert kept - less == pytest.approx(params * 4, rel=1e-6)


def test_narrow_products_have_their_own_peaks():
    """A step in NVFP4 is 1.2 to 1.5 times as fast as in fp8 on GB200 (Megatron-Bridge's recipes), and may be above the
    peak of bf16; a card without such products refuses them."""
    work = Workload(Model.load("llama-3-8b"), context_tokens=8192, global_batch=128)
    strategy = Strategy(data=8, shard=8, zero=1, microbatches=16)
    cluster = Cluster.load("gb200-nvl72", nodes=2)
    steps = {
        name: price(cluster, work, strategy, framework=Framework.load(f"megatron-{name}")).step_s
        for name in ("recipes", "fp8", "fp4")
    }
    assert 1.2 < steps["recipes"] / steps["fp8"] < 1.7 and 1.2 < steps["fp8"] / steps["fp4"] < 1.5
    with pytest.raises(InputError, match="h100-sxm-80gb has no fp4 peak"):
        price(Cluster.load("dgx-h100", nodes=1), work, strategy, framework=Framework.load("megatron-fp4"))


@pytest.mark.parametrize(
    ("cluster", "framework", "asked", "kernel"),
    [
        ("dgx-b200", "fms-fsdp", "", "FlashAttention-2, in instructions of older cards"),
        ("dgx-b200", "torchtitan", "", "cuDNN"),
        ("dgx-h100", "torchtitan", "", "FlashAttention-2"),
        ("dgx-h100", "ours", "", "FlashAttention-2"),
        ("dgx-h100", "ours", "newest", "FlashAttention-3 (cuDNN backward)"),
        ("dgx-b200", "ours", "sdpa", "cuDNN"),
    ],
)
def test_the_price_names_the_attention_kernel_that_it_assumes(cluster, framework, asked, kernel):
    work = Workload(Model.load("llama-3-8b"), context_tokens=32768, kernel=asked)
    strategy = Strategy(ulysses=8, shard=8)
    cost = price(Cluster.load(cluster, nodes=1), work, strategy, framework=Framework.load(framework))
    assert cost.estimates[0] == f"attention by {kernel}: the kernel that is assumed"


def test_another_kernel_is_priced_alone_and_in_batches():
    """The newest kernel of Hopper instead of what the executor runs."""
    cluster, layout = Cluster.load("dgx-h100", nodes=1), Strategy(ulysses=8, shard=8)
    older, newest = (
        Workload(Model.load("llama-3-8b"), context_tokens=2**17, kernel=kernel) for kernel in ("", "newest")
    )
    steps = [price(cluster, work, layout).step_s for work in (older, newest)]
    assert 1.2 < steps[0] / steps[1] < 2
    for work, step in zip((older, newest), steps, strict=True):
        assert price_batch(cluster, work, [layout]).step_s.tolist() == pytest.approx([step])
    with pytest.raises(InputError, match="kernel='fa4' is unknown; legal: fa2, newest, sdpa"):
        replace(older, kernel="fa4")
    with pytest.raises(InputError, match="kernel=newest with framework megatron-2022, whose attention is its own"):
        price(cluster, newest, layout, framework=Framework.load("megatron-2022"))


@pytest.mark.parametrize(("preset", "shares"), [("a100-pcie", True), ("rtx4090-pcie", False), ("dgx-a100", False)])
def test_a_segment_lasts_as_long_as_its_links_are_busy(preset: str, shares: bool) -> None:
    """Exchanges, gathers and reductions take a link one after the other; over PCIe peer to peer copies do so too."""
    cluster, strategy = Cluster.load(preset, nodes=1), Strategy(ulysses=4, shard=4, offload_states="all")
    work = Workload(Model.load("llama-3-8b"), context_tokens=4096)
    paths = cluster_costs(cluster).paths(strategy)
    assert paths.copies_share == shares
    kernels = cluster_costs(cluster).kernels((0,), OURS.measured_attention(work))
    segment = next(
        one
        for one in step_program(RankSizes(work, strategy, OURS), kernels, strategy.layer_ranges(32)).microbatch
        if one.name.startswith("layer backward")
    )
    exchanges = [one for one in (*segment.phases, *segment.sharding) if isinstance(one, Exchange)]
    busy = sum(float(paths.exchange_s(one.axis, one.op, one.bytes)) for one in exchanges)
    copied = float(segment.offload_bytes) / paths.host_bytes_per_s
    assert len(exchanges) == 4
    least = max(busy + copied * shares, copied)
    assert fold_segment(segment, paths).total_s >= least * (1 - 1e-12)
    if preset != "dgx-a100":
        assert fold_segment(segment, paths).total_s == pytest.approx(least)
