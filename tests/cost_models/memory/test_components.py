"""Memory beside tensors: contexts, buffers of communicators, what the allocator holds and does not use."""

from dataclasses import replace

import pytest

from cost_models import Cluster, Model, Strategy, Workload, price
from cost_models.framework import OURS, Framework
from cost_models.layer.chunked import stream_bytes
from cost_models.layer.sizes import RankSizes
from cost_models.memory.fragments import KEPT_SHARE, PRESSED_SHARE
from cost_models.memory.peaks import kept_bytes

NODE = Cluster.load("dgx-h100", nodes=1)
WORK = Workload(Model.load("longvila-8b"), context_tokens=2**17)
MIB = 2**20


def test_a_communicator_of_collectives_is_what_was_measured_on_a100():
    """NVIDIA/nccl issue 964: 688 MiB over 4 GPUs, 544 over 2, each after one all-reduce."""
    here = Cluster.load("dgx-a100", nodes=1)
    for ranks, mib in ((4, 688), (2, 544)):
        work = replace(WORK, global_batch=ranks)
        found = price(here, work, Strategy(data=ranks, shard=ranks)).memory["communication"]
        assert found == pytest.approx(mib * MIB, rel=1e-6)


def test_an_all_to_all_is_what_was_measured_on_h100():
    """NVIDIA/nccl issue 1685: 1.06 GB before and 4.34 GB after the first over 8 GPUs."""
    found = price(NODE, WORK, Strategy(ulysses=8, shard=8)).memory["communication"]
    assert found - 688 * MIB == pytest.approx(4.34e9 - 1.06e9, rel=0.005)


def test_every_group_of_several_ranks_has_buffers_and_one_rank_has_none():
    def of(**degrees):
        return price(NODE, WORK, Strategy(**degrees)).memory["communication"]

    assert of() == 0
    assert of(ulysses=8, shard=8) == pytest.approx((688 + 7 * 32 * 14) * MIB, rel=1e-6)
    assert of(ulysses=4, ring=2, shard=8) == pytest.approx((688 + (3 + 1) * 32 * 14) * MIB, rel=1e-6)  # 3 peers and 1
    assert of(ulysses=4, ring=2, shard=4) == pytest.approx((688 + 544 + 4 * 32 * 14) * MIB, rel=1e-6)  # and a replica


def test_messages_beyond_the_domain_have_one_more_buffer():
    four = Cluster.load("dgx-h100", nodes=4)
    inside, beyond = (
        price(four, WORK, Strategy(ulysses=ranks, shard=ranks)).memory["communication"] for ranks in (8, 32)
    )
    assert beyond - inside == 512 * MIB


def test_a_cpu_s_groups_have_small_buffers():
    """gloo: pairs of sockets, about a MiB."""
    here = Cluster.load("local", gpus=2)
    work = Workload(Model.load("longvila-tiny"), context_tokens=4096)
    assert price(here, work, Strategy(ulysses=2, shard=2)).memory["communication"] == 2 * 1_048_576


def test_fragments_of_segments_are_large_blocks_and_what_one_layer_keeps():
    """Llama 3 8B's root (4.2 GB in fp32) is copied for its reduction; a loss in chunks has the head's gradient."""
    work, layout = replace(WORK, model=Model.load("llama-3-8b")), Strategy(ulysses=8, shard=8)
    growing = replace(OURS, stream_pools=False)
    segments = replace(growing, expandable_segments=False)
    root, head = 4 * (2 * 128256 * 4096 + 4096), 4 * 128256 * 4096
    kept = float(kept_bytes(RankSizes(work, layout), "none"))
    assert price(NODE, work, layout, framework=segments).memory["fragments"] == pytest.approx(root + head + 1.6 * kept)
    assert price(NODE, work, layout, framework=growing).memory["fragments"] == root  # this executor's segments grow
    every = replace(layout, loss_chunk_tokens=None)  # of 16,384 x 128,256 logits a copy in fp32 holds the root
    assert price(NODE, work, every, framework=growing).memory["fragments"] == 2 * 16384 * 128256


def test_nothing_settles_where_states_come_first_and_gradients_go():
    """DeepSpeed's ZeRO-2 with one microbatch; a second one finds the gradients of the first, ZeRO-3 gathers anew."""
    work, found = replace(WORK, model=Model.load("llama-3-8b"), global_batch=2), Framework.load("deepspeed")
    late = replace(found, early_states=False)

    def held(framework: Framework, microbatches: int = 1, zero: int = 2) -> int:
        batch = replace(work, global_batch=microbatches)
        layout = Strategy(ulysses=8, shard=8, zero=zero, microbatches=microbatches, loss_chunk_tokens=None)
        return price(NODE, batch, layout, framework=framework).memory["fragments"]

    assert held(found) == 0 < held(late)
    assert held(found, microbatches=2) == held(late, microbatches=2) > 0
    assert held(found, zero=3) == held(late, zero=3) > 0


