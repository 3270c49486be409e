"""How many weights a rank holds and trains before sharding, and what of them moves.

    layer       one layer of the sizes' kind; experts that are spread over `expert` ranks are counted apart
    root        embedding, final norm and output head
    stage       the layers of one pipeline stage, with what of root and tower lies there

Numbers of weights unless a name says bytes; arrays over candidates as in `sizes.py`. Left out: how ZeRO divides them
(`memory/states.py`) and when they are gathered (`step/sharding.py`).
"""

from __future__ import annotations

from cost_models.layer.sizes import RankSizes, once_for_each
from cost_models.number import Number, larger, pick
from cost_models.workload import DTYPE_BYTES, LoraTarget

Maps = tuple[tuple[Number, Number], ...]
"""(columns out, columns in) of linear maps."""


@once_for_each
def linears(sizes: RankSizes) -> dict[LoraTarget, Maps]:
    """A dense layer's linear maps on one rank."""
    return _maps(sizes, sizes.framework.joined_products)


@once_for_each
def adapted(sizes: RankSizes) -> dict[LoraTarget, Maps]:
    """The same of what each adapter is added to."""
    return _maps(sizes, sizes.framework.joined_products and not sizes.framework.adapters_apart)


def _maps(sizes: RankSizes, joined: bool) -> dict[LoraTarget, Maps]:
    hidden, ups = sizes.workload.model.hidden, 2 if sizes.workload.model.gated else 1
    qkv: Maps = ((sizes.q_width, hidden), (sizes.kv_width, hidden), (sizes.kv_width, hidden))
    up: Maps = ((sizes.ffn, hidden),) * ups
    if joined:
        qkv, up = ((sizes.q_width + 2 * sizes.kv_width, hidden),), ((ups * sizes.ffn, hidden),)
    return {"qkv": qkv, "out": ((hidden, sizes.out_width),), "up": up, "down": ((hidden, sizes.ffn),)}


@once_for_each
def layer_params(sizes: RankSizes) -> Number:
    """Weights of one layer on one rank, without those in `expert_params`."""
    model, tensor = sizes.workload.model, sizes.degrees.tensor
    if sizes.parts.mixer == "ssd":  # priced without tensor parallelism (`Strategy.check`)
        return model.ssd_layer_params + (adapter_params(sizes) if sizes.workload.lora_rank else 0)
    if sizes.experts is None and model.latent is None:
        params = model.layer_matmul_params // tensor + model.layer_small_params + model.mlp_bias_params
        return params + adapter_params(sizes) if sizes.workload.lora_rank else params
    mlp = (3 if model.gated else 2) * model.hidden * model.ffn // tensor
    if sizes.experts is not None:
        shared = sizes.experts.shared_params(model.hidden, model.gated) // tensor
        mlp = shared + sizes.experts.router_params(model.hidden)
        undivided = sizes.experts.matmul_params(model.hidden, model.gated) // tensor
        mlp = mlp + pick(sizes.degrees.expert == 1, undivided, 0)
    attention = model.attention_params // tensor
    if model.latent is not None:  # what is the same for all heads is on every tensor rank
        down = model.hidden * model.latent.down_params_per_hidden
        attention = down + model.heads // tensor * model.latent.head_params(model.hidden)
    return attention + mlp + model.layer_small_params


@once_for_each
def expert_params(sizes: RankSizes) -> Number:
    """Weights of the experts that one rank holds of a layer, where they are spread over `expert` ranks."""
    if sizes.experts is None:
        return 0
    model = sizes.workload.model
    held = sizes.experts.matmul_params(model.hidden, model.gated) // sizes.degrees.expert
    return pick(sizes.degrees.expert == 1, 0, held)


def unit_params(sizes: RankSizes) -> Number:
    """Weights of one layer that FSDP has: without experts that are apart."""
    return layer_params(sizes) + pick(experts_apart(sizes), 0, expert_params(sizes))


def experts_apart(sizes: RankSizes) -> Number | bool:
    """Whether a rank's experts are its alone, and out of FSDP."""
    return sizes.degrees.expert_shard == 1 if sizes.framework.experts_apart else False


@once_for_each
def adapter_params(sizes: RankSizes) -> Number:
    """Weights of one layer's low-rank adapters; where a state stands for attention, of its MLP's alone."""
    work = sizes.workload
    targets = [one for one in work.lora_targets if sizes.parts.mixer != "ssd" or one in ("up", "down")]
    pairs = [pair for target, several in adapted(sizes).items() if target in targets for pair in several]
    return work.lora_rank * sum(out + inside for out, inside in pairs)


@once_for_each
def root_params(sizes: RankSizes) -> Number:
    """Weights of embedding, final norm and output head."""
    model = sizes.workload.model
    return (model.embedding_params + model.head_params) // sizes.degrees.tensor + model.hidden


