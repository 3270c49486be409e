"""Rows of the attention operator alone as calls to time: who ran what on how many GPUs.

    heads, kv_heads, head_dim, seq_len, global_batch      -> attention         mask, pass -> what runs
    ulysses, cp_ring, ring_kind, grad_ring_dtype          -> strategy          packed, strided -> how tensors come
    latency_ms or iter_s -> measured seconds

MagiAttention's degrees are not in its plots but in its code (exps/dist_attn/run_benchmark.py, `CP_GROUP_META`): USP and
LoongTrain split heads over the 8 GPUs of a node and ring across nodes; hybrid CP of one document is a plain ring.
"""

from __future__ import annotations

from dataclasses import dataclass

from cost_models.errors import InputError
from cost_models.framework import Framework
from cost_models.models.model import Model
from cost_models.strategy import Strategy
from cost_models.workload import Workload
from validation.cases import Refused
from validation.machines import cluster_of
from validation.operator_time import Call
from validation.rows import Row
from validation.standard import framework_of, said


@dataclass(frozen=True, kw_only=True)
class OperatorCase:
    """A published row of the attention operator alone."""

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
    """The case of one operator row. InputError for what its columns cannot say."""
    if row.cell("untimed"):
        return Refused(row=row, reason=row.cell("untimed"))
    if row.text("outcome") != "ok":
        return Refused(row=row, reason="ran out of memory: no time")
    seconds = row.positive("latency_ms") / 1e3 if row.cell("latency_ms") else row.positive("iter_s")
    return OperatorCase(
        row=row, call=call_of(row), framework=framework_of(row), measured_s=seconds, sweep=row.cell("sweep")
    )


def call_of(row: Row) -> Call:
    """What a row ran, or tried to run."""
    mask, passes = row.text("mask"), row.text("pass")
    if mask not in ("causal", "full") or passes not in ("fwd", "bwd", "fwd+bwd"):
        raise InputError(f"mask={mask!r}, pass={passes!r}; legal: causal or full, and fwd, bwd or fwd+bwd")
    strategy = Strategy(
        ulysses=row.degree("ulysses"),
        ring=row.degree("cp_ring"),
        ring_kind=row.text("ring_kind"),  # type: ignore[arg-type]
        grad_ring_dtype=row.cell("grad_ring_dtype") or "fp32",  # type: ignore[arg-type]
    )
    return Call(
        cluster=cluster_of(row, strategy.ranks),
        workload=Workload(
            _attention_model(row.count("heads"), row.count("kv_heads"), row.count("head_dim")),
            context_tokens=row.count("seq_len"),
            global_batch=row.degree("global_batch"),
        ),
        strategy=strategy,
        forward="fwd" in passes,
        backward="bwd" in passes,
        causal=mask == "causal",
        packed=said(row, "packed", False),
        strided=said(row, "strided", False),
    )


def _attention_model(heads: int, kv_heads: int, head_dim: int) -> Model:
    """One layer with the row's heads; the operator reads nothing else of it."""
    hidden = heads * head_dim
    return Model(
        name="attention", layers=1, hidden=hidden, ffn=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        vocab=1,
    )  # fmt: skip
