"""Whether state passing or head exchange is chosen rightly on real, slow links: every split is priced, run and timed.

    python -m benchmarks.ssd            12 regimes: three rates x four shapes; about 10 minutes on two quiet cores
    python -m benchmarks.ssd --rates 50 --shapes 128x8x32x64 --rounds 3                                a small one

Two nodes of two ranks (network namespaces with shaped links; needs root), ulysses inside, ring across, zigzag. In them
kernels, convolution and scan, links inside a node and between nodes are profiled, as `executor profile` does; then each
split of the mixer runs forward and backward in interleaved rounds. Price and simulation are the product's: a
state-space layer's operators from channels to y (`cost_models/layer/ssd.py`), by that profile; the choice is a plan's:
of the splits whose order is not sure the one that loses least in any scenario (`planner/choosing.py`). Printed:
measured median, price and simulation of each split, and the choice's regret, choice / best - 1, with a bootstrap
interval over the rounds. Left out: projections (the same for all), other grids.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.attention_ranks import PATH, Grid, Measured, measured
from benchmarks.attention_ranks import Shape as AttentionShape
from benchmarks.emulated_cluster import FP32, WIDTH, Asked, Row, cluster_of, operators_s, placed, regret
from benchmarks.gloo_ranks import printed, run_ranks
from benchmarks.namespaces import Namespaces
from benchmarks.ssd_ranks import Case, Found, Shape, Split, measure
from cost_models import Model, Profile, Strategy, Workload, price
from cost_models.bands import odds
from cost_models.errors import InputError
from cost_models.hardware.machine import cores
from cost_models.layer.sizes import RankSizes
from cost_models.layer.ssd import ssd_operators
from cost_models.models.ssd import Ssd
from cost_models.profile import VERSION
from cost_models.ssd_messages import PASSES, SPLITS, SsdLayer, rounds
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.token_layout import Layout
from executor.measure.bench import Order
from planner.choosing import SURE, weighed
from planner.solve import Choice

NODES, EACH = 2, 2
GRID = Grid(name="ulysses inside", process=((0, 1), (2, 3)))
KIND = "zigzag"
MIXER = ("heads", "convolution", "scan", "heads back")
"""Operators of a state-space layer from its channels to y."""
MICROBATCHES = 64
"""Of the step that a choice is made for: so many that what it sends once, the weights' gradients, does not count."""
RATES_MBIT = (50.0, 200.0, 1000.0)
SHAPES = (
    Shape(tokens=2048, heads=32, head_size=32, state=32),
    Shape(tokens=512, heads=32, head_size=64, state=64),
    Shape(tokens=256, heads=32, head_size=64, state=128),
    Shape(tokens=128, heads=32, head_size=64, state=256),
)
"""From long rows of small states to short rows of large ones: a split by heads sends the former, passing the latter.
Heads multiply work and bytes alike. With 8 of them a pass takes 20 to 40 ms, and ranks that share a core wait for each
other's turns of 4 ms (the kernel's tick): as much as lies between splits."""


@dataclass(frozen=True, kw_only=True)
class Regime:
    """One shape at one rate: its splits, measured and priced."""

    rate_mbit: float
    shape: Shape
    splits: tuple[Split, ...]
    rows: tuple[Row, ...]
    chosen: int


def case_of(shape: Shape) -> Case:
    """All splits that this grid allows."""
    layout, found = _layout(shape), list[Split]()
    for split in SPLITS:
        for way in PASSES if split != "heads" else PASSES[:1]:
            try:
                rounds(layout, _layer(shape), split, way)
            except InputError:
                continue
            found.append((split, way))
    return Case(shape=shape, splits=tuple(found))


def _layout(shape: Shape) -> Layout:
    return Layout(tokens=shape.tokens, ulysses=GRID.ulysses, ring=GRID.ring, kind=KIND)


def _layer(shape: Shape) -> SsdLayer:
    return SsdLayer(
        heads=shape.heads, head_size=shape.head_size, state=shape.state, conv=shape.conv, width=4, state_width=4
    )


