"""The attention operator alone: exchange of heads, ring, exchange back, timed over ranks of one node.

    operator = max(device, host)      device = all-to-all in + ring + all-to-all out (the phases of `layer.py`)
    host     = calls x host_call_s    what Python and NCCL's launches cost when the device has little to do

yunchang's rows have a synchronisation in every iteration, so host and device do not overlap across iterations.
Left out: the copies that make tensors contiguous before and after an exchange.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cost_models import layer
from cost_models.cluster import Cluster
from cost_models.habits import Habits
from cost_models.kernels import FA2_ARCHITECTURES, Kernels
from cost_models.model import Model
from cost_models.paths import domain_link, paths_of
from cost_models.placement import Placement
from cost_models.pricing import fold_segment
from cost_models.program import Phase, Segment
from cost_models.shape import Shape
from cost_models.strategy import RingKind, Strategy
from cost_models.validation.cases import Refused, cluster_of
from cost_models.validation.frameworks import ATTENTION_ONLY, MAGI_BASELINES, Framework
from cost_models.validation.rows import Row
from cost_models.workload import Workload

RING_KINDS: dict[str, RingKind] = {
    "basic": "contiguous",
    "ring": "contiguous",
    "zigzag": "zigzag",
    "stripe": "striped",
    "llama3_allgather": "all_gather",
}


@dataclass(frozen=True, kw_only=True)
class OperatorCase:
    row: Row
    cluster: Cluster
    workload: Workload
    strategy: Strategy
    framework: Framework
    backward: bool
    forward: bool = True
    measured_s: float
    sweep: str

    @property
    def label(self) -> str:
        work = self.workload
        shape = f"{work.context_tokens} tokens, {work.model.heads} x {work.model.head_dim}"
        passes = "+".join(name for name, runs in (("fwd", self.forward), ("bwd", self.backward)) if runs)
        return (
            f"{shape}, ring {self.strategy.ring} × ulysses {self.strategy.ulysses} {self.strategy.ring_kind}, {passes}"
        )


def operator_s(case: OperatorCase, habits: Habits) -> float:
    """Seconds of one call over all ranks."""
    device = case.cluster.runs[0].node.device
    older = habits.attention == "fa2" and device.architecture in FA2_ARCHITECTURES
    kernels = Kernels.of(device, attention="fa2" if older else "newest")
    placement = Placement.in_order(case.cluster, case.strategy.ranks)
    paths = paths_of(case.cluster, case.strategy, placement, domain_link(case.cluster.runs[0].node.scale_up))
    shape = Shape(case.workload, case.strategy, habits)
    passes: list[tuple[Phase, ...]] = []
    if case.forward:
        passes.append(layer.attention(shape, kernels))
    if case.backward:
        passes.append(layer.attention(shape, kernels, grad=True))
    seconds = 0.0
    for phases in passes:
        seconds += float(fold_segment(Segment(name="attention", phases=phases), paths).total_s)
    calls = len(passes) * (case.strategy.ring + (3 if case.strategy.ulysses > 1 else 0))
    return max(seconds, calls * habits.host_call_s)


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


def _usp(row: Row) -> OperatorCase | Refused:
    if row.text("outcome") != "ok":
        return Refused(row=row, reason="ran out of memory: no time")
    heads, head_dim = row.count("heads"), row.count("head_dim")
    model = _attention_model(heads, row.count("kv_heads"), head_dim)
    ulysses, ring = row.count("ulysses_degree"), row.count("ring_degree")
    batch, tokens, api = row.count("batch"), row.count("seq_len_global"), row.text("api")
    strategy = Strategy(ulysses=ulysses, ring=ring, ring_kind=RING_KINDS[row.text("ring_impl")])
    return OperatorCase(
        row=row,
        cluster=cluster_of("dgx-a100", row.count("n_gpus")),
        workload=Workload(model, context_tokens=tokens, global_batch=batch),
        strategy=strategy,
        framework=ATTENTION_ONLY,
        backward=row.text("pass") != "fwd",
        measured_s=row.number_of("latency_ms") / 1e3,
        sweep=f"{tokens} tokens, {heads} x {head_dim}, {model.kv_heads} KV, {api}",
    )


def _ring_flash(row: Row) -> OperatorCase | Refused:
    method = row.text("other").split(";")
    kind = method[1].strip()
    ring = row.count("cp_ring")
    heads, kv_heads = row.count("heads"), row.count("kv_heads")
    if "varlen" in row.text("source_table"):
        return Refused(row=row, reason="packed documents: their lengths are not printed")
    model = _attention_model(heads, kv_heads, row.count("hidden") // heads)
    cluster = cluster_of("dgx-h100" if row.text("gpu").startswith("H800") else "dgx-a100", ring)
    if row.text("gpu").startswith("H800"):
        cluster = cluster_of("dgx-h100", ring, device="h800")
        node = cluster.runs[0].node
        link = replace(node.scale_up, bytes_per_s=200e9)
        cluster = replace(cluster, runs=(replace(cluster.runs[0], node=replace(node, scale_up=link)),))
    return OperatorCase(
        row=row,
        cluster=cluster,
        workload=Workload(model, context_tokens=row.count("seq_len"), global_batch=1),
        strategy=Strategy(ring=ring, ring_kind=RING_KINDS.get(kind, "zigzag"), grad_ring_dtype="fp32"),
        framework=ATTENTION_ONLY,
        backward="bwd" in method[0],
        measured_s=row.number_of("iter_s"),
        sweep=f"{row.text('gpu')}, {method[0]}, {ring} GPUs",
    )


def _magi(row: Row) -> OperatorCase | Refused:
    if row.text("method") not in ("ulysses", "ring_p2p"):
        return Refused(row=row, reason="a method without words, or whose inner degrees are not stated")
    if row.text("mask") != "causal" or row.text("outcome") != "ok":
        return Refused(row=row, reason="attention over the whole square (or no time): the model is causal")
    ranks, heads = row.count("cp_size"), row.count("heads")
    model = _attention_model(heads, row.count("kv_heads"), row.count("head_dim"))
    ulysses = ranks if row.text("method") == "ulysses" else 1
    forward = row.text("pass") == "fwd"
    return OperatorCase(
        row=row,
        cluster=cluster_of("dgx-h100", ranks),
        workload=Workload(model, context_tokens=row.count("seq_len_global"), global_batch=row.count("batch")),
        strategy=Strategy(ulysses=ulysses, ring=ranks // ulysses),
        framework=MAGI_BASELINES,
        backward=not forward,
        forward=forward,
        measured_s=row.number_of("latency_ms_derived") / 1e3,
        sweep=f"{ranks} GPUs, {row.text('pass')}",
    )
