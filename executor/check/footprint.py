"""Bytes of every tensor storage that is alive, by what made it, with the peak: on real or fake tensors.

    storage -> (bytes, label)     label = the phase that was on when it was first seen; relabelled by `mark`
    freed storages are forgotten by a weak reference; FSDP's resized ones (to 0 and back) are followed

Every storage is also played on PyTorch's allocator (`allocator`).

A TorchDispatchMode: enter it around a step. Wrapped tensors (DTensor) count by what they hold. Leaves out the
allocator's rounding and the buffers of libraries, which the plan names as estimates.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from cost_models.framework import OURS
from executor.check.allocator import Allocator, Block


class Footprint(TorchDispatchMode):
    """`live` is the bytes now, `peak` the same at the moment when the total was largest since `reset_peak`.

    Labels in `apart` are counted, but not in the total: the peak is that of everything else.
    """

    def __init__(self, phase: str, apart: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.allocator = Allocator(expandable=OURS.expandable_segments)
        self._blocks: dict[int, Block] = {}
        self.phase, self._apart = phase, apart
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._total = self._peak_total = 0
        self._known: dict[int, tuple[weakref.ref[Any], int, str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.mark(leaf, None)
        return result

    def mark(self, tensor: Tensor, label: str | None) -> None:
        """Count a tensor's storages. A label replaces the one that they had."""
        for plain in _plain(tensor):
            storage = plain.untyped_storage()
            known = self._known.get(id(storage))
            if known is None or known[0]() is not storage:
                self._add(storage, label or self.phase)
            elif label is not None and known[2] != label:
                self._forget(id(storage))
                self._add(storage, label)

    def reset_peak(self) -> None:
        self._peak_total, self.peak = self._total, Counter(self.live)

    def _add(self, storage: torch.UntypedStorage, label: str) -> None:
        key = id(storage)
        # A storage that dies takes its entry along, unless the entry is another's by then.
        reference = weakref.ref(storage, lambda gone: self._gone(key, gone))
        self._known[key] = (reference, storage.nbytes(), label)
        self._count(label, storage.nbytes())
        if key not in self._blocks:  # else a storage that has a new label
            self._blocks[key] = self.allocator.allocate(storage.nbytes())

    def _gone(self, key: int, reference: weakref.ref[Any]) -> None:
        if key in self._known and self._known[key][0] is reference:
            self._forget(key)
            self.allocator.release(self._blocks.pop(key))

    def _forget(self, key: int) -> None:
        _, count, label = self._known.pop(key)
        self._count(label, -count)

    def _count(self, label: str, change: int) -> None:
        self.live[label] += change
        if label in self._apart:
            return
        self._total += change
        if self._total > self._peak_total:
            self._peak_total, self.peak = self._total, Counter(self.live)

    def _resized(self, storage: torch.UntypedStorage) -> None:
        known = self._known.get(id(storage))
        if known is not None and known[0]() is storage:
            _, count, label = known
            self._known[id(storage)] = (known[0], storage.nbytes(), label)
            self._count(label, storage.nbytes() - count)
            self.allocator.release(self._blocks.pop(id(storage)))
            self._blocks[id(storage)] = self.allocator.allocate(storage.nbytes())

    @contextmanager
    def following_resizes(self) -> Iterator[None]:
        """Also count resizes of storages: FSDP frees and refills gathered weights so, and no dispatch sees it."""
        original: Callable[..., Any] = torch.UntypedStorage.resize_

        def resize_(storage: torch.UntypedStorage, size: int) -> Any:
            result = original(storage, size)
            self._resized(storage)
            return result

        torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            torch.UntypedStorage.resize_ = original  # type: ignore[method-assign]


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that hold memory inside a wrapped one."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            if isinstance(inner := getattr(tensor, name), Tensor):
                yield from _plain(inner)
    else:
        yield tensor
