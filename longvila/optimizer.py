"""AdamW with warm-up, schedule, clipping, and float32 masters for half-precision parameters.

    gradients --float32--> global norm --clip--> AdamW on masters --round--> parameters

Bytes per parameter in bf16: 2 weight + 2 gradient + 4 master + 8 moments (16); in float32: 4 + 4 + 8 (16).
Matrices decay, norms and biases do not. All state lives under the parameter's name, as plain or sharded tensors, so
a checkpoint can be read under another sharding. Parameters in host memory are updated by the CPU. With `host` the
weights stay on their device, and masters, moments and gradients are there: a gradient goes down as it is made, in the
weight's dtype, while the backward pass goes on; rows are summed in the master's; updated weights come up after the
step. Leaves out other optimizers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from longvila.sharding import whole

SCHEDULES = ("constant", "cosine")


def learning_rate(step: int, *, steps: int, peak: float, schedule: str, warmup_steps: int) -> float:
    """Rate of step 0 … steps-1: a linear rise over the warm-up, then constant or half a cosine towards zero.

    >>> [round(learning_rate(s, steps=4, peak=1.0, schedule="cosine", warmup_steps=2), 3) for s in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * done))


class Optimizer:
    """AdamW over named parameters; frozen ones are left out."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        host: torch.device | None = None,
    ) -> None:
        self._parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        self._masters = {name: _master(p, host) for name, p in self._parameters.items()}
        self._host = None if host is None else _Host(self._parameters, self._masters, host)
        decay = [p for p in self._masters.values() if p.ndim >= 2]
        rest = [p for p in self._masters.values() if p.ndim < 2]
        groups = [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self._adam = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, eps=eps, fused=True)

    def step(self, lr: float, clip: float | None) -> float:
        """One update from the accumulated gradients, which are then dropped; returns their norm before clipping.

        A norm that is not finite updates nothing.
        """
        if self._host:
            self._host.arrive()
        for name, p in self._parameters.items():
            if self._masters[name] is not p and not self._host:
                self._masters[name].grad = None if p.grad is None else p.grad.float()
        grads = [p.grad for p in self._masters.values() if p.grad is not None]
        norm = global_norm(grads)
        if not torch.isfinite(norm):  # the host waits for it once a step, here
            return float(norm)
        if clip is not None and grads:
            torch._foreach_mul_(grads, (clip / norm).clamp(max=1.0))
        for group in self._adam.param_groups:
            group["lr"] = lr
        self._adam.step()
        with torch.no_grad():
            for name, p in self._parameters.items():
                if self._masters[name] is not p:
                    p.copy_(self._masters[name])
                self._masters[name].grad = p.grad = None
        return float(norm)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Every tensor of the optimizer by kind and parameter name; made (as zeros) before the first step."""
        kinds: dict[str, dict[str, Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}, "step": {}, "master": {}}
        for name, p in self._masters.items():
            entry = self._adam.state[p]
            if not entry:
                entry["step"] = torch.zeros((), dtype=torch.float32, device=p.device)  # where a fused update has it
                entry["exp_avg"] = torch.zeros_like(p.detach())
                entry["exp_avg_sq"] = torch.zeros_like(p.detach())
            for kind in ("exp_avg", "exp_avg_sq", "step"):
                kinds[kind][name] = entry[kind]
            if p is not self._parameters[name]:
                kinds["master"][name] = p.detach()
        return kinds


def _master(parameter: nn.Parameter, host: torch.device | None) -> nn.Parameter:
    wide = torch.promote_types(parameter.dtype, torch.float32)
    if host is not None:
        return nn.Parameter(parameter.detach().to(host, wide, copy=True))
    return parameter if parameter.dtype == wide else nn.Parameter(parameter.detach().to(wide))


class _Host:
    """Gradients on their way to masters on `device`, each from when the backward pass has made it."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], masters: Mapping[str, nn.Parameter], device: torch.device
    ) -> None:
        self._masters, self._device = masters, device
        self._under_way: dict[str, tuple[Tensor, torch.cuda.Event | None]] = {}
        for name, parameter in parameters.items():
            parameter.register_post_accumulate_grad_hook(functools.partial(self._take, name))

    def _take(self, name: str, parameter: Tensor) -> None:
        grad, event = parameter.grad, None
        assert grad is not None
        self._add(name)  # of the row before
        copy = grad.to(self._device, non_blocking=True)
        if grad.device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
        self._under_way[name], parameter.grad = (copy, event), None

    def _add(self, name: str) -> None:
        if name not in self._under_way:
            return
        copy, event = self._under_way.pop(name)
        if event is not None:
            event.synchronize()
        master = self._masters[name]
        grad = copy.to(master.dtype)
        master.grad = grad if master.grad is None else master.grad.add_(grad)

    def arrive(self) -> None:
        """Wait for all gradients: they are the masters'."""
        for name in [*self._under_way]:
            self._add(name)


def global_norm(grads: list[Tensor]) -> Tensor:
    """The 2-norm over all gradients, sharded ones counted over all processes of their mesh."""
    norm = torch.nn.utils.get_total_norm(grads)
    return whole(norm).to(norm.device)
