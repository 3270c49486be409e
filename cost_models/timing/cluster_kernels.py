"""Kernel times on several devices that wait for each other: for every call the slowest (in a bound the fastest).

Ranks of one context group get equal shares and meet at every exchange, so a step runs at the pace of the slowest
device among those in use. With one device this is that device's `Kernels` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

from cost_models.curves.samples import Sample
from cost_models.either import larger
from cost_models.hardware.device import Device
from cost_models.timing.kernels import FA2_ARCHITECTURES, Kernels


class SeveralKernels(Kernels):
    """The same calls as `Kernels`; each takes the slowest of several devices, or their fastest."""

    def __init__(self, each: Sequence[Kernels], choose: Callable[[Any, Any], Any] = larger) -> None:
        self.each, self.choose = tuple(each), choose
        self.device = min(self.each, key=lambda kernels: kernels.device.peak_16bit).device

    def _chosen(self, call: Callable[[Kernels], Any]) -> Any:
        return reduce(self.choose, (call(kernels) for kernels in self.each))

    def gemm_s(self, *args: Any, **kwargs: Any) -> Any:
        return self._chosen(lambda kernels: kernels.gemm_s(*args, **kwargs))

    def grouped_s(self, *args: Any, **kwargs: Any) -> Any:
        return self._chosen(lambda kernels: kernels.grouped_s(*args, **kwargs))

    def attention_s(self, *args: Any, **kwargs: Any) -> Any:
        return self._chosen(lambda kernels: kernels.attention_s(*args, **kwargs))

    def memory_bound_s(self, bytes_moved: Any, launches: Any = 1) -> Any:
        return self._chosen(lambda kernels: kernels.memory_bound_s(bytes_moved, launches))

    def framework_s(self, unit: str) -> float:
        return float(self._chosen(lambda kernels: kernels.framework_s(unit)))

    def source(self, op: str) -> str:
        return "; ".join(dict.fromkeys(kernels.source(op) for kernels in self.each))

    def is_estimate(self, op: str) -> bool:
        return any(kernels.is_estimate(op) for kernels in self.each)


def kernels_of(
    devices: Iterable[Device],
    samples: Sequence[Sample] = (),
    choose: Callable[[Any, Any], Any] = larger,
    attention: str = "newest",
) -> Kernels:
    """Kernels of one device, or of the slowest of several (or what else `choose` takes of two times).

    `attention` is "fa2" for FlashAttention-2, which counts on the architectures where it was measured.
    """
    each: list[Kernels] = []
    for device in devices:
        if all(device != known.device for known in each):
            kernel = attention if device.architecture in FA2_ARCHITECTURES else "newest"
            each.append(Kernels.of(device, samples, attention=kernel))
    return each[0] if len(each) == 1 else SeveralKernels(each, choose)
