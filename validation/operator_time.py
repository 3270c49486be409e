"""Seconds of one call of a sharded attention: exchange of heads in, ring, exchange back, as stages of host and device.

    operator = max(sum of host_s, sum of device_s)      calls back to back, nobody waits in between
    stage    host_s: what Python and launches take before its kernels        device_s: what its kernels take

Stages of a pass: one exchange per tensor (q, k, v; one for packed qkv), each block of the ring with its hop and merge,
one exchange of the output; backward in reverse. An exchange's tensor also passes through EXCHANGE_COPIES kernels,
and over one rank it is still copied once. Left out: skew between ranks beyond the busiest one's work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cost_models.framework import Framework
from cost_models.hardware.cluster import Cluster
from cost_models.layer.attention import EXCHANGE_COPIES, attention_phases
from cost_models.layer.sizes import RankSizes
from cost_models.pricing import fold_segment
from cost_models.program import Compute, Ring, Segment
from cost_models.strategy import Strategy
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.timing.host import Host
from cost_models.timing.kernels import Kernels
from cost_models.timing.paths import Paths
from cost_models.workload import Workload

EXCHANGE_OPERATORS = {False: 9, True: 11}
"""Around one all-to-all of yunchang: views, two copies and an allocation; packed qkv has one more of each (comm/)."""
MERGE_OPERATORS, SLICE_OPERATORS, HOP_OPERATORS, GRADIENT_OPERATORS = 14, 4, 6, 8
"""ring-flash-attn, per hop: `update_out_and_lse`; its slices and their writing back; two buffers and four waits; three
sums of gradients with their views."""


ALWAYS_AHEAD = Host(operator_s=0.0, attention_s=0.0, collective_s=0.0, message_s=0.0)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One operator to time: which passes run, what is masked, how tensors are exchanged."""

    cluster: Cluster
    workload: Workload
    strategy: Strategy
    forward: bool = True
    backward: bool = False
    causal: bool = True
    packed: bool = False  # q, k and v in one tensor: one exchange, and none at all over one rank
    strided: bool = False  # k and v are slices of one tensor: the ring copies them first


@dataclass(frozen=True, kw_only=True)
class Stage:
    host_s: float
    device_s: float


def operator_s(call: Call, framework: Framework) -> float:
    """Seconds of one call over all ranks."""
    stages = operator_stages(call, framework)
    return max(sum(stage.device_s for stage in stages), sum(stage.host_s for stage in stages))


def operator_stages(call: Call, framework: Framework) -> tuple[Stage, ...]:
    """Every stage of the call's passes in order."""
    if call.packed:
        framework = replace(framework, exchange_alone=False)
    costs = cluster_costs(call.cluster)
    work = _Work(
        call=call,
        shape=RankSizes(call.workload, call.strategy, framework),
        kernels=costs.kernels(costs.runs(call.strategy.ranks), framework.measured_attention(call.workload)),
        paths=costs.paths(call.strategy),
        host=framework.host or ALWAYS_AHEAD,
    )
    stages: tuple[Stage, ...] = ()
    for runs, grad in ((call.forward, False), (call.backward, True)):
        if runs:
            forth = (*work.exchanges(), *work.copies(grad), *work.blocks(grad), work.exchange(work.shape.out_width))
            stages += forth[::-1] if grad else forth
    return stages


@dataclass(frozen=True, kw_only=True)
class _Work:
    call: Call
    shape: RankSizes
    kernels: Kernels
    paths: Paths
    host: Host

    def exchanges(self) -> tuple[Stage, ...]:
        model, kv_heads = self.call.workload.model, self.shape.sent_kv_heads
        widths = (self.shape.q_width, kv_heads * model.head_dim, kv_heads * model.v_dim)
        if self.call.packed:
            return (self.exchange(sum(widths), packed=True),)
        return tuple(self.exchange(width) for width in widths)

    def exchange(self, width: Any, packed: bool = False) -> Stage:
        """One tensor of `width` columns between the ranks that split its heads, and the copies around it."""
        framework, ranks = self.shape.framework, self.call.strategy.ulysses
        if ranks == 1 and not framework.exchange_alone:
            return Stage(host_s=0.0, device_s=0.0)
        moved = self.shape.tokens * self.shape.width * width
        device_s = float(self.paths.exchange_s("ulysses", "all_to_all", moved))
        copies = EXCHANGE_COPIES + (1 if ranks == 1 else 0)
        device_s += float(self.kernels.memory_bound_s(2 * moved * copies, copies))
        host_s = EXCHANGE_OPERATORS[packed] * self.host.operator_s + self.host.send_s(messages=2 * ranks)
        return Stage(host_s=host_s, device_s=device_s)

    def copies(self, grad: bool) -> tuple[Stage, ...]:
        """k and v made contiguous; the result of a ring of one block widened and cast back."""
        shape, framework = self.shape, self.shape.framework
        moved = 2 * shape.tokens * shape.width * shape.sent_kv_width if self.call.strided and not grad else 0.0
        launches = 2 if moved else 0
        if framework.widen_alone and self.call.strategy.ring == 1:
            heads = shape.heads + 2 * shape.kv_heads if grad else shape.heads
            values = shape.ring_tokens * shape.rows * self.call.workload.model.head_dim * heads
            moved, launches = moved + values * framework.widen_bytes, launches + 2
        if not launches:
            return ()
        device_s = float(self.kernels.memory_bound_s(moved, launches))
        return (Stage(host_s=launches * self.host.operator_s, device_s=device_s),)

    def blocks(self, grad: bool) -> tuple[Stage, ...]:
        """The ring's blocks, equal shares of its time; or the gathered keys and values, and one block."""
        phases = attention_phases(self.shape, self.kernels, part="attention", grad=grad, causal=self.call.causal)
        stages = []
        for phase in phases:
            device_s = float(fold_segment(Segment(name="attention", phases=(phase,)), self.paths).total_s)
            if isinstance(phase, Ring):
                pieces = int(phase.pieces)
                hosts = [self.host.attention_s, *(pieces - 1) * [self._hop_host_s(grad)]]
                stages += [Stage(host_s=host_s, device_s=device_s / pieces) for host_s in hosts]
            elif isinstance(phase, Compute):
                stages.append(Stage(host_s=2 * self.host.attention_s, device_s=device_s))
            else:
                stages.append(Stage(host_s=2 * self.host.send_s(messages=0), device_s=device_s))
        return tuple(stages)

    def _hop_host_s(self, grad: bool) -> float:
        """A batch of sends and receives of k and v (and of dk and dv), the block's attention, and its merge."""
        sends = self.host.send_s(messages=4) * (2 if grad else 1)
        operators = HOP_OPERATORS + (GRADIENT_OPERATORS if grad else MERGE_OPERATORS)
        if self.call.strategy.ring_kind == "striped":
            operators += SLICE_OPERATORS
        return sends + self.host.attention_s + operators * self.host.operator_s
