"""Pins that cannot stand together, and pins of what a model has not: each refused by its own values.

    zero=0, shard=8      nothing is sharded, over 8 ranks
    zero=2, offload_states=all      the sharded weights wait in host memory, so they are freed after each use
    attention_chunk_tokens, ring=2      chunks of the row lie on ulysses alone
    schedule=interleaved, pipeline=1    no stage to interleave

Pins are of `--fix` and `--strategy`. Left out: what a cluster, a batch or a target does not allow (`space`, `target`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cost_models.errors import InputError
from cost_models.models.model import Model
from cost_models.strategy import check_sharded


def check_together(pins: Mapping[str, Any], model: Model) -> None:
    """InputError for the first two that exclude each other."""
    zero, ring = pins.get("zero"), pins.get("ring", 1)
    check_sharded(3 if zero is None else zero, pins.get("shard", 1))
    if pins.get("offload_states") == "all" and zero not in (None, 3):
        raise InputError(f"offload_states=all with zero={zero}; legal: zero=3, or offload_states none, optimizer")
    if pins.get("attention_chunk_tokens") is not None and ring > 1:
        raise InputError(f"attention_chunk_tokens with ring={ring}; legal: ring=1")
    if pins.get("schedule") == "interleaved" and pins.get("pipeline", 1) == 1:
        raise InputError("schedule=interleaved with pipeline=1; legal: pipeline of at least 2, or schedule=1f1b")
    for name in ("ssd", "ssd_pass"):
        if name in pins and model.ssd is None:
            raise InputError(f"{name}={pins[name]}, but {model.name} has no state-space layers; legal: leave it out")
