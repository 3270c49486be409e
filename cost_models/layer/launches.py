"""What the host calls for a decoder layer, the loss and the update, in seconds: operators, attention, collectives.

    host_s = operators x operator_s + attention calls x attention_s + collectives x collective_s + messages x message_s
    a layer takes the longer of what its calls take the host and what their kernels take the device

Matters for short rows on many ranks, where a kernel ends before the next one is launched. The operators of a layer are
a fold of its table; the sums (42 forward, 78 backward) are counted in the executor's step under FSDP2 with
parameters in bf16 (`tests/executor/test_launches.py`), their split follows the code of a Llama layer of Hugging Face.
Views are part of what an operator takes. The loss and the update are counted by hand. Left out: the vision tower,
latent attention (counted as a dense layer), chunks of attention (as one call), and that the host may run layers ahead.
"""

from __future__ import annotations

from typing import NamedTuple

from cost_models.layer.decoder import operators
from cost_models.layer.recompute import policy
from cost_models.layer.sizes import RankSizes
from cost_models.layer.weights import adapted
from cost_models.number import Number, pick
from cost_models.timing.host import Host

TENSOR_EXCHANGES = 4
"""Of a layer one way: its input gathered and its output scattered, around attention and around the MLP."""
GATHER_OPERATORS, REDUCE_OPERATORS = 3, 3
"""Operators that FSDP2 calls around a collective. Gather: copied in, out to the parameters and their copies. Reduction:
chunked, divided, taken apart."""
ADDED_GRADIENTS = 9
"""Weights of a layer whose gradients a further microbatch adds to those before."""


EXCHANGE_CALLS, RING_CALLS, HOP_CALLS = (1, 7), (1, 2), (6, 8)
"""Operators around attention, forward and backward: of an exchange of heads, of a ring once, of each hop."""


LOSS_CALLS, CHUNK_CALLS = 30, 14
"""Of the last norm, the head and the loss with their gradients; of each further chunk of the loss."""
ROOT_TENSORS = 3
"""Embedding, head and last norm."""


class Calls(NamedTuple):
    """Of a layer one way, with what its policy runs again, without what sharding calls."""

    operators: Number  # without those of hops
    attentions: int  # without those of hops
    exchanges: Number
    hops: int  # operators of each hop


def layer_calls(sizes: RankSizes, recompute: str | None = None) -> Calls:
    """Backward under a policy; `None` means forward."""
    table, grad = operators(sizes), recompute is not None
    again = () if recompute is None else tuple(one for one in table if policy(recompute).host(one.name))
    called = sum(one.host[grad] for one in table) + sum(one.host[False] for one in again)
    exchanges = sum(one.name in ("heads", "heads back") for one in again)
    attends = sum(one.attends for one in again)
    ulysses, ring = sizes.degrees.ulysses > 1, sizes.degrees.ring > 1
    pieces = sizes.degrees.attention_head_chunks
    sent = pick(ulysses, 2 * EXCHANGE_CALLS[grad] + exchanges * EXCHANGE_CALLS[False], 0)
    ringed = pick(ring, RING_CALLS[grad] + attends * RING_CALLS[False], 0)
    return Calls(
        operators=called + pieces * (sent + ringed),
        attentions=pieces * (1 + attends),
        exchanges=pieces * pick(ulysses, 2 + exchanges, 0),
        hops=pieces * (HOP_CALLS[grad] + attends * HOP_CALLS[False]),
    )


def layer_host_s(sizes: RankSizes, host: Host | None, recompute: str | None = None) -> tuple[Number, Number]:
    """(seconds of a layer without its hops, seconds of each hop); backward under a policy; `None` means forward."""
    if host is None:
        return 0.0, 0.0
    degrees, calls, grad = sizes.degrees, layer_calls(sizes, recompute), recompute is not None
    count = calls.operators
    if grad:
        count = count + ADDED_GRADIENTS * (1 - 1 / degrees.microbatches)
    sharded, gathered = degrees.shard > 1, pick(degrees.zero == 3, 1, 0 if grad else 1)
    count = count + pick(sharded, GATHER_OPERATORS * gathered + (REDUCE_OPERATORS if grad else 0), 0)
    collectives = calls.exchanges + pick(sharded, gathered + (1 if grad else 0), 0)
    tensor = pick(degrees.tensor > 1, TENSOR_EXCHANGES, 0)
    gathered_ring = pick(degrees.ring > 1, 2 if grad else 1, 0) if degrees.ring_kind == "all_gather" else 0
    replicated = pick(degrees.replicate > 1, 1 / degrees.microbatches, 0) if grad else 0
    collectives = collectives + tensor + gathered_ring + replicated
    seconds = count * host.operator_s + calls.attentions * host.attention_s + collectives * host.collective_s
    sends = (2 if grad else 1) + calls.attentions - 1
    return seconds, calls.hops * host.operator_s + calls.attentions * host.attention_s + sends * host.send_s(messages=2)


def loss_host_s(sizes: RankSizes, chunks: Number) -> Number:
    """Seconds to launch the head and a loss of so many chunks, forward and backward."""
    host = sizes.framework.host
    return 0.0 if host is None else (LOSS_CALLS + CHUNK_CALLS * (chunks - 1)) * host.operator_s


def update_host_s(sizes: RankSizes) -> Number:
    """Seconds to launch the norm and the update of every tensor that trains on a rank (a LoRA's: two an adapter)."""
    host, work = sizes.framework.host, sizes.workload
    if host is None:
        return 0.0
    adapters = 2 * sum(len(adapted(sizes)[target]) for target in work.lora_targets) if work.lora_rank else 0
    tensors = (adapters or ADDED_GRADIENTS) * work.model.layers / sizes.degrees.pipeline + ROOT_TENSORS
    return tensors * sizes.framework.update_calls * host.operator_s
