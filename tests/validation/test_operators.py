"""The attention operator alone: calls and bytes counted by hand for one small case, and what must hold for all."""

from dataclasses import replace
from pathlib import Path

import pytest

from cost_models import Cluster, InputError, Model, Strategy, Workload
from cost_models.framework import OURS, Framework
from cost_models.hardware.placement import Placement
from cost_models.layer import attention as attention_module
from cost_models.layer import decoder
from cost_models.layer.attention import attention_phases
from cost_models.layer.sizes import RankSizes
from cost_models.pricing import fold_segment, over
from cost_models.program import Compute, Exchange, Ring, Segment
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.timing.host import PYTORCH_2024, Host
from cost_models.timing.kernels import Kernels
from validation.machines import cluster_of
from validation.operator_time import Call, operator_s, operator_stages
from validation.operators import OperatorCase, operator_case
from validation.rows import Row, read
from validation.score import score

FOLDER = Path("measurements")
MAGI_BASELINES, RING_FLASH, YUNCHANG = map(Framework.load, ("magi-baselines", "ring-flash-attention", "yunchang"))
A100 = Kernels.of("a100-sxm-80gb", attention="fa2")


def attention(heads: int, kv_heads: int, head_dim: int) -> Model:
    sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "hidden": heads * head_dim}
    return Model(name="attention", layers=1, ffn=heads * head_dim, vocab=1, **sizes)


SMALL = Call(
    cluster=Cluster.load("dgx-a100", nodes=1),
    workload=Workload(attention(32, 32, 32), context_tokens=8192, global_batch=2),
    strategy=Strategy(ring=2, ulysses=4),
)
"""yunchang's smallest hybrid: 2 rows of 8,192 tokens on 8 GPUs; a rank holds 2,048 tokens, 4,096 x 2 in the ring."""


def test_host_calls_by_hand():
    """Microseconds: 10 an operator, 60 an attention, 100 a collective, 35 a message."""
    unpacked = [1e6 * stage.host_s for stage in operator_stages(SMALL, YUNCHANG)]
    exchange = 9 * 10 + 100 + 8 * 35  # 4 sends and 4 receives
    hop = (100 + 4 * 35) + 60 + (6 + 14) * 10  # k and v sent and received, attention, buffers and waits, merge
    assert unpacked == pytest.approx([exchange, exchange, exchange, 60, hop, exchange])
    packed = [1e6 * stage.host_s for stage in operator_stages(replace(SMALL, packed=True), YUNCHANG)]
    assert packed == pytest.approx([11 * 10 + 100 + 8 * 35, 60, hop, exchange])
    backward = replace(SMALL, forward=False, backward=True)
    hop = 2 * (100 + 4 * 35) + 60 + (6 + 8) * 10  # dk and dv travel too
    assert [1e6 * stage.host_s for stage in operator_stages(backward, YUNCHANG)] == pytest.approx(
        [exchange, hop, 60, exchange, exchange, exchange]
    )


def test_copies_and_merges_by_hand():
    """A copy reads and writes its tensor; a merge moves 38 B, widening 12 B, for each of 2 x 4,096 x 8 x 32 values."""
    moved = 2048 * 3 * 1024 * 2  # packed q, k and v of a rank
    found = operator_stages(replace(SMALL, packed=True), YUNCHANG)[0].device_s
    paths = cluster_costs(SMALL.cluster).paths(SMALL.strategy)
    assert found - paths.exchange_s("ulysses", "all_to_all", moved) == pytest.approx(
        A100.memory_bound_s(2 * 2 * moved, 2), rel=1e-9
    )

    shape = RankSizes(SMALL.workload, SMALL.strategy, YUNCHANG)
    (ring,) = attention_phases(shape, A100, part="attention")
    values = 2 * 4096 * 8 * 32
    own = A100.attention_s(4096, 4096, 8, 8, 32, True, batch=2)
    half = A100.attention_s(4096, 2048, 8, 8, 32, False, batch=2)
    assert ring.first_s == pytest.approx(own, rel=1e-9)
    widened = A100.memory_bound_s(values * 12, 2)  # once, here in the only hop
    assert ring.piece_s == pytest.approx(half + A100.memory_bound_s(values * 38, 4) + widened, rel=1e-9)
    assert ring.hop_bytes == 2 * 2048 * 1024 * 2
    assert ring.hiding == 108 / (2 * 8 * 4096 / 128)  # one turn of an SM of those of all blocks
    (striped,) = attention_phases(
        RankSizes(SMALL.workload, replace(SMALL.strategy, ring_kind="striped"), YUNCHANG), A100, part="attention"
    )
    assert striped.piece_s == pytest.approx(own + A100.memory_bound_s(values * (38 + 8), 4) + widened, rel=1e-9)
    strided = operator_stages(replace(SMALL, packed=True, strided=True), YUNCHANG)
    assert len(strided) == 5
    assert strided[1].device_s == pytest.approx(A100.memory_bound_s(2 * 2048 * 2 * 1024 * 2, 2), rel=1e-9)
    one = operator_stages(replace(SMALL, strategy=Strategy(ulysses=8)), YUNCHANG)[3]
    assert one.device_s == pytest.approx(A100.memory_bound_s(2 * 8192 * 4 * 32 * 12, 2), rel=1e-9)


