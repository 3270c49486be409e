"""Bytes of one rank during each segment of a step: the same parts as `components`, at that segment instead of the peak.

    forward layer i     states + what layers 1 … i keep + one layer's tensors
    head and loss       states + what all layers keep + the loss's logits
    backward layer i    states + what layers 1 … i keep + what its backward pass adds to that
    root gradients      states + full gradients of embedding, head and projector

The highest segment is the peak that `price` states, to what the peak counts in simpler form. Of a pipeline this is the
stage whose layers are played, with all microbatches that it holds in flight. Left out: the vision tower's curve.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cost_models.hardware.device import Device
from cost_models.layer.sizes import RankSizes
from cost_models.layer.stages import Run, runs
from cost_models.memory import peaks
from cost_models.memory.components import components
from cost_models.memory.peaks import Peak, kept_bytes, microbatches_in_flight
from cost_models.program import StepProgram
from cost_models.strategy import LayerRange


def over_time(
    sizes: RankSizes, ranges: tuple[LayerRange, ...], program: StepProgram, device: Device
) -> list[NDArray[np.float64]]:
    """For each segment of a microbatch, then of the epilogue, bytes while its first and its last repeat run."""
    if sizes.workload.mode != "train":  # nothing is kept from layer to layer
        level = sum(components(sizes, 0.0, peaks.peak(sizes), device).values())
        return [np.full(2, float(level))] * (len(program.microbatch) + len(program.epilogue))
    layers = [i for i, segment in enumerate(program.microbatch) if segment.kind is not None]
    forward = runs(sizes, ranges)
    order = [*forward, *reversed(forward)]
    assert len(layers) == len(order)
    every = sum(_kept(sizes, run) * run.layers for run in forward)
    in_flight = float(microbatches_in_flight(sizes))
    always = peaks.always(sizes)

    def at(kept: float, moment: Peak) -> float:
        activations = (every * (in_flight - 1) + kept) / in_flight
        moment = replace(moment, working=moment.working + always)
        return float(sum(components(sizes, activations, moment, device).values()))

    kept, levels = 0.0, []
    for i, segment in enumerate(program.microbatch):
        if i not in layers:
            levels.append(np.full(2, at(kept, _outside(sizes, i, layers, len(forward)))))
            continue
        place = layers.index(i)
        run, sign = order[place], 1 if place < len(forward) else -1
        here, each = sizes.of(run.kind), _kept(sizes, run)
        moment = replace(peaks.forward(here), logits=0) if sign > 0 else peaks.layer_backward(here, run.part)
        first = kept + (each if sign > 0 else 0.0)
        last = first + sign * each * max(0.0, float(segment.repeat) - 1)
        levels.append(np.array([at(first, moment), at(last, moment)]))
        kept += sign * each * float(segment.repeat)
    return levels + [np.full(2, at(0.0, Peak(name="update")))] * len(program.epilogue)


def _kept(sizes: RankSizes, run: Run) -> float:
    return float(kept_bytes(sizes.of(run.kind), run.part))


def _outside(sizes: RankSizes, i: int, layers: list[int], forward: int) -> Peak:
    """What a segment that is no layer holds, by where it stands among the layers."""
    if i > layers[-1]:
        ends = peaks.root_gradients(sizes, 0.0), peaks.tower_backward(sizes, 0.0)
        return max(ends, key=lambda one: float(one.total))
    if i > layers[forward - 1]:
        return peaks.loss(sizes)
    return Peak(name="outside layers")
