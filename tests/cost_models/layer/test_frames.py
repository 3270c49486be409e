"""Frames of the busiest rank against a walk over every token, and what each way of dealing them costs."""

import math

import numpy as np
import pytest

from cost_models import Cluster, InputError, Model, Strategy, Workload
from cost_models.framework import Framework
from cost_models.layer.frames import busiest
from cost_models.layer.sizes import RankSizes
from cost_models.memory.components import components
from cost_models.memory.peaks import Peak
from cost_models.program import Exchange
from cost_models.step.vision import backward, forward
from cost_models.timing.kernels import Kernels


def by_walking(frames, tokens_per_frame, text, ring, ulysses):
    """Every token's frame: a ring cuts the row into 2 R chunks, rank r takes r and 2 R - 1 - r; then U slices."""
    parts = 2 * ring if ring > 1 else 1
    granule = ring * math.lcm(parts // ring, ulysses)
    owner = np.full(granule * (-(-(frames * tokens_per_frame + text) // granule)), -1)
    owner[: frames * tokens_per_frame] = np.repeat(np.arange(frames), tokens_per_frame)
    chunks = owner.reshape(parts, -1)
    most = 0
    for r in range(ring):
        block = np.concatenate([chunks[r], chunks[2 * ring - 1 - r]]) if ring > 1 else chunks[0]
        for part in block.reshape(ulysses, -1):
            most = max(most, len(set(part.tolist()) - {-1}))
    return most


@pytest.mark.parametrize("ring, ulysses", [(1, 8), (4, 1), (2, 3), (3, 2), (2, 8)])
@pytest.mark.parametrize("frames, tokens_per_frame, text", [(5, 7, 11), (64, 6, 0), (33, 10, 100), (1, 4, 50)])
def test_own_tokens_touch_the_frames_that_a_walk_finds(ring, ulysses, frames, tokens_per_frame, text):
    found = busiest("own_tokens", frames, tokens_per_frame, text, ring, ulysses)
    assert found == by_walking(frames, tokens_per_frame, text, ring, ulysses)
    assert found >= busiest("exchanged", frames, tokens_per_frame, text, ring, ulysses) or text


def shape(sharding, frames=512, **degrees):
    model = Model.load("longvila-8b")
    work = Workload(model, frames=frames, text_tokens=1024)
    layout = degrees.pop("arrays", None) or Strategy(ring=2, ulysses=8, shard=16)
    return RankSizes(work, layout, Framework(frame_sharding=sharding))


def test_who_sends_what():
    """Each way's exchange, forward and backward: all-to-all both ways, one all-reduce of the row, nothing."""
    kernels = Kernels.of("h100-sxm-80gb")
    sent = {}
    for sharding in ("exchanged", "reduced", "own_tokens", "placeholders"):
        one = shape(sharding)
        phases = [p for segment in (*forward(one, kernels), *backward(one, kernels)) for p in segment.phases]
        sent[sharding] = [(p.op, p.bytes) for p in phases if isinstance(p, Exchange)]
    own = 512 // 16 * 196 * 4096 * 2
    assert sent["exchanged"] == [("all_to_all", own)] * 2
    assert sent["reduced"] == [("all_reduce", (512 * 196 + 1024) * 4096 * 2)]
    assert sent["own_tokens"] == sent["placeholders"] == []


def test_the_row_rebuilt_whole_is_in_memory():
    device = Cluster.load("dgx-h100", nodes=2).runs[0].node.device
    whole, shared = (components(shape(way), 0, Peak(name=""), device)["vision"] for way in ("reduced", "exchanged"))
    assert whole - shared == (512 * 196 + 1024) * 4096 * 2


def test_arrays_of_candidates_agree_with_each_one():
    ring, ulysses = np.array([2, 1, 4, 2]), np.array([8, 8, 2, 8])
    one = np.ones(4, dtype=int)
    many = Strategy().varied(data=one, ring=ring, ulysses=ulysses, shard=one, zero=3 * one, microbatches=one)
    found = shape("own_tokens", frames=77, arrays=many).frames
    assert found.tolist() == [busiest("own_tokens", 77, 196, 1024, r, u) for r, u in zip(ring, ulysses, strict=True)]


def test_an_unknown_way_is_refused():
    with pytest.raises(InputError, match="frame_sharding='evenly' is unknown; legal: exchanged, reduced"):
        Framework(frame_sharding="evenly")
