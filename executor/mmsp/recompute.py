"""What a decoder layer keeps for its backward pass, by policy.

    none               everything
    mlp                all but the inside of the MLP, which is computed again
    all_but_attention  the layer's input, the attention's output and log-sum-exp; the rest is computed again, with its
                       all-to-alls, but no attention kernel and no ring
    full               the layer's input; everything is computed again, with all its communication

Set through `GradientCheckpointingLayer` of Hugging Face, so hooks of FSDP2 stay outside and parameter names
do not change. Gradients are those of `none`. Active in training mode only. Leaves out: the vision tower, offload.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.distributed._composable.checkpoint_activation import checkpoint as checkpoint_module
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from cost_models.errors import InputError
from executor.mmsp import POLICIES
from executor.mmsp.attention import Kept, MmSp


def apply_recompute(layers: Sequence[nn.Module], policies: Sequence[str]) -> None:
    """Give each decoder layer its policy, before it is sharded. One policy for each layer, in the layers' order."""
    if len(policies) != len(layers):
        raise InputError(f"recompute names {len(policies)} layers, the model has {len(layers)}")
    for layer, policy in zip(layers, policies, strict=True):
        if policy not in POLICIES:
            raise InputError(f"recompute {policy!r} is not one of {', '.join(POLICIES)}")
        if policy == "none":
            continue
        if not isinstance(layer, GradientCheckpointingLayer):
            raise InputError(f"recompute {policy!r} needs a Hugging Face decoder layer, not {type(layer).__name__}")
        if policy == "mlp":
            checkpoint_module(_mlp(layer))
        else:
            layer.gradient_checkpointing = True
            again: Any = _full if policy == "full" else _all_but_attention
            layer._gradient_checkpointing_func = again


def _mlp(layer: nn.Module) -> nn.Module:
    if not isinstance(mlp := getattr(layer, "mlp", None), nn.Module):
        raise InputError(f"recompute 'mlp' needs a layer with a module named mlp; {type(layer).__name__} has none")
    return mlp


def _full(forward: Callable[..., Any], *args: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False)


def _all_but_attention(forward: functools.partial[Any], *args: Any) -> Any:
    """`forward` carries the layer's keyword arguments, among them `mm_sp`, which gets a place to keep its result."""
    call = forward.keywords.get("mm_sp")
    if not isinstance(call, MmSp):
        raise InputError("recompute 'all_but_attention' needs attention \"mm_sp\"; use 'full' with any other")
    keeping = forward.keywords | {"mm_sp": replace(call, kept=Kept())}
    return checkpoint(functools.partial(forward.func, *forward.args, **keeping), *args, use_reentrant=False)
