"""A training row of any file in the standard columns of `measurements/README.md`: nobody wrote a reader for it.

    gpu, gpu_mem_gb, gpus_per_node, n_gpus, intra_bw, inter_bw      -> the nearest preset (`machines.py`)
    layers, hidden, ffn, heads, kv_heads, vocab (or a preset's name) -> model; head_dim, gated, tied where they differ
    tp, pp, vpp, cp_ring, ulysses, dp, zero_stage, sharding, recompute, micro_batch, global_batch -> strategy
    iter_s, or tokens_s_gpu, tokens_s_total, mfu_pct, tflops_gpu    -> measured seconds       peak_mem_gb -> bytes

The framework is found by its name in the row's source; without one the row is priced as this project's own executor.
`other` may name what changes its habits: eager, attention unfused, parameters in bf16, chunked loss N, LoRA r=N.
What the columns cannot say is refused with the reason.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Literal

from cost_models.errors import InputError
from cost_models.models.model import Model
from cost_models.strategy import LayerRange, Recompute, Strategy
from cost_models.workload import Workload
from validation import frameworks as fw
from validation.cases import GIB, Case, Refused, offload_states_of
from validation.frameworks import Framework
from validation.machines import cluster_of
from validation.rows import Row

_FRAMEWORKS: tuple[tuple[str, Framework], ...] = (
    ("torchtitan", fw.TORCHTITAN),
    ("llm-foundry", fw.COMPOSER_PURE),
    ("composer", fw.COMPOSER_PURE),
    ("internevo", fw.INTERNEVO),
    ("megatron-deepspeed", fw.MEGATRON_DEEPSPEED),
    ("easycontext", fw.EASYCONTEXT),
    ("deepspeed", fw.DEEPSPEED),
    ("megatron-bridge", fw.MEGATRON_RECIPES),
    ("nemo", fw.MEGATRON_RECIPES),
    ("megatron", fw.MEGATRON_TE),
    ("simumax", fw.MEGATRON_TE),
    ("fms-fsdp", fw.FMS_FSDP),
    ("modalities", fw.MODALITIES),
    ("lit-gpt", fw.LIT_GPT),
    ("paddlenlp", fw.PADDLENLP),
)
"""By the first name that the row's source, sharding or remarks contain."""
_UNREADABLE = {
    "maxtext": "XLA chooses MaxText's fusions and schedule: no habits are known for it",
    "dtensor": "tensor parallelism by DTensor: what its dispatch costs the host is not modelled",
}
"""Names of frameworks whose rows are refused, with the reason."""
_EIGHT_BIT = ("fp8", "mxfp8", "nvfp4", "fp4", "int8")


_ON_THE_HOST = ("activations", "optimizer", "param", "none")
"""Words of `offload`: what a layer keeps, the optimizer's states, or those and the parameters, are in host memory."""


def standard_case(row: Row) -> Case | Refused:
    """The row as a case. Raises InputError (or refuses) for what its columns cannot say."""
    case = untimed_case(row)
    if isinstance(case, Refused):
        return case
    seconds = seconds_of(row, case.workload, row.count("n_gpus"), case.cluster.runs[0].node.device.peak_16bit)
    return replace(case, measured_s=seconds)


def untimed_case(row: Row) -> Case | Refused:
    """The same without its time, which a row that only fitted or ran out does not have."""
    if row.score == "no":
        return Refused(row=row, reason="configuration incomplete in the source: never scored")
    if _cell(row, "offload") and not any(word in _cell(row, "offload").lower() for word in _ON_THE_HOST):
        return Refused(row=row, reason=f"offload is none of the words: {', '.join(_ON_THE_HOST)}")
    if _degree(row, "ep") > 1 and mixture_of(row) is None:
        return Refused(row=row, reason="expert parallel: the experts' shape has no standard column and is no preset's")
    named = " ".join(_cell(row, name) for name in ("source_repo", "source_id", "other")).lower()
    for name, reason in _UNREADABLE.items():
        if name in named:
            return Refused(row=row, reason=reason)
    framework, model, cluster = framework_of(row), model_of(row), cluster_of(row)
    strategy = strategy_of(row, model)
    work = workload_of(row, model, strategy, framework)
    gpus = row.count("n_gpus")
    return Case(
        row=row,
        cluster=cluster,
        workload=work,
        strategy=strategy,
        framework=framework,
        measured_s=math.nan,
        measured_bytes=row.positive("peak_mem_gb") * GIB if _cell(row, "peak_mem_gb") else None,
        sweep=f"{gpus} GPUs, {model.name}, {work.context_tokens} tokens, batch {work.global_batch}",
    )


