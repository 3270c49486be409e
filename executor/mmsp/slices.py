"""What works token by token in decoder layers, their MLPs and norms, and behind them, over slices of the tokens.

    forward    slice by slice, keeping the input alone
    backward   each slice forward again, then its gradients: its part of the input's, and the weights', added up

Gradients of weights are summed over slices in float32 (float64 for float64) and rounded to the weight's dtype once;
summed by autograd in bfloat16 they would lose digits with every slice. Results are those of one call. Without gradients
slices run one after the other as well. Leaves out norms inside attention. Tokens stand in the last axis but one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cost_models.errors import InputError
from executor.mmsp.compiled import Compiler

Call = Callable[[Tensor], Tensor]


def run_in_slices(layer: nn.Module, tokens: int, compiler: Compiler | None = None) -> None:
    """Let a decoder layer's MLP and norms take at most so many tokens at a time. Parameter names stay."""
    compiler = compiler or Compiler(None)
    parts = [part for name, part in layer.named_children() if name == "mlp" or _is_norm(part)]
    if not isinstance(getattr(layer, "mlp", None), nn.Module):
        raise InputError(f"mlp_chunk_tokens needs a layer with a module named mlp; {type(layer).__name__} has none")
    for part in parts:
        part.forward = compiler.apart(_sliced(part, compiler.compiled(part.forward), tokens))


def run_last_norm_in_slices(model: nn.Module, layers: Sequence[nn.Module], tokens: int) -> None:
    """The same for the norm behind the decoder layers, which stands beside their list."""
    for owner in model.modules():
        lists = [part for part in owner.children() if isinstance(part, nn.ModuleList)]
        if any(one is layers[-1] for several in lists for one in several):
            for part in owner.children():
                if _is_norm(part):
                    part.forward = _sliced(part, part.forward, tokens)


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith(("RMSNorm", "LayerNorm"))


def _sliced(module: nn.Module, forward: Call, tokens: int) -> Call:
    def call(x: Tensor) -> Tensor:
        y: Tensor = _Slices.apply(x, module, forward, tokens, *module.parameters())
        return y

    return call


class _Slices(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module, forward: Call, tokens: int, *weights: Tensor) -> Tensor:
        ctx.module, ctx.forward, ctx.tokens = module, forward, tokens
        ctx.save_for_backward(x)
        result: Tensor | None = None
        for start in range(0, x.shape[-2], tokens):
            part = forward(x[..., start : start + tokens, :])
            if result is None:
                result = part.new_empty((*x.shape[:-1], part.shape[-1]))
            result[..., start : start + tokens, :] = part
        assert result is not None
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        parts = (slice(start, start + ctx.tokens) for start in range(0, x.shape[-2], ctx.tokens))
        weights, needed = [*ctx.module.parameters()], ctx.needs_input_grad
        calls = ((part, ctx.forward) for part in parts)
        grad_x, of_weights = gradients_by_parts(x, grad, calls, weights, needed[0], needed[4:])
        return (grad_x, None, None, None, *of_weights)


def gradients_by_parts(
    x: Tensor,
    grad: Tensor,
    calls: Iterable[tuple[slice, Call]],
    weights: Sequence[Tensor],
    of_x: bool,
    of_weights: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of x and of `weights`, as wanted, of calls for some of its tokens each, run one after the other."""
    wanted = [place for place, needs in enumerate(of_weights) if needs]
    grad_x = torch.empty_like(x) if of_x else None
    sums: list[Tensor] = []
    for part, forward in calls:
        with torch.enable_grad():
            given = x[..., part, :].detach().requires_grad_(of_x)
            made = forward(given)
        inputs = [*([given] if of_x else []), *(weights[place] for place in wanted)]
        grads = [*torch.autograd.grad(made, inputs, grad[..., part, :])]
        if grad_x is not None:
            grad_x[..., part, :] = grads.pop(0)
        if not sums:
            sums = [one.to(torch.promote_types(one.dtype, torch.float32)) for one in grads]
            continue
        for total, one in zip(sums, grads, strict=True):
            total += one
    found: list[Tensor | None] = [None] * len(weights)
    for place, total in zip(wanted, sums, strict=True):
        found[place] = total.to(weights[place].dtype)
    return grad_x, found