def test_the_busier_of_host_and_device_decides():
    short = operator_stages(SMALL, YUNCHANG)
    assert operator_s(SMALL, YUNCHANG) == pytest.approx(sum(stage.host_s for stage in short))
    long = replace(SMALL, workload=Workload(SMALL.workload.model, context_tokens=2**17, global_batch=2))
    stages = operator_stages(long, YUNCHANG)
    assert operator_s(long, YUNCHANG) == pytest.approx(sum(stage.device_s for stage in stages))
    assert operator_s(SMALL, replace(YUNCHANG, host=None)) < operator_s(SMALL, YUNCHANG)


def test_one_rank_exchanges_nothing_unless_its_code_copies():
    alone = replace(SMALL, strategy=Strategy(ring=8))
    assert [stage.device_s for stage in operator_stages(alone, OURS)[:3]] == [0.0, 0.0, 0.0]
    assert operator_stages(replace(alone, packed=True), YUNCHANG)[0].device_s == 0.0
    copied = operator_stages(alone, YUNCHANG)[0].device_s  # by NCCL too, from itself to itself
    assert copied == pytest.approx(A100.memory_bound_s(2 * 3 * 2048 * 1024 * 2, 3))


def test_a_layer_pays_for_the_copies_of_its_exchanges(monkeypatch):
    """Two copies of q, k and v, two of the output, 2 bytes a value read and written; none over one rank."""
    work = Workload(attention(32, 8, 128), context_tokens=2**16)
    kernels = Kernels.of("h100-sxm-80gb")
    for ulysses, exchanges in ((8, 2), (1, 0)):
        layout = Strategy(ring=8 // ulysses, ulysses=ulysses)
        with_copies = decoder.forward(RankSizes(work, layout), kernels)
        with monkeypatch.context() as patched:
            patched.setattr(attention_module, "EXCHANGE_COPIES", 0)
            without = decoder.forward(RankSizes(work, layout), kernels)
        seconds, bare = (
            sum(phase.seconds for phase in phases if isinstance(phase, Compute)) for phases in (with_copies, without)
        )
        moved = 2**13 * 2 * 128 * (32 + 2 * 8 + 32)
        copied = kernels.memory_bound_s(2 * 2 * moved, 4) if exchanges else 0.0
        assert len(with_copies) - len(without) == exchanges
        assert seconds - bare == pytest.approx(copied, abs=1e-12)


def test_a_transfer_beside_computation():
    """Never less than what does not fit, never falling in the transfer, never rising in the computation."""
    times = [0.0, 0.3, 1.0, 2.0, 7.0]
    for sending in times:
        for computing in times:
            found = over(sending, computing)
            assert max(0.0, sending - computing) == found <= sending
            assert all(over(more, computing) >= found for more in times if more >= sending)
            assert all(over(sending, more) <= found for more in times if more >= computing)


def ring_time(strategy: Strategy, cluster: Cluster, framework: Framework = OURS, grad: bool = False) -> float:
    work = Workload(attention(32, 8, 128), context_tokens=strategy.context * 4096)
    kernels = Kernels.of("h100-sxm-80gb")
    phases = attention_phases(RankSizes(work, strategy, framework), kernels, part="attention", grad=grad)
    paths = cluster_costs(cluster).paths(strategy, Placement.in_order(cluster, strategy.ranks))
    return float(fold_segment(Segment(name="attention", phases=phases), paths).total_s)


def test_late_hops_hide_behind_the_last_blocks_inside_a_node_only():
    """128 tokens x 32 heads are one turn of 32 of 132 SMs: all of it is tail. 4,096 tokens are 1,024 blocks: 132."""
    one, two = Cluster.load("dgx-h100", nodes=1), Cluster.load("dgx-h100", nodes=2)
    late = Framework(late_hops=True)
    kernels = Kernels.of("h100-sxm-80gb")
    shares = [
        attention_phases(RankSizes(Workload(attention(32, 8, 128), context_tokens=8 * tokens), Strategy(ring=8), late),
                         kernels, part="attention")[0].hiding
        for tokens in (128, 4096)
    ]  # fmt: skip
    assert shares == [1.0, 132 / 1024]
    assert ring_time(Strategy(ring=8), one, late) > ring_time(Strategy(ring=8), one)
    assert ring_time(Strategy(ring=2, ulysses=8), two, late) == ring_time(Strategy(ring=2, ulysses=8), two)


def slower_network(cluster: Cluster, factor: float) -> Cluster:
    run = cluster.runs[0]
    nics = replace(run.node.nics, bytes_per_s=run.node.nics.bytes_per_s / factor)
    return replace(cluster, runs=(replace(run, node=replace(run.node, nics=nics)),))


@pytest.mark.parametrize("grad", [False, True])
def test_double_ring_hides_the_network_behind_inner_rounds(grad):
    """Inside one domain it is the plain ring; over a slow network it is never slower, and monotone in its rate."""
    one, two = Cluster.load("dgx-h100", nodes=1), Cluster.load("dgx-h100", nodes=2)
    inside = [ring_time(Strategy(ring=8, ring_kind=kind), one, grad=grad) for kind in ("zigzag", "double")]
    assert inside[1] == pytest.approx(inside[0], rel=0.02)
    times = []
    for factor in (1.0, 4.0, 16.0, 64.0):
        plain, double = (
            ring_time(Strategy(ring=16, ring_kind=kind), slower_network(two, factor), grad=grad)
            for kind in ("zigzag", "double")
        )
        assert double <= plain * 1.001
        times.append((plain, double))
    assert times == sorted(times)
    assert times[2][1] < 0.8 * times[2][0]  # the outer hop hides behind eight blocks, not one


def test_gathered_keys_are_one_exchange_and_no_hops():
    strategy = Strategy(ring=4, ulysses=2, ring_kind="all_gather")
    shape = RankSizes(Workload(attention(32, 8, 128), context_tokens=2**16), strategy)
    gathered, computed = attention_phases(shape, Kernels.of("h100-sxm-80gb"), part="attention")
    assert isinstance(gathered, Exchange) and isinstance(computed, Compute)
    assert (gathered.axis, gathered.op, gathered.bytes) == ("ring", "all_gather", 2 * 2**16 // 2 * 8 * 128 * 2)
    backward = attention_phases(shape, Kernels.of("h100-sxm-80gb"), part="attention", grad=True)
    assert [phase.op for phase in backward if isinstance(phase, Exchange)] == ["all_gather", "reduce_scatter"]
    zigzag = attention_phases(RankSizes(shape.workload, replace(strategy, ring_kind="zigzag")), A100, part="attention")
    assert len(zigzag) == 1 and isinstance(zigzag[0], Ring)


def test_a_full_mask_is_about_twice_the_work():
    long = replace(SMALL, workload=Workload(attention(32, 8, 128), context_tokens=2**17))
    causal, full = (operator_s(replace(long, causal=mask), MAGI_BASELINES) for mask in (True, False))
    assert 1.7 < full / causal < 2.1


def test_one_gpu_attention_is_the_kernel_alone():
    """ring-flash-attention's first row: one GPU, no exchange, no merge."""
    case = operator_case(read("op_ring_flash_attention")[0])
    assert isinstance(case, OperatorCase) and case.call.strategy.ranks == 1
    kernel = Kernels.of("h800", attention="fa2").attention_s(8192, 8192, 32, 8, 128, True)
    assert operator_s(case.call, case.framework) == pytest.approx(kernel, rel=1e-9)


def test_degrees_are_ordered_as_measured():
    """ring-flash-attention: zigzag before striped before plain, H800 and A100, forward and both passes."""
    report = score(["op_ring_flash_attention"], FOLDER)[0]
    assert all(one.tau == 1.0 and one.regret == 0.0 for one in report.rankings() if one.pairs)
    assert report.errors().median < 0.05 and report.errors().worst < 0.09


@pytest.mark.parametrize(
    ("device", "node", "kind", "backward", "per_s", "within"),
    [
        ("h800", "dgx-h100", "contiguous", False, 208.0, 0.03),
        ("h800", "dgx-h100", "zigzag", False, 283.0, 0.02),
        ("h800", "dgx-h100", "striped", False, 259.6, 0.02),
        ("a100-sxm-80gb", "dgx-a100", "contiguous", False, 124.4, 0.05),
        ("a100-sxm-80gb", "dgx-a100", "zigzag", False, 179.0, 0.16),
        ("a100-sxm-80gb", "dgx-a100", "striped", False, 163.9, 0.03),
        ("a100-sxm-80gb", "dgx-a100", "contiguous", True, 33.3, 0.05),
        ("a100-sxm-80gb", "dgx-a100", "zigzag", True, 49.5, 0.16),
        ("a100-sxm-80gb", "dgx-a100", "striped", True, 45.9, 0.11),
        ("h800", "dgx-h100", "contiguous", True, 54.3, 0.08),
        ("h800", "dgx-h100", "zigzag", True, 75.7, 0.25),
        ("h800", "dgx-h100", "striped", True, 76.9, 0.16),
    ],
)
def test_rows_of_another_source(device, node, kind, backward, per_s, within):
    """ring-flash-attn's first benchmark (README as in feifeibear/long-context-attention 0228a2b4; its script has 5
    heads x 128, 8,192 tokens a GPU): not among the rows here, looked at after the calls were counted. The host's time
    for a message comes from two of them (H800, zigzag and striped, forward); the others shaped nothing. Zigzag on A100
    came out within 10% while full blocks were priced 7% slower than they are; half of its blocks have 4,096 queries of
    5 heads, 160 tiles on 108 SMs, and what the second, half empty round of them loses is not priced."""
    call = Call(
        cluster=cluster_of(Row(file="", number="", score="yes", cells={"cluster": node, "device": device}), 8),
        workload=Workload(attention(5, 5, 128), context_tokens=8 * 8192),
        strategy=Strategy(ring=8, ring_kind=kind),
        backward=backward,
    )
    assert operator_s(call, RING_FLASH) * per_s == pytest.approx(1.0, abs=within)


def test_exchanges_between_nodes_meet_measured_ones():
    """MagiAttention's baseline, H100: Ulysses on 8 to 64 GPUs, one node to eight; digitised to about 3%."""
    report = score(["op_magi_cp_scaling_digitized"], FOLDER)[0]
    numbers = {row.number for row in read("op_magi_cp_scaling_digitized") if row.text("method") == "ulysses"}
    found = [one for one in report.verdicts if one.row in numbers and "full mask" not in one.label]
    assert len(found) == 8
    assert all(abs(one.error) < 0.06 for one in found)
    assert report.errors().rows == 0  # digitised rows only rank
    assert set(report.reasons()) == {"MagiAttention's own schedule of group collectives: no words for it"}
    pairs = [one for one in report.rankings() if one.pairs]
    assert sum(one.tau * one.pairs for one in pairs) / sum(one.pairs for one in pairs) > 0.9


def test_negative_host_times_are_refused():
    with pytest.raises(InputError, match="host message_s=-1 must be at least 0"):
        replace(PYTORCH_2024, message_s=-1)
    with pytest.raises(InputError, match="slice_bytes=-1 must be at least 0"):
        Framework(slice_bytes=-1)
    assert Host(operator_s=0, attention_s=0, collective_s=1, message_s=2).send_s(messages=4) == 9
