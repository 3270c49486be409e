"""A training row in the standard columns of `measurements/README.md`, as a case.

    gpu, gpu_mem_gb, gpus_per_node, n_gpus, intra_bw, inter_bw      -> cluster (`machines.py`)
    layers, hidden, ffn, heads, kv_heads, vocab (or a preset's name) -> model; head_dim, gated, tied, qk_norm if unlike
    tp, pp, vpp, cp_ring, ulysses, ep, zero_stage, sharding, recompute, offload, micro_batch, global_batch -> strategy
    iter_s, or tokens_s_total, tokens_s_gpu, tflops_gpu, mfu_pct    -> measured seconds       peak_mem_gb -> bytes

The framework is named by its column, else found by its name in the row's source; without one the row is priced as this
project's own executor. `other` may name what changes it: eager, attention unfused, parameters in bf16, gradients in 16
bits, chunked loss N, LoRA r=N. What words mean is in `words.py`; what the columns cannot say is refused with the
reason. Every file is read alike, whatever its name.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cache
from typing import Literal

from cost_models.errors import InputError
from cost_models.framework import Framework
from cost_models.models.model import LayerKind, Model
from cost_models.strategy import Strategy
from cost_models.workload import LORA_TARGETS, Precision, Workload
from validation import words
from validation.cases import Case, Refused
from validation.machines import cluster_of
from validation.rows import Row

_FRAMEWORKS = {
    "openpipe/art": "art",
    "torch context parallelism": "torch-context-parallel",
    "torchtitan": "torchtitan",
    "llm-foundry": "composer-pure",
    "composer": "composer-pure",
    "internevo": "internevo",
    "megatron-deepspeed": "megatron-deepspeed",
    "easycontext": "easycontext",
    "deepspeed": "deepspeed",
    "flagscale": "flagscale",
    "megatron-core 0.6": "megatron-core-2024",
    "megatron-bridge": "megatron-recipes",
    "nemo": "megatron-recipes",
    "megatron": "megatron-te",
    "simumax": "megatron-te",
    "fms-fsdp": "fms-fsdp",
    "modalities": "modalities",
    "lit-gpt": "lit-gpt",
    "paddlenlp": "paddlenlp",
}
"""By the first name that the row's source, sharding or remarks contain."""
_UNREADABLE = {
    "maxtext": "XLA chooses MaxText's fusions and schedule: no file describes it",
    "dtensor": "tensor parallelism by DTensor: what its dispatch costs the host is not modelled",
}
"""Names of frameworks whose rows are refused, with the reason."""
EAGER_SCORES = (20, 28)
"""Bytes per score of attention written out in Hugging Face's layers (eager_attention_forward), beside its products:
scaled (r2 w2), masked (r2 w2), softmax in fp32 (r2 w4) and cast (r4 w2); backward cast (r2 w4), softmax (r4 r4 w4),
cast (r4 w2), scaled (r2 w2). Baichuan's own, with a mask of each head and torch.max, has 18 and 32."""
PURE_BF16 = Precision(master="bf16", grad="bf16", reduce="bf16", optimizer="bf16")
"""A model loaded in bf16 and given to AdamW as it is: no fp32 copy of anything."""
NARROW = {
    ("megatron-recipes", "fp8"): "megatron-fp8", ("ours", "fp8"): "megatron-fp8",
    ("megatron-recipes", "fp4"): "megatron-fp4", ("ours", "fp4"): "megatron-fp4",
    ("composer-pure", "fp8"): "composer-fp8",
}  # fmt: skip
"""The file of the same code with its layers' products in 8 or 4 bits, where there is one."""
LORA_RANK = 16
"""Where a row does not say: between peft's 8 and NeMo's 32; it moves the time by less than 1%."""