class Prices:
    """Price and simulation of a split of the mixer alone: its operators, forward and backward."""

    def __init__(self, measured: Measured, rate_mbit: float) -> None:
        asked = Asked(
            nodes=NODES, ranks_per_node=EACH, rates_mbit=(rate_mbit,) * NODES,
            shape=AttentionShape(q_heads=4, kv_heads=4, head_dim=8, tokens=64), rounds=1,
        )  # fmt: skip
        self.profile = Profile(version=VERSION, device="cpu", machine="emulated cluster", samples=measured.samples)
        self.cluster = cluster_of(asked, measured)
        self.costs = cluster_costs(self.cluster, self.profile)
        self.placement = placed(GRID, EACH)

    def chosen(self, shape: Shape, splits: Sequence[Split]) -> int:
        """Which of them a plan takes."""
        work, choices = workload_of(shape, MICROBATCHES), []
        for split in splits:
            strategy = replace(strategy_of(split), microbatches=MICROBATCHES)
            cost = price(self.cluster, work, strategy, self.placement, self.profile)
            choices.append(Choice(strategy=strategy, placement=self.placement, cost=cost))
        best = min(choices, key=lambda one: one.cost.step_s)
        tied = [best, *(one for one in choices if one is not best and odds(best.cost, one.cost) < SURE)]
        if len(tied) == 1:
            return choices.index(best)
        return choices.index(tied[weighed(work, self.costs, tied, "time").pick()])

    def of(self, shape: Shape, split: Split) -> tuple[float, float]:
        """(priced, simulated) seconds."""
        sizes = RankSizes(workload_of(shape), strategy_of(split), kind="ssd")
        table = (one for one in ssd_operators(sizes) if one.name in MIXER)
        return operators_s(self.costs, sizes, table, self.placement)


def strategy_of(split: Split) -> Strategy:
    return Strategy(ring=GRID.ring, ulysses=GRID.ulysses, ring_kind=KIND, ssd=split[0], ssd_pass=split[1])


def workload_of(shape: Shape, rows: int = 1) -> Workload:
    """One state-space layer, and nearly nothing else."""
    ssd = Ssd(heads=shape.heads, head_size=shape.head_size, state=shape.state, conv=shape.conv, chunk=shape.chunk)
    model = Model(
        name="mixer", layers=1, hidden=WIDTH, ffn=WIDTH, vocab=WIDTH, heads=4, kv_heads=4, head_dim=4,
        layer_kinds=("ssd",), ssd=ssd,
    )  # fmt: skip
    return Workload(model, context_tokens=shape.tokens, global_batch=rows, precision=FP32)


