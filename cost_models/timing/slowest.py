"""Several devices, or several kinds of link, that wait for each other: for each call the slowest (or fastest).

Ranks of one context group get equal shares and meet at every exchange, so a step runs at the pace of the slowest device
and of the slowest link among those in use, by operation, shape and group size. Boards of one kind differ too (`pace`).
A step asks for the same products and exchanges over and over: each distinct call, by value of its arguments, is
computed once (`Memo`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, reduce
from statistics import NormalDist
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from cost_models.curves.samples import Sample
from cost_models.hardware.device import Device
from cost_models.number import Number, larger, smaller
from cost_models.timing.collectives import Collectives
from cost_models.timing.kernels import Kernels

T = TypeVar("T")
MOST_CALLS = 50_000
"""Beyond so many answers all are forgotten at once."""
NOTHING: Mapping[str, object] = MappingProxyType({})
BOARD_SPREAD = 0.08 / (2 * 2.698)
"""Standard deviation of the time that boards of one kind take for one piece of work. They vary by 8% on average over
five clusters (arXiv 2208.11035, abstract), read as between whiskers, which lie 2.698 deviations off a normal median."""
Argument = Number | str | bool | None
Choice = Callable[[Number, Number], Number]


def pace(devices: Iterable[Device], boards: Number) -> Number:
    """Seconds of the slowest of so many boards over the median board's, whose kernels were measured.

    The mean of the largest of n normal values is about the quantile (n - 0.375) / (n + 0.25) of one (Blom). CPU
    processes are profiled where they run.

    >>> [round(pace([Device.load("h200-sxm-141gb")], boards), 3) for boards in (1, 8, 64, 1024)]
    [1.0, 1.021, 1.035, 1.048]
    """
    if all(device.architecture == "cpu" for device in devices):
        return 1.0
    if not isinstance(boards, np.ndarray):
        return _pace(int(boards))
    values, where = np.unique(boards, return_inverse=True)
    return np.array([_pace(int(value)) for value in values])[where.reshape(boards.shape)]


@cache
def _pace(boards: int) -> float:
    return 1.0 + BOARD_SPREAD * max(NormalDist().inv_cdf((boards - 0.375) / (boards + 0.25)), 0.0)


class Memo:
    """
    >>> memo = Memo()
    >>> [memo.recall(max, (2, 3)) for _ in range(2)], len(memo.known)
    ([3, 3], 1)
    """

    def __init__(self) -> None:
        self.known: dict[Hashable, Any] = {}

    def recall(self, call: Callable[..., T], args: tuple[object, ...], kwargs: Mapping[str, object] = NOTHING) -> T:
        """`call(*args, **kwargs)`, remembered by the arguments; one memo holds the answers of one `call`."""
        key: Hashable = (args, *kwargs.items())
        try:
            answer = self.known.get(key)
        except TypeError:  # arrays cannot be hashed
            key = (tuple(map(_key, args)), *((word, _key(value)) for word, value in kwargs.items()))
            answer = self.known.get(key)
        if answer is None:
            if len(self.known) >= MOST_CALLS:
                self.known.clear()
            answer = self.known[key] = call(*args, **kwargs)
        remembered: T = answer
        return remembered


def _key(value: object) -> Hashable:
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.char, value.tobytes()
    return value


def _decides(device: Device, other: Device, choose: Choice) -> bool:
    """Whether `other` is the same card at another clock, and `device` the one that is taken at every call.

    At a lower clock no kernel is faster, so of one card at many clocks the lowest one (or the highest) is asked alone.
    """
    if device.clock_hz is None or other.clock_hz is None or device.clock_hz == other.clock_hz:
        return False
    at = {"clock_hz": other.clock_hz, "peak_flops": other.peak_flops, "sustained_flops": other.sustained_flops}
    if choose not in (larger, smaller) or replace(device, **at) != other:  # type: ignore[arg-type]
        return False
    return device.clock_hz < other.clock_hz if choose is larger else device.clock_hz > other.clock_hz


class KernelsInUse(Kernels):
    """The calls of `Kernels`, each answered once, by what `choose` takes of several devices."""

    def __init__(self, each: Sequence[Kernels], choose: Choice = larger) -> None:
        self.each, self.choose, self.memo = tuple(each), choose, Memo()
        slowest = min(self.each, key=lambda kernels: kernels.device.peak_16bit)
        self.device, self.scans = slowest.device, slowest.scans

    @classmethod
    def of_devices(
        cls,
        devices: Iterable[Device],
        samples: Sequence[Sample] = (),
        choose: Choice = larger,
        attention: str = "newest",
    ) -> KernelsInUse:
        """`attention`: the kernel of training, as `Kernels.of` has it."""
        known: list[Device] = []
        for device in devices:
            if device not in known:
                known.append(device)
        each: list[Kernels] = []
        for device in known:
            if not any(_decides(other, device, choose) for other in known):
                each.append(Kernels.of(device, samples, attention=attention))
        made = cls(each, choose)
        made.device = min(known, key=lambda device: device.peak_16bit)
        return made

    @classmethod
    def afresh(cls, kernels: Kernels) -> KernelsInUse:
        """The same kernels with nothing remembered: for arrays, which are not asked for again."""
        return cls(kernels.each, kernels.choose) if isinstance(kernels, KernelsInUse) else cls([kernels])

    def _chosen(self, name: str, *args: object, **kwargs: object) -> Number:
        answers: list[Number] = [getattr(kernels, name)(*args, **kwargs) for kernels in self.each]
        return answers[0] if len(answers) == 1 else reduce(self.choose, answers)

    def gemm_s(self, *args: Argument, **kwargs: Argument) -> Number:
        return self.memo.recall(self._chosen, ("gemm_s", *args), kwargs)

    def grouped_s(self, groups: Number, *args: Argument, **kwargs: Argument) -> Number:
        if isinstance(groups, int) and groups == 1:
            return self.gemm_s(*args, **kwargs)
        return self.memo.recall(self._chosen, ("grouped_s", groups, *args), kwargs)

    def attention_s(self, *args: Argument, **kwargs: Argument) -> Number:
        return self.memo.recall(self._chosen, ("attention_s", *args), kwargs)

    def memory_bound_s(self, bytes_moved: Number, launches: Number = 1) -> Number:
        return self._chosen("memory_bound_s", bytes_moved, launches)

    @property
    def measured(self) -> Kernels:
        first = self.each[0]
        return self if first.measured is first else first.measured

    def framework_s(self, unit: str) -> float:
        return float(self._chosen("framework_s", unit))

    @property
    def attention_kernel(self) -> str:
        return ", ".join(dict.fromkeys(kernels.attention_kernel for kernels in self.each))

    def source(self, op: str) -> str:
        return "; ".join(dict.fromkeys(kernels.source(op) for kernels in self.each))

    def is_estimate(self, op: str) -> bool:
        return any(kernels.is_estimate(op) for kernels in self.each)


class LinksInUse(Collectives):
    """The calls of `Collectives`, each answered by what `choose` takes of several kinds of link."""

    def __init__(self, each: Sequence[Collectives], choose: Choice = larger) -> None:
        slowest = min(each, key=lambda one: one.link.bytes_per_s)
        super().__init__(slowest.name, slowest.link)
        self.each, self.choose = tuple(each), choose

    @classmethod
    def of_links(cls, each: Iterable[Collectives], choose: Choice = larger) -> Collectives:
        """One of equal links, else several."""
        different = list({(one.name, one.link): one for one in each}.values())
        return different[0] if len(different) == 1 else cls(different, choose)

    def intra_s(self, op: str, ranks: int, bytes_per_rank: Number) -> Number:
        return reduce(self.choose, (one.intra_s(op, ranks, bytes_per_rank) for one in self.each))

    @property
    def many_channels(self) -> bool:
        return (any if self.choose is larger else all)(one.many_channels for one in self.each)

    def source(self, op: str) -> str:
        return "; ".join(dict.fromkeys(one.source(op) for one in self.each))

    def is_estimate(self, op: str, ranks: int = 2) -> bool:
        return any(one.is_estimate(op, ranks) for one in self.each)
