"""What the host calls for one decoder layer of this project's executor, in seconds: operators, attention, collectives.

    host_s = operators x operator_s + attention calls x attention_s + collectives x collective_s + messages x message_s
    a layer takes the longer of what its calls take the host and what their kernels take the device

Matters for short rows on many ranks, where a kernel ends before the next one is launched. Counted in the executor's
own step (`tests/executor/test_launches.py` counts again): operators that launch a kernel, in a Llama layer of Hugging
Face under FSDP2 with parameters in bf16; views are part of what an operator takes. Left out: the vision tower, the
loss, the update, experts and latent attention (counted as a dense layer), chunks of attention (as one call), and that
the host may run layers ahead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cost_models.either import pick
from cost_models.step.mlp import slice_tokens
from cost_models.step.shape import Shape
from cost_models.timing.host import Host

TENSOR_EXCHANGES = 4
"""Of a layer one way: its input gathered and its output scattered, around attention and around the MLP."""
GATHER_OPERATORS, REDUCE_OPERATORS = 3, 3
"""FSDP2 beside a collective: copied in, out to the parameters and their copies; chunked, divided, taken apart."""


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Of one layer, one way. Fields are counts; `exchange` with its all-to-alls, `ring` once, `hop` for each hop."""

    layer: int
    exchange: int
    ring: int
    hop: int

    def operators(self, ulysses: Any, ring: Any) -> Any:
        """Without what a hop adds.

        >>> FORWARD.operators(ulysses=2, ring=4)
        45
        """
        return self.layer + pick(ulysses > 1, self.exchange, 0) + pick(ring > 1, self.ring, 0)


FORWARD = Calls(layer=42, exchange=2, ring=1, hop=6)
BACKWARD = Calls(layer=78, exchange=14, ring=2, hop=8)
AGAIN = {
    "none": Calls(layer=0, exchange=0, ring=0, hop=0),
    "mlp": Calls(layer=4, exchange=0, ring=0, hop=0),
    "all_but_attention": Calls(layer=38, exchange=2, ring=0, hop=0),
    "core_attention": Calls(layer=0, exchange=0, ring=1, hop=6),
    "full": Calls(layer=40, exchange=2, ring=1, hop=6),
}
"""What a recompute policy runs again in the backward pass."""
ADDED_GRADIENTS = 9
"""Weights of a layer whose gradients a further microbatch adds to those before."""
SLICE_FORWARD, SLICE_BACKWARD = 5, 19
"""Operators of an MLP for each slice of its tokens: gate, up, activation, product, down. Backward: the same again,
twice as many gradients, three weights' gradients and the input's added up. From the code that `mlp.py` names."""
MLP_AGAIN, MLP_BACKWARD = 4, 10
"""Of a whole MLP, in the counts above."""
RUNS_ATTENTION = ("full", "core_attention")
RUNS_EXCHANGE = {"none": 0, "mlp": 0, "core_attention": 0, "all_but_attention": 2, "full": 2}


def layer_host_s(shape: Shape, host: Host | None, recompute: str | None = None) -> tuple[Any, Any]:
    """(seconds of a layer without its hops, seconds of each hop); backward under a policy, or forward (none given)."""
    if host is None:
        return 0.0, 0.0
    degrees = shape.degrees
    grad, again = recompute is not None, AGAIN[recompute or "none"]
    calls = BACKWARD if grad else FORWARD
    operators = calls.operators(degrees.ulysses, degrees.ring) + again.operators(degrees.ulysses, degrees.ring)
    if grad:
        operators = operators + ADDED_GRADIENTS * (1 - 1 / degrees.microbatches)
    if degrees.mlp_chunk_tokens is not None:
        operators = operators + _sliced_operators(shape, recompute)
    attention = 1 + (recompute in RUNS_ATTENTION)
    exchanges = pick(degrees.ulysses > 1, 2 + RUNS_EXCHANGE[recompute or "none"], 0)
    sharded, gathered = degrees.shard > 1, pick(degrees.zero == 3, 1, 0 if grad else 1)
    operators = operators + pick(sharded, GATHER_OPERATORS * gathered + (REDUCE_OPERATORS if grad else 0), 0)
    collectives = exchanges + pick(sharded, gathered + (1 if grad else 0), 0)
    tensor = pick(degrees.tensor > 1, TENSOR_EXCHANGES, 0)
    gathered_ring = pick(degrees.ring > 1, 2 if grad else 1, 0) if degrees.ring_kind == "all_gather" else 0
    replicated = pick(degrees.replicate > 1, 1 / degrees.microbatches, 0) if grad else 0
    collectives = collectives + tensor + gathered_ring + replicated
    seconds = operators * host.operator_s + attention * host.attention_s + collectives * host.collective_s
    hop = calls.hop * host.operator_s + host.attention_s + (2 if grad else 1) * host.send_s(messages=2)
    if recompute in RUNS_ATTENTION:
        hop = hop + again.hop * host.operator_s + host.attention_s + host.send_s(messages=2)
    return seconds, hop


def _sliced_operators(shape: Shape, recompute: str | None) -> Any:
    """What an MLP in slices calls beyond a whole one; the slices themselves compute again what policies would."""
    slices = shape.tokens / slice_tokens(shape)
    forward = (slices - 1) * SLICE_FORWARD + 1
    if recompute is None:
        return forward
    again = {"full": forward, "mlp": -MLP_AGAIN, "all_but_attention": -MLP_AGAIN}.get(recompute, 0)
    return slices * SLICE_BACKWARD - MLP_BACKWARD + again