def framework_of(row: Row) -> Framework:
    """Whose code ran, by name, with what the remarks say of it; this project's habits if no known name is there."""
    words = " ".join(_cell(row, name) for name in ("source_repo", "source_id", "sharding", "other")).lower()
    found = next((framework for name, framework in _FRAMEWORKS if name in words), fw.UNNAMED)
    if found is fw.DEEPSPEED and "hugging face" in words:
        found = fw.DEEPSPEED_HUGGING_FACE
    if found is fw.TORCHTITAN and "eager" in words:
        found = fw.TORCHTITAN_EAGER
    if "attention unfused" in words:
        found = replace(found, habits=replace(found.habits, attention="unfused"))
    if "parameters in bf16" in words:
        found = replace(found, precision=fw.PURE_BF16)
    if _cell(row, "precision").lower() == "fp16":
        found = replace(found, precision=replace(found.precision, param="fp16"))
    if any(name in _cell(row, "precision").lower() for name in _EIGHT_BIT):
        return fw.in_eight_bits(found)
    return found


def mixture_of(row: Row) -> Model | None:
    """The preset with experts that the row's model names, cut to the row's layers where it states fewer.

    >>> mixture_of(Row(file="", number="", score="yes", cells={"model": "Qwen3_30B_a3B", "layers": ""})).layers
    48
    """
    name = re.sub(r"[^a-z0-9]", "", row.text("model").lower())
    models = [model for model in map(Model.load, Model.presets()) if model.experts is not None]
    named = [model for model in models if re.sub(r"[^a-z0-9]", "", model.name) in name]
    if not named:
        return None
    model = max(named, key=lambda one: len(one.name))
    layers = row.count("layers", model.layers)
    return replace(model, layers=layers, layer_kinds=model.layer_kinds[:layers])


