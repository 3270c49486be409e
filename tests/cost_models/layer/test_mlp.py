"""MLPs over slices of a rank's tokens: memory and FLOP by hand, and what slices cost in time."""

from dataclasses import replace

import numpy as np
import pytest

from cost_models import Cluster, InputError, LayerRange, Model, Strategy, Workload, price, price_batch
from cost_models.flops import executed_flops
from cost_models.framework import OURS, Framework
from cost_models.layer import decoder
from cost_models.layer.decoder import phases
from cost_models.layer.launches import layer_host_s
from cost_models.layer.mlp import mlp_operators
from cost_models.layer.sizes import RankSizes
from cost_models.memory import peaks
from cost_models.memory.peaks import kept_bytes
from cost_models.program import Compute
from cost_models.timing.host import PYTORCH_2024
from cost_models.timing.kernels import Kernels
from planner.simulator.simulation import simulate

MODEL, CLUSTER = Model.load("longvila-8b"), Cluster.load("dgx-h100", gpus=8)
LONG = Workload(MODEL, context_tokens=2**20)
LAYOUT = Strategy(ulysses=8, shard=8)
DEEPSPEED = Framework(name="DeepSpeed's TiledMLP under eager layers")
TOKENS, FFN, HIDDEN = 2**17, MODEL.ffn, MODEL.hidden


def mlp(sizes, kernels, grad=False):
    return phases(sizes, kernels, mlp_operators(sizes), grad=grad)


def tiled(chunk, policy="none", layout=LAYOUT):
    layers = (LayerRange(recompute=policy, count=MODEL.layers),)
    return replace(layout, mlp_chunk_tokens=chunk, layers=layers)


def test_only_the_input_is_kept():
    whole, sliced = (RankSizes(LONG, tiled(chunk), DEEPSPEED) for chunk in (None, 4096))
    assert kept_bytes(whole, "none") - kept_bytes(sliced, "none") == TOKENS * FFN * 2 * 4
    assert kept_bytes(sliced, "mlp") == kept_bytes(sliced, "none")
    assert kept_bytes(sliced, "full") == kept_bytes(whole, "full")


def test_backward_holds_one_slice_and_the_sums_of_the_weights_gradients():
    """Gate, its activation, up and product, three gradients' worth of f; four weights; the residual's and input's h."""
    found = peaks._products(RankSizes(LONG, tiled(2**16), DEEPSPEED))
    inside, weights = 2**16 * FFN * 2, HIDDEN * FFN * 2
    assert found == inside * (4 + 2) + 4 * weights + 2 * TOKENS * HIDDEN * 2


def test_our_norms_run_in_slices_too_and_weights_are_summed_in_fp32():
    """A norm keeps input and result in place of an fp32 copy, the normalised values and the result, and statistics."""
    ours, apart = (RankSizes(LONG, tiled(4096), one) for one in (OURS, DEEPSPEED))
    assert kept_bytes(apart, "none") - kept_bytes(ours, "none") == 2 * TOKENS * (HIDDEN * (8 - 4) + 4)
    norms = [one for one in decoder.operators(ours) if one.name in ("norm", "sliced norm")]
    assert [(one.times, one.reruns) for one in norms] == [(TOKENS / 4096, True)] * 2
    whole = decoder.operators(RankSizes(LONG, tiled(None), OURS))[0]
    assert norms[0].times * norms[0].passes[0].moved < whole.passes[0].moved + 1
    sums = {}
    for name, framework in (("narrow", DEEPSPEED), ("wide", replace(DEEPSPEED, wide_slice_sums=True))):
        sums[name] = next(one for one in decoder.operators(RankSizes(LONG, tiled(4096), framework))
                          if one.name == "weight sums").passes[1].moved  # fmt: skip
    assert sums["wide"] / sums["narrow"] == pytest.approx(10 / 6)
    more = [peaks._products(RankSizes(LONG, tiled(2**16), one)) for one in (DEEPSPEED, replace(DEEPSPEED,
            wide_slice_sums=True))]  # fmt: skip
    assert more[1] - more[0] == 3 * HIDDEN * FFN * 2


def test_a_smaller_slice_never_takes_more_memory_and_never_less_time():
    for policy in ("none", "mlp", "all_but_attention", "full"):
        costs = [price(CLUSTER, LONG, tiled(chunk, policy)) for chunk in (512, 4096, 2**15, 2**17, 2**20)]
        bytes_, seconds = ([getattr(one, name) for one in costs] for name in ("memory_bytes", "step_s"))
        assert bytes_ == sorted(bytes_) and seconds == sorted(seconds, reverse=True)
        assert costs[-1].step_s == costs[-2].step_s  # more tokens than there are is one slice
    assert price(CLUSTER, LONG, tiled(4096)).memory_bytes < price(CLUSTER, LONG, LAYOUT).memory_bytes