def case_of(row: Row) -> Case | Refused:
    """The row as a case. Raises InputError (or refuses) for what its columns cannot say."""
    if row.cell("untimed") and row.score != "no":
        return Refused(row=row, reason=row.cell("untimed"))
    case = untimed_case(row)
    if isinstance(case, Refused):
        return case
    seconds = seconds_of(row, case.workload, row.count("n_gpus"), case.cluster.runs[0].node.device.peak_16bit)
    return replace(case, measured_s=seconds)


def untimed_case(row: Row) -> Case | Refused:
    """The same without its time, which a row that only fitted or ran out does not have."""
    if row.score == "no":
        return Refused(row=row, reason="configuration incomplete in the source: never scored")
    named = " ".join(row.cell(name) for name in ("source_repo", "source_id", "other")).lower()
    for name, reason in _UNREADABLE.items():
        if name in named:
            return Refused(row=row, reason=reason)
    framework, model, cluster = framework_of(row), model_of(row), cluster_of(row)
    strategy = strategy_of(row, model)
    work = workload_of(row, model, strategy, framework)
    default = f"{cluster.gpus} GPUs, {model.name}, {work.context_tokens} tokens, batch {work.global_batch}"
    return Case(
        row=row,
        cluster=cluster,
        workload=work,
        strategy=strategy,
        framework=framework,
        measured_s=math.nan,
        sweep=row.cells.get("sweep", default),
    )


def framework_of(row: Row) -> Framework:
    """Whose code ran, with what the remarks say of it; this project's executor if no known name is there."""
    remarks = " ".join(row.cell(name) for name in ("source_repo", "source_id", "sharding", "other")).lower()
    name = row.cell("framework") or next((file for word, file in _FRAMEWORKS.items() if word in remarks), "ours")
    if not row.cell("framework") and name == "deepspeed" and "hugging face" in remarks:
        name = "deepspeed-hugging-face"
    elif not row.cell("framework") and name == "torchtitan" and "eager" in remarks:
        name = "torchtitan-eager"
    found = Framework.load(name)
    if "attention unfused" in remarks:
        apart = EAGER_SCORES if found.norm == "unfused" else (None, None)
        found = replace(found, attention="unfused", score_bytes=apart[0], score_gradient_bytes=apart[1])
    if "alibi" in remarks:
        found = replace(found, rotary="none")
    parallel = words.sharding(row.cell("sharding")).sequence_parallel
    if parallel is not None:
        found = replace(found, sequence_parallel=parallel)
    if found.copies_exchanged and "asynchronous tensor parallelism" in remarks:  # its kernels write where it belongs
        found = replace(found, copies_exchanged=False)
    if "parameters in bf16" in remarks:
        found = replace(found, precision=PURE_BF16)
    products = words.dtype(row.cell("precision"), row.cell("other"))
    if products == "fp16":
        found = replace(found, precision=replace(found.precision, param="fp16"))
    if "gradients in 16 bits" in remarks:
        found = replace(found, precision=replace(found.precision, grad=found.precision.param))
    return in_narrow(found, products) if products in ("fp8", "fp4") and not found.product_dtype else found


def in_narrow(framework: Framework, dtype: Literal["fp8", "fp4"]) -> Framework:
    """The same code with its layers' products in 8 or 4 bits.

    >>> in_narrow(Framework.load("torchtitan"), "fp8").product_dtype
    'fp8'
    >>> in_narrow(Framework.load("megatron-recipes"), "fp4").name
    'megatron-fp4'
    """
    if (framework.name, dtype) in NARROW and framework == Framework.load(framework.name):
        return Framework.load(NARROW[framework.name, dtype])
    return replace(framework, title=f"{framework.title}, products in {dtype}", product_dtype=dtype)


@cache
def _mixtures() -> tuple[Model, ...]:
    return tuple(model for model in map(Model.load, Model.presets()) if model.experts is not None)


