"""From a tower's patches to tokens of the language model: VILA's projectors, each by its released name.

    mlp_downsample (also _2x2_fix)   2x2 patches -> 4C channels, norm, linear, GELU, linear
    mlp_downsample_columns           the same, tokens down the columns first (VILA-1.5, LongVILA of August 2024)
    mlp_downsample_3x3_fix           3x3 -> 9C, norm, linear to 3C, GELU, norm, linear, GELU, linear
    linear, mlp2x_gelu, mlp3x_gelu …   no downsampling; one linear layer, or N with GELU between them

Released weights say `mlp_downsample` in two orders of tokens: NVlabs/VILA's `base_projector.py` walked columns first
up to branch LongVILA (386d350, August 2024), rows first since NVILA's release (36f6adc, December 2024). `released.py`
tells them apart. Parameters have the released names. Sides that do not divide are padded with zeros at the end.
Shapes: F frames, P patches, h by h of them, C channels of the tower, D width of the language model.
"""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn import functional as F

COLUMNS = "mlp_downsample_columns"
# how many patches of a side are merged, and whether tokens run down the columns first
_MERGED = {
    "mlp_downsample": (2, False),
    "mlp_downsample_fix": (2, False),  # so named in LongVILA's stage 5 of 256 frames
    "mlp_downsample_2x2_fix": (2, False),
    COLUMNS: (2, True),
    "mlp_downsample_3x3_fix": (3, False),
}
_MLP = re.compile(r"mlp([1-9])x_gelu")

LEGAL = f"legal: {', '.join(_MERGED)}, linear, mlp2x_gelu (mlp1x to mlp9x)"


def known(kind: object) -> bool:
    """Whether a released folder's projector is one of these."""
    return isinstance(kind, str) and (kind in _MERGED or kind == "linear" or _MLP.fullmatch(kind) is not None)


def merged_side(kind: str) -> int:
    """Patches of a side that become one token."""
    return _MERGED[kind][0] if kind in _MERGED else 1


class Downsample(nn.Module):
    """Patches [F, h*h, C] -> [F, ceil(h/s)^2, s*s*C]; channels are (row in the square, column in the square, C)."""

    def __init__(self, side: int, columns: bool) -> None:
        super().__init__()
        self.side, self.columns = side, columns

    def forward(self, patches_FPC: Tensor) -> Tensor:
        frames, patches, width = patches_FPC.shape
        h, s = round(patches**0.5), self.side
        short = -h % s
        grid = F.pad(patches_FPC.view(frames, h, h, width), (0, 0, 0, short, 0, short))
        tokens = (h + short) // s
        squares = grid.view(frames, tokens, s, tokens, s, width)
        order = (0, 3, 1, 2, 4, 5) if self.columns else (0, 1, 3, 2, 4, 5)
        return squares.permute(*order).reshape(frames, tokens * tokens, s * s * width)


class Projector(nn.Module):
    """Patches [F, P, C] -> tokens [F, T, D]."""

    def __init__(self, kind: str, vision_width: int, llm_width: int) -> None:
        super().__init__()
        self.layers = _layers(kind, vision_width, llm_width)

    def forward(self, patches_FPC: Tensor) -> Tensor:
        embeddings: Tensor = self.layers(patches_FPC)
        return embeddings


def _layers(kind: str, c: int, d: int) -> nn.Module:
    """The layers of a `known` kind."""
    if kind == "linear":
        return nn.Linear(c, d)
    if kind not in _MERGED:
        depth = int(_MLP.fullmatch(kind)[1])  # type: ignore[index]
        deeper = [layer for _ in range(1, depth) for layer in (nn.GELU(), nn.Linear(d, d))]
        return nn.Sequential(nn.Linear(c, d), *deeper)
    side, columns = _MERGED[kind]
    first = (Downsample(side, columns), nn.LayerNorm(side * side * c))
    if side == 2:
        return nn.Sequential(*first, nn.Linear(4 * c, d), nn.GELU(), nn.Linear(d, d))
    middle = (nn.Linear(9 * c, 3 * c), nn.GELU(), nn.LayerNorm(3 * c), nn.Linear(3 * c, d))
    return nn.Sequential(*first, *middle, nn.GELU(), nn.Linear(d, d))
