"""Rows of the attention operator alone as calls to time: who ran what on how many GPUs.

MagiAttention's degrees are not in the plots but in its code (exps/dist_attn/run_benchmark.py, `CP_GROUP_META`): USP
and LoongTrain split heads over the 8 GPUs of a node and ring across nodes; hybrid CP of one document is a plain ring.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cost_models.framework import Framework
from cost_models.models.model import Model
from cost_models.strategy import RingKind, Strategy
from cost_models.workload import Workload
from validation.cases import Refused, cluster_of
from validation.operator_time import Call
from validation.rows import Row

RING_KINDS: dict[str, RingKind] = {
    "basic": "contiguous",
    "ring": "contiguous",
    "zigzag": "zigzag",
    "stripe": "striped",
}
MAGI_KINDS: dict[str, RingKind] = {
    "ulysses": "zigzag",
    "ring_p2p": "zigzag",
    "ring_allgather": "all_gather",
    "usp": "zigzag",
    "loongtrain": "double",
    "hybrid_dcp": "zigzag",
}


LONGEST_MISREAD_TOKENS, INFERRED_HEAD_DIM = 32_768, 128
"""yunchang's rows up to this length take the time of the script's default head dim: 32K tokens 1/5.7 of 128K's, for
1/16 of its work at the transcribed head dim."""


@dataclass(frozen=True, kw_only=True)
class OperatorCase:
    row: Row
    call: Call
    framework: Framework
    measured_s: float
    sweep: str

    @property
    def label(self) -> str:
        work, strategy, call = self.call.workload, self.call.strategy, self.call
        shape = f"{work.context_tokens} tokens, {work.model.heads} x {work.model.head_dim}"
        passes = "+".join(name for name, runs in (("fwd", call.forward), ("bwd", call.backward)) if runs)
        mask = "" if call.causal else ", full mask"
        return f"{shape}, ring {strategy.ring} × ulysses {strategy.ulysses} {strategy.ring_kind}, {passes}{mask}"


def operator_case(row: Row) -> OperatorCase | Refused:
    """The case of one operator row."""
    if row.file == "op_usp_ulysses_ring":
        return _usp(row)
    if row.file == "op_ring_flash_attention":
        return _ring_flash(row)
    return _magi(row)


def _attention_model(heads: int, kv_heads: int, head_dim: int) -> Model:
    """One layer with the row's heads; the operator reads nothing else of it."""
    hidden = heads * head_dim
    return Model(
        name="attention",
        layers=1,
        hidden=hidden,
        ffn=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=1,
    )


def inferred_reading(case: OperatorCase) -> OperatorCase | None:
    """The row as its time says it ran, where that is not as transcribed; shown beside the score, never in it."""
    work = case.call.workload
    misread = work.context_tokens <= LONGEST_MISREAD_TOKENS and work.model.head_dim < INFERRED_HEAD_DIM
    if case.row.file != "op_usp_ulysses_ring" or not misread:
        return None
    model = _attention_model(work.model.heads, work.model.kv_heads, INFERRED_HEAD_DIM)
    return replace(case, call=replace(case.call, workload=replace(work, model=model)))


def _usp(row: Row) -> OperatorCase | Refused:
    if row.text("outcome") != "ok":
        return Refused(row=row, reason="ran out of memory: no time")
    call = usp_call(row)
    model, tokens = call.workload.model, call.workload.context_tokens
    return OperatorCase(
        row=row,
        call=call,
        framework=Framework.load("yunchang"),
        measured_s=row.positive("latency_ms") / 1e3,
        sweep=f"{tokens} tokens, {model.heads} x {model.head_dim}, {model.kv_heads} KV, {row.text('api')}",
    )


def usp_call(row: Row) -> Call:
    """What yunchang's row ran, or tried to run."""
    model = _attention_model(row.count("heads"), row.count("kv_heads"), row.count("head_dim"))
    packed = row.text("api") == "qkvpacked"
    return Call(
        cluster=cluster_of("dgx-a100", row.count("n_gpus")),
        workload=Workload(model, context_tokens=row.count("seq_len_global"), global_batch=row.count("batch")),
        strategy=Strategy(
            ulysses=row.count("ulysses_degree"),
            ring=row.count("ring_degree"),
            ring_kind=RING_KINDS[row.text("ring_impl")],
        ),
        backward=row.text("pass") != "fwd",
        packed=packed,
        strided=packed,
    )


def _ring_flash(row: Row) -> OperatorCase | Refused:
    if "varlen" in row.text("source_table"):
        return Refused(row=row, reason="packed documents: their lengths are not printed")
    passes, kind = (part.strip() for part in row.text("other").split(";"))
    ring, heads = row.count("cp_ring"), row.count("heads")
    cluster = cluster_of("dgx-a100", ring)
    if row.text("gpu").startswith("H800"):
        cluster = cluster_of("dgx-h100", ring, device="h800")
        node = cluster.runs[0].node
        link = replace(node.scale_up, bytes_per_s=200e9)
        cluster = replace(cluster, runs=(replace(cluster.runs[0], node=replace(node, scale_up=link)),))
    call = Call(
        cluster=cluster,
        workload=Workload(
            _attention_model(heads, row.count("kv_heads"), row.count("hidden") // heads),
            context_tokens=row.count("seq_len"),
            global_batch=1,
        ),
        strategy=Strategy(ring=ring, ring_kind=RING_KINDS.get(kind, "zigzag"), grad_ring_dtype="fp32"),
        backward="bwd" in passes,
        strided=ring > 1,  # kvpacked (benchmark/benchmark_kvpacked_func.py)
    )
    return OperatorCase(
        row=row,
        call=call,
        framework=Framework.load("ring-flash-attention" if ring > 1 else "flash-attention"),
        measured_s=row.positive("iter_s"),
        sweep=f"{row.text('gpu')}, {passes}, {ring} GPUs",
    )


def _magi(row: Row) -> OperatorCase | Refused:
    method, ranks, mask = row.text("method"), row.count("cp_size"), row.text("mask")
    if method not in MAGI_KINDS:
        return Refused(row=row, reason="MagiAttention's own schedule of group collectives: no words for it")
    if mask not in ("causal", "full") or row.text("outcome") != "ok":
        return Refused(row=row, reason="another mask, or no time")
    ulysses = {"ulysses": ranks, "usp": 8, "loongtrain": 8}.get(method, 1)
    forward = row.text("pass") == "fwd"
    call = Call(
        cluster=cluster_of("dgx-h100", ranks),
        workload=Workload(
            _attention_model(row.count("heads"), row.count("kv_heads"), row.count("head_dim")),
            context_tokens=row.count("seq_len_global"),
            global_batch=row.count("batch"),
        ),
        strategy=Strategy(ulysses=ulysses, ring=ranks // ulysses, ring_kind=MAGI_KINDS[method], grad_ring_dtype="bf16"),
        forward=forward,
        backward=not forward,
        causal=mask == "causal",
    )
    return OperatorCase(
        row=row,
        call=call,
        framework=Framework.load("magi-baselines"),
        measured_s=row.positive("latency_ms_derived") / 1e3,
        sweep=f"{ranks} GPUs, {row.text('pass')}, {mask} mask",
    )
