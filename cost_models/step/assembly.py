"""A step as a program: vision, embedding exchange, layers forward, head and loss, layers backward, optimizer.

    train    microbatches x [vision · embed · layers forward · loss · layers backward · vision backward] · optimizer
    prefill  [vision · embed · layers forward · logits of the last token]
    decode   [embed · layers forward of one token against the sharded cache, merged by log-sum-exp · logits]

Weights are gathered and gradients reduced as `sharding.py` says. Left out: data loading and video decoding (host side).
"""

from __future__ import annotations

from cost_models.curves.samples import FORWARD_SHARE
from cost_models.errors import InputError
from cost_models.layer import decoder
from cost_models.layer.launches import layer_host_s
from cost_models.layer.recompute import policy
from cost_models.layer.sizes import RankSizes
from cost_models.layer.stages import at_stage, is_mixed, longest, runs
from cost_models.layer.weights import (
    expert_params,
    fetched_bytes,
    layer_params,
    returned_bytes,
    trained_expert_params,
    trained_layer_params,
)
from cost_models.number import Number, pick, somewhere
from cost_models.program import Exchange, Phase, Segment, StepProgram
from cost_models.step import vision
from cost_models.step.decoding import decode
from cost_models.step.overheads import copied, framework_time
from cost_models.step.root import embed, head, root_gradients
from cost_models.step.sharding import Weights, broadcast_by_owners, copied_bytes, gathered_params, sharded
from cost_models.step.update import update
from cost_models.strategy import LayerRange
from cost_models.timing.kernels import Kernels
from cost_models.timing.slowest import Memo
from cost_models.workload import DTYPE_BYTES


def step_program(sizes: RankSizes, kernels: Kernels, ranges: tuple[LayerRange, ...]) -> StepProgram:
    """The step for `ranges` of layers (all layers of the model; `stages.py` says which pipeline stage has which)."""
    model, stages, mode = sizes.workload.model, sizes.degrees.pipeline, sizes.workload.mode
    if mode != "train" and sizes.degrees.offload_states != "none":
        raise InputError(f"offload_states={sizes.degrees.offload_states} with mode={mode}; legal here: none")
    if mode == "decode" and sizes.degrees.attention_chunk_tokens is not None:
        raise InputError(f"attention_chunk_tokens={sizes.degrees.attention_chunk_tokens} with mode=decode; legal: none")
    if mode == "decode":
        if model.experts or model.latent:
            raise InputError(f"mode=decode is not priced for {model.name} (experts or latent attention); legal: train")
        return decode(sizes, kernels)
    layers = runs(sizes, ranges)
    forwards, backwards = Memo(), Memo()  # runs of equal layers are one segment
    forward = [
        forwards.recall(forward_segment, (sizes.of(run.kind), kernels, run.layers, run.part.offload, run.elsewhere))
        for run in layers
    ]
    segments = [*vision.forward(sizes, kernels), embed(sizes, kernels), *forward, head(sizes, kernels, ranges)]
    epilogue: tuple[Segment, ...] = ()
    if sizes.workload.mode == "train":
        for run in reversed(layers):
            part, here = run.part, sizes.of(run.kind)
            asked = (here, kernels, part.recompute, run.layers, part.offload, run.elsewhere)
            segments.append(backwards.recall(backward_segment, asked))
        segments += [*vision.backward(sizes, kernels), root_gradients(sizes, kernels)]
        last = at_stage(sizes, (LayerRange(count=model.layers),), stages - 1) if is_mixed(model) else sizes
        epilogue = (update(last, kernels),)
    if sizes.framework.owned_tensors and mode == "train" and sizes.degrees.zero < 2:
        segments, broadcasts = broadcast_by_owners(segments, sizes)
        epilogue = (*epilogue, *broadcasts)
    return StepProgram(
        microbatch=tuple(segments),
        epilogue=epilogue,
        microbatches=sizes.degrees.microbatches,
        pipeline=stages,
        virtual=sizes.degrees.virtual,
        longest=longest(sizes),
    )


def forward_segment(
    sizes: RankSizes, kernels: Kernels, repeat: Number, offload: str = "none", elsewhere: Number | None = None
) -> Segment:
    """`repeat` layers forward; other stages run `elsewhere` of them."""
    params, experts = layer_params(sizes), expert_params(sizes)
    weights = Weights(
        gathered=gathered_params(sizes, params, trained_layer_params(sizes)),
        gathered_experts=gathered_params(sizes, experts, trained_expert_params(sizes)),
    )
    cast = (params + experts) * sizes.framework.autocast_bytes + copied_bytes(sizes, weights)
    segment = Segment(
        name="layer forward",
        phases=_layer_phases(sizes, kernels, decoder.forward(sizes, kernels), FORWARD_SHARE, cast),
        repeat=repeat,
        elsewhere=elsewhere,
        offload_bytes=_offloaded(sizes, offload) + fetched_bytes(sizes, params, experts),
    )
    return _sent_beside(sharded(_of_layer(segment, sizes, kernels, None), sizes, kernels, weights), sizes)


