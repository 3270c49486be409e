"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) as numbers.

    q   hidden -> q_rank -> norm -> heads x (nope + rope)          (q_rank None: hidden -> heads x (nope + rope))
    kv  hidden -> kv_rank + rope;  kv_rank -> norm -> heads x (nope + v);  the rope part is shared by all heads
    out heads x v -> hidden

In training every head has its own key: heads of queries and keys are nope + rope wide, those of values v. Left out:
the absorbed form that answers from the compressed cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from cost_models.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Latent:
    """
    >>> v3 = Latent(q_rank=1536, kv_rank=512, rope_dim=64, nope_dim=128, v_dim=128)
    >>> v3.qk_dim, v3.matmul_params(7168, 128)
    (192, 187105280)
    """

    q_rank: int | None = None
    kv_rank: int
    rope_dim: int
    nope_dim: int
    v_dim: int

    def __post_init__(self) -> None:
        for name in ("q_rank", "kv_rank", "rope_dim", "nope_dim", "v_dim"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 2**31:
                raise InputError(f"latent.{name}={value} must be from 1 to 2^31")

    @property
    def qk_dim(self) -> int:
        return self.nope_dim + self.rope_dim

    @property
    def down_params_per_hidden(self) -> int:
        """Columns that are the same for all heads: both compressions and the shared rope key."""
        return (self.q_rank or 0) + self.kv_rank + self.rope_dim

    def head_params(self, hidden: int) -> int:
        """Weights of one head: its query, its key and value, its part of the output."""
        return (self.q_rank or hidden) * self.qk_dim + self.kv_rank * (self.nope_dim + self.v_dim) + self.v_dim * hidden

    def matmul_params(self, hidden: int, heads: int) -> int:
        return hidden * self.down_params_per_hidden + heads * self.head_params(hidden)

    @property
    def norm_params(self) -> int:
        return (self.q_rank or 0) + self.kv_rank
