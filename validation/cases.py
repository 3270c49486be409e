"""From a row to what can be priced: cluster, workload, strategy, framework and the measured numbers.

A row that the model has no words for becomes `Refused` with the reason, so that it is counted and never lost.
Degrees follow the row: ranks = pipeline x data x ring x ulysses x tensor; microbatches = batch / (data x rows).
Left out: operator rows (`operators.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from cost_models.hardware.cluster import Cluster, Node
from cost_models.hardware.device import Device
from cost_models.models.model import LayerKind, Model
from cost_models.strategy import LayerRange, OffloadStates, Recompute, Strategy
from cost_models.workload import Workload
from validation import frameworks as fw
from validation.frameworks import Framework
from validation.rows import Row

GIB = 2**30
A100_PEAK = 312e12


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row, ready to be priced."""

    row: Row
    cluster: Cluster
    workload: Workload
    strategy: Strategy
    framework: Framework
    measured_s: float  # nan: memory alone is asked
    measured_bytes: float | None = None
    sweep: str = ""  # rows of one sweep differ in degrees only

    @property
    def label(self) -> str:
        return f"{self.workload.model.name}, {self.workload.context_tokens} tokens, {self.strategy.describe()}"


@dataclass(frozen=True, kw_only=True)
class Refused:
    row: Row
    reason: str


