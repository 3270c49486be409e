"""What ranks that share a model must have alike: each takes its shards of the model that it was given.

    names -> values, written by each rank         {"type of lm_head.weight": "torch.float32", …}
    a digest of all, the most and the least over the ranks; where they differ, all names and values, to say which

Of weights and buffers: type, shape, sum of bits, which one is the same tensor, whether it is trained, their order; of
modules: train or eval; of the first call: autocast and gradients; of the sharding: its settings. Left out: the same
values of a weight in another order, optimizers of a loop's own, and what changes after the first call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from cost_models.errors import InputError
from executor.groups import Groups

_OF_A_RANK = ("groups", "device", "host")
"""Fields of a sharding that are this rank's."""


def check(groups: Groups, facts: Mapping[str, object], device: torch.device, mend: str) -> None:
    """Collective. InputError: the first of these facts that is not the same on all ranks, and how to `mend` it."""
    with unset_fake_temporarily():
        if (name := _unlike(groups, {name: str(value) for name, value in facts.items()}, device)) is not None:
            raise InputError(f"ranks have other {name}: {mend}")


def check_first_call(groups: Groups, model: nn.Module, device: torch.device) -> None:
    """`check` at the first call of the model, which all ranks make; later calls follow from the same program."""

    def once(module: nn.Module, args: tuple[Any, ...]) -> None:
        handle.remove()
        check(groups, of_modes(model) | of_call(device), device, "call the model alike on every rank")

    handle = model.register_forward_pre_hook(once, prepend=True)


def _unlike(groups: Groups, facts: Mapping[str, str], device: torch.device) -> str | None:
    number = int.from_bytes(hashlib.sha256(repr(sorted(facts.items())).encode()).digest()[:7])
    bounds, axes = torch.tensor([number, -number], device=device), (groups.shard, groups.replicate)
    for axis in axes:
        axis.reduce(bounds, dist.ReduceOp.MAX)
    if bounds[0] == -bounds[1]:
        return None
    of_all = [facts]
    for axis in axes:
        if axis.size > 1:
            heard: list[Any] = [None] * axis.size
            dist.all_gather_object(heard, of_all, group=axis.group)
            of_all = [one for some in heard for one in some]
    names = {name: None for one in sorted(of_all, key=len, reverse=True) for name in one}  # what some lack comes early
    return next(name for name in names if len({one.get(name) for one in of_all}) > 1)


def of_model(model: nn.Module) -> dict[str, object]:
    """Facts of a model that is not sharded yet."""
    found: dict[str, object] = {}
    first: dict[int, str] = {}
    for name, held in _tensors(model):
        found[f"type of {name}"], found[f"shape of {name}"] = held.dtype, tuple(held.shape)
        found[f"tying of {name}"] = first.setdefault(id(held), name)
        found[f"requires_grad of {name}"] = held.requires_grad
        if first[id(held)] == name:
            found[f"values of {name}"] = _bits(held)
    return found | of_modes(model) | {"order of the weights": [name for name, _ in _tensors(model)]}


def of_modes(model: nn.Module) -> dict[str, object]:
    return {f"mode (train or eval) of {name or 'the model'}": module.training for name, module in model.named_modules()}


def of_call(device: torch.device) -> dict[str, object]:
    """Facts of a call of a model, where it is made."""
    kind = device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return {"autocast of the model's call": autocast, "gradients of the model's call": torch.is_grad_enabled()}


def of_settings(sharding: Any) -> dict[str, object]:
    """Facts of the dataclass that says how the model is sharded."""
    return {
        f"{one.name} of the sharding": getattr(sharding, one.name)
        for one in fields(sharding)
        if one.init and one.name not in _OF_A_RANK
    }


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _bits(weight: Tensor) -> int:
    """The sum of 64-bit words, in any order the same, so that no device rounds it; 0 without values (meta, fake)."""
    if weight.is_meta or isinstance(weight, FakeTensor):
        return 0
    octets = weight.detach().flatten().view(torch.uint8)
    if octets.storage_offset() % 8:
        octets = octets.clone()
    words = len(octets) // 8 * 8
    return int(octets[:words].view(torch.int64).sum() + octets[words:].sum())
