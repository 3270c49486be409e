"""The batches of the steps to come, each made by a thread while the model computes the one before it.

    thread:  rows of step t+1, its first batch decoded    |    step:  forward, backward, update of step t

Reading, tokenizing, indexing and decoding stand in no step's way: a step waits only where they take longer than it. One
batch is held beside the one in use. A fault comes in the turn of the batch that it is of.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from longvila.dataset import Cursor, Row, Rows, most_frames, replica_rows
from longvila.sharding import Batch, Sharding

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A row of this replica, with what belongs to its step."""

    batch: Batch
    rows: list[Row]  # of the step, over all replicas
    labels: int  # their label tokens
    cursor: Cursor  # where the next step goes on
    host_s: float  # this process's CPU time to read, decode and make it


def turns(
    rows: Rows, cursor: Cursor, steps: int, rows_per_step: int, sharding: Sharding, make: Callable[[Row, int], Batch]
) -> Iterator[Turn]:
    """This replica's rows of `steps` steps; `make` takes a row and the most frames that any replica has then."""
    for _ in range(steps):
        began_s = time.thread_time()
        taken, cursor = rows.step(cursor, rows_per_step)
        labels = sum(row.label_tokens for row in taken)
        here = replica_rows(taken, sharding.data_index, sharding.data_count)
        for row, most in zip(here, most_frames(taken, sharding.data_count), strict=True):
            batch = make(row, most)
            host_s = time.thread_time() - began_s
            yield Turn(batch=batch, rows=taken, labels=labels, cursor=cursor, host_s=host_s)
            began_s = time.thread_time()


def ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The items, each made while the one before it is in use.

    >>> list(ahead(iter("abc")))
    ['a', 'b', 'c']
    """
    with ThreadPoolExecutor(1) as thread:
        pending = thread.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = thread.submit(next, items, None)
            yield item
