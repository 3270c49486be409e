"""The objective of group-relative policy optimisation (GRPO, arXiv 2402.03300), token by token.

    A_i = (r_i - mean of its group) / (standard deviation of its group + 1e-6)
    ratio = exp(log p - log p_old)        d = log p_reference - log p
    loss of a token = share * (-min(ratio A, clamp(ratio, 1 - e, 1 + e) A) + kl * (exp d - d - 1))

`share` is 1 / (tokens of the answer * answers of the step): the mean over an answer, then over answers. Every token of
an answer has its answer's advantage. Log-probabilities never leave the rank that computed them: a row is cut in the
same way at each pass, so those of the earlier pass stand where the later one needs them. Where none are given as old,
they are the pass's own, and the ratio is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


def advantages(rewards: Sequence[float]) -> list[float]:
    """Of the answers to one prompt; all 0 where they are equally good.

    >>> [round(value, 3) for value in advantages([1.0, 0.0, 0.0, 1.0])]
    [1.0, -1.0, -1.0, 1.0]
    """
    values = np.array(rewards, dtype=np.float64)
    found: list[float] = ((values - values.mean()) / (values.std() + 1e-6)).tolist()
    return found


@dataclass(kw_only=True)
class PolicyLoss:
    """A `longvila.loss.TokenLoss` of one row, for one pass; afterwards it knows what it saw."""

    advantage: float = 0.0
    share: float = 0.0  # 0: the log-probabilities alone are wanted
    clip_ratio: float = 0.2  # e
    kl: float = 0.0
    old_S: Tensor | None = None
    reference_S: Tensor | None = None
    divergence: float | Tensor = field(default=0.0, init=False)  # exp d - d - 1 over this rank's tokens of the answer
    clipped: float | Tensor = field(default=0.0, init=False)  # of them, tokens whose ratio is cut
    _seen: list[Tensor] = field(default_factory=list, init=False)

    @property
    def log_S(self) -> Tensor:
        """The log-probability of each label of this rank; of tokens without a label it means nothing."""
        return torch.cat(self._seen)

    def __call__(self, log_C: Tensor, labelled_C: Tensor) -> tuple[Tensor, Tensor]:
        start = sum(len(seen) for seen in self._seen)
        part = slice(start, start + len(log_C))
        self._seen.append(log_C)
        old_C = log_C if self.old_S is None else self.old_S[part]
        ratio_C = (log_C - old_C).exp()
        gain_C, capped_C = (ratio * self.advantage for ratio in (ratio_C, self._cut(ratio_C)))
        cut_C = capped_C < gain_C
        loss_C, slope_C = -torch.minimum(gain_C, capped_C), -gain_C.masked_fill(cut_C, 0.0)
        self.clipped = self.clipped + (cut_C & labelled_C).sum()
        if self.reference_S is not None:
            d_C = self.reference_S[part] - log_C
            apart_C = torch.expm1(d_C) - d_C
            self.divergence = self.divergence + apart_C.where(labelled_C, 0.0).sum()
            loss_C, slope_C = loss_C + self.kl * apart_C, slope_C - self.kl * torch.expm1(d_C)
        return self.share * loss_C, self.share * slope_C

    def _cut(self, ratio_C: Tensor) -> Tensor:
        return ratio_C.clamp(1 - self.clip_ratio, 1 + self.clip_ratio)
