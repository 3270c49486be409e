"""A state-space layer's sizes: Discrete Mamba-2, which mixes tokens by a state of [heads, head_size, state] numbers.

    weights   in: hidden x heads (2 P + 2 N + 1) for x, B, C, z and a      convolution: heads (P + 2 N) K
              skip: heads      gate's bias: heads P      out: heads P x hidden

As `longvila/ssd.py` builds it (github.com/goombalab/phi-mamba, arXiv 2408.10189); no biases, no norm of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cost_models import strict
from cost_models.errors import InputError

MOST = 2**20
"""Of any size."""


@dataclass(frozen=True, kw_only=True)
class Ssd:
    """
    >>> Ssd(heads=32, head_size=128, state=128).matmul_params(4096)
    84017152
    """

    heads: int
    head_size: int  # P
    state: int  # N
    conv: int = field(default=4, metadata=strict.OPTIONAL)  # K: tokens that the convolution sees
    chunk: int = field(default=128, metadata=strict.OPTIONAL)  # tokens of a step of the scan

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
                raise InputError(f"ssd.{name}={value!r} must be from 1 to {MOST}")

    @property
    def channels(self) -> int:
        """x, B and C of a head: what the convolution and an exchange of heads carry."""
        return self.head_size + 2 * self.state

    @property
    def columns(self) -> int:
        """Out of the first projection: x, B, C, z and a."""
        return self.heads * (self.channels + self.head_size + 1)

    @property
    def inner(self) -> int:
        """Into the last projection."""
        return self.heads * self.head_size

    def matmul_params(self, hidden: int) -> int:
        return hidden * (self.columns + self.inner)

    @property
    def small_params(self) -> int:
        """Convolution, skip and the gate's bias."""
        return self.heads * self.channels * self.conv + self.heads + self.inner

    def cached_bytes(self, width: float) -> float:
        """That a layer remembers of a row while tokens are generated, whatever its length: its state in float32, and
        the channels of the last K - 1 tokens, `width` bytes a value."""
        return self.heads * (self.head_size * self.state * 4 + (self.conv - 1) * self.channels * width)
