"""Shapes x tokens: what a cluster trains in so many days, as a Pareto front of quality, days and longest row.

    tokens      eighths of what our step time allows in the days, up to 1,000 a weight (more count for nothing)
    quality     Performance Law's MMLU of shape and tokens, an estimate; cost is GPU-hours, so days of this cluster
    front       no other has at least the quality in at most the days with as long a row, and is better in one

Depth is bounded by hidden / layers >= `DEEPEST`: the law alone would go deeper (`quality.py`), with its u as the only
brake. What lies at that bound is told. Left out: failures (`plan --goodput`), and what a tokenizer makes of data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from msgspec import Struct

from cost_models.errors import InputError
from cost_models.quality import DEEPEST, FFN, HIDDEN, LAYERS, TERA_TOKENS, Quality, backbone, quality
from cost_models.strategy import Strategy
from planner.backbones.widths import Shapes, depths

PARTS = 8
"""Token counts of a shape: so many equal parts of what the days allow."""
GRID_HIDDEN = (2048, 3072, 4096, 5120, 6144, 7168, 8192, 10240, 12288, 16384)
GRID_FFN = range(8192, FFN[1] + 1, 4096)
DAY_S = 86400.0
Widths = Mapping[tuple[int, int], Sequence[int]]
"""(hidden, ffn) -> layers, ascending."""


class Backbone(Struct, frozen=True, kw_only=True):
    """A shape trained on so many tokens."""

    layers: int
    hidden: int
    ffn: int
    params: int
    tokens: float
    days: float
    gpu_hours: float
    step_s: float
    longest_tokens: int
    quality: Quality
    strategy: Strategy

    @property
    def at_depth_bound(self) -> bool:
        return self.layers + 2 > deepest(self.hidden)


def deepest(hidden: int) -> int:
    """Most layers that are looked at."""
    return min(LAYERS[1], hidden // DEEPEST)


def grid() -> dict[tuple[int, int], Sequence[int]]:
    """The shapes that are looked at where the user names none.

    >>> sum(len(layers) for layers in grid().values()) > 2000
    True
    """
    return {
        (hidden, ffn): range(LAYERS[0], deepest(hidden) + 1, 2)
        for hidden in GRID_HIDDEN
        for ffn in GRID_FFN
        if hidden <= ffn <= 4 * hidden
    }


def trained(
    shapes: Shapes, widths: Widths, days: float, on_step: Callable[[str], None] = lambda what: None
) -> list[Backbone]:
    """Every shape x token count that the days allow and the law knows; InputError if there is none."""
    found: list[Backbone] = []
    most, any_fits = 0.0, False
    per_step = shapes.workload.global_batch * shapes.workload.context_tokens
    for (hidden, ffn), layers in widths.items():
        on_step(f"pricing shapes {hidden} wide, MLP {ffn}")
        here = depths(shapes, hidden, ffn, layers)
        for index, strategy in enumerate(here.strategies):
            if strategy is None:
                continue
            any_fits = True
            rate = per_step / float(here.step_s[index]) * DAY_S
            most = max(most, rate * days)
            found += _of_shape(
                shapes, layers[index], hidden, ffn, rate, days, float(here.step_s[index]),
                int(here.longest[index]), strategy, max(per_step, TERA_TOKENS[0] * 1e12),
            )  # fmt: skip
    if not any_fits:
        raise InputError(
            f"--backbones: no layout of any shape fits {shapes.cluster.gpus} GPUs with rows of "
            f"{shapes.workload.context_tokens} tokens and a batch of {shapes.workload.global_batch}; other --gpus (of "
            "which batch and row make equal parts), a larger --batch or a shorter --ctx may"
        )
    if not found:
        begins = f"Performance Law begins at {TERA_TOKENS[0]}; give more --days or --gpus, or a shorter --ctx"
        if per_step > TERA_TOKENS[0] * 1e12:
            begins = f"a step has {per_step / 1e12:.2g}; give a smaller --batch"
        raise InputError(f"--days {days:g} train at most {most / 1e12:.2g} trillion tokens here, and {begins}")
    return found


def _of_shape(
    shapes: Shapes, layers: int, hidden: int, ffn: int, rate: float, days: float, step_s: float, longest: int,
    strategy: Strategy, least: float,
) -> list[Backbone]:  # fmt: skip
    """One shape with its token counts of at least `least`; `rate` is tokens a day."""
    model = backbone(layers, hidden, ffn)
    most = min(rate * days, model.llm_params * 1e3, TERA_TOKENS[1] * 1e12)
    return [
        Backbone(
            layers=layers, hidden=hidden, ffn=ffn, params=model.llm_params, tokens=tokens, days=tokens / rate,
            gpu_hours=tokens / rate * 24 * shapes.cluster.gpus, step_s=step_s, longest_tokens=longest,
            quality=quality(model, tokens), strategy=strategy,
        )
        for tokens in (most * part / PARTS for part in range(1, PARTS + 1))
        if tokens >= least
    ]  # fmt: skip


def front(found: Sequence[Backbone]) -> list[Backbone]:
    """What no other beats, the best quality first; a tenth of a point, 1% of the days and a 64th of a row are alike."""
    values = np.array(
        [
            (round(-one.quality.mmlu, 1), _digits(one.days), -_digits(max(one.longest_tokens, 1)))
            for one in found
        ]
    )  # fmt: skip
    kept: list[int] = []
    for index in np.lexsort(values.T[::-1]).tolist():
        if not kept or not (values[kept] <= values[index]).all(axis=1).any():
            kept.append(index)
    return [found[index] for index in kept]


def _digits(value: float) -> float:
    """Two digits."""
    return float(f"{value:.1e}")


def shown(several: Sequence[Backbone], most: int) -> list[Backbone]:
    """At most so many, spread evenly over the front, its best first."""
    if len(several) <= most:
        return list(several)
    return [several[index] for index in np.linspace(0, len(several) - 1, most).round().astype(int).tolist()]


def named(text: str) -> Widths:
    """`48x4096x14336,…` -> shapes of layers x hidden x MLP.

    >>> named("48x4096x14336, 32x4096x14336")
    {(4096, 14336): [32, 48]}
    """
    widths: dict[tuple[int, int], list[int]] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        sides = item.split("x")
        if len(sides) != 3 or not all(side.isdecimal() and len(side) < 8 for side in sides):
            raise InputError(f"--shapes {item[:40]!r} is not LAYERSxHIDDENxFFN (as in 48x4096x14336)")
        layers, hidden, ffn = map(int, sides)
        for name, value, (least, most) in (("layers", layers, LAYERS), ("hidden", hidden, HIDDEN), ("ffn", ffn, FFN)):
            if not least <= value <= most:
                raise InputError(
                    f"--shapes {item!r}: {name}={value} is outside Performance Law's domain; legal: {least} to {most}"
                )
        if hidden % 1024:
            raise InputError(f"--shapes {item!r}: hidden={hidden}; legal: multiples of 1024 (8 KV heads of 128)")
        widths.setdefault((hidden, ffn), []).append(layers)
    if not widths:
        raise InputError("--shapes names none; legal: LAYERSxHIDDENxFFN,… (as in 48x4096x14336)")
    return {width: sorted(set(layers)) for width, layers in widths.items()}
