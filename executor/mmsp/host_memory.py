"""What a forward pass saves for its backward pass, in host memory: the inputs of checkpointed layers.

    forward    layer i computes        its input goes down on a stream of its own
    backward   layer i computes        the input of layer i - 1 comes up on that stream

Tensors come back in the opposite order of their going. On a GPU copies are pinned and concurrent with computation; a
tensor's memory is free once its copy is done, and one tensor ahead is on its way up. On a CPU both memories are one.
Pinned memory is taken in pieces, since PyTorch rounds each up to a power of two. Leaves out: that it keeps freed ones.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

PIECE_BYTES = 2**28


class _Saved:
    """One tensor's copy in pieces, with the tensor again once it is on its way up."""

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.device, self.pinned = tensor.shape, tensor.device, tensor.device.type == "cuda"
        values = tensor.detach().reshape(-1).split(max(1, PIECE_BYTES // tensor.element_size()))
        self.pieces = [torch.empty(one.shape, dtype=one.dtype, pin_memory=self.pinned) for one in values]
        for piece, one in zip(self.pieces, values, strict=True):
            piece.copy_(one, non_blocking=self.pinned)
        self.back: Tensor | None = None

    def fetch(self) -> None:
        """Start the way up, if that was not done."""
        if self.back is None:
            values = torch.empty(self.shape, dtype=self.pieces[0].dtype, device=self.device)
            parts = values.view(-1).split([piece.numel() for piece in self.pieces])
            for part, piece in zip(parts, self.pieces, strict=True):
                part.copy_(piece, non_blocking=self.pinned)
            self.back = values


class HostMemory:
    """One for all layers of a model. `on_copy` hears of every copy: whoever counts memory asks."""

    def __init__(self) -> None:
        self.on_copy: Callable[[Tensor], None] = lambda copy: None
        self._waiting: list[_Saved] = []
        self._stream: Any = None

    def saved_there(self) -> AbstractContextManager[None]:
        """Within it, what autograd saves goes to the host."""
        return torch.autograd.graph.saved_tensors_hooks(self._down, self._up)

    def _down(self, tensor: Tensor) -> Tensor | _Saved:
        if not tensor.numel():
            return tensor
        if tensor.device.type == "cuda":
            stream = self._beside(tensor.device)
            stream.wait_stream(torch.cuda.current_stream(tensor.device))
            with torch.cuda.stream(stream):
                saved = _Saved(tensor)
            tensor.record_stream(stream)
        else:
            saved = _Saved(tensor)
        for piece in saved.pieces:
            self.on_copy(piece)
        self._waiting.append(saved)
        return saved

    def _up(self, saved: Tensor | _Saved) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        self._fetch(saved)
        back, saved.back = saved.back, None
        assert back is not None
        if saved.pinned:
            current = torch.cuda.current_stream(saved.device)
            current.wait_stream(self._beside(saved.device))
            back.record_stream(current)
        if saved in self._waiting:
            del self._waiting[self._waiting.index(saved) :]
        if self._waiting and saved.pinned:
            self._fetch(self._waiting[-1])
        return back

    def _fetch(self, saved: _Saved) -> None:
        if not saved.pinned:
            saved.fetch()
            return
        with torch.cuda.stream(self._beside(saved.device)):
            saved.fetch()

    def _beside(self, device: torch.device) -> Any:
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        return self._stream
