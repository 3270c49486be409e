"""Where requests wait and answers come back: between the HTTP server's thread and the loop that runs the model.

    server: submit -> Ticket (or Full) · its events · cancel          loop: next -> what to begin and drop · report

At most `waiting` asks wait, at most `slots` are at work; a cancelled one leaves the queue at once and its slot before
the next step. Thread-safe; events reach a ticket in the event loop of its request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from threading import Condition

from executor.serve.requests import Ask


class Full(Exception):
    """As many asks wait as may."""


@dataclass(frozen=True, kw_only=True)
class Begun:
    """The prompt has been read; its first token is next."""

    prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class Token:
    token: int
    end: str = ""  # "stop": the token is the model's stop; "length": the last that was asked for


@dataclass(frozen=True, kw_only=True)
class Refused:
    """The prompt cannot be answered: too long, or a video that cannot be decoded."""

    message: str


Told = Begun | Token | Refused


@dataclass(eq=False, kw_only=True)
class Ticket:
    key: int
    ask: Ask
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Told] = field(default_factory=asyncio.Queue)
    came_s: float = field(default_factory=time.monotonic)

    def tell(self, told: Told) -> None:
        """From the model's thread; a request whose loop has ended is not missed."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.events.put_nowait, told)


class Desk:
    """The asks of one server."""

    def __init__(self, *, slots: int, waiting: int) -> None:
        self._slots, self._most_waiting = slots, waiting
        self._keys = count()
        self._waiting: list[Ticket] = []
        self._working: dict[int, Ticket] = {}
        self._dropped: list[int] = []
        self._changed = Condition()
        self._stopped = False

    @property
    def counts(self) -> tuple[int, int]:
        """(waiting, at work)."""
        with self._changed:
            return len(self._waiting), len(self._working)

    def submit(self, ask: Ask, loop: asyncio.AbstractEventLoop) -> Ticket:
        with self._changed:
            free = self._slots - len(self._working)
            if len(self._waiting) >= self._most_waiting + max(free, 0):
                raise Full
            ticket = Ticket(key=next(self._keys), ask=ask, loop=loop)
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for the answer any more; nothing happens if it has ended."""
        with self._changed:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            elif self._working.pop(ticket.key, None) is not None:
                self._dropped.append(ticket.key)

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def next(self, patience_s: float) -> tuple[list[Ticket], list[int], bool]:
        """What to begin, what to drop, whether to stop; waits up to `patience_s` if there is nothing at work."""
        with self._changed:
            if not (self._waiting or self._working or self._dropped or self._stopped):
                self._changed.wait(patience_s)
            begin = self._waiting[: max(0, self._slots - len(self._working))]
            del self._waiting[: len(begin)]
            self._working.update((ticket.key, ticket) for ticket in begin)
            dropped, self._dropped = self._dropped, []
            return begin, dropped, self._stopped

    def report(self, told: Sequence[tuple[int, Told]]) -> None:
        """Hand out what happened; answers that ended leave their slot."""
        with self._changed:
            for key, event in told:
                ended = isinstance(event, Refused) or (isinstance(event, Token) and event.end)
                ticket = self._working.pop(key, None) if ended else self._working.get(key)
                if ticket is not None:
                    ticket.tell(event)
