"""Attention in chunks of the row, with finished ones in host memory or not: work, bytes and memory by hand, and what
shows. Unless said, a framework is ours with chunks in host memory."""

from dataclasses import replace
from functools import partial

import pytest

import cost_models
from cost_models import Cluster, InputError, LayerRange, Model, Strategy, Workload, longest
from cost_models.flops import executed_flops
from cost_models.framework import OURS, Framework
from cost_models.layer.attention import attention_phases
from cost_models.layer.chunked import chunk_working_bytes, chunked, chunks
from cost_models.layer.decoder import operators
from cost_models.layer.sizes import RankSizes
from cost_models.memory import peaks
from cost_models.memory.peaks import kept_bytes
from cost_models.program import Compute, Staged
from cost_models.timing.kernels import Kernels
from cost_models.timing.slowest import pace
from planner.search.space import Space
from planner.simulator import simulation
from planner.targets.target import Target
from validation.rows import read
from validation.standard import case_of

MODEL = Model.load("llama-3-8b")
CLUSTER = Cluster.load("dgx-a100", gpus=8)
C, RANKS, HIDDEN = 65536, 8, 4096
STAGED = replace(OURS, chunks_on_card=False)
price, price_batch, longest_tokens, simulate = (
    partial(one, framework=STAGED)
    for one in (cost_models.price, cost_models.price_batch, longest.longest_tokens, simulation.simulate)
)
FULL = (LayerRange(recompute="full", offload="activations", count=32),)
LAYOUT = Strategy(ulysses=8, shard=8, layers=FULL, attention_chunk_tokens=C, mlp_chunk_tokens=4096)


def work(tokens):
    return Workload(MODEL, context_tokens=tokens)


def slower_host(cluster, bytes_per_s):
    run = cluster.runs[0]
    return replace(cluster, runs=(replace(run, node=replace(run.node, host_link_bytes_per_s=bytes_per_s)),))


def test_every_causal_pair_of_chunks_once():
    kernels = Kernels.of("a100-sxm-80gb")
    for many in (1, 2, 7):
        shape = RankSizes(work(many * C), LAYOUT, STAGED)
        assert chunks(shape) == (C, many)
        own, other = chunked(shape, kernels, "attention", False, True)
        assert (own.blocks, other.blocks) == (many, many * (many - 1) / 2)
    assert chunks(RankSizes(work(C + 16), LAYOUT, STAGED)) == (C // 2 + 8, 2)  # evenly, none above the chunk


def test_bytes_over_the_host_s_link():
    """A chunk of 64K tokens: 4 query heads and one key head of 128 on each rank; 8K tokens of 4,096 wide input."""
    shape, kernels = RankSizes(work(4 * C), LAYOUT, STAGED), Kernels.of("a100-sxm-80gb")
    q, kv, lse, normed = C * 4 * 128, 2 * C * 128, C * 4, C // 8 * HIDDEN * 2
    own, other = chunked(shape, kernels, "attention", False, True)
    assert own.bytes == 2 * (2 * q + kv) + 4 * lse + normed and other.bytes == 2 * kv
    own, other = chunked(shape, kernels, "attention", True, True)
    assert other.bytes == q * (2 + 2 + 2 + 4 + 4) + 4 * lse
    assert own.bytes == other.bytes + 2 * kv + normed


def test_what_does_not_hide_behind_its_block_shows():
    cost = price(CLUSTER, work(2**20), LAYOUT)
    slow = price(slower_host(CLUSTER, 2e9), work(2**20), LAYOUT)
    assert cost.seconds["offload"] == 0.0 < slow.seconds["offload"]
    assert slow.step_s - cost.step_s == pytest.approx(slow.seconds["offload"])
    shape, kernels, bytes_per_s = RankSizes(work(2**20), LAYOUT, STAGED), Kernels.of("a100-sxm-80gb"), 2e9
    slowest = pace([kernels.device], LAYOUT.ranks)
    shown = 0.0
    for grad, times in ((False, 2), (True, 1)):  # recomputed, so forward twice
        for one in chunked(shape, kernels, "attention", grad, True):
            assert isinstance(one, Staged)
            shown += 32 * times * one.blocks * max(0.0, one.bytes / bytes_per_s - slowest * one.seconds)
    assert slow.seconds["offload"] == pytest.approx(shown, rel=1e-6)


def test_memory_by_hand():
    """Kept without recompute: both norms' inputs, the second's output (the first's is away), the projection's input."""
    none = RankSizes(work(2**20), replace(LAYOUT, layers=()), Framework())
    row = 2**17 * HIDDEN * 2
    norms = 2 * 2**17 * (HIDDEN * 8 + 4)  # unfused: an fp32 copy, its result and the output
    assert kept_bytes(none, "none") == norms - row + row
    q, kv, lse = C * 4 * 128, 2 * C * 128, C * 4
    buffers = q * (2 * 6 + 6) + q * (4 + 3) * 2 + kv * (4 + 2 + 4) + 8 * lse + 2 * C // 8 * HIDDEN * 2
    assert chunk_working_bytes(none) == 3 * row + buffers + HIDDEN * 6144 * 4


def test_longer_rows_fit_and_shorter_chunks_take_less():
    plain = replace(LAYOUT, attention_chunk_tokens=None, mlp_chunk_tokens=None)
    lengths = [
        longest_tokens(CLUSTER, work(2**20), one) for one in (plain, replace(plain, mlp_chunk_tokens=4096), LAYOUT)
    ]
    assert lengths == sorted(set(lengths))
    sizes = [
        price(CLUSTER, work(2**21), replace(LAYOUT, attention_chunk_tokens=c)).memory_bytes for c in (C // 8, C, 8 * C)
    ]
    assert sizes == sorted(sizes)


def test_one_chunk_does_the_work_of_attention_whole():
    """And as many FLOP in any number of chunks."""
    assert executed_flops(work(2**20), LAYOUT) == executed_flops(
        work(2**20), replace(LAYOUT, attention_chunk_tokens=None)
    )
    shape, kernels = RankSizes(work(C), LAYOUT, STAGED), Kernels.of("a100-sxm-80gb")
    whole = kernels.attention_s(C, C, 4, 1, 128, True, backward=True)
    own, none = chunked(shape, kernels, "attention", True, True)
    assert own.seconds == whole and none.blocks == 0


def test_batch_and_simulation_follow():
    layouts = [LAYOUT, replace(LAYOUT, layers=()), replace(LAYOUT, attention_chunk_tokens=8192)]
    for cluster in (CLUSTER, slower_host(CLUSTER, 3e9)):
        batch = price_batch(cluster, work(2**19), layouts)
        alone = [price(cluster, work(2**19), one) for one in layouts]
        assert batch.step_s == pytest.approx([one.step_s for one in alone], rel=1e-12)
        for layout, cost in zip(layouts, alone, strict=True):
            found = simulate(cluster, work(2**19), layout)
            assert found.step_s == pytest.approx(cost.step_s, rel=0.02)
            assert found.seconds.get("offload", 0.0) == pytest.approx(cost.seconds["offload"], rel=0.1, abs=0.5)


def test_moments_count_whole_rows_once():
    shape = RankSizes(work(2**22), LAYOUT, STAGED)
    assert peaks.peak(shape, [FULL[0]]).name == "layer backward, full"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ring": 2}, "attention_chunk_tokens with ring=2; legal here: ring=1"),
        ({"tensor": 2}, "attention_chunk_tokens with tensor=2; legal here: tensor=1"),
        ({"layers": (LayerRange(recompute="all_but_attention", count=32),)}, "legal here: none, mlp, full"),
        ({"attention_chunk_tokens": 0}, "attention_chunk_tokens=0 must be a whole number of at least 1"),
        ({"attention_chunk_tokens": float("nan")}, "attention_chunk_tokens=nan must be a whole number"),
    ],
)
def test_what_cannot_be_is_refused(given, words):
    with pytest.raises(InputError, match=words):
        Strategy(**{"attention_chunk_tokens": C, **given})