def model_of(row: Row) -> Model:
    """From the shape columns; mixtures and blank shapes are looked up among the presets by the model's name."""
    mixture = mixture_of(row)
    if mixture is not None:
        return mixture
    if not _cell(row, "layers"):
        name = row.text("model").lower().replace("_", "-")
        if name in Model.presets():
            return Model.load(name)
        raise InputError(f"{row.file} row {row.number}: layers is blank and model={name!r} is no preset")
    hidden, heads = row.count("hidden"), row.count("heads")
    ffn = row.count("ffn", 4 * hidden)
    gated = _said(row, "gated", ffn != 4 * hidden)
    return Model(
        name=row.text("model"),
        layers=row.count("layers"),
        hidden=hidden,
        ffn=ffn,
        heads=heads,
        kv_heads=row.count("kv_heads", heads) if "kv_heads" in row.cells else heads,
        head_dim=row.count("head_dim", hidden // heads) if "head_dim" in row.cells else hidden // heads,
        vocab=row.count("vocab", 32000) if "vocab" in row.cells else 32000,
        gated=gated,
        tied_embeddings=_said(row, "tied", not gated),
    )


def strategy_of(row: Row, model: Model) -> Strategy:
    tensor, stages, virtual = _degree(row, "tp"), _degree(row, "pp"), _degree(row, "vpp")
    ring, ulysses = _degree(row, "cp_ring"), _degree(row, "ulysses")
    gpus, replica = row.count("n_gpus"), tensor * stages * ring * ulysses
    if gpus % replica:
        raise InputError(f"{row.file} row {row.number}: {gpus} GPUs are no multiple of the {replica} of one replica")
    data = gpus // replica
    rows = _degree(row, "micro_batch")
    batch = row.count("global_batch", data * rows) if "global_batch" in row.cells else data * rows
    if batch % (data * rows):
        raise InputError(f"{row.file} row {row.number}: batch {batch} over {data} replicas in microbatches of {rows}")
    zero = _zero(row)
    return Strategy(
        data=data, tensor=tensor, pipeline=stages, virtual=virtual, ring=ring, ulysses=ulysses, zero=zero,
        schedule="interleaved" if virtual > 1 else "1f1b", shard=_shard(row, data * ring * ulysses) if zero else 1,
        microbatches=batch // data // rows, loss_chunk_tokens=_loss_chunk(row, replica), layers=_layers(row, model),
        expert=_degree(row, "ep"), offload_states=offload_states_of(row),
    )  # fmt: skip


def workload_of(row: Row, model: Model, strategy: Strategy, framework: Framework) -> Workload:
    batch = strategy.data * strategy.microbatches * _degree(row, "micro_batch")
    return Workload(
        model, context_tokens=row.count("seq_len"), global_batch=batch, precision=framework.precision,
        lora_rank=lora_rank_of(row),
    )  # fmt: skip


def lora_rank_of(row: Row) -> int:
    """Rank of the adapters that the row's remarks name ("LoRA r=8", "LoRA, rank 64"); 0 without adapters.

    Without a number LORA_RANK. They are taken to stand on every linear map.

    >>> cells = {"model": "llama", "other": "LoRA r=8, alpha 16"}
    >>> lora_rank_of(Row(file="", number="", score="yes", cells=cells))
    8
    """
    text = " ".join(_cell(row, name) for name in ("other", "sharding", "notes"))
    if not re.search(r"\blora\b", text, re.IGNORECASE):
        return 0
    rank = re.search(r"\b(?:rank|r|dim)\s*[=: ]\s*(\d+)", text, re.IGNORECASE)
    return int(rank[1]) if rank else LORA_RANK


LORA_RANK = 16
"""Where a row does not say: between peft's 8 and NeMo's 32; it moves the time by less than 1%."""


def seconds_of(row: Row, work: Workload, gpus: int, peak: float) -> float:
    """Measured seconds of a step. Utilisation counts 6 FLOP a weight and 12 L h s of attention, as PaLM does."""
    tokens = work.global_batch * work.context_tokens
    if _cell(row, "iter_s"):
        return row.positive("iter_s")
    if _cell(row, "tokens_s_gpu"):
        return tokens / (row.positive("tokens_s_gpu") * gpus)
    if _cell(row, "tokens_s_total"):
        return tokens / row.positive("tokens_s_total")
    model = work.model
    weights = model.layers * model.layer_matmul_params + model.vocab * model.hidden
    flops = tokens * (6.0 * weights + 12.0 * model.layers * model.heads * model.head_dim * work.context_tokens)
    if _cell(row, "tflops_gpu"):
        return flops / (row.positive("tflops_gpu") * 1e12 * gpus)
    if _cell(row, "mfu_pct"):
        return flops / (row.positive("mfu_pct") / 100 * peak * gpus)
    raise InputError("no step time, rate or utilisation is printed")


def _layers(row: Row, model: Model) -> tuple[LayerRange, ...]:
    """Ranges of layers by what they keep: full; selective (Megatron: attention's core); selective layer N (torchtitan:
    every Nth whole); selective op (torchtitan: every other product again, of which `mlp` is the nearest here)."""
    text = _cell(row, "recompute").lower()
    moved = "activations" in _cell(row, "offload").lower()
    offload: Literal["activations", "none"] = "activations" if moved else "none"
    every = re.fullmatch(r"selective layer (\d+)", text)
    if every and int(every[1]) > 1:
        kept = LayerRange(count=int(every[1]) - 1)
        groups = model.layers // int(every[1])
        rest = model.layers - groups * int(every[1])
        tail = (LayerRange(count=rest),) if rest else ()
        return (kept, LayerRange(recompute="full", offload=offload, count=1)) * groups + tail
    recompute = next((known for start, known in _RECOMPUTES if text.startswith(start)), None)
    if text in ("", "none", "no"):
        recompute = "none"
    if recompute is not None:
        return (LayerRange(recompute=recompute, offload=offload, count=model.layers),)
    raise InputError(f"recompute={text!r} has no words; legal: full, selective, selective op, selective layer N, none")


_RECOMPUTES: tuple[tuple[str, Recompute], ...] = (
    ("full", "full"),
    ("selective layer 1", "full"),
    ("selective op", "mlp"),
    ("selective", "core_attention"),
)


def _loss_chunk(row: Row, ranks: int) -> int | None:
    """Tokens of a rank whose logits exist at one time: "chunked loss 8" cuts them in 8; none: all at once."""
    cut = re.search(r"chunked loss(?: (\d+))?", _cell(row, "other").lower())
    if not cut:
        return None
    tokens = row.count("seq_len") * _degree(row, "micro_batch") // ranks
    if cut[1] and int(cut[1]) < 1:
        raise InputError(f"{row.file} row {row.number}: chunked loss {cut[1]}; it must be cut in at least 1")
    return max(tokens // int(cut[1]), 1) if cut[1] else Strategy().loss_chunk_tokens


def _said(row: Row, name: str, otherwise: bool) -> bool:
    """A yes or no of a column that may be blank or absent."""
    text = _cell(row, name).lower()
    if text not in ("", "yes", "no"):
        raise InputError(f"{row.file} row {row.number}: {name}={text!r}; legal: yes, no, or blank")
    return otherwise if not text else text == "yes"


def _zero(row: Row) -> int:
    if _cell(row, "zero_stage"):
        return row.count("zero_stage", least=0)
    sharding = _cell(row, "sharding").lower()
    return 3 if "fsdp" in sharding or "zero-3" in sharding or "zero3" in sharding else 0


def _shard(row: Row, most: int) -> int:
    """Ranks that share one copy: "group=8" where it is printed, else all of them."""
    group = re.search(r"group=(\d+)", _cell(row, "sharding"))
    return int(group[1]) if group else most


def _degree(row: Row, name: str) -> int:
    return row.count(name, 1) if name in row.cells else 1


def _cell(row: Row, name: str) -> str:
    return row.cells.get(name, "").strip()
