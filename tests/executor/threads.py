"""An `Exchange` between threads of one process: the attention runs on many members without a process group."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from executor.mmsp.exchange import Pending, Transfers


@dataclass(frozen=True, kw_only=True)
class LocalExchange:
    """Between threads of one process; `boxes[sender][receiver]` holds what is in flight."""

    boxes: Sequence[Sequence[queue.SimpleQueue[Tensor]]] = field(repr=False)
    index: int
    timeout_s: float = 240.0  # of a deadlock: on a machine with much else to do a thread may wait long for its turn

    @property
    def size(self) -> int:
        return len(self.boxes)

    def all_to_all(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        for member, piece in enumerate(rows.split(list(send))):
            self.boxes[self.index][member].put(piece.clone())
        received = torch.cat([self._take(member) for member in range(self.size)])
        assert received.shape[0] == sum(receive)
        return received

    def start_transfer(self, send: Transfers, receive: Transfers) -> Pending:
        for member, buffer in send:
            self.boxes[self.index][member].put(buffer.clone())
        return _InBox(self, receive)

    def all_gather(self, buffer: Tensor) -> Tensor:
        for member in range(self.size):
            self.boxes[self.index][member].put(buffer.clone())
        return torch.stack([self._take(member) for member in range(self.size)])

    def _take(self, sender: int) -> Tensor:
        return self.boxes[sender][self.index].get(timeout=self.timeout_s)


@dataclass(frozen=True)
class _InBox:
    exchange: LocalExchange
    receive: Transfers

    def wait(self) -> list[Tensor]:
        for member, buffer in self.receive:
            buffer.copy_(self.exchange._take(member))
        return [buffer for _, buffer in self.receive]


def local_exchanges(size: int) -> list[LocalExchange]:
    """A group of `size` threads, one exchange for each."""
    boxes: list[list[queue.SimpleQueue[Tensor]]] = [[queue.SimpleQueue() for _ in range(size)] for _ in range(size)]
    return [LocalExchange(boxes=boxes, index=index) for index in range(size)]
