"""What a recomputed layer holds in its backward pass when its MLP runs in slices, counted on the real step.

Else an MLP's inside is the most that a layer holds, and hides what norms and attention hold; with slices the ledger of
both is seen: a layer's attention is the highest moment, of ulysses 4 in bf16 7.9% above the count, else at most 6.2%.
"""

from dataclasses import replace

import pytest
import torch

from cost_models import LayerRange, Model, Strategy
from cost_models.workload import Precision
from executor.check.check import TRANSIENT, check
from tests.executor.planned import FP32, make_plan

TOKENS = 32768
LAYERS = 2
"""Counted are the moments of one layer beside the next one's weights; with four layers they are the same bytes."""


@pytest.mark.parametrize(
    ("ring", "ulysses", "precision", "chunk", "slices"),
    [  # as few slices as leave attention the highest moment
        (1, 4, FP32, None, 32),
        (1, 4, Precision(), None, 32),
        (2, 2, FP32, None, 32),
        (2, 2, Precision(), None, 32),
        (4, 1, Precision(), None, 16),
        (1, 4, FP32, TOKENS // 4, 16),
        (1, 4, Precision(), TOKENS // 4, 16),
    ],
)
def test_the_ledger_holds_what_a_sliced_layer_holds(ring, ulysses, precision, chunk, slices):
    layout = Strategy(
        ring=ring, ulysses=ulysses, shard=4, layers=(LayerRange(recompute="full", count=LAYERS),),
        loss_chunk_tokens=128, mlp_chunk_tokens=TOKENS // 4 // slices, attention_chunk_tokens=chunk,
    )  # fmt: skip
    whole = Model.load("longvila-tiny")
    model = replace(whole, name="two layers", layers=LAYERS, layer_kinds=whole.layer_kinds[:LAYERS])
    plan = make_plan(layout, model=model, tokens=TOKENS, precision=precision)
    found, before = [], torch.get_num_threads()
    # with more threads than key heads the CPU's gradient copies these; CUDA's never does
    for threads in (2, 1) if ring == 2 and precision == FP32 else (1,):
        torch.set_num_threads(threads)
        try:
            found.append(check(plan, 0))
        finally:
            torch.set_num_threads(before)
    assert found[0] == found[-1]
    (moment,) = (one for one in found[0].components if one.name == " + ".join(TRANSIENT))
    assert -1e-3 <= moment.difference <= (0.08 if ulysses == 4 and precision != FP32 else 0.065), moment
