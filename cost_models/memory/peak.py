"""Memory of the pipeline stage that holds most.

Where all layers are of one kind it is that of a stage that has everything, a bound that is linear in the layers: the
first one's microbatches in flight and the last one's logits. Where kinds differ, or with `by_stage`, the first stage
(embedding, most microbatches in flight) and the last (head, most experts, one microbatch) are counted apart, and the
larger is the peak.
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


def peak(shape: Shape, ranges: tuple[LayerRange, ...], device: Device, by_stage: bool = False) -> dict[str, Any]:
    """Bytes by component, of one rank of the fullest stage."""
    return fullest(shape, ranges, device, by_stage)[0]


def fullest(
    shape: Shape, ranges: tuple[LayerRange, ...], device: Device, by_stage: bool = False
) -> tuple[dict[str, Any], str]:
    """The same, and the moment of the step."""
    model, stages = shape.workload.model, shape.degrees.pipeline
    if not is_mixed(model) and not (by_stage and stages > 1):
        kept = sum(kept_bytes(shape, part) * part.count for part in ranges) / stages
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