@pytest.mark.parametrize("gated", [True, False])
def test_one_slice_runs_forward_once_more(gated):
    shape = RankSizes(Workload(replace(MODEL, gated=gated), context_tokens=2**20), tiled(2**20), DEEPSPEED)
    plain = RankSizes(shape.workload, LAYOUT, DEEPSPEED)
    kernels = Kernels.of("h100-sxm-80gb")

    def products(here, grad, part):
        return sum(one.seconds for one in mlp(here, kernels, grad) if one.part == part)

    assert products(shape, False, "matmul") == products(plain, False, "matmul")
    assert products(shape, True, "matmul") == products(plain, True, "matmul")
    again = [one.seconds for one in mlp(shape, kernels, True) if one.part == "recompute"]
    model = shape.workload.model
    inside = 2**17 * model.ffn * 2 * (5 if gated else 2)  # gate, its activation, up and product; GELU
    forward = products(plain, False, "matmul") + kernels.memory_bound_s(inside, 5)
    assert again == [pytest.approx(forward, rel=1e-12)]


def test_slices_add_up_the_gradients_of_weights():
    """Each slice but the first: three matrices read twice and written once, unless the product adds them itself."""
    kernels = Kernels.of("h100-sxm-80gb")
    many = RankSizes(LONG, tiled(2**14), DEEPSPEED)
    fused = replace(many, framework=Framework(accumulator="fp32"))
    frozen = RankSizes(replace(LONG, trainable=("projector",)), tiled(2**14), DEEPSPEED)
    sums = 7 * kernels.memory_bound_s(3 * HIDDEN * FFN * 3 * 2, 3)

    def joined(shape):
        phases = mlp(shape, kernels, True)
        return next(one.seconds for one in phases if isinstance(one, Compute))

    assert joined(many) == pytest.approx(sums + kernels.memory_bound_s(TOKENS * HIDDEN * 2 * 4, 2))
    assert joined(fused) == joined(frozen) == pytest.approx(kernels.memory_bound_s(TOKENS * HIDDEN * 2 * 4, 2))


def test_flop_by_hand():
    """Once more in every layer: also a third time where the layer is recomputed whole, its last product then twice as
    often as without slices, where PyTorch's checkpoint leaves it out; never twice under `mlp`."""
    forward = 2 * 3 * HIDDEN * FFN * 2**20 * MODEL.layers
    times = {"none": 1, "full": 4 / 3, "core_attention": 1, "all_but_attention": 1 / 3, "mlp": 1 / 3}
    for policy, more in times.items():
        found = executed_flops(LONG, tiled(4096, policy)) - executed_flops(LONG, tiled(None, policy))
        assert found == pytest.approx(more * forward, rel=1e-9), policy


def test_batch_and_simulation_follow():
    layouts = [tiled(4096), tiled(4096, layout=Strategy(ring=2, ulysses=4, shard=8)), LAYOUT]
    batch = price_batch(CLUSTER, LONG, layouts)
    alone = [price(CLUSTER, LONG, one) for one in layouts]
    assert batch.step_s == pytest.approx([one.step_s for one in alone], rel=1e-12)
    assert np.array_equal(batch.memory_bytes, [one.memory_bytes for one in alone])
    found = simulate(CLUSTER, LONG, layouts[0])
    assert found.step_s == pytest.approx(alone[0].step_s, rel=0.02)
    assert found.seconds["recompute"] == pytest.approx(alone[0].seconds["recompute"], rel=1e-6)


def test_the_host_calls_every_slice():
    """512 slices of 256 tokens: 5 operators each forward, and the join; 19 backward, where a whole MLP has 10."""
    many, whole = RankSizes(LONG, tiled(256), DEEPSPEED), RankSizes(LONG, LAYOUT, DEEPSPEED)
    for policy, more in ((None, 511 * 5 + 1), ("none", 512 * 19 - 10), ("mlp", 512 * 19 - 14),
                         ("full", 512 * 19 - 10 + 511 * 5 + 1)):  # fmt: skip
        added = layer_host_s(many, PYTORCH_2024, policy)[0] - layer_host_s(whole, PYTORCH_2024, policy)[0]
        assert added == pytest.approx(more * PYTORCH_2024.operator_s), policy


def test_tensor_parallelism_exchanges_as_before():
    kernels = Kernels.of("h100-sxm-80gb")
    sliced, plain = (RankSizes(LONG, Strategy(tensor=4, ulysses=2, mlp_chunk_tokens=c)) for c in (4096, None))
    for grad in (False, True):
        ops = [[one.op for one in mlp(s, kernels, grad) if not isinstance(one, Compute)] for s in (sliced, plain)]
        assert sorted(ops[0]) == sorted(ops[1]) and len(ops[0]) == 2


@pytest.mark.parametrize("chunk", [0, -1, 1.5, float("nan")])
def test_odd_slices_are_refused(chunk):
    with pytest.raises(InputError, match=f"mlp_chunk_tokens={chunk} must be a whole number of at least 1"):
        Strategy(mlp_chunk_tokens=chunk)


def test_experts_have_no_slices():
    with pytest.raises(InputError, match="mlp_chunk_tokens=512 is not priced for experts"):
        Strategy(mlp_chunk_tokens=512).check(Model.load("deepseek-v2"))
