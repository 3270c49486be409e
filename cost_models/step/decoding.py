"""One token through all layers: products, the read cache, states of state-space layers, and what ranks exchange.

    layer   products · cache of this rank's tokens · partial results merged by log-sum-exp · small work
    scan    states read and written on every rank, nothing sent

Stages of a pipeline follow each other, and a tensor group sums twice a layer. Weights were gathered by the prefill.
Left out: experts and latent attention, which `assembly.py` refuses.
"""

from __future__ import annotations

from collections.abc import Iterator

from cost_models.layer.sizes import RankSizes
from cost_models.layer.ssd import SCAN_CALLS
from cost_models.layer.weights import linears
from cost_models.models.model import LayerKind
from cost_models.number import Number, larger, smaller, somewhere
from cost_models.program import Compute, Exchange, Phase, Segment, StepProgram
from cost_models.step.root import embed, head
from cost_models.timing.kernels import Kernels

TOKEN_CALLS = 28
"""Kernels of a layer's small work on a new token."""


def decode(sizes: RankSizes, kernels: Kernels) -> StepProgram:
    """One token through all layers: a pipeline's stages follow each other, and a tensor group sums twice a layer."""
    model, width, dtype = sizes.workload.model, sizes.width, sizes.workload.precision.param
    rows, cached = sizes.rows, sizes.rows * sizes.cached_tokens
    maps = (pair for several in linears(sizes).values() for pair in several)
    products = sum(kernels.gemm_s(larger(rows, 1), out, inside, dtype) for out, inside in maps)
    scans = model.layer_kinds.count("ssd")
    attending = model.layers - scans
    of_kind = {
        kind: kernels.memory_bound_s(_seen(sizes, kind, cached) * 2 * sizes.kv_width * width, 1)
        for kind in dict.fromkeys(model.layer_kinds)
        if kind != "ssd"
    }
    cache = sum(seconds * (model.layer_kinds.count(kind) / attending) for kind, seconds in of_kind.items())
    small = kernels.memory_bound_s(2 * _token_bytes(sizes), TOKEN_CALLS)
    merge = rows * (sizes.q_width + model.heads) * 4 * sizes.degrees.context
    phases = (
        Compute(part="matmul", seconds=products),
        Compute(part="attention", seconds=cache),
        Exchange(part="all_to_all", axis="context", op="all_gather", bytes=merge),
        Compute(part="memory_bound", seconds=small),
        *_exchanges(sizes),
    )
    layers = [Segment(name="layer decode", phases=phases, repeat=attending)] if attending else []
    layers += [_scanned_token(sizes, kernels)] if scans else []
    segments = (embed(sizes, kernels), *layers, *_to_next_stages(sizes), head(sizes, kernels))
    return StepProgram(microbatch=segments, epilogue=(), microbatches=sizes.degrees.microbatches)


def _scanned_token(sizes: RankSizes, kernels: Kernels) -> Segment:
    """One token through all state-space layers: each rank has their states, reads and writes them, sends nothing."""
    ssd, model, rows = sizes.workload.model.ssd, sizes.workload.model, larger(sizes.rows, 1)
    assert ssd is not None
    mlp = [pair for target, several in linears(sizes).items() if target in ("up", "down") for pair in several]
    maps = [(ssd.columns, model.hidden), (model.hidden, ssd.inner), *mlp]
    products = sum(kernels.gemm_s(rows, *one, sizes.workload.precision.param) for one in maps)
    moved = 2 * rows * ssd.cached_bytes(sizes.width) + 2 * _token_bytes(sizes)
    phases = (
        Compute(part="matmul", seconds=products),
        Compute(part="memory_bound", seconds=kernels.memory_bound_s(moved, TOKEN_CALLS + SCAN_CALLS[0])),
    )
    return Segment(name="layer decode", phases=phases, repeat=model.layer_kinds.count("ssd"))


def _exchanges(sizes: RankSizes) -> Iterator[Phase]:
    """Of a layer: attention's output and the MLP's are summed, a cache cut by tokens takes the queries of all its ranks
    and gives back their partial results in fp32 with their log-sum-exps."""
    if not somewhere(sizes.degrees.tensor > 1):
        return
    summed = sizes.rows * sizes.workload.model.hidden * sizes.width
    yield Exchange(part="tensor", axis="tensor", op="all_reduce", bytes=summed)
    yield Exchange(part="tensor", axis="tensor", op="all_reduce", bytes=summed)
    if sizes.degrees.cache_context > 1:
        queries = sizes.rows * sizes.q_width * sizes.degrees.cache_context
        heads = queries / sizes.workload.model.head_dim
        yield Exchange(part="tensor", axis="tensor", op="all_gather", bytes=queries * sizes.width)
        yield Exchange(part="tensor", axis="tensor", op="reduce_scatter", bytes=(queries + heads) * 4)


def _to_next_stages(sizes: RankSizes) -> Iterator[Segment]:
    if sizes.degrees.pipeline > 1:
        sent = sizes.rows * sizes.workload.model.hidden * sizes.width
        phase = Exchange(part="pipeline", axis="pipeline", op="send", bytes=sent)
        yield Segment(name="to the next stage", phases=(phase,), repeat=sizes.degrees.pipeline - 1)


def _seen(sizes: RankSizes, kind: LayerKind, cached: Number) -> Number:
    """Of a rank's cached tokens those that a new one sees: of a window the last ranks hold all, so no more than it."""
    window = sizes.of(kind).window
    return smaller(cached, sizes.rows * window) if window else cached


def _token_bytes(sizes: RankSizes) -> Number:
    return sizes.tokens * sizes.workload.model.hidden * (28 + 5 * sizes.width)
