"""The vision side of a rank: what it keeps beside the language model, and what a chunk of the tower holds.

    at once     pictures, what tower and projector keep of all frames, and vision tokens that come from other ranks
    in chunks   pictures and those vision tokens; of the tower one chunk, computed again behind all layers' backward

Tower, per patch and layer (one layer's worth without training): 2 residuals, 2 normalised, q, k, v, attention's output
(8 h), GELU's input and output (2 f), lse and statistics of the norms. Projector, per token: its input, normalised,
GELU's input and output. Backward adds gradients of a layer's MLP: its inside twice (2 f) and the residual's (2 h).
Bytes of one rank.
"""

from __future__ import annotations

from cost_models.layer.sizes import RankSizes
from cost_models.models.model import Vision
from cost_models.number import Number, larger, pick, smaller


def held_bytes(sizes: RankSizes) -> Number:
    """From the tower's forward to its backward pass."""
    vision, width = sizes.workload.model.vision, sizes.width
    if vision is None or sizes.workload.mode == "decode":
        return 0 * sizes.tokens
    frames = larger(sizes.frames, 1)
    pictures = frames * vision.patches * 3 * vision.patch_size**2 * vision.frames_per_grid * width
    inside = pick(sizes.tower_runs_again, 0, _inside_bytes(sizes, vision, frames))
    received = smaller(sizes.rows * sizes.workload.vision_tokens, sizes.tokens) * sizes.workload.model.hidden * width
    if sizes.framework.frame_sharding == "reduced":  # all of the row, zero-filled, on every rank
        received = received + sizes.rows * sizes.workload.context_tokens * sizes.workload.model.hidden * width
    return pictures + inside + received


def chunk_bytes(sizes: RankSizes) -> Number:
    """Of one chunk while its gradients are made; 0 where nothing is computed again."""
    vision = sizes.workload.model.vision
    if vision is None:
        return 0 * sizes.tokens
    frames = -(-larger(sizes.frames, 1) // sizes.tower_calls)
    gradients = frames * vision.patches * 2 * (vision.ffn + vision.hidden) * sizes.width
    return pick(sizes.tower_runs_again, _inside_bytes(sizes, vision, frames) + gradients, 0)


def _inside_bytes(sizes: RankSizes, vision: Vision, frames: Number) -> Number:
    """Of tower and projector, for so many frames."""
    layer = (8 * vision.hidden + 2 * vision.ffn) * sizes.width + 4 * (vision.heads + 4)
    tower = frames * vision.patches * layer * (vision.layers if sizes.trains("tower") else 1)
    inputs = 2 * (vision.projector_in + vision.projector_hidden) * sizes.width + 8
    return tower + frames * vision.projectors * vision.tokens_per_frame * inputs
