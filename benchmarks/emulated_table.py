"""Sixteen regimes of the emulated cluster in one command: is the planner's choice the fastest, and is the price right?

    python -m benchmarks.emulated_table results.jsonl        about 15 minutes on two quiet cores; needs root

Each regime that ends is a line of the file; the same command again runs what is missing, and with nothing missing it
prints the summary alone. By regime: the place of the planner's choice, its regret with the 95% interval over rounds,
how much faster it is than the pure ring and than ulysses inside the nodes x ring across, the median error of price and
simulation over the layouts, and the machine's load when it began (the regime before leaves up to 3; above that
something else ran: throw the line away).
Left out: packed rows, other head counts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.attention_ranks import Shape
from benchmarks.emulated_cluster import Asked, as_data, run
from benchmarks.gloo_ranks import printed
from cost_models.errors import InputError

ROUNDS = 5
REGIMES: tuple[tuple[int, int, tuple[float, ...], int, int], ...] = (
    (2, 2, (50,), 8, 2048), (2, 2, (200,), 8, 2048), (2, 2, (1000,), 8, 2048),
    (2, 2, (50,), 2, 2048), (2, 2, (200,), 2, 2048), (2, 2, (1000,), 2, 2048),
    (2, 1, (50,), 8, 1024), (2, 1, (200,), 2, 2048),
    (2, 4, (50,), 8, 1024), (2, 4, (200,), 2, 2048),
    (3, 1, (100,), 8, 1536), (3, 2, (200,), 2, 1536),
    (4, 1, (200,), 8, 2048), (4, 1, (50,), 2, 1024),
    (2, 2, (50, 200), 8, 1024), (3, 1, (50, 200, 200), 2, 1536),
)  # fmt: skip
"""(nodes, ranks of each, Mbit/s of every node or of each, KV heads of 8 heads of 64, tokens)"""


def asked_of(regime: tuple[int, int, tuple[float, ...], int, int]) -> Asked:
    nodes, each, rates, kv_heads, tokens = regime
    rates = rates * nodes if len(rates) == 1 else rates
    shape = Shape(q_heads=8, kv_heads=kv_heads, head_dim=64, tokens=tokens)
    return Asked(nodes=nodes, ranks_per_node=each, rates_mbit=rates, shape=shape, rounds=ROUNDS)


def named(regime: tuple[int, int, tuple[float, ...], int, int]) -> str:
    """
    >>> named((2, 2, (50,), 8, 2048))
    '2×2 50 Mbit/s, kv 8, 2048'
    """
    nodes, each, rates, kv_heads, tokens = regime
    return f"{nodes}×{each} {'/'.join(f'{rate:g}' for rate in rates)} Mbit/s, kv {kv_heads}, {tokens}"


def stored(file: Path) -> dict[str, dict[str, Any]]:
    """The regimes of the file by name; a line that was cut off is left out."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            one = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(one, dict) or "regime" not in one:
            raise InputError(f"{file} holds something else than regimes; name a new file")
        found[one["regime"]] = one
    return found


def run_missing(file: Path, regimes: Sequence[tuple[int, int, tuple[float, ...], int, int]] = REGIMES) -> None:
    """Every regime that the file lacks."""
    there = stored(file)
    for number, regime in enumerate(regimes, start=1):
        name = named(regime)
        if name in there:
            continue
        print(f"regime {number} of {len(regimes)}: {name}", file=sys.stderr, flush=True)
        load, began_s = os.getloadavg()[0], time.monotonic()
        found = as_data(*run(asked_of(regime)))
        line = {"regime": name, "load": load, "seconds": time.monotonic() - began_s, **found}
        cut = file.exists() and not file.read_bytes().endswith(b"\n")
        with file.open("a", encoding="utf-8") as to:
            to.write(("\n" if cut else "") + json.dumps(line, ensure_ascii=False) + "\n")


def _errors(layouts: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [abs(one[key] / float(np.median(one["measured_ms"])) - 1) for one in layouts]


def summary(lines: Sequence[Mapping[str, Any]]) -> str:
    """A row for each regime, and below how many reach what is asked of them."""
    head = f"{'regime':<36}{'choice':>8}{'regret (95%)':>24}{'vs ring':>9}{'vs ulysses inside':>19}"
    out = [head + f"{'price':>8}{'simulated':>11}{'load':>6}{'s':>5}"]
    good, price, simulated = 0, list[float](), list[float]()
    for one in lines:
        medians = [float(np.median(layout["measured_ms"])) for layout in one["layouts"]]
        place = sorted(range(len(medians)), key=medians.__getitem__).index(one["planned"]) + 1
        errors = [_errors(one["layouts"], key) for key in ("priced_ms", "simulated_ms")]
        price += errors[0]
        simulated += errors[1]
        low, high = one["regret_95"]
        good += one["regret"] <= 0.05 or low <= 0
        middle = [float(np.median(each)) for each in errors]
        ring = max(range(len(medians)), key=lambda at: len(one["layouts"][at]["processes"]))
        inside = [at for at, layout in enumerate(one["layouts"]) if layout["layout"].endswith("ulysses inside")]
        mine = medians[one["planned"]]
        against = f"{min(medians[at] for at in inside) / mine:.2f}" if inside else "–"
        spread = f"{one['regret']:.1%} ({low:.1%} to {high:.1%})"
        out.append(
            f"{one['regime']:<36}{f'{place} of {len(medians)}':>8}{spread:>24}{medians[ring] / mine:>9.2f}{against:>19}"
            f"{middle[0]:>8.0%}{middle[1]:>11.0%}{one['load']:>6.1f}{one['seconds']:>5.0f}"
        )
    out.append(
        f"within 5% of the best, or not told apart from it: {good} of {len(lines)} regimes; median error over "
        f"{len(price)} layouts: price {np.median(price):.0%}, simulation {np.median(simulated):.0%}"
    )
    return "\n".join(out)


def table(file: Path) -> str:
    """Run what is missing, and the summary of all."""
    run_missing(file)
    there = stored(file)
    return summary([there[named(regime)] for regime in REGIMES])


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a line for each regime; what it lacks is run and added")
    file = parser.parse_args(arguments).file
    return printed("emulated_table", lambda: table(file))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
