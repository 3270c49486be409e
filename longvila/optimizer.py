"""AdamW with warm-up, schedule, clipping, and float32 masters for half-precision parameters.

    gradients --float32--> global norm --clip--> AdamW on masters --round--> parameters

Bytes per parameter in bf16: 2 weight + 2 gradient + 4 master + 8 moments (16); in float32: 4 + 4 + 8 (16).
Matrices decay, norms and biases do not. All state lives under the parameter's name, as plain or sharded tensors, so
a checkpoint can be read under another sharding. Parameters in host memory are updated by the CPU.
Leaves out other optimizers.
"""

from __future__ import annotations

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
        self, parameters: Mapping[str, nn.Parameter], *, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        self._parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        self._masters = {
            name: p if p.dtype in (torch.float32, torch.float64) else nn.Parameter(p.detach().float())
            for name, p in self._parameters.items()
        }
        decay = [p for p in self._masters.values() if p.ndim >= 2]
        rest = [p for p in self._masters.values() if p.ndim < 2]
        groups = [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self._adam = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, eps=eps, fused=True)

    def step(self, lr: float, clip: float | None) -> float:
        """One update from the accumulated gradients, which are then dropped; returns their norm before clipping.

        A norm that is not finite updates nothing.
        """
        for name, p in self._parameters.items():
            if self._masters[name] is not p:
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


def global_norm(grads: list[Tensor]) -> Tensor:
    """The 2-norm over all gradients, sharded ones counted over all processes of their mesh."""
    norm = torch.nn.utils.get_total_norm(grads)
    return whole(norm).to(norm.device)