def test_latent_attention_and_other_targets_have_no_chunks():
    with pytest.raises(InputError, match="latent attention; legal: none"):
        Strategy(attention_chunk_tokens=C).check(Model.load("deepseek-v2"))
    with pytest.raises(InputError, match="attention_chunk_tokens=8192 does not exist with --for alst; legal: none"):
        Space(cluster=CLUSTER, workload=work(2**20), pins={"attention_chunk_tokens": 8192}, target=Target.load("alst"))


def test_the_published_row_is_read_as_the_script_has_it():
    """microsoft/Megatron-DeepSpeed: ds_pretrain_gpt_6.7B_fpdt_32k.sh, and for slices gpt_model.py, transformer.py."""
    case = case_of(next(row for row in read("train_fpdt_ulysses_offload") if row.number == "10"))
    strategy = case.strategy
    assert (strategy.attention_chunk_tokens, strategy.mlp_chunk_tokens, strategy.loss_chunk_tokens) == (
        65536,
        4096,
        256,
    )
    assert chunks(RankSizes(case.workload, strategy)) == (65536, 64)


def test_keys_that_stay_on_the_gpu_leave_the_host_alone():
    """This executor: all blocks are one computation, no shorter than attention whole; one chunk is attention whole."""
    kernels = Kernels.of("a100-sxm-80gb")
    for tokens in (C, 4 * C, 64 * C):
        shape = RankSizes(work(tokens), LAYOUT)
        plain = replace(shape, degrees=replace(LAYOUT, attention_chunk_tokens=None))
        for grad in (False, True):
            phases = attention_phases(shape, kernels, part="attention", grad=grad)
            (whole,) = attention_phases(plain, kernels, part="attention", grad=grad)
            if tokens == C:
                assert phases == (whole,) and kept_bytes(shape, "none") == kept_bytes(plain, "none")
                continue
            assert [type(one) for one in phases] == [Compute] and phases[0].seconds >= whole.first_s
    slow, fast = (cost_models.price(one, work(2**20), LAYOUT) for one in (slower_host(CLUSTER, 2e9), CLUSTER))
    inputs = 32 * 2**17 * HIDDEN * 2  # of layers: their copies alone cross the host's link, either way
    assert slow.host_bytes == fast.host_bytes == 8 * inputs


def test_what_chunks_on_the_gpu_keep_and_send():
    """Keys and values of this rank's head, the result by tokens, log-sum-exps; q, the result and its gradient go to
    heads in the backward pass, and dq, dk, dv come back."""
    shape = RankSizes(work(2**20), replace(LAYOUT, mlp_chunk_tokens=None))
    table = {one.name: one for one in operators(shape) if one.kept or one.exchanges[0] or one.reruns}
    assert table["heads"].kept == 2**20 * 2 * 128 * 2
    assert table["attention"].kept == 2**17 * HIDDEN * 2 + 2**20 * 4 * 4
    q, kv = 2**17 * HIDDEN * 2, 2**17 * 8 * 2 * 128 * 2
    sums = {name: [sum(one.bytes for one in way) for way in table[name].exchanges] for name in ("heads", "heads back")}
    assert sums == {"heads": [q + kv, q + kv], "heads back": [q, 3 * q]}
    assert {len(way) for name in sums for way in table[name].exchanges} == {16}
    assert [name for name, one in table.items() if one.reruns] == ["qkv", "rotary", "out"]
