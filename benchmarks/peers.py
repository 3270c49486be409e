"""This executor's attention beside its peers' in one run, on the same CPU kernel: time, bytes and error of each.

    python -m benchmarks.peers [--ranks 2] [--seq 4096] [--lengths measurements/lengths_longca_pile.csv --rows 3]
    python -m benchmarks.peers --nodes 2 --ranks 4 --rate-mbit 50        ranks in network namespaces (needs root)

Sides: yunchang, ring-flash-attn (zigzag, llama3), torch's context-parallel ring, an all-to-all as DeepSpeed's Ulysses,
one process; those that are missing or cannot run a row say why. Every round runs all sides in a random order; the ratio
is the peer's time over that of this executor with the same degrees in the same round, its median and a bootstrap
interval over the rounds. Bytes are what all links of the ranks' namespaces carried, headers and a barrier included.
Errors are the largest over the row, of the output and of the gradients, relative to the largest value of a float64
reference of the same inputs. `--lengths` packs rows of `--seq` tokens with documents of a histogram: one table each.

Every side has the same threads in all: cores / ranks a rank, and all cores in the one process. With more ranks than
cores, ranks share them. Left out: peers' CUDA kernels and streams, which decide on GPUs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.gloo_ranks import check_ranges, printed, run_ranks
from benchmarks.namespaces import Namespaces, check_possible
from cost_models.errors import InputError
from cost_models.hardware.machine import cores
from planner.lengths.histogram import Histogram

RESAMPLED = 4000
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class Found:
    """Of one rank and one side."""

    why_not: str = ""
    spans_s: tuple[tuple[float, float], ...] = ()  # by round
    sent_bytes: float = 0.0  # of a run, of this rank's namespace
    error_out: float = 0.0
    error_grad: float = 0.0


def compare(
    shape: tuple[int, int, int], edges: tuple[int, ...], dtype: str, rounds: int, folder: str
) -> dict[str, Found]:
    """On every rank: all sides of one row."""
    import torch
    import torch.distributed as dist

    from benchmarks.attention_ranks import in_turns
    from benchmarks.peer_sides import CannotRun, Case, sides

    case, rank = Case(q_heads=shape[0], kv_heads=shape[1], head_dim=shape[2], edges=edges), dist.get_rank()
    threads, found = torch.get_num_threads(), dict[str, Found]()
    row, reference = _row(case, dtype), Path(folder, "reference.pt")
    if rank == 0:
        torch.save(_reference(case, row), reference)
    dist.barrier()
    expected = torch.load(reference)
    running: dict[str, Callable[[], object]] = {}
    for name, (make, _) in sides(dist.get_world_size(), cores()).items():
        try:
            side = make(case, rank)
        except CannotRun as error:
            found[name] = Found(why_not=str(error))
            continue
        leaves, dout = _leaves(row, side.tokens)
        out = _step(side, leaves, dout, threads)
        found[name] = _errors(out, leaves, side.tokens, expected)
        running[name] = partial(_step, side, leaves, dout, threads)
    timed = in_turns(list(running.values()), rounds, inside=True)
    for place, name in enumerate(running):
        spans = tuple(one[place] for one in timed.spans_s)
        found[name] = replace(found[name], spans_s=spans, sent_bytes=timed.sent_bytes[place] / rounds)
    return found


def _row(case, dtype):
    """q, k, v and the output's gradient of all tokens, BSHD, the same on every rank."""
    import torch

    made = torch.Generator().manual_seed(0)
    heads = (case.q_heads, case.kv_heads, case.kv_heads, case.q_heads)

    return [
        torch.randn(1, case.tokens, count, case.head_dim, generator=made).to(getattr(torch, DTYPES[dtype]))
        for count in heads
    ]


def _reference(case, row):
    """Output and gradients in float64."""
    from benchmarks.peer_sides import by_document

    *inputs, dout = (x.double() for x in row)
    leaves = [x.requires_grad_() for x in inputs]
    out = by_document(case, *leaves)
    out.backward(dout)
    return [out.detach(), *(x.grad for x in leaves)]


def _leaves(row, tokens):
    """This rank's part of the row; pads are zero."""
    import torch

    parts = [torch.where((tokens >= 0)[None, :, None, None], x[:, tokens.clamp(min=0)], 0.0) for x in row]
    return [x.contiguous().requires_grad_() for x in parts[:3]], parts[3]


def _step(side, leaves, dout, threads):
    import torch

    for x in leaves:
        x.grad = None
    if side.threads:
        torch.set_num_threads(side.threads)
    out = side.attend(*leaves)
    if len(side.tokens):
        out.backward(dout)
    torch.set_num_threads(threads)
    return out.detach()


def _errors(out, leaves, tokens, expected) -> Found:
    if not len(tokens):
        return Found()
    real = tokens >= 0
    errors = []
    for value, right in zip((out, *(x.grad for x in leaves)), expected, strict=True):
        off = (value[:, real].double() - right[:, tokens[real]]).abs()
        errors.append(float(off.max() / right.abs().max()) if off.numel() else 0.0)
    return Found(error_out=errors[0], error_grad=max(errors[1:]))


@dataclass(frozen=True, kw_only=True)
class Line:
    """One side of one row over all ranks."""

    name: str
    against: str
    why_not: str
    times_ms: tuple[float, ...]
    sent_mb: float
    error_out: float
    error_grad: float