def scanned(shape: Shape) -> set[tuple[int, int, int, int, int, int]]:
    """What a rank scans under each split."""
    ranks = {"states": 1, "mixed": GRID.ulysses, "heads": GRID.ulysses * GRID.ring}
    tokens = shape.tokens // (NODES * EACH)
    return {
        (tokens * one, shape.heads // one, shape.head_size, shape.state, shape.conv, shape.chunk)
        for one in ranks.values()
    }


def cluster(rate_mbit: float, shapes: Sequence[Shape], rounds_: int, window_s: float) -> list[Regime]:
    """All shapes at one rate, in one launch."""
    cases = [case_of(shape) for shape in shapes]
    order = Order(window_s=window_s, windows=5, loads=(NODES * EACH,), cores=cores(), path=PATH, cuda=False)
    with Namespaces([rate_mbit] * NODES) as nodes:
        homes = [nodes.names[rank // EACH] for rank in range(NODES * EACH)]
        scans = sorted(set[tuple[int, int, int, int, int, int]]().union(*map(scanned, shapes)))
        found: list[Found] = run_ranks(measure, (GRID, KIND, cases, scans, order, rounds_), homes)
    prices, regimes = Prices(found[0].measured, rate_mbit), []
    for number, case in enumerate(cases):
        rows = []
        for place, split in enumerate(case.splits):
            times, sent_mb = measured([one.timed[number] for one in found], place, EACH)
            priced_s, simulated_s = prices.of(case.shape, split)
            grid = Grid(name=split[0] if split[0] == "heads" else ", ".join(split), process=GRID.process)
            rows.append(
                Row(grid=grid, measured_ms=times, sent_mb=sent_mb, priced_ms=1e3 * priced_s,
                    simulated_ms=1e3 * simulated_s)
            )  # fmt: skip
        chosen = prices.chosen(case.shape, case.splits)
        regimes.append(
            Regime(rate_mbit=rate_mbit, shape=case.shape, splits=case.splits, rows=tuple(rows), chosen=chosen)
        )
    return regimes


def report(regime: Regime) -> str:
    shape = regime.shape
    lines = [
        f"{regime.rate_mbit:g} Mbit/s, {shape.tokens} tokens, {shape.heads} heads of {shape.head_size} × {shape.state}",
        f"  {'split':<18}{'measured ms (quartiles)':>26}{'sent MB':>9}{'priced':>16}{'simulated':>16}",
    ]
    for place in sorted(range(len(regime.rows)), key=lambda place: regime.rows[place].median_ms):
        row = regime.rows[place]
        low, high = np.percentile(row.measured_ms, [25, 75])
        spread = f"{row.median_ms:.1f} ({low:.1f}-{high:.1f})"
        mark = "  < chosen" if place == regime.chosen else ""
        told = "".join(f"{one:>9.1f} {one / row.median_ms - 1:>+6.0%}" for one in (row.priced_ms, row.simulated_ms))
        lines.append(f"  {row.grid.name:<18}{spread:>26}{row.sent_mb:>9.2f}{told}{mark}")
    lost, low, high = regret(regime.rows, regime.chosen)
    return "\n".join([*lines, f"  regret {lost:.1%} (95%: {low:.1%} to {high:.1%})"])


def summary(regimes: Sequence[Regime]) -> str:
    errors = [abs(row.priced_ms / row.median_ms - 1) for one in regimes for row in one.rows]
    lost = [regret(one.rows, one.chosen)[0] for one in regimes]
    best = [min(one.rows, key=lambda row: row.median_ms).grid.name for one in regimes]
    return (
        f"{len(regimes)} regimes, {len(set(best))} different winners ({'; '.join(sorted(set(best)))}): the choice wins "
        f"or is within 5% in {sum(one <= 0.05 for one in lost)}, worst regret {max(lost):.1%}; error of the price: "
        f"median {np.median(errors):.0%}, 90% below {np.percentile(errors, 90):.0%}, within 15% in "
        f"{sum(one <= 0.15 for one in errors)} of {len(errors)}"
    )


def shape_of(text: str) -> Shape:
    try:
        tokens, heads, head_size, state = (int(part) for part in text.split("x"))
    except ValueError:
        raise InputError(f"--shapes {text!r}; legal: TOKENSxHEADSxSIZExSTATE, as 512x8x64x64") from None
    if not (8 <= tokens <= 2**16 and heads % 4 == 0 and 4 <= heads <= 256 and 1 <= head_size <= 256 >= state >= 1):
        raise InputError(
            f"--shapes {text}; legal: 8 to 65536 tokens, heads in fours to 256, sizes and states of 1 to 256"
        )
    return Shape(tokens=tokens, heads=heads, head_size=head_size, state=state)


def _numbers(text: str, flag: str, legal: Callable[[float], bool], words: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(map(legal, numbers)):
        raise InputError(f"{flag} {text}; legal: {words}")
    return numbers


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", help="Mbit/s, with commas between")
    parser.add_argument("--shapes", help="TOKENSxHEADSxSIZExSTATE, with commas between")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--window", type=float, default=0.05, help="seconds of a window of the profile")
    given = parser.parse_args(arguments)

    def told() -> str:
        rates = RATES_MBIT
        if given.rates:
            rates = tuple(_numbers(given.rates, "--rates", lambda one: 1 <= one <= 1e5, "1 to 100000"))
        shapes = tuple(map(shape_of, given.shapes.split(","))) if given.shapes else SHAPES
        if not 1 <= given.rounds <= 1000 or not 1e-4 <= given.window <= 10:
            raise InputError(f"--rounds {given.rounds} --window {given.window}; legal: 1 to 1000, 0.0001 to 10")
        regimes = []
        for rate in rates:
            for one in cluster(rate, shapes, given.rounds, given.window):
                regimes.append(one)
                print(report(one), flush=True)
        return summary(regimes)

    return printed("ssd", told)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
