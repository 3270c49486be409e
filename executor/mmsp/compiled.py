"""Decoder layers under torch.compile, cut at attention: no graph holds a collective.

    norm, q k v, rotary | attention "mm_sp", eager | output projection, sum, norm, gated MLP, sum

A layer's forward is compiled, not its call, so hooks of FSDP2 and recomputation stay outside, and layers of one kind
share their graphs (as torchtitan compiles block by block). What has a backward pass of its own (slices of the MLP,
chunks of the row, state-space mixers, a recomputed MLP) is cut out too, and what it calls is compiled by itself. The
number of tokens is a symbol: rows of any length run the same graphs. In training mode only. A kind of code is compiled
at most `KINDS` times (windows, kinds of layers); what goes beyond runs eager, with torch's warning.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from cost_models.errors import InputError

Run = Callable[..., Any]
BACKENDS = ("inductor", "aot_eager", "eager")
KINDS = 16


class Compiler:
    """Compiles functions by one of `BACKENDS`, each once; without one it hands them back."""

    def __init__(self, backend: str | None) -> None:
        if backend is not None and backend not in BACKENDS:
            raise InputError(f"compile={backend!r} is not one of {', '.join(BACKENDS)}")
        self.backend = backend
        self._made: dict[Run, Run] = {}

    def compiled(self, run: Run) -> Run:
        if self.backend is None:
            return run
        if run not in self._made:
            compile_it: Any = torch.compile
            self._made[run] = compile_it(run, backend=self.backend, dynamic=True, recompile_limit=KINDS)
        return self._made[run]

    def apart(self, run: Run) -> Run:
        """A function that no graph enters."""
        return run if self.backend is None else torch.compiler.disable(run)

    def layer(self, then: Run) -> Run:
        """What a `GradientCheckpointingLayer` hands its forward to: `then`, given that forward compiled."""

        def run(forward: functools.partial[Any], *args: Any) -> Any:
            inner = functools.partial(self.compiled(forward.func), *forward.args, **forward.keywords)
            return then(inner, *args)

        return then if self.backend is None else run
