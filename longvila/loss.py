"""The head and its loss in one autograd function: a sum over tokens, chunk by chunk, gradients made on the way.

    for each chunk of c tokens:   logits = h W^T     g = softmax(logits) - onehot(label), 0 where IGNORE
                                  dh = g W           dW += g^T h                (float32; float64 for float64 models)

Logits of one chunk exist at a time and are computed once: what the backward pass needs, dh (S x D, the activations'
dtype) and dW (V x D), is ready when the forward ends, and the backward only scales both. dW is summed over chunks in
float32 and rounded to the weight's dtype once; summed by autograd in bfloat16, it would lose digits with every chunk.
A frozen head has no dW, and without gradients neither is made. One backward pass per forward, as dW is handed over.
A `TokenLoss` takes the place of the cross entropy: any function f of a label's log-probability, g times -f'.
Leaves out: a bias, soft caps. Shapes: S local tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from longvila.sharding import IGNORE


class TokenLoss(Protocol):
    """Sum of the losses of tokens, from hidden states and a head."""

    def __call__(self, log_C: Tensor, labelled_C: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of the next C tokens and their derivatives by the log-probabilities `log_C` of their labels.

        Called once for each chunk, in the order of the tokens; what it says of tokens without a label is not used.
        """


def loss_sum(
    hidden_SD: Tensor, weight_VD: Tensor, labels_S: Tensor, chunk_tokens: int, token_loss: TokenLoss | None = None
) -> Tensor:
    """The losses of the labelled tokens of `hidden @ weight.T`, summed: a float32 (or float64) scalar.

    Without a `token_loss` they are the cross entropy.
    """
    grad = torch.is_grad_enabled()
    total: Tensor = _LossSum.apply(hidden_SD, weight_VD, labels_S, chunk_tokens, grad, token_loss or _cross_entropy)
    return total


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float64 stays; everything else becomes float32, where sums over a vocabulary keep their digits."""
    return torch.promote_types(dtype, torch.float32)


class _LossSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_SD: Tensor, weight_VD: Tensor, labels_S: Tensor, chunk_tokens: int, differentiated: bool,
        token_loss: TokenLoss,
    ) -> Tensor:  # fmt: skip
        # In no_grad mode `needs_input_grad` is still that of the tensors.
        wants_hidden, wants_weight = (differentiated and needed for needed in ctx.needs_input_grad[:2])
        wide = wide_dtype(hidden_SD.dtype)
        ctx.hidden_grad = torch.empty_like(hidden_SD) if wants_hidden else None
        ctx.weight_grad = torch.zeros_like(weight_VD, dtype=wide) if wants_weight else None
        ctx.weight_dtype = weight_VD.dtype
        total = torch.zeros((), dtype=wide, device=hidden_SD.device)
        for start in range(0, hidden_SD.shape[0], chunk_tokens):
            part = slice(start, start + chunk_tokens)
            logits_CV = hidden_SD[part] @ weight_VD.T
            loss = _chunk_loss(logits_CV, labels_S[part], token_loss, into_gradient=wants_hidden or wants_weight)
            total += loss
            if ctx.hidden_grad is not None:
                torch.mm(logits_CV, weight_VD, out=ctx.hidden_grad[part])
            if ctx.weight_grad is not None:
                _add_product(ctx.weight_grad, logits_CV.T, hidden_SD[part])
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad = ctx.hidden_grad, ctx.weight_grad
        if hidden_grad is None and weight_grad is None:
            raise RuntimeError("the loss was differentiated already; run the forward pass again")
        ctx.hidden_grad = ctx.weight_grad = None
        if hidden_grad is not None:
            hidden_grad.mul_(grad)
        if weight_grad is not None:
            weight_grad = weight_grad.mul_(grad).to(ctx.weight_dtype)
        return hidden_grad, weight_grad, None, None, None, None


def _cross_entropy(log_C: Tensor, labelled_C: Tensor) -> tuple[Tensor, Tensor]:
    return -log_C, -torch.ones_like(log_C)


def _chunk_loss(logits_CV: Tensor, labels_C: Tensor, token_loss: TokenLoss, *, into_gradient: bool) -> Tensor:
    """The sum over labelled tokens; with `into_gradient` the logits are overwritten by its gradient."""
    labelled_C = labels_C != IGNORE
    label_C1 = labels_C.clamp_min(0).unsqueeze(1)
    log_CV = F.log_softmax(logits_CV, dim=1, dtype=wide_dtype(logits_CV.dtype))
    loss_C, slope_C = token_loss(log_CV.gather(1, label_C1)[:, 0], labelled_C)
    if into_gradient:
        difference_CV = log_CV.exp_().scatter_add_(1, label_C1, log_CV.new_full((), -1.0).expand_as(label_C1))
        torch.mul(difference_CV, -slope_C.where(labelled_C, 0.0).unsqueeze(1), out=logits_CV)
    return loss_C.where(labelled_C, 0.0).sum()


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)