def mixture_of(row: Row) -> Model | None:
    """The preset with experts that the row's model names, cut to the row's layers where it states fewer.

    >>> mixture_of(Row(file="", number="", score="yes", cells={"model": "Qwen3_30B_a3B", "layers": ""})).layers
    48
    """
    name = re.sub(r"[^a-z0-9]", "", row.text("model").lower())
    named = [model for model in _mixtures() if re.sub(r"[^a-z0-9]", "", model.name) in name]
    if not named:
        return None
    model = max(named, key=lambda one: len(one.name))
    layers, dense = row.count("layers", model.layers), row.optional("dense_layers")
    kinds: tuple[LayerKind, ...] = model.layer_kinds[:layers]
    if dense is not None:
        kinds = tuple("attention" if layer < dense else "experts" for layer in range(layers))
    for column in ("hidden", "heads"):
        if row.optional(column) not in (None, getattr(model, column)):
            raise InputError(f"{column}={row.text(column)} is not that of {model.name}: {getattr(model, column)}")
    name = model.name if layers == model.layers else row.text("model")
    return replace(model, name=name, layers=layers, layer_kinds=kinds)


def model_of(row: Row) -> Model:
    """From the shape columns; mixtures and blank shapes are looked up among the presets by the model's name."""
    mixture = mixture_of(row)
    if mixture is not None:
        return mixture
    of_experts = any(row.cell(name) for name in row.cells if words.EXPERTS.search(name))
    if words.is_mixture(row.text("model")) or row.degree("ep") > 1 or of_experts:
        raise InputError("the experts' shape has no standard column, and the model's name is no preset's")
    if not row.cell("layers"):
        name = row.text("model").lower().replace("_", "-")
        if name in Model.presets():
            return Model.load(name)
        raise InputError(f"layers is blank and model={name!r} is no preset")
    hidden, heads = row.count("hidden"), row.count("heads")
    ffn = row.count("ffn", 4 * hidden)
    gated = said(row, "gated", ffn != 4 * hidden)
    return Model(
        name=row.text("model"),
        layers=row.count("layers"),
        hidden=hidden,
        ffn=ffn,
        heads=heads,
        kv_heads=row.optional("kv_heads") or heads,
        head_dim=row.optional("head_dim") or hidden // heads,
        vocab=row.optional("vocab") or 32000,
        gated=gated,
        tied_embeddings=said(row, "tied", not gated),
        qk_norm=said(row, "qk_norm", False),
    )


def strategy_of(row: Row, model: Model) -> Strategy:
    """The layout that a row states. InputError names the cell."""
    tensor, stages, virtual = row.degree("tp"), row.degree("pp"), row.degree("vpp")
    ring, ulysses = row.degree("cp_ring"), row.degree("ulysses")
    gpus, replica = row.count("n_gpus"), tensor * stages * ring * ulysses
    if gpus % replica:
        raise InputError(f"{row.file} row {row.number}: {gpus} GPUs are no multiple of the {replica} of one replica")
    data = gpus // replica
    sharding = words.sharding(row.cell("sharding"))
    zero = row.count("zero_stage", least=0) if row.cell("zero_stage") else sharding.zero or 0
    most = data * ring * ulysses
    group = min(row.count("gpus_per_node", 8), most) if sharding.in_node else sharding.group or most
    kept, states, chunks = words.offload(row.cell("offload"))
    attention_chunk = row.optional("attention_chunk_tokens")
    if chunks and attention_chunk is None:
        raise InputError(f"offload={row.cell('offload')!r} needs the tokens of a chunk: attention_chunk_tokens")
    return Strategy(
        data=data, tensor=tensor, pipeline=stages, virtual=virtual, ring=ring, ulysses=ulysses, zero=zero,
        schedule="interleaved" if virtual > 1 else "1f1b", shard=group if zero else 1,
        microbatches=_microbatches(row, data, stages), loss_chunk_tokens=_loss_chunk(row, replica),
        layers=words.layer_ranges(row.cell("recompute"), model.layers, kept), expert=row.degree("ep"),
        offload_states=states, mlp_chunk_tokens=row.optional("mlp_chunk_tokens"),
        attention_chunk_tokens=attention_chunk,
    )  # fmt: skip


