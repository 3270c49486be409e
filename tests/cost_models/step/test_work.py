"""Gaps beside eager operators, and the traffic of an update with a resident gradient buffer, counted by hand."""

from dataclasses import replace

import pytest

from cost_models import Cluster, InputError, Model, Strategy, Workload, price
from cost_models.framework import OURS, OVERLAP_COST, Framework
from cost_models.layer.sizes import RankSizes
from cost_models.layer.weights import trained_params
from cost_models.program import Compute, Exchange, Ring, Segment
from cost_models.step.assembly import backward_segment, forward_segment
from cost_models.step.root import embed, head
from cost_models.step.update import update
from cost_models.timing.kernels import Kernels

KERNELS = Kernels.of("h100-sxm-80gb")
WORK = Workload(Model.load("llama-3-8b"), context_tokens=4096)
FUSED = replace(OURS, norm="fused", rotary="fused", activation="fused", joined_products=True)


def compute_s(segment: Segment) -> float:
    seconds = [one.seconds for one in segment.phases if isinstance(one, Compute)]
    return float(sum(seconds) + sum(one.first_s for one in segment.phases if isinstance(one, Ring)))


def test_every_eager_operator_has_its_gap() -> None:
    """Backward has two products for each, twice the elementwise operators, and one attention."""
    gap, products, elementwise = 1e-3, 4, 2 + 2 + 2 + 1  # norms, rotary, activation, residual (the other in a norm)
    with_gap = RankSizes(WORK, Strategy(), replace(FUSED, gap_s=gap))
    without = RankSizes(WORK, Strategy(), FUSED)
    forward = [compute_s(forward_segment(shape, KERNELS, repeat=1)) for shape in (with_gap, without)]
    backward = [compute_s(backward_segment(shape, KERNELS, "none", repeat=1)) for shape in (with_gap, without)]
    assert forward[0] - forward[1] == pytest.approx((products + elementwise + 1) * gap)
    assert backward[0] - backward[1] == pytest.approx((2 * (products + elementwise) + 1) * gap)


def test_a_resident_buffer_is_cleared_and_clipping_is_counted() -> None:
    strategy = Strategy(data=4, shard=4, zero=1)
    work = Workload(Model.load("llama-3-8b"), context_tokens=4096, global_batch=4)
    plain = RankSizes(work, strategy)
    counted = RankSizes(work, strategy, replace(OURS, optimizer_bytes=46, accumulator="fp32"))
    weights = float(trained_params(plain))
    extra = compute_s(update(counted, KERNELS)) - compute_s(update(plain, KERNELS))
    # own share of 1/4: 46 bytes instead of 28 + 4 for the norm; the whole buffer is cleared
    moved = weights / 4 * (46 - 32) + weights * 4
    assert extra == pytest.approx(KERNELS.memory_bound_s(moved, 0), rel=1e-9)


def test_a_norm_of_a_copy_moves_what_its_kernels_read_and_write() -> None:
    """Forward: copy r2 w4, norm r4 w2. Backward: r2 r4 w4, cast r4 w2; and twice the forward and a sum once more."""
    fused = replace(OURS, norm="fused")
    copied = replace(fused, norm_copies=True)
    values = 4096 * 4096

    def forward_s(framework: Framework) -> float:
        return compute_s(forward_segment(RankSizes(WORK, Strategy(), framework), KERNELS, repeat=1))

    def backward_s(framework: Framework) -> float:
        return compute_s(backward_segment(RankSizes(WORK, Strategy(), framework), KERNELS, "none", repeat=1))

    moved_s = KERNELS.memory_bound_s
    assert forward_s(copied) - forward_s(fused) == pytest.approx(moved_s(2 * values * (12 - 4), 0), rel=1e-6)
    more = 2 * (16 - 8) + (2 * 12 + 6)
    assert backward_s(copied) - backward_s(fused) == pytest.approx(moved_s(values * more, 3), rel=1e-6)


@pytest.mark.parametrize("name", ["gap_s", "optimizer_bytes", "merge_bytes", "widen_bytes", "overlap_cost"])
def test_no_number_of_a_framework_is_below_zero(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}=-1 must be at least 0"):
        replace(OURS, **{name: -1})


def tensor_exchanges(segment: Segment) -> list[tuple[str, float]]:
    return [(one.op, float(one.bytes)) for one in segment.phases if isinstance(one, Exchange) and one.part == "tensor"]


def test_column_parallel_products_run_beside_their_exchanges() -> None:
    """Backward of a layer: two row-parallel gathers in the open; beside products, two inputs again and two sums."""
    whole = 4096 * 4096 * 2.0

    def backward(framework: Framework) -> list[tuple[str, float]]:
        return sorted(
            tensor_exchanges(
                backward_segment(RankSizes(WORK, Strategy(tensor=8), framework), KERNELS, "none", repeat=1)
            )
        )

    assert backward(OURS) == [("all_gather", whole)] * 2 + [("reduce_scatter", whole)] * 2
    beside, part = replace(OURS, tensor_overlap="products"), OVERLAP_COST * whole
    assert backward(beside) == sorted(
        [("all_gather", whole)] * 2 + [("all_gather", part)] * 2 + [("reduce_scatter", part)] * 2
    )
    summed = replace(beside, sequence_parallel=False)
    assert backward(summed) == [("all_reduce", part)] * 2


def test_a_vocabulary_cut_by_tensor_is_summed_and_gathered() -> None:
    shape, whole = RankSizes(WORK, Strategy(tensor=8)), 4096 * 4096 * 2.0
    assert tensor_exchanges(embed(shape, KERNELS)) == [("reduce_scatter", whole), ("all_gather", whole)]
    assert tensor_exchanges(head(shape, KERNELS)) == [("all_gather", whole), ("reduce_scatter", whole)]
    assert not tensor_exchanges(embed(RankSizes(WORK, Strategy()), KERNELS))
    prefill = RankSizes(replace(WORK, mode="prefill"), Strategy(tensor=8))
    assert tensor_exchanges(embed(prefill, KERNELS)) == [("reduce_scatter", whole)]


def test_a_small_step_waits_for_the_launches_of_its_loss_and_update():
    """One narrow layer, 8 tokens: 30 calls for the loss, 9 + 3 tensors updated by one call each, or by eleven."""
    model = replace(Model.load("llama-3-8b"), layers=1, layer_kinds=(), hidden=64, ffn=128, heads=1, kv_heads=1,
                    head_dim=64, vocab=256)  # fmt: skip
    work, node = Workload(model, context_tokens=8), Cluster.load("dgx-h100", nodes=1)
    free, one, eleven = (
        price(node, work, Strategy(loss_chunk_tokens=None), framework=each).step_s
        for each in (replace(OURS, host=None), OURS, replace(OURS, update_calls=11))
    )
    assert eleven - one == pytest.approx((9 + 3) * 10 * 10e-6, rel=1e-6)
    assert one - free > (30 + 9 + 3) * 10e-6 / 2