def backward_segment(
    sizes: RankSizes,
    kernels: Kernels,
    recompute: str,
    repeat: Number,
    offload: str = "none",
    elsewhere: Number | None = None,
) -> Segment:
    """`repeat` layers backward, with what the policy runs again."""
    again, reduce = policy(recompute), DTYPE_BYTES[sizes.workload.precision.reduce]
    host_share = 1 - FORWARD_SHARE + (FORWARD_SHARE if again.keeps_input else 0.0)
    params, experts = layer_params(sizes), expert_params(sizes)
    trained, trained_experts = trained_layer_params(sizes), trained_expert_params(sizes)
    gathered = pick(sizes.degrees.zero == 3, 1, 0)
    weights = Weights(gathered * params, trained, gathered * experts, trained_experts)
    cast = (params + experts) * sizes.framework.autocast_bytes * again.passes
    added = (trained + trained_experts) * sizes.framework.accumulate_bytes
    moved = cast + added + copied_bytes(sizes, weights)
    returned = returned_bytes(sizes, trained * reduce, trained_experts * reduce)
    segment = Segment(
        name=f"layer backward {recompute}",
        phases=_layer_phases(sizes, kernels, decoder.backward(sizes, kernels, recompute), host_share, moved),
        repeat=repeat,
        elsewhere=elsewhere,
        from_host=True,
        offload_bytes=_offloaded(sizes, offload) + fetched_bytes(sizes, params, experts) + returned,
    )
    whole = sharded(_of_layer(segment, sizes, kernels, recompute), sizes, kernels, weights, passes=again.passes)
    return _sent_beside(whole, sizes)


def _layer_phases(
    sizes: RankSizes, kernels: Kernels, phases: tuple[Phase, ...], host_share: float, moved: Number
) -> tuple[Phase, ...]:
    """A layer's operators one way, what goes to the next stage, and a framework's copies."""
    sent = _waits_for_stages(sizes) if somewhere(sizes.degrees.pipeline > 1) and not _sends_beside(sizes) else ()
    return (*phases, *sent, framework_time(kernels, "framework_layer", host_share), *copied(kernels, moved))


def _sends_beside(sizes: RankSizes) -> bool:
    """Whether a chunk's result travels while the next chunk computes (Megatron-Core's overlap_p2p_comm)."""
    return sizes.framework.overlapped_sends and not somewhere(sizes.degrees.virtual == 1)


def _sent_beside(segment: Segment, sizes: RankSizes) -> Segment:
    """The layer's segment with what goes to the next stage on the sharding stream, whose cards it shares."""
    if not somewhere(sizes.degrees.pipeline > 1) or not _sends_beside(sizes):
        return segment
    last = None if segment.last is None else _sent_beside(segment.last, sizes)
    return segment._replace(sharding=(*segment.sharding, _to_next_stage(sizes)), last=last)


def _of_layer(segment: Segment, sizes: RankSizes, kernels: Kernels, recompute: str | None) -> Segment:
    """With the host's launches and what NCCL's overlap costs.

    A CPU process launches nothing: its profile was measured with exchanges, and has what no kernel explains.
    """
    segment = segment._replace(kind=sizes.layer_kind)
    if kernels.device.architecture == "cpu":
        return segment
    host_s, host_hop_s = layer_host_s(sizes, sizes.framework.host, recompute)
    return segment._replace(overlap_cost=sizes.framework.overlap_cost, host_s=host_s, host_hop_s=host_hop_s)


def _offloaded(sizes: RankSizes, offload: str) -> Number:
    """A layer's input (the residual stream) to host memory and back."""
    return sizes.tokens * sizes.workload.model.hidden * sizes.width if offload == "activations" else 0.0


def _waits_for_stages(sizes: RankSizes) -> tuple[Exchange, ...]:
    """What a stage sends; one between two others may also wait for as much that it gets."""
    sent = _to_next_stage(sizes)
    if not sizes.framework.blocking_sends:
        return (sent,)
    return sent, sent._replace(bytes=pick(sizes.degrees.pipeline > 2, sent.bytes, 0.0))


def _to_next_stage(sizes: RankSizes) -> Exchange:
    """Its share of a layer's boundary; a tensor rank sends its slice (Megatron-LM, arXiv 2104.04473, 4.1), or all."""
    framework = sizes.framework
    cut = 1 if framework.sends_whole and not framework.sequence_parallel else sizes.degrees.tensor
    moved = sizes.tokens * sizes.workload.model.hidden * sizes.width / cut
    layers = sizes.workload.model.layers / (sizes.degrees.pipeline * sizes.degrees.virtual)
    return Exchange(part="pipeline", axis="pipeline", op="send", bytes=moved / layers)
