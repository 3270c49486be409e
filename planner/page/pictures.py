"""The pictures of a report as Vega-Lite specifications: plain data, no drawing here.

    topology    nodes in a grid, each GPU in the colour of a group that the reader picks, each network card by its load
    tokens      for each ring position the pieces of the row that it holds
    timeline    what the streams of one rank do over the step
    memory      parts of the fullest rank against the capacity, and what the slowest rank holds over the step
    choices     step time and memory of the plan and of the layouts that lost
    curves      step time over one axis of a what-if, the new plan and the old one

Widths follow the page. Hovering shows the numbers behind a mark.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
MANY, LIMIT = {"scheme": "tableau20"}, "#d62728"
Rows = Sequence[Mapping[str, Any]]


def _spec(rows: Rows, height: int, **more: Any) -> dict[str, Any]:
    return {"$schema": SCHEMA, "data": {"values": list(rows)}, "width": "container", "height": height, **more}


def _tooltip(**names: str) -> list[dict[str, Any]]:
    return [{"field": field, "title": title} for field, title in names.items()]


def _of(field: str, kind: str = "quantitative", **more: Any) -> dict[str, Any]:
    """A channel of a field: its kind, then title, scale, axis or legend."""
    return {"field": field, "type": kind, **more}


def _groups(field: str, **more: Any) -> dict[str, Any]:
    """Colours by name."""
    return _of(field, "nominal", **more)


def _legend(columns: int) -> dict[str, Any]:
    return {"title": None, "scale": MANY, "legend": {"orient": "top", "columns": columns}}


def topology(gpus: Rows, cards: Rows, choices: Sequence[str], across: float, down: float) -> dict[str, Any]:
    """`gpus`: x, y, slot, gpu, rank and one word for each of `choices`; `cards`: x, y, card, load (0 to 1)."""
    place = {
        "x": _of("x", axis=None, scale={"domain": [0, across]}),
        "y": _of("y", axis=None, scale={"domain": [down, 0]}),
    }
    told = _tooltip(slot="slot", gpu="GPU", rank="rank", **{name: name for name in choices})
    layers = [
        {
            "data": {"values": list(gpus)},
            "transform": [{"calculate": "datum[colour]", "as": "group"}],
            "mark": {"type": "rect", "cornerRadius": 2},
            "encoding": {
                **place,
                "x2": {"field": "x2"},
                "y2": {"field": "y2"},
                "color": _groups("group", legend=None, scale=MANY),
                "opacity": {"condition": {"test": "datum.rank === 'free'", "value": 0.15}, "value": 1},
                "tooltip": told,
            },
        },
        {
            "data": {"values": list(cards)},
            "mark": {"type": "circle", "size": 28, "stroke": "#888", "strokeWidth": 0.5},
            "encoding": {
                **place,
                "color": _of("load", legend=None, scale={"domain": [0, 1], "scheme": "reds"}),
                "tooltip": _tooltip(card="network card", shown="busy"),
            },
        },
    ]
    return {
        "$schema": SCHEMA,
        "width": "container",
        "height": max(80, round(22 * down)),
        "params": [_choice("colour", choices, "colour by ")],
        "layer": layers,
        "resolve": {"scale": {"color": "independent"}},
    }


def _choice(name: str, options: Sequence[str], words: str) -> dict[str, Any]:
    """What the reader picks, the first option at first."""
    return {"name": name, "value": options[0], "bind": {"input": "select", "options": list(options), "name": words}}


def tokens(pieces: Rows, rings: int) -> dict[str, Any]:
    """`pieces`: ring, start, stop (tokens), text."""
    encoding = {
        "x": _of("start", title="position in the row (tokens)", axis={"format": "s"}, scale={"nice": False}),
        "x2": {"field": "stop"},
        "y": _of("ring", "ordinal", title="ring position"),
        "color": _groups("ring", legend=None, scale=MANY),
        "tooltip": _tooltip(ring="ring position", text="tokens"),
    }
    return _spec(pieces, min(420, 24 + 14 * rings), mark={"type": "bar"}, encoding=encoding)


def timeline(spans: Rows) -> dict[str, Any]:
    """`spans`: stream, what, start, stop (seconds), text. The wheel looks closer, dragging moves along."""
    closer = {"name": "part", "select": {"type": "interval", "encodings": ["x"]}, "bind": "scales"}
    encoding = {
        "x": _of("start", title="seconds", scale={"nice": False}),
        "x2": {"field": "stop"},
        "y": _groups("stream", title=None, sort=None),
        "color": _groups("what", **_legend(5)),
        "tooltip": _tooltip(what="what", text="for"),
    }
    return _spec(spans, 130, mark={"type": "bar", "clip": True}, params=[closer], encoding=encoding)


def memory(parts: Rows, capacity_gib: float) -> dict[str, Any]:
    """`parts`: part, gib, text; the rule is the capacity."""
    bars = {
        "mark": {"type": "bar"},
        "encoding": {
            "x": _of("gib", title="GiB of the fullest rank", stack="zero"),
            "color": _groups("part", **_legend(4)),
            "tooltip": _tooltip(part="part", text="holds"),
        },
    }
    limit = {
        "data": {"values": [{"gib": capacity_gib, "text": f"{capacity_gib:.2f} GiB"}]},
        "mark": {"type": "rule", "strokeWidth": 3, "color": LIMIT},
        "encoding": {"x": _of("gib"), "tooltip": _tooltip(text="capacity")},
    }
    return _spec(parts, 60, layer=[bars, limit])


def over_time(levels: Rows, capacity_gib: float) -> dict[str, Any]:
    """`levels`: at (seconds), gib until the next one, text."""
    steps = {
        "mark": {"type": "area", "interpolate": "step-after", "line": True, "fillOpacity": 0.3},
        "encoding": {
            "x": _of("at", title="seconds", scale={"nice": False}),
            "y": _of("gib", title="GiB of the slowest rank"),
            "tooltip": _tooltip(at="seconds", text="holds"),
        },
    }
    limit = {
        "data": {"values": [{"gib": capacity_gib}]},
        "mark": {"type": "rule", "strokeWidth": 2, "color": LIMIT},
        "encoding": {"y": _of("gib")},
    }
    return _spec(levels, 140, layer=[steps, limit])


def choices(layouts: Rows) -> dict[str, Any]:
    """`layouts`: layout, step (seconds), gib, role, why."""
    encoding = {
        "x": _of("step", title="seconds a step", scale={"zero": False}),
        "y": _of("gib", title="GiB per GPU", scale={"zero": False}),
        "color": _groups("role", title=None, legend={"orient": "top"}),
        "tooltip": _tooltip(layout="layout", step="seconds", gib="GiB", why="why"),
    }
    return _spec(layouts, 240, mark={"type": "point", "filled": True, "size": 110}, encoding=encoding)


def curves(rows: Rows, axis: str, others: Sequence[str], cliffs: Rows) -> dict[str, Any]:
    """`rows`: at (number), text (the number as it was asked), step, low and high of its band, which plan, scenario,
    plan; `cliffs`: at, words.

    The reader picks a scenario.
    """
    ticks = {f"{row['at']:.15g}": row["text"] for row in rows}
    as_asked = {"values": [float(at) for at in ticks], "labelExpr": f"({json.dumps(ticks)})[datum.value]"}
    lines = {
        "transform": [{"filter": "datum.scenario === scenario"}],
        "mark": {"type": "line", "point": {"filled": True, "size": 60}},
        "encoding": {
            "x": _of("at", title=axis, scale={"type": "log", "nice": False}, axis={**as_asked, "labelOverlap": True}),
            "y": _of("step", title="seconds a step", scale={"zero": False}),
            "color": _groups("which", title=None, legend={"orient": "top"}),
            "strokeDash": _groups("which"),
            "tooltip": _tooltip(text=axis, step="seconds", plan="plan", which="which"),
        },
    }
    at = _of("at", scale={"type": "log"}, axis=as_asked)
    band = {
        "transform": [{"filter": "datum.scenario === scenario && isValid(datum.low)"}],
        "mark": {"type": "area", "fillOpacity": 0.15},
        "encoding": {"x": at, "y": _of("low"), "y2": {"field": "high"}, "color": _groups("which")},
    }
    rules = {
        "data": {"values": list(cliffs)},
        "mark": {"type": "rule", "strokeDash": [3, 3], "strokeWidth": 2, "color": LIMIT},
        "encoding": {"x": at, "tooltip": _tooltip(words="the plan changes")},
    }
    switch = _choice("scenario", others, "all else ")
    return _spec(rows, 300, params=[switch], layer=[band, lines, *([rules] if cliffs else [])])
