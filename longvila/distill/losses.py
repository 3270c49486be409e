"""The three losses of a distillation, each a mean over what the mask holds.

    orientation   mean over rows and heads of  ||T_student - softmax(Q K^T)||_F     matrices [B, H, L, L]
    alignment     mean over tokens of          ||mixer output - attention output||_2     [B, L, D]
    transfer      mean over tokens of          - sum_v p_teacher(v) log p_student(v)     [B, L, V]

After MOHAWK (Bick, Li, Xing, Kolter, Gu, arXiv 2408.10189). `kept_BL` is True where a row has a token; rows are padded
on the right, and a causal layer's tokens never see what is to their right. The transfer loss makes the logits of
`CHUNK_TOKENS` tokens at a time, and once more in the backward pass, so that no [B, L, V] exists.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from longvila.loss import wide_dtype

CHUNK_TOKENS = 1024


def orientation(student_BHLL: Tensor, teacher_BHLL: Tensor, kept_BL: Tensor) -> Tensor:
    """How far the matrices by which two layers mix tokens lie apart, with padding left out.

    A teacher whose attention is exact scores 0:

    >>> same = torch.eye(3).expand(2, 4, 3, 3)
    >>> float(orientation(same, same, torch.ones(2, 3, dtype=torch.bool)))
    0.0
    """
    wide = wide_dtype(student_BHLL.dtype)
    apart_BHLL = (student_BHLL.to(wide) - teacher_BHLL.to(wide)) * kept_BL[:, None, :, None]
    return torch.linalg.vector_norm(apart_BHLL.flatten(2), dim=-1).mean()


def alignment(student_BLD: Tensor, teacher_BLD: Tensor, kept_BL: Tensor) -> Tensor:
    """The mean over tokens of the distance between two layers' outputs."""
    wide = wide_dtype(student_BLD.dtype)
    apart_SD = (student_BLD.to(wide) - teacher_BLD.to(wide))[kept_BL]
    return torch.linalg.vector_norm(apart_SD, dim=-1).mean()


def transfer(
    student_BLD: Tensor, teacher_BLD: Tensor, head: nn.Linear, teacher_head: nn.Linear, kept_BL: Tensor
) -> Tensor:
    """The cross entropy of the student's next tokens against the teacher's, both from their last hidden states."""
    student_SD, teacher_SD = student_BLD[kept_BL], teacher_BLD[kept_BL]
    total = student_SD.new_zeros((), dtype=wide_dtype(student_SD.dtype))
    for mine, its in zip(student_SD.split(CHUNK_TOKENS), teacher_SD.split(CHUNK_TOKENS), strict=True):
        total = total + checkpoint(_chunk, mine, its, head, teacher_head, use_reentrant=False)
    return total / student_SD.shape[0]


def _chunk(student_SD: Tensor, teacher_SD: Tensor, head: nn.Linear, teacher_head: nn.Linear) -> Tensor:
    wide = wide_dtype(student_SD.dtype)
    with torch.no_grad():
        share_SV = F.softmax(teacher_head(teacher_SD), dim=-1, dtype=wide)
    return F.cross_entropy(head(student_SD).to(wide), share_SV, reduction="sum")
