"""What a decoder layer keeps for its backward pass, by policy.

    none               everything
    mlp                all but the inside of the MLP, which is computed again
    all_but_attention  the layer's input, the attention's output and log-sum-exp; the rest is computed again, with its
                       all-to-alls, but no attention kernel and no ring
    full               the layer's input; everything is computed again, with all its communication

Under the last two the layer's input may wait in host memory (`host_memory`). Set through `GradientCheckpointingLayer`
of Hugging Face, so hooks of FSDP2 stay outside and parameter names do not change. Gradients are those of `none`. Active
in training mode only. Leaves out: the vision tower.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from cost_models.errors import InputError
from cost_models.layer.recompute import EXECUTED, KEEPING_INPUT
from executor.mmsp.attention import Kept, MmSp
from executor.mmsp.compiled import Compiler
from executor.mmsp.host_memory import HostMemory


def apply_recompute(
    layers: Sequence[nn.Module],
    policies: Sequence[str],
    offloads: Sequence[str] = (),
    *,
    host: HostMemory | None = None,
    sliced: bool = False,
    compiler: Compiler | None = None,
) -> None:
    """Give each decoder layer its policy, before it is sharded. One policy for each layer, in the layers' order.

    `offloads`: "none" or "activations" for each layer; `host` takes the latter's inputs. `sliced`: the MLP's inside
    is made again slice by slice, whatever the policy. `compiler`: compiles what each layer runs.
    """
    compiler = compiler or Compiler(None)
    if len(policies) != len(layers):
        raise InputError(f"recompute names {len(policies)} layers, the model has {len(layers)}")
    for layer, policy, offload in zip(layers, policies, offloads or ["none"] * len(layers), strict=True):
        if policy not in EXECUTED:
            raise InputError(f"recompute {policy!r} is not one of {', '.join(EXECUTED)}")
        if offload != "none" and policy not in KEEPING_INPUT:
            raise InputError(f"offload={offload} with recompute={policy}; legal with {', '.join(KEEPING_INPUT)}")
        plain = policy == "none" or (policy == "mlp" and sliced)
        if plain and compiler.backend is None:
            continue
        if not isinstance(layer, GradientCheckpointingLayer):
            what = f"recompute {policy!r}" if compiler.backend is None else "compile"
            raise InputError(f"{what} needs a Hugging Face decoder layer, not {type(layer).__name__}")
        if policy == "mlp" and not sliced:
            mlp = _mlp(layer)
            mlp.forward = compiler.apart(functools.partial(_full, compiler.compiled(mlp.forward)))
            if compiler.backend is None:
                continue
        again: Any = compiler.layer(_AGAIN.get(policy, _once))
        if offload != "none":
            again = functools.partial(_on_host, host or HostMemory(), again)
        layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, again


def _mlp(layer: nn.Module) -> nn.Module:
    if not isinstance(mlp := getattr(layer, "mlp", None), nn.Module):
        raise InputError(f"recompute 'mlp' needs a layer with a module named mlp; {type(layer).__name__} has none")
    return mlp


def _on_host(host: HostMemory, again: Callable[..., Any], forward: Callable[..., Any], *args: Any) -> Any:
    """Checkpointing, whose saved inputs go to host memory; what it runs inside is not asked."""
    with host.saved_there():
        return again(forward, *args)


def _once(forward: Callable[..., Any], *args: Any) -> Any:
    return forward(*args)


def _full(forward: Callable[..., Any], *args: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False)


def _all_but_attention(forward: functools.partial[Any], *args: Any) -> Any:
    """`forward` carries the layer's keyword arguments, among them `mm_sp`, which gets a place to keep its result."""
    call = forward.keywords.get("mm_sp")
    if not isinstance(call, MmSp):
        raise InputError("recompute 'all_but_attention' needs attention \"mm_sp\"; use 'full' with any other")
    keeping = forward.keywords | {"mm_sp": replace(call, kept=Kept())}
    return checkpoint(functools.partial(forward.func, *forward.args, **keeping), *args, use_reentrant=False)


_AGAIN: dict[str, Callable[..., Any]] = {"full": _full, "all_but_attention": _all_but_attention}
