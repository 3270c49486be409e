"""Memory of the pipeline stage that holds most.

The first stage (embedding, most microbatches in flight) and the last (head, most experts, one microbatch) are counted
apart, and the larger is the peak. Left out: the stages between, which hold no more than the first.
"""

from __future__ import annotations

from typing import Any

from cost_models.either import pick, somewhere
from cost_models.hardware.device import Device
from cost_models.memory import moments
from cost_models.memory.activations import kept_bytes
from cost_models.memory.components import components
from cost_models.step.shape import Shape
from cost_models.step.stages import at_stage, is_mixed, stage
from cost_models.strategy import LayerRange


def peak(shape: Shape, ranges: tuple[LayerRange, ...], device: Device) -> dict[str, Any]:
    """Bytes by component, of one rank of the fullest stage."""
    return fullest(shape, ranges, device)[0]


def fullest(shape: Shape, ranges: tuple[LayerRange, ...], device: Device) -> tuple[dict[str, Any], str]:
    """The same, and the moment of the step."""
    model, stages = shape.workload.model, shape.degrees.pipeline
    if not is_mixed(model) and stages == 1:
        kept = sum(kept_bytes(shape, part) * part.count for part in ranges)
        moment = moments.peak(shape, ranges)
        return components(shape, kept, moment, device), moment.name
    found: dict[str, Any] = {}
    name = ""
    for index in sorted({0, stages - 1}):
        here, pieces = at_stage(shape, ranges, index), stage(model, ranges, stages, index)
        kept = sum(kept_bytes(here.of(piece.kind), piece.part) * piece.count for piece in pieces)
        moment = moments.peak(here, [(here.of(piece.kind), piece.part) for piece in pieces])
        parts = components(here, kept, moment, device)
        more = sum(parts.values()) > sum(found.values())
        found = {part: pick(more, size, found.get(part, 0)) for part, size in parts.items()}
        name = moment.name if somewhere(more) else name
    return found, name