def joined(ranks: Sequence[dict[str, Found]], each: int, against: dict[str, str]) -> list[Line]:
    """All ranks' parts; `each` ranks share a namespace."""
    lines = []
    for name in ranks[0]:
        parts = [rank[name] for rank in ranks]
        rounds = zip(*(part.spans_s for part in parts if part.spans_s), strict=True)
        times = [1e3 * (max(end for _, end in spans) - min(start for start, _ in spans)) for spans in rounds]
        lines.append(
            Line(
                name=name,
                against=against[name],
                why_not=parts[0].why_not,
                times_ms=tuple(times),
                sent_mb=sum(part.sent_bytes for part in parts[::each]) / 1e6,
                error_out=max(part.error_out for part in parts),
                error_grad=max(part.error_grad for part in parts),
            )
        )
    return lines


def ratio(line: Line, ours: Line) -> tuple[float, float, float]:
    """The median of a peer's time over ours, round by round, and its 95% interval."""
    ratios = np.array(line.times_ms) / np.array(ours.times_ms)
    drawn = np.random.default_rng(0).choice(ratios, size=(RESAMPLED, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def report(lines: Sequence[Line], counted: bool) -> str:
    """A table of one row; `counted`: whether bytes are those of the ranks alone."""
    known = {line.name: line for line in lines}
    table = [f"{'side':<26}{'ms':>8}{'over mm_sp, 95%':>26}{'MB':>9}{'error out':>11}{'gradients':>11}"]
    for line in lines:
        if line.why_not:
            table.append(f"{line.name:<26}  {line.why_not}")
            continue
        middle, low, high = ratio(line, known[line.against])
        times = "" if line.name == line.against else f"{middle:.2f} ({low:.2f}-{high:.2f})"
        sent = f"{line.sent_mb:.1f}" if counted else "-"
        errors = f"{line.error_out:>11.1e}{line.error_grad:>11.1e}"
        table.append(f"{line.name:<26}{np.median(line.times_ms):>8.0f}{times:>26}{sent:>9}{errors}")
    return "\n".join(table)


def rows_of(given: argparse.Namespace) -> list[tuple[str, tuple[int, ...]]]:
    """(what it is, edges of documents) of every row."""
    if given.lengths is None:
        return [(f"one document of {given.seq} tokens", (0, given.seq))]
    histogram, found = Histogram.load(given.lengths), []
    for seed in range(given.rows):
        lengths = histogram.draw(given.seq, given.seq, seed)
        edges = (0, *np.cumsum(lengths).tolist())
        found.append((f"row {seed + 1}: {len(lengths)} documents, the longest {lengths.max()} tokens", edges))
    return found


def run(given: argparse.Namespace) -> str:
    """Print a table for each row; the last words."""
    from benchmarks.peer_sides import sides

    each = given.ranks // given.nodes
    against = {name: ours for name, (_, ours) in sides(given.ranks, cores()).items()}
    with ExitStack() as stack:
        homes: list[str | None] = [None] * given.ranks
        if given.nodes > 1 or _possible():
            rate = given.rate_mbit if given.nodes > 1 else None
            nodes = stack.enter_context(Namespaces([rate] * given.nodes))
            homes = [nodes.names[rank // each] for rank in range(given.ranks)]
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="peers-"))
        threads = max(1, cores() // given.ranks)
        for what, edges in rows_of(given):
            shape = (given.q_heads, given.kv_heads, given.head_dim)
            parts = run_ranks(compare, (shape, edges, given.dtype, given.rounds, folder), homes, threads=threads)
            print(f"{what}; {given.ranks} ranks of {threads} threads on {given.nodes} nodes, {cores()} cores")
            print(report(joined(parts, each, against), counted=homes[0] is not None), flush=True)
    return "bytes are counted in network namespaces, which need root" if homes[0] is None else ""


def _possible() -> bool:
    try:
        check_possible()
    except InputError:
        return False
    return True


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (
        ("ranks", 2), ("nodes", 1), ("seq", 4096), ("q-heads", 8), ("kv-heads", 8), ("head-dim", 64), ("rounds", 9),
        ("rows", 3),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rate-mbit", type=float, default=50.0, help="of every node's link, where there are several")
    parser.add_argument("--lengths", type=Path, metavar="FILE.csv", help="a histogram of documents, as `plan` reads it")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    given = parser.parse_args(arguments)
    check_ranges(
        given, ranks=range(2, 17), nodes=range(1, 5), seq=range(2, 2**20 + 1), q_heads=range(1, 257),
        kv_heads=range(1, given.q_heads + 1), head_dim=range(1, 257), rounds=range(1, 1001), rows=range(1, 101),
    )  # fmt: skip
    for name, value, whole in (("nodes", given.nodes, given.ranks), ("kv-heads", given.kv_heads, given.q_heads)):
        if whole % value:
            raise InputError(f"--{name} {value} does not divide {whole}; legal: a divisor")
    if not 1 <= given.rate_mbit <= 1e5:
        raise InputError(f"--rate-mbit {given.rate_mbit:g}; legal: 1 to 100000")
    return given


def main(arguments: Sequence[str]) -> int:
    return printed("peers", lambda: run(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
