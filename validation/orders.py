"""`python -m validation.orders`: tensor against context parallelism, ring against Ulysses or all-gather, by length.

    pairs   two layouts of the same work that the measurement puts more than APART apart; right: predicted in that order
    flip    the length at which one layout begins to win: the split of all lengths that leaves the least log ratios on
            the wrong side, the middle of equally good ones; None where one layout wins at every length

Rows rank only. Those of a TPU have no preset: they are priced on a stand-in, 64 A100 (312 TFLOP/s for its 459) in one
domain of 100 GB/s each way, a link of its torus. Left out there: XLA's schedule, and that an all-gather of consecutive
tokens leaves the last rank twice the mean work.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

from cost_models.hardware.cluster import Cluster
from cost_models.models.model import Model
from cost_models.pricing import price
from cost_models.strategy import RingKind, Strategy
from cost_models.workload import Workload
from validation.rows import FOLDER, Row, read
from validation.score import Verdict, verdict

APART = 0.03
ART, MAXTEXT = "train_art_layouts_qwen3_1p7b", "train_maxtext_cp_kinds"
TPU_MODELS = {"Llama-3-8B": "llama-3-8b", "Llama-2-7B": "llama-2-7b"}
TPU_RANKS = 64


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One layout of one piece of work."""

    work: str
    layout: str
    tokens: int
    measured_s: float
    predicted_s: float


def art() -> list[Timed]:
    """Tensor 2, context 2 and one GPU over the same packed rows."""
    found = []
    for row in read(ART, FOLDER / "later"):
        one = verdict(row)
        assert isinstance(one, Verdict), one.reason
        layout = "tensor 2" if row.degree("tp") > 1 else "context 2" if row.degree("cp_ring") > 1 else "one GPU"
        found.append(_timed(row, layout, one.predicted_s))
    return found


def maxtext() -> list[Timed]:
    """Kinds of context parallelism over the same rows."""
    base = Cluster.load("dgx-a100", nodes=1)
    node = base.runs[0].node
    node = replace(node, gpus=TPU_RANKS, scale_up=replace(node.scale_up, bytes_per_s=100e9))
    stand_in = replace(base, runs=(replace(base.runs[0], node=node),))
    found = []
    for row in read(MAXTEXT, FOLDER / "later"):
        if not row.cell("iter_s"):
            continue
        gathered, ulysses = row.degree("cp_allgather"), row.degree("ulysses")
        ring = max(row.degree("cp_ring"), gathered)
        kind: RingKind = "all_gather" if gathered > 1 else "contiguous"
        data = TPU_RANKS // (ring * ulysses)
        strategy = Strategy(data=data, ring=ring, ulysses=ulysses, ring_kind=kind, shard=TPU_RANKS, zero=3)
        batch, model = row.count("global_batch", 1), Model.load(TPU_MODELS[row.text("model")])
        work = Workload(model, context_tokens=row.count("seq_len"), global_batch=batch)
        layout = f"{'all-gather' if gathered > 1 else 'ring'} {ring} × ulysses {ulysses}"
        found.append(_timed(row, layout, price(stand_in, work, strategy).step_s))
    return found


def _timed(row: Row, layout: str, predicted_s: float) -> Timed:
    return Timed(
        work=row.text("sweep"), layout=layout, tokens=row.count("seq_len"), measured_s=row.positive("iter_s"),
        predicted_s=predicted_s,
    )  # fmt: skip


def by_work(rows: Sequence[Timed]) -> Mapping[str, list[Timed]]:
    found: dict[str, list[Timed]] = defaultdict(list)
    for one in rows:
        found[one.work].append(one)
    return found


def pairs(rows: Sequence[Timed]) -> tuple[int, int]:
    """(in the right order, all) of the pairs that are apart."""
    right = every = 0
    for several in by_work(rows).values():
        for one, other in combinations(several, 2):
            low, high = sorted((one, other), key=lambda timed: timed.measured_s)
            if high.measured_s > low.measured_s * (1 + APART):
                every, right = every + 1, right + (low.predicted_s < high.predicted_s)
    return right, every


def flip_tokens(rows: Sequence[Timed], one: str, other: str, *, predicted: bool) -> float | None:
    """From this length on (in tokens) the layout `one` is the faster."""
    points = []
    for several in by_work(rows).values():
        here = {timed.layout: timed for timed in several}
        if one in here and other in here:
            a, b = here[one], here[other]
            ratio = a.predicted_s / b.predicted_s if predicted else a.measured_s / b.measured_s
            points.append((a.tokens, math.log(ratio)))
    points.sort()
    if all(log > 0 for _, log in points) or all(log < 0 for _, log in points):
        return None
    splits = [math.sqrt(left * right) for (left, _), (right, _) in pairwise(points)]
    wrong = [sum(abs(log) for tokens, log in points if (log < 0) != (tokens > split)) for split in splits]
    best = [split for split, cost in zip(splits, wrong, strict=True) if cost <= min(wrong) + 1e-12]
    return math.sqrt(best[0] * best[-1])


def main() -> None:
    for name, rows in ((ART, art()), (MAXTEXT, maxtext())):
        right, every = pairs(rows)
        print(f"{name}: {right} of {every} pairs in the right order ({right / every:.0%})")
    for one, other in (("context 2", "tensor 2"), ("context 2", "one GPU")):
        measured, predicted = (flip_tokens(art(), one, other, predicted=choice) for choice in (False, True))
        words = ("at every length" if at is None else f"from {at:,.0f} tokens" for at in (measured, predicted))
        print(f"{one} against {other}: measured {next(words)}, predicted {next(words)}")


if __name__ == "__main__":
    main()
