"""The longest row fits, the next one does not; more memory never shortens it."""

from dataclasses import replace

import pytest

from cost_models import Cluster, LayerRange, Model, Strategy, Workload, price
from cost_models.framework import Framework
from cost_models.longest import longest_tokens
from cost_models.room import DEFAULT_ROOM

NODE = Cluster.load("dgx-h100", gpus=8)


@pytest.mark.parametrize("policy", ["none", "full"])
def test_the_longest_row_is_the_last_that_fits(policy):
    strategy = Strategy(ulysses=8, shard=8, layers=(LayerRange(recompute=policy, count=32),))
    work = Workload(Model.load("llama-3-8b"), context_tokens=4096)
    most = longest_tokens(NODE, work, strategy)
    assert most % 16 == 0
    assert price(NODE, replace(work, context_tokens=most, text_tokens=None), strategy).fits
    assert not price(NODE, replace(work, context_tokens=most + 16, text_tokens=None), strategy).fits


def test_recompute_lengthens_the_row_and_too_large_a_model_has_none():
    work = Workload(Model.load("llama-3-8b"), context_tokens=4096)
    full = (LayerRange(recompute="full", count=32),)
    kept = longest_tokens(NODE, work, Strategy(ulysses=8, shard=8))
    assert longest_tokens(NODE, work, Strategy(ulysses=8, shard=8, layers=full)) > 2 * kept
    assert longest_tokens(NODE, Workload(Model.load("llama-3-70b"), context_tokens=4096), Strategy()) == 0


OFFLOADED = (LayerRange(recompute="full", offload="activations", count=32),)


@pytest.mark.parametrize(
    ("framework", "least", "most", "levers"),
    [
        ("alst", 0.9 * 3.8e6, 1.05 * 3.8e6, {"loss_chunk_tokens": 1024, "offload_states": "optimizer"}),
        ("fpdt", 4 * 2**20, 5 * 2**20, {"loss_chunk_tokens": 256, "attention_chunk_tokens": 2**16}),
        ("untied-ulysses", 0.9 * 5 * 2**20, 1.05 * 5 * 2**20, {"attention_head_chunks": 4}),
    ],
)
def test_printed_ends_of_llama_3_8b_on_8_h100(framework, least, most, levers):
    """arXiv 2506.13996, 2408.16978 and 2602.21196, at the confidence with which plans fit: ALST's recipe has 3.8M, its
    paper 3.7M; FPDT's length is the longest that ran of lengths 1M apart."""
    work = Workload(Model.load("llama-3-8b"), context_tokens=2**20, precision=Framework.load(framework).precision)
    strategy = Strategy(ulysses=8, shard=8, layers=OFFLOADED, mlp_chunk_tokens=4096, **levers)
    found = longest_tokens(NODE, work, strategy, Framework.load(framework), DEFAULT_ROOM)
    assert least <= found <= most