def test_two_equal_blocks_of_a_loss_leave_one():
    """Composer's loss holds bf16 logits and their gradient; for fp32 copies the logits' block is too small. With one
    microbatch states alone settle, and a full card gives back the rest."""
    work, found = replace(WORK, model=Model.load("llama-3-8b")), Framework.load("composer-pure")

    def held(framework: Framework, microbatches: int) -> int:
        layout = Strategy(data=8, shard=8, microbatches=microbatches, loss_chunk_tokens=None)
        batch = replace(work, global_batch=8 * microbatches)
        return price(NODE, batch, layout, framework=framework).memory["fragments"]

    assert held(replace(found, logit_bytes=12), 2) - held(found, 2) == WORK.context_tokens * 128256 * 2
    kept = float(kept_bytes(RankSizes(replace(work, global_batch=8), Strategy(data=8, shard=8), found), "none"))
    assert held(found, 2) - held(found, 1) == pytest.approx((KEPT_SHARE - PRESSED_SHARE) * kept)


def test_products_in_8_bits_keep_their_inputs_so():
    """Two norms' results and the MLP's product of half the bytes, and a copy of attention's result."""
    model = Model.load("llama-3-8b")
    narrow = Framework.load("megatron-fp8")
    eight, sixteen = (
        float(kept_bytes(RankSizes(replace(WORK, model=model), Strategy(), framework), "none"))
        for framework in (narrow, replace(narrow, product_dtype=None))
    )
    assert sixteen - eight == WORK.context_tokens * (2 * 4096 + 14336 - 4096)


def test_gathers_and_reductions_of_fsdp_keep_pools_of_their_own():
    """On each of 8 ranks the flat weights of Llama 3 8B's root and of one layer in bf16, and an eighth of all gradients
    in fp32, which activations cannot use; with a second microbatch gradients are there all the time anyway."""
    model = Model.load("llama-3-8b")
    work, layout = replace(WORK, model=model), Strategy(ulysses=8, shard=8)
    one = replace(OURS, stream_pools=False)
    root = 2 * 128256 * 4096 + 4096

    def added(work: Workload, layout: Strategy) -> int:
        pooled, plain = (price(NODE, work, layout, framework=each).memory for each in (OURS, one))
        return pooled["fragments"] - plain["fragments"]

    gathered = 2 * (root + model.layer_params)
    assert added(work, layout) == pytest.approx(gathered + 4 * (root + 32 * model.layer_params) / 8, rel=1e-6)
    twice = replace(work, global_batch=2)
    assert added(twice, replace(layout, microbatches=2)) == pytest.approx(gathered, rel=1e-6)
    # below ZeRO-3 the layer's is among the tensors of the highest moment, the loss
    assert added(twice, replace(layout, microbatches=2, zero=2)) == 2 * root


def test_one_stream_after_another_keeps_a_pool_of_chunks():
    """DeepSpeed's chunked attention: 32 streams in turn."""
    layout = Strategy(ulysses=8, shard=8, attention_chunk_tokens=2**14)
    few, many = (
        price(NODE, WORK, layout, framework=replace(OURS, expandable_segments=False, copy_streams=n)).memory[
            "fragments"
        ]
        for n in (0, 32)
    )
    assert many - few == pytest.approx(32 * float(stream_bytes(RankSizes(WORK, layout))))


def test_the_context_is_the_kind_of_device_s():
    for cluster, name, mib in ((NODE, "longvila-8b", 660), (Cluster.load("local", gpus=2), "longvila-tiny", 450)):
        found = price(cluster, Workload(Model.load(name), context_tokens=8192), Strategy(ulysses=2, shard=2)).memory
        assert found["context"] == mib * MIB


def test_three_levels_each_above_the_one_before():
    memory = price(NODE, WORK, Strategy(ulysses=8, shard=8)).memory
    assert memory.reserved_bytes == memory.allocated_bytes + memory["fragments"]
    assert memory.device_bytes == memory.reserved_bytes + memory["communication"] + memory["context"]


def test_a_cache_holds_keys_and_values_of_every_layer():
    """1,048,576 tokens over 8 ranks, 8 key heads of 128 each, two tensors, 2 bytes, 32 layers: 16 GiB."""
    work = Workload(WORK.model, context_tokens=2**20, mode="decode")
    assert price(NODE, work, Strategy(ulysses=8, shard=8)).memory["cache"] == 2**17 * 2 * 1024 * 2 * 32
