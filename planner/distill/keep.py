"""Which layers keep attention: the least distance under a number of layers, a step time or a memory, as a program.

    minimise    sum of distance_l (1 - x_l)                            x binary: layer l keeps attention
    subject to  sum x_l = count        sum s_k x_l <= time - time_0        sum b_k x_l <= memory - memory_0
                x_l + … + x_{l + spacing - 1} >= 1                     k: the layer's kind, 0: no layer keeps any

Solved by HiGHS to gap 0. `s` and `b` are differences of prices of one layout; the answer is priced again as a whole.
Distances of layers that are replaced together are taken to add up, which they do only roughly. `even` is what is done
without distances: layers in the middle of equal stretches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import pulp
from msgspec import Struct

from cost_models import strict
from cost_models.errors import InputError

MEASURES = ("divergence", "distance", "relative")


class Measured(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One layer in distances.json."""

    layer: int
    distance: float  # of its output from the attention's, mean over tokens
    relative: float  # that over the norm of the attention's output
    divergence: float  # of the model's next tokens with this layer alone replaced


class _File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    teacher: str
    layers: tuple[Measured, ...]


class Limits(Struct, frozen=True, kw_only=True):
    """What the kept layers may cost together; `None` is no limit."""

    count: int | None = None
    seconds: tuple[float, ...] = ()  # of each layer, over that of the `ssd` layer in its place
    room_s: float | None = None
    held: tuple[float, ...] = ()  # bytes, likewise
    room_bytes: float | None = None
    spacing: int | None = None  # of so many layers in a row, at least one keeps attention


def read_distances(path: str, layers: int, measure: str) -> tuple[float, ...]:
    """One measure of every layer, from what `longvila.distill layers` wrote."""
    try:
        found = msgspec.json.decode(strict.read_text(path, "distances"), type=_File).layers
    except (msgspec.DecodeError, ValueError) as fault:
        raise InputError(f"{path} is no distances.json of longvila.distill ({fault})") from None
    if len(found) != layers:
        raise InputError(f"{path} has {len(found)} layers, --model has {layers}: they must be of one model")
    if [one.layer for one in found] != list(range(layers)):
        raise InputError(f"{path}: layers are not 0 to {layers - 1}, each once and in this order")
    values = tuple(float(getattr(one, measure)) for one in found)
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise InputError(f"{path}: {measure} is not a number of at least 0 in every layer")
    if not math.isfinite(sum(values)):
        raise InputError(f"{path}: {measure} of all layers is more than a number holds; legal: a finite sum")
    return values


def choose_layers(distances: Sequence[float], limits: Limits) -> tuple[int, ...]:
    """The layers that keep attention; among equal answers the one that HiGHS finds with a fixed seed.

    >>> choose_layers([5.0, 4.5, 1.0, 1.2, 1.0, 1.0], Limits(count=2))
    (0, 1)
    >>> choose_layers([5.0, 4.5, 1.0, 1.2, 1.0, 1.0], Limits(count=2, spacing=3))
    (0, 3)
    """
    problem = pulp.LpProblem("keep", pulp.LpMinimize)
    x = [pulp.LpVariable(f"x_{layer}", cat=pulp.LpBinary) for layer in range(len(distances))]
    scale = max(max(distances), 1e-30)
    problem += pulp.LpAffineExpression([(one, -far / scale) for one, far in zip(x, distances, strict=True)])
    if limits.count is not None:
        problem += pulp.lpSum(x) == limits.count, "count"
    for name, each, room in (("time", limits.seconds, limits.room_s), ("memory", limits.held, limits.room_bytes)):
        if room is not None:
            unit = max(max(each), 1e-30)
            terms = [(one, more / unit) for one, more in zip(x, each, strict=True)]
            problem += pulp.LpAffineExpression(terms) <= room / unit, name
    for first in range(len(x) - limits.spacing + 1 if limits.spacing else 0):
        problem += pulp.lpSum(x[first : first + (limits.spacing or 0)]) >= 1, f"spacing_{first}"
    problem.solve(pulp.HiGHS(msg=False, threads=1, gapRel=0.0, random_seed=0, mip_abs_gap=0.0))
    if problem.sol_status != pulp.LpSolutionOptimal:
        raise InputError(
            "no choice of layers keeps to all limits: allow more time, memory or layers, or a wider spacing"
        )
    return tuple(layer for layer, one in enumerate(x) if (one.value() or 0) > 0.5)


def even(layers: int, count: int) -> tuple[int, ...]:
    """So many layers, evenly spaced.

    >>> even(8, 2), even(32, 4)
    ((2, 6), (4, 12, 20, 28))
    """
    return tuple(int((place + 0.5) * layers / count) for place in range(count))


def left(distances: Sequence[float], keep: Sequence[int]) -> float:
    """The distances of all layers that do not keep attention, summed."""
    return sum(far for layer, far in enumerate(distances) if layer not in keep)
