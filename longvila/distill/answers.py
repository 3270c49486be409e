"""A model scored by what it writes: prompts in, greedy tokens out one at a time, right only if every one is.

    prompt -> prefill -> keys, values and states -> one token a step -> equal to the answer, or not

Beside it the loss a token over whole documents, which hides what a hybrid has lost: few tokens need recall.
Leaves out sampling; prompts of one length are answered together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from longvila import hybrid
from longvila.distill.documents import Document, padded, read_documents
from longvila.distill.settings import require_device
from longvila.job import JobError

AT_A_TIME = 32


@dataclass(frozen=True, kw_only=True)
class Score:
    right: float  # share of the answers
    loss: float  # a token
    answers: int
    groups: dict[str, float]  # share by the documents' group


def evaluate(folder: Path, file: str, device: str = "cpu") -> Score:
    """The score of a folder's model, hybrid or not, on a JSONL file of prompts and answers."""
    require_device(device)
    model = hybrid.load(folder).to(torch.device(device)).eval()  # type: ignore[arg-type]
    documents = read_documents([file], folder, model.config.vocab_size)
    if any(not one.answer for one in documents):
        raise JobError(f"{file}: every line must have prompt and answer")
    return score(model, documents)


@torch.no_grad()
def score(model: PreTrainedModel, documents: Sequence[Document]) -> Score:
    """Greedy answers against those of the documents."""
    right: dict[int, bool] = {}
    alike: dict[tuple[int, int], list[int]] = {}
    for number, one in enumerate(documents):
        alike.setdefault((len(one.tokens), one.answer), []).append(number)
    for (_, answer), numbers in alike.items():
        for start in range(0, len(numbers), AT_A_TIME):
            some = numbers[start : start + AT_A_TIME]
            tokens_BL, _ = padded([documents[one].tokens for one in some], model.device)
            equal = (generate(model, tokens_BL[:, :-answer], answer) == tokens_BL[:, -answer:]).all(1)
            right |= dict(zip(some, equal.tolist(), strict=True))
    names = sorted({one.group for one in documents if one.group})
    groups = {
        name: float(np.mean([right[place] for place, one in enumerate(documents) if one.group == name]))
        for name in names
    }
    return Score(
        right=float(np.mean([*right.values()])), loss=_loss(model, documents), answers=len(documents), groups=groups
    )


def generate(model: PreTrainedModel, prompt_BL: Tensor, tokens: int) -> Tensor:
    """So many of the likeliest tokens after prompts of one length: [B, tokens]."""
    cache, given, written = DynamicCache(), prompt_BL, []
    for _ in range(tokens):
        logits_B1V = model(given, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        given = logits_B1V[:, -1].argmax(-1, keepdim=True)
        written.append(given)
    return torch.cat(written, 1)


def _loss(model: PreTrainedModel, documents: Sequence[Document]) -> float:
    total, count = 0.0, 0
    for start in range(0, len(documents), AT_A_TIME):
        some = documents[start : start + AT_A_TIME]
        tokens_BL, kept_BL = padded([document.tokens for document in some], model.device)
        logits_BLV = model(tokens_BL, use_cache=False).logits[:, :-1]
        wanted = tokens_BL[:, 1:].masked_fill(~kept_BL[:, 1:], -100)
        total += float(F.cross_entropy(logits_BLV.flatten(0, 1).float(), wanted.flatten(), reduction="sum"))
        count += int(kept_BL[:, 1:].sum())
    return total / count
