"""FLOP of a step: the model's (the numerator of MFU) and the executed ones (recompute counted, causal once).

    product         2 forward, 4 backward (2 where the weight is frozen)        of a layer's table, for one rank alone
    attention       causal 4 D H pairs forward, 2.5 x backward; pairs = L (L + 1) / 2 for each row; packed documents
                    count each alone, a layer with a window of w keys L w - w (w - 1) / 2

MFU here: matmul weights (embedding lookup not counted, output head counted) and causal attention with the backward
counted as twice the forward (the usual convention); the executed count takes the kernel's 2.5 x. A token counts the
experts that it visits.
"""

from __future__ import annotations

from functools import lru_cache

from cost_models.framework import OURS, Framework
from cost_models.layer.decoder import operators
from cost_models.layer.operators import Table, product_flops
from cost_models.layer.recompute import run_again
from cost_models.layer.sizes import RankSizes
from cost_models.layer.stages import all_runs
from cost_models.models.model import LAYER_KINDS, LayerKind
from cost_models.strategy import Strategy
from cost_models.workload import Workload


def model_flops(workload: Workload) -> float:
    """All ranks together, without recompute."""
    kinds, train = workload.model.layer_kinds, workload.mode == "train"
    total = 0.0
    for kind in dict.fromkeys(kinds):
        table = _table(workload, kind, None)
        once = product_flops(table) + (product_flops(table, grad=True) if train else 0.0)
        total += kinds.count(kind) * (once + (3 if train else 1) * _attention(workload, kind))
    return total + _head(workload) + _tower(workload)


def executed_flops(workload: Workload, strategy: Strategy, framework: Framework = OURS) -> float:
    """With recompute, and attention's backward at 2.5 times its forward."""
    if workload.mode != "train":
        return model_flops(workload)
    total = 0.0
    for run in all_runs(workload.model, strategy.layer_ranges(workload.model.layers)):
        table = _table(workload, run.kind, strategy.mlp_chunk_tokens)
        again = run_again(table, run.part.recompute, framework)
        products = product_flops(table) + product_flops(table, grad=True) + product_flops(again)
        total += float(run.layers) * (
            products + (3.5 + sum(one.attends for one in again)) * _attention(workload, run.kind)
        )
    return total + _head(workload) + _tower(workload)


@lru_cache(maxsize=64)
def _table(workload: Workload, kind: LayerKind, mlp_chunk_tokens: int | None) -> Table:
    """A layer's operators where one rank has all tokens."""
    return operators(RankSizes(workload, Strategy(mlp_chunk_tokens=mlp_chunk_tokens), kind=kind))


def _attention(workload: Workload, kind: LayerKind) -> float:
    """Of one layer of this kind forward, over all rows."""
    model, context = workload.model, workload.context_tokens
    if LAYER_KINDS[kind].mixer == "ssd":  # its products are in the table
        return 0.0
    window = model.window if LAYER_KINDS[kind].mixer == "window" else 0
    pairs = float(min(window or context, context)) if workload.mode == "decode" else workload.causal_pairs(window)
    return 2.0 * model.heads * (model.head_dim + model.v_dim) * pairs * workload.global_batch


def _head(workload: Workload) -> float:
    """Logits of all tokens and their gradients; without training of each row's last token."""
    each = 2.0 * workload.model.vocab * workload.model.hidden * workload.global_batch
    if workload.mode != "train":
        return each
    return each * workload.context_tokens * (3 if workload.trains_weights else 2)


def _tower(workload: Workload) -> float:
    """Tower and projector over all frames, backward where the tower trains; a decode step finds them in the cache."""
    vision = workload.model.vision
    if vision is None or not workload.frames or workload.mode == "decode":
        return 0.0
    frames = float(workload.grids * workload.global_batch)
    block = sum(out * inside for out, inside in vision.block_maps)
    projector = sum(out * inside for out, inside in vision.projector_maps(workload.model.hidden))
    tower = vision.layers * (2.0 * block * vision.patches + 4.0 * vision.patches**2 * vision.hidden)
    passes = 3 if workload.mode == "train" and "tower" in workload.trainable else 1
    return passes * frames * (tower + 2.0 * projector * vision.tokens_per_frame)
