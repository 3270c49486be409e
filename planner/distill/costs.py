"""What a layer costs while it learns alone, and a hybrid on its plan, before `ssd` layers have prices of their own.

    teacher   one layer forward                                                       per row, both stages
    student   forward and backward of what mixes its tokens                           per row, both stages
    matrices  MATRIX_PASSES x heads x L^2 x 4 bytes, read and written                 per row, orientation alone

An `ssd` layer stands here as attention to a window of one chunk of `CHUNK` tokens: the same projections, and work that
grows with the tokens and not with their square. That is an estimate. It leaves out the states (2 N / CHUNK of the
products inside a chunk) and the gate, and counts a ring's exchanges where a state would be passed, so it is used for
choices and shown as one. One GPU, no sharding; seconds and bytes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from cost_models.errors import InputError
from cost_models.framework import OURS
from cost_models.layer.decoder import MIXERS, operators, phases
from cost_models.layer.sizes import RankSizes
from cost_models.models.model import LAYER_KINDS, LayerKind, Model
from cost_models.pricing import fold_segment
from cost_models.program import Segment
from cost_models.strategy import Strategy
from cost_models.timing.cluster_costs import cluster_costs
from planner.distill.packing import LayerCost
from planner.options import Question

CHUNK = 128
MATRIX_PASSES = 40
"""Of [heads, L, L] in float32: the teacher's scores, mask and softmax 6; the student's product, decay and mask 9, its
difference and norm 5, and twice that backward where each reads what was kept and its gradient."""
STATE_BYTES = 16
"""Of a weight that learns: itself and its gradient in 16 bits, float32 master and two moments."""
_AS_SSD: dict[LayerKind, LayerKind] = {"attention": "window", "experts": "window_experts"}


def hybrid(model: Model, keep: Collection[int]) -> Model:
    """The model whose other layers are `ssd`, as this module prices them."""
    if model.window or model.latent is not None:
        raise InputError(
            f"{model.name} has layers of windows or latent attention; legal: full attention in every layer"
        )
    kinds = tuple(kind if layer in keep else _AS_SSD[kind] for layer, kind in enumerate(model.layer_kinds))
    return replace(model, layer_kinds=kinds, window=CHUNK if len(keep) < model.layers else 0)


def layer_costs(asked: Question, keep: Collection[int], orient_steps: int, align_steps: int) -> list[LayerCost]:
    """Seconds of both stages and bytes for each layer of the teacher, on one GPU."""
    work = asked.workload
    rows, context = work.global_batch, work.context_tokens
    one = replace(work, global_batch=1, mode="train")
    here = cluster_costs(asked.cluster, asked.profile)
    runs = here.runs(1)
    paths, kernels = here.paths(Strategy(), None, False), here.kernels(runs, OURS.measured_attention(one))

    def seconds(sizes: RankSizes, *, mixer: bool) -> float:
        """Forward, and backward of a layer's mixer alone."""
        table = MIXERS[LAYER_KINDS[sizes.layer_kind].mixer](sizes) if mixer else operators(sizes)
        ways = (False, True) if mixer else (False,)
        every = [phase for grad in ways for phase in phases(sizes, kernels, table, grad=grad)]
        return float(fold_segment(Segment(name="layer", phases=tuple(every)), paths).total_s)

    model = work.model
    matrix_bytes = model.heads * context**2 * 4.0
    matrices_s = float(kernels.memory_bound_s(MATRIX_PASSES * matrix_bytes))
    student = RankSizes(replace(one, model=hybrid(model, ())), Strategy(), OURS)
    costs = []
    for layer, kind in enumerate(model.layer_kinds):
        teacher_s = seconds(RankSizes(one, Strategy(), OURS, kind=kind), mixer=False)
        mixer_s = seconds(student.of(_AS_SSD[kind]), mixer=True)
        weights = model.expert_layer_params if kind == "experts" else model.layer_params
        learns = layer not in keep
        both = rows * (orient_steps + align_steps)
        costs.append(
            LayerCost(
                teacher_s=teacher_s * both, teacher_bytes=2.0 * weights,
                layer_s=mixer_s * both + matrices_s * rows * orient_steps if learns else None,
                layer_bytes=STATE_BYTES * _ssd_params(model) + matrix_bytes if learns else None,
            )
        )  # fmt: skip
    return costs


def room_bytes(asked: Question) -> float:
    """What a GPU has for layers, a row at a time: its limit less the embeddings and a learning layer's matrices."""
    work = asked.workload
    device = cluster_costs(asked.cluster, asked.profile).devices((0,))[0]
    in_flight = 6.0 * work.model.heads * work.context_tokens**2 * 4.0
    return asked.room.limit_bytes(device.allocatable_bytes) - 2.0 * work.model.embedding_params - in_flight


def _ssd_params(model: Model) -> int:
    """x, B, C, z in, y out, each as wide as the queries, and a decay for each head."""
    return model.hidden * (5 * model.heads * model.head_dim + model.heads)
