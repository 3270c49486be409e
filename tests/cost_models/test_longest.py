"""The longest row fits, the next one does not; more memory never shortens it."""

from dataclasses import replace

import pytest

from cost_models import Cluster, LayerRange, Model, Strategy, Workload, price
from cost_models.longest import longest_tokens

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
