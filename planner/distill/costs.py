"""What a layer costs while it learns alone: the teacher before it, its own two stages.

    teacher   one layer forward                                                       per row, both stages
    student   forward and backward of what mixes its tokens                           per row, both stages
    matrices  MATRIX_PASSES x heads x L^2 x 4 bytes, read and written                 per row, orientation alone

A student's layer is one of kind `ssd` (`cost_models/layer/ssd.py`), whose scan is an estimate. One GPU, no sharding;
seconds and bytes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from cost_models.framework import OURS
from cost_models.layer.decoder import MIXERS, operators, phases
from cost_models.layer.sizes import RankSizes
from cost_models.models.model import LAYER_KINDS
from cost_models.pricing import fold_segment
from cost_models.program import Segment
from cost_models.strategy import Strategy
from cost_models.timing.cluster_costs import cluster_costs
from planner.distill.packing import LayerCost
from planner.question.options import Question
from planner.reverse.keep_attention import hybrid

MATRIX_PASSES = 40
"""Of [heads, L, L] in float32: the teacher's scores, mask and softmax 6; the student's product, decay and mask 9, its
difference and norm 5, and twice that backward where each reads what was kept and its gradient."""
STATE_BYTES = 16
"""Of a weight that learns: itself and its gradient in 16 bits, float32 master and two moments."""


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
    mixed = hybrid(model, ())
    assert mixed.ssd is not None
    states = mixed.ssd.matmul_params(model.hidden) + mixed.ssd.small_params
    student = RankSizes(replace(one, model=mixed), Strategy(), OURS)
    costs = []
    for layer, kind in enumerate(model.layer_kinds):
        teacher_s = seconds(RankSizes(one, Strategy(), OURS, kind=kind), mixer=False)
        mixer_s = seconds(student, mixer=True)
        weights = model.expert_layer_params if kind == "experts" else model.layer_params
        learns = layer not in keep
        both = rows * (orient_steps + align_steps)
        costs.append(
            LayerCost(
                teacher_s=teacher_s * both, teacher_bytes=2.0 * weights,
                layer_s=mixer_s * both + matrices_s * rows * orient_steps if learns else None,
                layer_bytes=STATE_BYTES * states + matrix_bytes if learns else None,
            )
        )  # fmt: skip
    return costs


def room_bytes(asked: Question) -> float:
    """What a GPU has for layers, a row at a time: its limit less the embeddings and a learning layer's matrices."""
    work = asked.workload
    device = cluster_costs(asked.cluster, asked.profile).devices((0,))[0]
    in_flight = 6.0 * work.model.heads * work.context_tokens**2 * 4.0
    return asked.room.limit_bytes(device.allocatable_bytes) - 2.0 * work.model.embedding_params - in_flight
