"""S2: a frame seen by the tower at several sizes, its channels side by side, as many patches as at the smallest.

    for each scale: resize (bicubic) -> tiles of the tower's size -> patches -> one map -> mean over areas, [F, C, h, h]

As bfshi/scaling_on_scales (`s2wrapper/core.py`) for VILA's `s2` models, e.g. VILA1.5-3b-s2 with scales 384, 768.
NVILA's `dynamic_s2` sees a video's frames at one size and repeats its channels (`merge_features_for_dynamic_s2` in
VILA's `llava_arch.py`); its pictures of several scales are left out. Every scale calls the tower once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from longvila.loss import wide_dtype


def multiscale(tower: Callable[[Tensor], Tensor], pixels_FCHW: Tensor, scales: Sequence[int]) -> Tensor:
    """Pixels at the largest scale -> patches [F, P, scales x C]; `tower` maps tiles of the smallest to [F, P, C]."""
    frames, size, wide = pixels_FCHW.shape[0], scales[0], wide_dtype(pixels_FCHW.dtype)
    maps = []
    for scale in scales:
        seen = F.interpolate(pixels_FCHW.to(wide_dtype(pixels_FCHW.dtype)), size=scale, mode="bicubic").to(
            pixels_FCHW.dtype
        )
        n = scale // size
        tiles = seen.view(frames, 3, n, size, n, size).permute(2, 4, 0, 1, 3, 5).reshape(-1, 3, size, size)
        patches = tower(tiles)
        h = round(patches.shape[1] ** 0.5)
        split = patches.view(n, n, frames, h, h, -1).permute(2, 5, 0, 3, 1, 4)
        whole_FCHW = split.reshape(frames, -1, n * h, n * h)
        maps.append(F.interpolate(whole_FCHW.to(wide), size=h, mode="area").to(patches.dtype))
    return torch.cat(maps, dim=1).flatten(2).transpose(1, 2)