def _microbatches(row: Row, data: int, stages: int) -> int:
    """From the batch; where none is printed, from `grad_accum`, else one, which a pipeline's time cannot stand on."""
    rows, batch, printed = row.degree("micro_batch"), row.optional("global_batch"), row.optional("grad_accum")
    if batch is None:
        if printed is None and stages > 1:
            raise InputError("global_batch is blank: a pipeline's time hangs on how many microbatches fill it")
        return printed or 1
    if batch % (data * rows):
        raise InputError(f"{row.file} row {row.number}: batch {batch} over {data} replicas in microbatches of {rows}")
    return batch // data // rows


def workload_of(row: Row, model: Model, strategy: Strategy, framework: Framework) -> Workload:
    """The work that a row states. InputError names the cell."""
    batch = strategy.data * strategy.microbatches * row.degree("micro_batch")
    rank = lora_rank_of(row)
    targets = framework.lora_targets if rank else LORA_TARGETS
    if row.cell("lora_targets"):
        targets = tuple(row.cell("lora_targets").split())  # type: ignore[arg-type]
    return Workload(
        model, context_tokens=row.count("seq_len"), global_batch=batch, precision=framework.precision,
        lengths=words.lengths(row.cell("lengths")), lora_rank=rank, lora_targets=targets,
    )  # fmt: skip


def lora_rank_of(row: Row) -> int:
    """Rank of the adapters from its column or the remarks; 0 without adapters, LORA_RANK where it is not said.

    They are taken to stand where the framework's recipes have them, unless `lora_targets` names some.
    """
    if row.cell("lora_rank"):
        return row.count("lora_rank", least=0)
    rank = words.lora_rank(" ".join(row.cell(name) for name in ("other", "sharding", "notes")))
    return LORA_RANK if rank is None else rank


def seconds_of(row: Row, work: Workload, gpus: int, peak: float) -> float:
    """Measured seconds of a step. Utilisation counts 6 FLOP a weight and 12 L h s of attention, as PaLM does."""
    tokens = work.global_batch * work.context_tokens
    if row.cell("iter_s"):
        return row.positive("iter_s")
    if row.cell("tokens_s_total"):
        return tokens / row.positive("tokens_s_total")
    if row.cell("tokens_s_gpu"):
        return tokens / (row.positive("tokens_s_gpu") * gpus)
    model = work.model
    weights = model.layers * model.layer_matmul_params + model.vocab * model.hidden
    flops = tokens * (6.0 * weights + 12.0 * model.layers * model.heads * model.head_dim * work.context_tokens)
    if row.cell("tflops_gpu"):
        return flops / (row.positive("tflops_gpu") * 1e12 * gpus)
    if row.cell("mfu_pct"):
        return flops / (row.positive("mfu_pct") / 100 * peak * gpus)
    raise InputError("no step time, rate or utilisation is printed")


def _loss_chunk(row: Row, ranks: int) -> int | None:
    """Tokens of a rank whose logits exist at one time: "chunked loss 8" cuts them in 8; None: all at once."""
    if row.cell("loss_chunk_tokens"):
        return row.count("loss_chunk_tokens")
    cut = re.search(r"chunked loss(?: (\d+))?", row.cell("other").lower())
    if not cut:
        return None
    tokens = row.count("seq_len") * row.degree("micro_batch") // ranks
    if cut[1] and int(cut[1]) < 1:
        raise InputError(f"{row.file} row {row.number}: chunked loss {cut[1]}; it must be cut in at least 1")
    return max(tokens // int(cut[1]), 1) if cut[1] else Strategy().loss_chunk_tokens


def said(row: Row, name: str, otherwise: bool) -> bool:
    """A yes or no of a column that may be blank or absent."""
    text = row.cell(name).lower()
    if text not in ("", "yes", "no"):
        raise InputError(f"{row.file} row {row.number}: {name}={text!r}; legal: yes, no, or blank")
    return otherwise if not text else text == "yes"