@once_for_each
def trained_layer_params(sizes: RankSizes) -> Number:
    """Those of `layer_params` that have gradients."""
    if sizes.workload.lora_rank:
        model = sizes.workload.model
        small = model.norms * model.hidden if sizes.parts.mixer == "ssd" else model.layer_small_params
        return adapter_params(sizes) + (small if "norms" in sizes.workload.lora_beside else 0)
    return layer_params(sizes) if sizes.trains("llm") else 0


@once_for_each
def trained_expert_params(sizes: RankSizes) -> Number:
    """Those of `expert_params` that have gradients."""
    return expert_params(sizes) if sizes.trains("llm") else 0


@once_for_each
def trained_root_params(sizes: RankSizes) -> Number:
    """Those of `root_params` that have gradients."""
    model, beside = sizes.workload.model, sizes.workload.lora_beside
    if sizes.workload.lora_rank:
        embedding = model.embedding_params // sizes.degrees.tensor if "embeddings" in beside else 0
        return embedding + (model.hidden if "norms" in beside else 0)
    return root_params(sizes) if sizes.trains("llm") else 0


def stage_root_params(sizes: RankSizes) -> Number:
    """Of `root_params` those of a stage: with a pipeline embedding and head lie in its first and last one."""
    model = sizes.workload.model
    if sizes.stage is not None:
        tensor, both = sizes.degrees.tensor, (sizes.stage.first, sizes.stage.last)
        held = model.embedding_params * max(both[0], both[1] and model.tied_embeddings) + model.head_params * both[1]
        return held // tensor + model.hidden * both[1]
    apart = min(model.embedding_params, model.head_params) // sizes.degrees.tensor
    return root_params(sizes) - pick(sizes.degrees.pipeline > 1, apart, 0)


def stage_params(sizes: RankSizes) -> Number:
    """Weights of a stage, without spread experts."""
    return sizes.stage_total(layer_params) + stage_root_params(sizes) + sizes.workload.model.vision_params


def trained_params(sizes: RankSizes) -> Number:
    """Weights that have gradients, over all pipeline stages, without spread experts."""
    model = sizes.workload.model
    layers = model.layers * trained_layer_params(sizes)
    if sizes.stage is not None:
        layers = sizes.stage_total(trained_layer_params) * sizes.degrees.pipeline
    total: Number = layers + trained_root_params(sizes)
    if model.vision is not None:
        total = total + (model.vision.tower_params if sizes.trains("tower") else 0)
        total = total + (model.vision.projector_params(model.hidden) if sizes.trains("projector") else 0)
    return total


@once_for_each
def _gradients_pass(sizes: RankSizes) -> Number:
    """Whether a gradient exists before its reduction. Else it is added at once to the resident one (below ZeRO-2,
    unless the host has them, or units are gathered, and so reduced, one by one)."""
    return sizes.framework.gathers_units or sizes.degrees.zero >= (2 if sizes.degrees.offload_states == "none" else 0)


@once_for_each
def gradient_bytes(sizes: RankSizes) -> Number:
    """Bytes per weight of a gradient before its reduction."""
    return pick(_gradients_pass(sizes), sizes.width, 0)


@once_for_each
def reduced_bytes(sizes: RankSizes) -> Number:
    """Bytes per weight of the copy that is reduced."""
    return pick(_gradients_pass(sizes), DTYPE_BYTES[sizes.workload.precision.reduce], 0)


def reducing_bytes(sizes: RankSizes) -> Number:
    """Bytes per weight of a unit while its gradients are reduced: as made and copied; or, where units are gathered, the
    copy and the result, and over one shard the copy divided (torch's foreach_reduce)."""
    reduced, shard = reduced_bytes(sizes), sizes.degrees.shard
    made: Number = gradient_bytes(sizes) + reduced
    if not sizes.framework.gathers_units:
        return made
    return larger(made, reduced * (1 + 1 / shard + pick(shard > 1, 0, 1)))


def fetched_bytes(sizes: RankSizes, weights: Number, of_experts: Number = 0.0) -> Number:
    """From host memory before a gather: a rank's part of the weights, where all states are there (ZeRO-Offload, arXiv
    2101.06840). `weights` are shared by the shard group."""
    if sizes.degrees.offload_states != "all":
        return 0.0
    precision = sizes.workload.precision
    width = DTYPE_BYTES[precision.master if sizes.framework.fetches_master else precision.param]
    return (weights / sizes.degrees.shard + of_experts / sizes.degrees.expert_shard) * width


def returned_bytes(sizes: RankSizes, gradient: Number, of_experts: Number = 0.0) -> Number:
    """To host memory after a reduction: a rank's part of the gradients (without ZeRO all of them), where the optimizer
    is there. `gradient` bytes before the reduction."""
    if sizes.degrees.offload_states == "none":
        return 0.0
    parts, expert_parts = (
        pick(sizes.degrees.zero >= 1, size, 1) for size in (sizes.degrees.shard, sizes.degrees.expert_shard)
    )
    return gradient / parts + of_experts / expert_parts
