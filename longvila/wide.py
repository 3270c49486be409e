"""Float64 models that compute in float64 throughout, so that two ways of splitting one run can be told apart.

Hugging Face's RMSNorms compute in float32 whatever they are given. Sums in another order move a float64 number by
1e-16 of itself, and now and then that moves its float32 rounding by 6e-8: enough for training to go another way after
a few hundred steps. Here a norm's `.to(float32)` leaves a float64 tensor as it is. Rotary tables stay float32: they
depend on positions alone, so every split has the same ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def keep_float64(model: nn.Module) -> None:
    """Change the model's norms so that they compute in float64 on float64 inputs."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(_in_float64, module.forward)


def _in_float64(forward: Callable[..., Tensor], *given: Tensor) -> Tensor:
    with _Float64Stays():
        return forward(*given)


class _Float64Stays(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        narrows = func is Tensor.float or (func is Tensor.to and torch.float32 in (*args[1:], kwargs.get("dtype")))
        return args[0] if narrows and args[0].dtype == torch.float64 else func(*args, **kwargs)
