"""Host memory of a node against what offloading puts there."""

from dataclasses import replace

import numpy as np
import pytest

from cost_models import Cluster, LayerRange, Model, Placement, Strategy, Workload, price, price_batch
from cost_models.framework import Framework
from cost_models.hardware.cluster import NodeRun

WORK = Workload(Model.load("llama-3-8b"), context_tokens=2**18)
NODE = Cluster.load("dgx-a100", nodes=1)
LAYOUT = Strategy(ulysses=8, shard=8)
OFFLOADED = replace(LAYOUT, layers=(LayerRange(recompute="full", offload="activations", count=32),))
KEPT = replace(LAYOUT, layers=(LayerRange(recompute="full", count=32),))


def with_host(gib, nodes=1):
    run = NODE.runs[0]
    node = replace(run.node, host_memory_bytes=round(gib * 2**30))
    return replace(NODE, runs=(NodeRun(count=nodes, node=node),))


@pytest.mark.parametrize(("where", "each", "apart"), [("none", 0, 0), ("optimizer", 16, 16), ("all", 16, 18)])
def test_states_take_16_or_18_bytes_of_every_weight(where, each, apart):
    """Master, two states and a gradient in fp32; with `all` DeepSpeed has the bf16 weights too, where FSDP2 casts the
    master. The node holds one copy."""
    weights, layout = WORK.model.llm_params, replace(LAYOUT, offload_states=where)
    deepspeed = Framework.load("deepspeed-hugging-face")
    assert price(NODE, WORK, layout).host_bytes == pytest.approx(each * weights, rel=1e-5)
    assert price(NODE, WORK, layout, framework=deepspeed).host_bytes == pytest.approx(apart * weights, rel=1e-5)


def test_checkpoints_take_the_inputs_of_the_layers():
    assert price(NODE, WORK, OFFLOADED).host_bytes == 32 * 2**18 * 4096 * 2


def test_what_exceeds_the_host_does_not_fit():
    need = price(NODE, WORK, OFFLOADED).host_bytes / 2**30  # 64 GiB
    for gib, fits in ((need, True), (need - 0.01, False)):
        cost = price(with_host(gib), WORK, OFFLOADED)
        assert cost.memory_bytes <= cost.capacity_bytes
        assert (cost.fits, cost.fits_host) == (fits, fits)
        assert price_batch(with_host(gib), WORK, [OFFLOADED, KEPT]).fits.tolist() == [fits, True]


def test_an_unknown_host_is_said_and_not_compared():
    cost = price(with_host(0), WORK, OFFLOADED)
    assert cost.fits and any("host memory is not known: the 64.00 GiB" in line for line in cost.estimates)
    assert not any("host memory is not known" in line for line in price(with_host(0), WORK, LAYOUT).estimates)


def test_a_node_holds_what_its_own_ranks_offload():
    """Eight ranks over two nodes, four each: half of it on either."""
    spread = Placement(slot_of_rank=np.repeat([0, 1], 4), gpu_of_rank=np.tile(np.arange(4), 2))
    here = with_host(64, nodes=2)
    assert price(here, WORK, OFFLOADED, spread).host_bytes * 2 == price(here, WORK, OFFLOADED).host_bytes


def test_chunks_of_attention_wait_in_host_memory():
    """A layer's q (2 + 4 B), o and its gradient (2 B each), k, v (2 B), log-sum-exp (4 B) and normed input (2 B)."""
    layout = replace(LAYOUT, attention_chunk_tokens=65536)
    each = 4096 * (2 + 4) + 2 * 4096 * 2 + 2 * 1024 * 2 + 32 * 4 + 4096 * 2
    found = price(NODE, WORK, layout, framework=Framework.load("fpdt"))
    assert found.host_bytes == pytest.approx(2**18 * each, rel=1e-6)
    assert price(NODE, WORK, layout).host_bytes == 0  # this executor's stay on the GPU
