"""The communication that the algorithms of this package need; they take an `Exchange` and know no process group.

    all_to_all   rows to every member, counts may differ        ulysses heads, embeddings
    transfer     buffers to and from members, if any            keys, values and their gradients in a ring
    all_gather   equal buffers from everybody, stacked          decoding

A transfer is started, then waited for; computation between the two is overlapped with it. Members must call the same
methods in the same order; what one sends another takes. `GroupExchange` is a process group (gloo, NCCL). A group of
one sends nothing.

gloo's sender waits for the receiver's word that its buffer is there, and on a pair's one connection that word stands in
line behind what the receiver itself sends: the two directions take turns, twice the time where the wire decides. So
receives are started before sends. gloo's own all-to-all and all-gather start each send first; transfers take their
place on gloo.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Pending(Protocol):
    """A transfer that is in flight."""

    def wait(self) -> list[Tensor]:
        """Return the received buffers, in order; sent ones may be reused from then on."""


Transfers = Sequence[tuple[int, Tensor]]
"""(member, contiguous buffer): what to send there, or to fill from there; at most one for each member."""


class Exchange(Protocol):
    """The members of one group, seen from one of them."""

    @property
    def size(self) -> int: ...

    @property
    def index(self) -> int: ...

    def all_to_all(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """Rows (sum(send), …), ordered by member, in exchange for (sum(receive), …), ordered by member."""

    def start_transfer(self, send: Transfers, receive: Transfers) -> Pending:
        """Send buffers to members and fill others from members."""

    def all_gather(self, buffer: Tensor) -> Tensor:
        """Stack the buffers of all members in member order: (size, *buffer.shape)."""


@dataclass(frozen=True, kw_only=True)
class Alone:
    """A group of one."""

    size: int = 1
    index: int = 0

    def all_to_all(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        return rows

    def start_transfer(self, send: Transfers, receive: Transfers) -> Pending:
        return _InFlight((), send, receive)

    def all_gather(self, buffer: Tensor) -> Tensor:
        return buffer.unsqueeze(0)


@dataclass
class LastTransfer:
    """The transfer that this process started last: torch keeps a record of collectives, of gloo's transfers none."""

    what: str = "none"
    group: dist.ProcessGroup | None = None
    at_ns: int = 0  # of the system's clock, as in torch's record


LAST = LastTransfer()


@dataclass(frozen=True, kw_only=True)
class GroupExchange:
    """An exchange over a process group; `ranks` are the global ranks of its members, in the plan's order."""

    group: dist.ProcessGroup
    ranks: tuple[int, ...]
    index: int

    @property
    def size(self) -> int:
        return len(self.ranks)

    def all_to_all(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        received = rows.new_empty((sum(receive), *rows.shape[1:]))
        if dist.get_backend(self.group) != "gloo":
            dist.all_to_all_single(received, rows.contiguous(), list(receive), list(send), group=self.group)
            return received
        parts, places = rows.contiguous().split(list(send)), received.split(list(receive))
        # Members begin with their next one, so that not all send to the same.
        others = [(self.index + step) % self.size for step in range(1, self.size)]
        pending = self._start(
            "all_to_all",
            [(member, parts[member]) for member in others if send[member]],
            [(member, places[member]) for member in reversed(others) if receive[member]],
        )
        places[self.index].copy_(parts[self.index])
        pending.wait()
        return received

    def start_transfer(self, send: Transfers, receive: Transfers) -> Pending:
        return self._start("transfer", send, receive)

    def _start(self, what: str, send: Transfers, receive: Transfers) -> Pending:
        LAST.what, LAST.group, LAST.at_ns = what, self.group, time.time_ns()
        operations = [dist.P2POp(dist.irecv, buffer, self.ranks[by], group=self.group) for by, buffer in receive]
        operations += [dist.P2POp(dist.isend, buffer, self.ranks[to], group=self.group) for to, buffer in send]
        works = dist.batch_isend_irecv(operations) if operations else []
        return _InFlight(tuple(works), send, receive)

    def all_gather(self, buffer: Tensor) -> Tensor:
        gathered = buffer.new_empty((self.size, *buffer.shape))
        if dist.get_backend(self.group) != "gloo":
            dist.all_gather_single(gathered.flatten(0, 1), buffer.contiguous(), group=self.group)
            return gathered
        # In the order in which they go around: the own one, then those of the members before.
        places = [gathered[(self.index - step) % self.size] for step in range(self.size)]
        after, before = (self.index + 1) % self.size, (self.index - 1) % self.size
        coming = [self._start("all_gather", [], [(before, place)]) for place in places[1:]]
        places[0].copy_(buffer.detach())
        going = []
        for place, following in zip(places, coming, strict=False):
            going.append(self._start("all_gather", [(after, place)], []))
            following.wait()
        for sent in going:
            sent.wait()
        return gathered


@dataclass(frozen=True)
class _InFlight:
    works: tuple[dist.Work, ...]
    sent: Transfers  # kept alive until they are sent
    received: Transfers

    def wait(self) -> list[Tensor]:
        for work in self.works:
            work.wait()
        return [buffer for _, buffer in self.received]


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: Exchange, send: tuple[int, ...], receive: tuple[int, ...]) -> Tensor:
        ctx.exchange, ctx.send, ctx.receive = exchange, send, receive
        return exchange.all_to_all(rows, send, receive)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.exchange.all_to_all(grad.contiguous(), ctx.receive, ctx.send), None, None, None


def all_to_all(rows: Tensor, exchange: Exchange, send: Sequence[int], receive: Sequence[int]) -> Tensor:
    """`exchange.all_to_all` with its gradient: the same exchange backwards. Either all members need it or none."""
    return _AllToAll.apply(rows, exchange, tuple(send), tuple(receive))
