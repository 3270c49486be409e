"""A layer's linear maps with the low-rank adapters (LoRA, arXiv 2106.09685) that may stand beside them.

    y = W x + B (A x)        W: out x in, frozen        A: rank x in, B: out x rank, trained

A frozen weight gives the gradient of its input and none of its own. An adapter adds two thin products forward and four
backward, and passes over memory: B's result is scaled (r w) and added (r r w) forward; backward its gradient is scaled
(r w) and A's added to the gradient of the input (r r w). Beside the inputs that are kept anyway it keeps `rank` values
per token. With tensor parallelism A or B is cut as its weight is. Left out: dropout before A, adapters on experts.
"""

from __future__ import annotations

from typing import Any

from cost_models.step.shape import Shape
from cost_models.step.work import matmul_s
from cost_models.timing.kernels import Kernels
from cost_models.workload import LoraTarget


def linear_s(
    shape: Shape, kernels: Kernels, target: LoraTarget, out: Any, inside: Any, grad: bool, tokens: Any = None
) -> Any:
    """Seconds of one map from `inside` to `out` columns for `tokens` (none: all of a rank), its adapter counted."""
    work, tokens = shape.workload, shape.tokens if tokens is None else tokens
    seconds = matmul_s(shape, kernels, tokens, out, inside, grad)
    if not work.lora_rank or target not in work.lora_targets:
        return seconds
    thin = matmul_s(shape, kernels, tokens, work.lora_rank, inside, grad, trained=True)
    wide = matmul_s(shape, kernels, tokens, out, work.lora_rank, grad, trained=True)
    columns = 2 * out + 3 * inside if grad else 5 * out
    return seconds + thin + wide + kernels.memory_bound_s(tokens * columns * shape.width, 2)


def adapter_kept_bytes(shape: Shape) -> Any:
    """A's result of every adapter, kept for B's gradient; a tiled MLP keeps none."""
    tiled = ("up", "down") if shape.degrees.mlp_chunk_tokens is not None else ()
    kept = [target for target in shape.workload.lora_targets if target not in tiled]
    adapters = sum(len(pairs) for target, pairs in shape.linears.items() if target in kept)
    return shape.tokens * shape.workload.lora_rank * adapters * shape.width