def cluster_of(preset: str, gpus: int, *, device: str = "", gpus_per_node: int = 8, nics: int = 0) -> Cluster:
    """A preset with another device, fewer GPUs per node, or another number of cards."""
    cluster = Cluster.load(preset, nodes=-(-gpus // gpus_per_node))
    run = cluster.runs[0]
    node = replace(run.node, gpus=min(gpus, gpus_per_node))
    if device:
        chosen = Device.load(device)
        node = replace(node, device=chosen, scale_up=replace(node.scale_up, link=chosen.link))
    if nics:
        node = replace(node, nics=replace(node.nics, count=nics))
    return replace(cluster, runs=(replace(run, node=node),))


def model_of(row: Row, *, gated: bool, tied: bool, name: str = "") -> Model:
    heads = row.count("heads")
    hidden = row.count("hidden")
    return Model(
        name=name or row.text("model"),
        layers=row.count("layers"),
        hidden=hidden,
        ffn=row.count("ffn"),
        heads=heads,
        kv_heads=row.count("kv_heads", heads),
        head_dim=hidden // heads,
        vocab=row.count("vocab"),
        gated=gated,
        tied_embeddings=tied,
    )


def layers_of(model: Model, recompute: Recompute, offload: bool = False) -> tuple[LayerRange, ...]:
    kept = "activations" if offload else "none"
    return (LayerRange(recompute=recompute, offload=kept, count=model.layers),)  # type: ignore[arg-type]


def _llm_foundry(row: Row) -> Case | Refused:
    gpus, model = row.count("n_gpus"), model_of(row, gated=False, tied=True)
    hopper = row.text("gpu").startswith("H100")
    pure = "PURE" in row.text("other")
    framework = fw.COMPOSER_PURE if pure else (fw.COMPOSER_H100 if hopper else fw.COMPOSER_A100)
    if row.score == "apart":
        framework = fw.COMPOSER_FP8
    device = "" if hopper else f"a100-sxm-{row.text('gpu_mem_gb')}gb"
    cluster = cluster_of("dgx-h100" if hopper else "dgx-a100", gpus, device=device)
    batch, micro = row.count("global_batch"), row.count("grad_accum")
    if batch % (gpus * micro):
        return Refused(row=row, reason=f"batch {batch} in {micro} microbatches on {gpus} GPUs is uneven")
    strategy = Strategy(
        data=gpus, shard=gpus, zero=row.count("zero_stage", least=0), microbatches=micro,
        layers=layers_of(model, "full" if row.text("recompute") == "full" else "none"), loss_chunk_tokens=None,
    )  # fmt: skip
    work = Workload(model, context_tokens=row.count("seq_len"), global_batch=batch, precision=framework.precision)
    return Case(
        row=row, cluster=cluster, workload=work, strategy=strategy, framework=framework,
        measured_s=row.positive("iter_s"),
    )  # fmt: skip


def _internevo(row: Row) -> Case | Refused:
    gpus, model = row.count("n_gpus"), model_of(row, gated=True, tied=False)
    tensor, data = row.count("tp"), row.count("dp")
    group = int(row.text("sharding").split("=")[1].split()[0])
    micro, rows = row.count("grad_accum"), row.count("micro_batch")
    batch = data * micro * rows
    work = Workload(model, context_tokens=row.count("seq_len"), global_batch=batch, precision=fw.INTERNEVO.precision)
    strategy = Strategy(
        data=data, tensor=tensor, shard=data if group < 0 else group, zero=1, microbatches=micro,
        layers=layers_of(model, "full" if row.text("recompute") == "full" else "none"), loss_chunk_tokens=None,
    )  # fmt: skip
    cluster = cluster_of("dgx-a100", gpus, nics=4)
    cluster = replace(cluster, runs=(replace(cluster.runs[0], node=_slower_cards(cluster, 100e9 / 8)),))
    seconds = batch * work.context_tokens / (row.positive("tokens_s_gpu") * gpus)
    sweep = f"{gpus} GPUs, tensor {tensor}, {rows} rows x {micro}, {row.text('recompute')}"
    return Case(
        row=row, cluster=cluster, workload=work, strategy=strategy, framework=fw.INTERNEVO, measured_s=seconds,
        sweep=sweep,
    )  # fmt: skip


def _slower_cards(cluster: Cluster, bytes_per_s: float) -> Node:
    node = cluster.runs[0].node
    return replace(node, nics=replace(node.nics, bytes_per_s=bytes_per_s))


DEEPSEEK = {"deepseekv2 (4 layers)": "deepseek-v2", "deepseekv3 (4 layers)": "deepseek-v3"}


def _first_layers(row: Row) -> Model:
    """The full-width model cut to the row's layers; the launcher leaves only the first of them dense."""
    model, layers = Model.load(DEEPSEEK[row.text("model")]), row.count("layers")
    kinds: list[LayerKind] = ["attention" if layer == 0 else "experts" for layer in range(layers)]
    return replace(model, name=row.text("model"), layers=layers, layer_kinds=tuple(kinds))


def _simumax(row: Row) -> Case | Refused:
    gpus = row.count("n_gpus")
    model = _first_layers(row) if row.text("model") in DEEPSEEK else model_of(row, gated=True, tied=False)
    strategy = Strategy(
        data=row.count("dp"), tensor=row.count("tp"), pipeline=row.count("pp"), virtual=row.count("vpp"),
        ulysses=row.count("ulysses"), ring=row.count("cp_ring"), shard=row.count("dp"), zero=1,
        microbatches=row.count("grad_accum"), layers=layers_of(model, "none"), loss_chunk_tokens=None,
        expert=row.count("ep"),
    )  # fmt: skip
    work = Workload(
        model, context_tokens=row.count("seq_len"), global_batch=row.count("global_batch"),
        precision=fw.MEGATRON_TE.precision,
    )  # fmt: skip
    cluster = cluster_of("dgx-b200", gpus, device="b200-sxm-180gb-capped")  # SimuMax's own boards, as in its tables
    return Case(
        row=row, cluster=cluster, workload=work, strategy=strategy, framework=fw.MEGATRON_TE,
        measured_s=row.positive("iter_s"), measured_bytes=row.positive("peak_mem_gb") * GIB,
        sweep=f"{gpus} GPUs, {model.name}, {row.text('grad_accum')} microbatches",
    )  # fmt: skip


def _megatron_recompute(row: Row) -> Case | Refused:
    gpus, model = row.count("n_gpus"), model_of(row, gated=False, tied=True)
    selective = row.text("recompute").startswith("selective")
    framework = fw.MEGATRON_2022 if "=yes" in row.text("other") else fw.MEGATRON_2022_ALL_REDUCE
    micro = row.count("global_batch") // (row.count("micro_batch") * row.count("dp"))
    strategy = Strategy(
        data=row.count("dp"), tensor=row.count("tp"), pipeline=row.count("pp"), virtual=row.count("vpp"),
        schedule="interleaved" if row.count("vpp") > 1 else "1f1b", zero=0, microbatches=micro,
        layers=layers_of(model, "core_attention" if selective else "full"), loss_chunk_tokens=None,
    )  # fmt: skip
    work = Workload(
        model, context_tokens=row.count("seq_len"), global_batch=row.count("global_batch"),
        precision=framework.precision,
    )  # fmt: skip
    return Case(
        row=row, cluster=cluster_of("dgx-a100", gpus), workload=work, strategy=strategy, framework=framework,
        measured_s=row.positive("iter_s"), sweep=f"{gpus} GPUs, {model.name}",
    )  # fmt: skip


def _sc21(row: Row) -> Case | Refused:
    """The paper's rate counts recompute: 96 B s l h^2 (1 + s / 6h + V / 16 l h), arXiv 2104.04473, section 3."""
    gpus, model = row.count("n_gpus"), model_of(row, gated=False, tied=True)
    batch, tokens = row.count("global_batch"), row.count("seq_len")
    h, layers = model.hidden, model.layers
    flops = 96 * batch * tokens * layers * h**2 * (1 + tokens / (6 * h) + model.vocab / (16 * layers * h))
    zero, pipeline = row.count("zero_stage", least=0), row.count("pp")
    framework = fw.DEEPSPEED_GPT if zero == 3 else fw.MEGATRON_2021
    strategy = Strategy(
        data=row.count("dp"), tensor=row.count("tp"), pipeline=pipeline, zero=zero,
        virtual=model.layers // pipeline // SC21_LAYERS_PER_CHUNK.get(pipeline, model.layers // pipeline),
        schedule="interleaved" if pipeline > 1 else "1f1b", shard=row.count("dp") if zero else 1,
        microbatches=row.count("grad_accum"), layers=layers_of(model, "full"), loss_chunk_tokens=None,
    )  # fmt: skip
    work = Workload(model, context_tokens=tokens, global_batch=batch, precision=framework.precision)
    return Case(
        row=row, cluster=cluster_of("dgx-a100", gpus), workload=work, strategy=strategy, framework=framework,
        measured_s=flops / (row.positive("tflops_gpu") * 1e12 * gpus),
        sweep=f"{gpus} GPUs, {model.name}, batch {batch}",
    )  # fmt: skip


BRIDGE_LORA: dict[str, Any] = {"lora_rank": 16, "lora_targets": ("qkv",)}
"""llama3_70b_lora_config_h100 adapts linear_qkv alone (Megatron-Bridge, scripts/performance/configs/llama); its rank is
the 70B recipe's default."""


def _megatron_bridge(row: Row) -> Case | Refused:
    gpus, model = row.count("n_gpus"), model_of(row, gated=True, tied=False)
    data, virtual, ring = row.count("dp"), row.count("vpp", 1), row.count("cp_ring")
    strategy = Strategy(
        data=data, tensor=row.count("tp"), pipeline=row.count("pp"), virtual=virtual, ring=ring, shard=data * ring,
        zero=1, schedule="interleaved" if virtual > 1 else "1f1b", layers=layers_of(model, "none"),
        microbatches=row.count("global_batch") // (data * row.count("micro_batch")), loss_chunk_tokens=None,
    )  # fmt: skip
    work = Workload(
        model, context_tokens=row.count("seq_len"), global_batch=row.count("global_batch"),
        precision=fw.MEGATRON_FP8.precision, **(BRIDGE_LORA if "LoRA" in row.text("other") else {}),
    )  # fmt: skip
    preset = "dgx-h100" if row.text("gpu") == "H100" else "dgx-b200"
    return Case(
        row=row, cluster=cluster_of(preset, gpus), workload=work, strategy=strategy, framework=fw.MEGATRON_FP8,
        measured_s=row.positive("iter_s"),
    )  # fmt: skip


SC21_LAYERS_PER_CHUNK = {12: 4, 35: 1}
"""Interleaving is not printed: two chunks for 8 layers a stage, one layer each for 3 a stage. Inferred."""


SLINGSHOT_BYTES_PER_S = 100e9 / 8
"""Nodes of four A100 with one Slingshot card of 100 Gbit/s, as a public university cluster has them. Inferred."""


GPT2_VOCABULARY = 50304
"""Of the launch script that came with the code (gpt2-vocab.json, padded to 128), whatever the model. Llama-3's 128,256
cannot have been it: at 512K tokens on 8 GPUs its loss alone would hold 110 GiB. Inferred."""


FPDT_CHUNK_TOKENS = 65536
"""Of the launch script (`--ds-sequence-parallel-fpdt-chunk-size`), the default. Of a chunk's tokens on a rank the MLP
takes half at one time (megatron/model/transformer.py), the loss 1/32 (gpt_model.py: `num_chunks_ce`)."""


def _fpdt(row: Row) -> Case | Refused:
    """The time from the utilisation that the code logs, whose FLOP are `_logged_flops`."""
    case = ulysses_offload_case(row)
    if isinstance(case, Refused):
        return case
    tokens = case.workload.context_tokens
    flops = _logged_flops(case.workload.model, tokens, recomputed=row.text("recompute") == "full")
    return replace(
        case,
        measured_s=flops / (row.positive("mfu_pct") / 100 * case.cluster.gpus * A100_PEAK),
        measured_bytes=row.positive("peak_mem_gb") * GIB,
        sweep=f"{tokens} tokens, {row.text('recompute')}",
    )


def _logged_flops(model: Model, tokens: int, recomputed: bool) -> float:
    """FLOP of a step as Megatron-DeepSpeed counts them (megatron/utils.py, `throughput_calculator`), causal.

    Recomputation counts as a fourth pass, and projections of grouped keys and values do not count (`2 // gqa`). The
    code counts whole attention: 55.7% at 4M tokens would then be 98 TFLOP/s executed, half of what FlashAttention-2
    reaches on this GPU at any length; and 195, what it does reach, would have been logged as 111% of the peak. So the
    printed values are taken as halved for causality (inferred).
    """
    gates = 3 if model.gated else 2
    grouped = 2 // (model.heads // model.kv_heads)
    layer = (2 + grouped) * model.hidden**2 + gates * model.ffn * model.hidden
    forward = 2.0 * tokens * (model.layers * layer + model.vocab * model.hidden)
    forward += 2.0 * model.layers * model.heads * model.head_dim * tokens**2
    return forward * (4 if recomputed else 3)


def ulysses_offload_case(row: Row) -> Case | Refused:
    """A run of DeepSpeed's Ulysses-Offload blog without its time: Llama on A100 of 80 GB, all GPUs one group."""
    gpt = row.text("model").startswith("GPT")
    model = replace(model_of(row, gated=not gpt, tied=gpt, name=row.text("model").lower()), vocab=GPT2_VOCABULARY)
    tensor, ulysses, gpus = row.count("tp"), row.count("ulysses"), row.count("n_gpus")
    framework = fw.MEGATRON_DEEPSPEED if tensor > 1 else fw.DEEPSPEED
    chunk = inner = loss = None
    if row.text("other").startswith("FPDT"):
        framework, chunk, own = fw.FPDT, FPDT_CHUNK_TOKENS, FPDT_CHUNK_TOKENS // ulysses
        inner, loss = own // 2, own // 32
    strategy = Strategy(
        tensor=tensor, ulysses=ulysses, shard=ulysses if ulysses > 1 else 1, zero=row.count("zero_stage", 0, least=0),
        layers=layers_of(model, "full" if row.text("recompute") == "full" else "none", bool(row.text("offload"))),
        loss_chunk_tokens=loss, mlp_chunk_tokens=inner, attention_chunk_tokens=chunk,
    )  # fmt: skip
    work = Workload(model, context_tokens=row.count("seq_len"), global_batch=1, precision=framework.precision)
    cluster = cluster_of("dgx-a100", gpus, gpus_per_node=row.count("gpus_per_node"), nics=1)
    cluster = replace(cluster, runs=(replace(cluster.runs[0], node=_slower_cards(cluster, SLINGSHOT_BYTES_PER_S)),))
    return Case(row=row, cluster=cluster, workload=work, strategy=strategy, framework=framework, measured_s=math.nan)


def _easycontext(row: Row) -> Case | Refused:
    if not row.text("tokens_s_total"):
        return Refused(row=row, reason="says only that it fits")
    case = easycontext_case(row)
    seconds = case.strategy.data * row.number_of("seq_len") / row.positive("tokens_s_total")
    return replace(case, measured_s=seconds, sweep="tokens per second")


def offload_states_of(row: Row) -> OffloadStates:
    """From the words of the offload column: optimizer, or optimizer and parameters, in host memory.

    >>> cells = {"offload": "optimizer+param CPU"}
    >>> offload_states_of(Row(file="", number="", score="yes", cells=cells))
    'all'
    """
    words = row.cells.get("offload", "").lower()
    if "param" in words:
        return "all"
    return "optimizer" if "optimizer" in words else "none"


def easycontext_case(row: Row) -> Case:
    """Without its time."""
    model = model_of(row, gated=True, tied=False)
    gpus, ring = row.count("n_gpus"), row.count("cp_ring")
    data = gpus // ring
    strategy = Strategy(
        data=data,
        ring=ring,
        shard=gpus,
        zero=3,
        layers=layers_of(model, "full", True),
        loss_chunk_tokens=None,
        offload_states=offload_states_of(row),
    )
    tokens = -(-row.count("seq_len") // (2 * gpus)) * 2 * gpus
    work = Workload(model, context_tokens=tokens, global_batch=data, precision=fw.EASYCONTEXT.precision)
    return Case(
        row=row, cluster=cluster_of("dgx-a100", gpus), workload=work, strategy=strategy, framework=fw.EASYCONTEXT,
        measured_s=math.nan,
    )  # fmt: skip


_NO_WORDS = {
    "train_nemo_longseq_cp": "prints FLOP/s alone, and not which attention FLOP they count",
    "train_bigscience_v100": "prints parameter counts alone: layers, widths and heads of its models are not stated",
    "train_deepspeed_figures_digitized": "degrees, recompute and GPU memory of the panels are not printed",
}
READERS: dict[str, Callable[[Row], Case | Refused]] = {
    "train_llm_foundry_mpt": _llm_foundry,
    "train_internevo": _internevo,
    "train_simumax_b200": _simumax,
    "train_megatron_recompute_2205.05198": _megatron_recompute,
    "train_megatron_sc21_table2": _sc21,
    "train_megatron_bridge": _megatron_bridge,
    "train_fpdt_ulysses_offload": _fpdt,
    "train_easycontext": _easycontext,
}


def is_known(file: str) -> bool:
    """Whether somebody wrote a reader (or the reason for none) for this file."""
    return file in READERS or file in _NO_WORDS


def case_of(row: Row) -> Case | Refused:
    """The row's case; `no` rows and files without words are refused with the reason."""
    if row.score == "no":
        return Refused(row=row, reason="configuration incomplete in the source: never scored")
    if row.file not in READERS:
        return Refused(row=row, reason=_NO_WORDS.get(row.file, "no reader for this file"))
    return READERS[row.file](row)
