"""Layers packed onto GPUs: as good as trying everything, within memory, refused where nothing fits."""

import itertools
import random

import pytest

from cost_models.errors import InputError
from planner.distill.packing import LayerCost, pack


def cost(teacher_s, layer_s, layer_bytes=1.0):
    return LayerCost(teacher_s=teacher_s, teacher_bytes=1.0, layer_s=layer_s, layer_bytes=layer_bytes)


def brute(costs, gpus, capacity):
    """The least possible seconds of the slowest GPU."""
    learn = [layer for layer, one in enumerate(costs) if one.layer_s is not None]
    best = float("inf")
    for where in itertools.product(range(gpus), repeat=len(learn)):
        worst = 0.0
        for gpu in set(where):
            mine = [layer for layer, its in zip(learn, where, strict=True) if its == gpu]
            before = costs[: max(mine) + 1]
            held = sum(one.teacher_bytes for one in before) + sum(costs[layer].layer_bytes for layer in mine)
            seconds = sum(one.teacher_s for one in before) + sum(costs[layer].layer_s for layer in mine)
            worst = max(worst, seconds if held <= capacity else float("inf"))
        best = min(best, worst)
    return best


@pytest.mark.parametrize("seed", range(12))
def test_no_packing_is_faster(seed):
    draw = random.Random(seed)
    kinds = [
        (draw.uniform(0.2, 1), draw.uniform(0.5, 3), draw.choice([1.0, 3.0])) for _ in range(draw.choice([1, 2, 3]))
    ]
    costs = [cost(*draw.choice(kinds)) for _ in range(7)]
    if seed % 3 == 0:
        costs[draw.randrange(6)] = LayerCost(teacher_s=1.0, teacher_bytes=1.0, layer_s=None, layer_bytes=None)
    capacity, gpus = draw.choice([12.0, 100.0]), draw.choice([2, 3])
    least = brute(costs, gpus, capacity)
    if least == float("inf"):
        with pytest.raises(InputError, match="do not fit"):
            pack(costs, gpus, capacity)
        return
    found = pack(costs, gpus, capacity)
    assert found.slowest_s == pytest.approx(least, rel=1e-5)
    assert found.bound_s <= least * (1 + 1e-9)
    assert sorted(itertools.chain(*found.groups)) == [i for i, one in enumerate(costs) if one.layer_s is not None]


def test_shallow_layers_are_more_to_a_gpu_and_nothing_to_learn_is_refused():
    found = pack([cost(1.0, 2.0)] * 32, 8, 1e9)
    by_depth = sorted(found.groups)
    assert len(by_depth[0]) > len(by_depth[-1])
    assert found.slowest_s < 32 + 2 * 4  # as many layers to each: the last runs 32 and learns 4
    with pytest.raises(InputError, match="keeps attention"):
        pack([LayerCost(teacher_s=1.0, teacher_bytes=1.0, layer_s=None, layer_bytes=None)], 1, 1.0)
