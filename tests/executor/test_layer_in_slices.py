"""What a recomputed layer holds in its backward pass when its MLP runs in slices, counted on the real step.

The executor does not run slices yet; an autograd function here does, as DeepSpeed's TiledMLP. Else an MLP's inside
is the most that a layer holds, and hides what norms and attention hold; with it the ledger of both is seen.
"""

import pytest
import torch
from torch import nn

import executor.check.check as checking
from cost_models import LayerRange, Strategy
from cost_models.workload import Precision
from tests.executor.planned import FP32, make_plan

SLICES, TOKENS = 32, 32768


class Sliced(torch.autograd.Function):
    """Slice by slice; backward runs each forward again and keeps the gradients of weights and input."""

    @staticmethod
    def forward(ctx, x, run):
        ctx.run = run
        ctx.save_for_backward(x)
        return torch.cat([run(one) for one in x.chunk(SLICES, dim=1)], dim=1)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        gradient = torch.zeros_like(x)
        parts = zip(*(of.chunk(SLICES, dim=1) for of in (x.detach(), grad, gradient)), strict=True)
        for one, out, into in parts:
            one = one.detach().requires_grad_()
            with torch.enable_grad():
                result = ctx.run(one)
            torch.autograd.backward(result, out)
            into.copy_(one.grad)
        return gradient, None


def slice_mlps(model: nn.Module) -> nn.Module:
    for layer in model.llm.model.layers:
        layer.mlp.forward = (lambda run: lambda x: Sliced.apply(x, run))(layer.mlp.forward)
    return model


@pytest.mark.parametrize(
    ("ring", "ulysses", "precision", "above"),
    [(1, 4, FP32, 0.12), (1, 4, Precision(), 0.03), (2, 2, Precision(), 0.03), (4, 1, Precision(), 0.03)],
)
def test_the_ledger_holds_what_a_sliced_layer_holds(monkeypatch, ring, ulysses, precision, above):
    layout = Strategy(
        ring=ring, ulysses=ulysses, shard=4, layers=(LayerRange(recompute="full", count=4),), loss_chunk_tokens=128,
        mlp_chunk_tokens=TOKENS // 4 // SLICES,
    )  # fmt: skip
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # with one, the CPU kernel gives no head a view of its own
    build = checking.empty_model
    monkeypatch.setattr(checking, "empty_model", lambda *given: slice_mlps(build(*given)))
    monkeypatch.setattr(checking, "unsupported", lambda plan: [])
    found = checking.check(make_plan(layout, tokens=TOKENS, precision=precision), 0)
    (moment,) = (one for one in found.components if one.name == " + ".join(checking.TRANSIENT))
    assert -0.03 <= moment.difference <= above, moment
