"""What a framework adds to a segment beside its operators: copies of weights and gradients, launches, host time.

Seconds of one rank. A CPU process launches nothing: its profile has the time that no kernel explains.
"""

from __future__ import annotations

from cost_models.number import Number, pick, somewhere
from cost_models.program import Compute, Phase, Segment
from cost_models.timing.kernels import Kernels


def copied(kernels: Kernels, moved: Number) -> tuple[Phase, ...]:
    """A framework's copies of weights and gradients, of so many bytes."""
    if not somewhere(moved > 0):
        return ()
    return (Compute(part="memory_bound", seconds=pick(moved > 0, kernels.memory_bound_s(moved, 6), 0.0)),)


def launched(segment: Segment, kernels: Kernels, host_s: Number) -> Segment:
    """With what the host takes to launch it; a CPU process launches nothing."""
    return segment if kernels.device.architecture == "cpu" else segment._replace(host_s=host_s)


def framework_time(kernels: Kernels, unit: str, share: float = 1.0) -> Compute:
    """Host time that no kernel explains; nothing unless a profile of CPU processes has it."""
    return Compute(part="memory_bound", seconds=share * kernels.framework_s(unit))
