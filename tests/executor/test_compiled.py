"""Layers under torch.compile: the step of one process, over real ranks, and no graph for each length of row."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from cost_models.errors import InputError
from executor.mmsp.compiled import Compiler
from executor.sharding import ContextSharding
from tests.executor.sharded_step import Case, assert_same_step
from tests.ranks import run_ranks

EXACT = 1e-9
OTHER_LENGTHS = ((1,), (3, 1), (0,))  # frames of the documents of each row
LAYOUTS = [
    Case(ring=2, recompute=(("all_but_attention", 1), ("mlp", 1)), compile="aot_eager"),
    Case(
        ulysses=2, recompute=(("full", 1, "activations"), ("none", 1)), states_on_host=True, zero=2,
        attention_chunk_tokens=9, mlp_chunk_tokens=3, compile="eager",
    ),
    Case(ring=2, layer_types=("ssd", "full_attention"), head_chunks=2, compile="eager"),
]  # fmt: skip


def _check(cases: list[Case]) -> None:
    """`eager` traces and cuts as the others do, and runs what it traced; `aot_eager` makes the gradients too."""
    for case in cases:
        assert_same_step(case, EXACT)
        graphs = counters["stats"]["unique_graphs"]
        assert graphs
        assert_same_step(replace(case, frames=OTHER_LENGTHS), EXACT)
        assert counters["stats"]["unique_graphs"] == graphs, f"{case}: graphs of their own for other lengths"


def test_compiled_layers_equal_one_process_and_rows_of_any_length_share_graphs() -> None:
    run_ranks(_check, 2, LAYOUTS)


def test_other_backends_are_named() -> None:
    with pytest.raises(InputError, match="compile='fast' is not one of inductor, aot_eager, eager"):
        Compiler("fast")


def test_a_model_without_layers_to_compile_is_refused() -> None:
    groups: Any = SimpleNamespace(shard=SimpleNamespace(size=1), ulysses=SimpleNamespace(size=1))
    sharding = ContextSharding(groups=groups, device=torch.device("cpu"), compile="eager")
    with pytest.raises(InputError, match="compile: Linear has no layers with a causal self_attn"):
        sharding.wrap(nn.Linear(1, 1))
