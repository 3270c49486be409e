"""Captions against those of a file: ROUGE-L, the longest common subsequence of words as an F-measure (Lin 2004).

F = 2 P R / (P + R),   P = common / words of the answer,   R = common / words of the reference
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from longvila.data.samples import read_samples
from longvila.evaluate.model import Evaluated


def task(file: Path, media: Path | None, *, most_tokens: int) -> Callable[[Evaluated], dict[str, Any]]:
    told = read_samples([file], media or file.parent)

    def score(model: Evaluated) -> dict[str, Any]:
        asked = [replace(sample, turns=sample.turns[:-1]) for sample in told]
        answers = list(model.texts(asked, most_tokens))
        values = [rouge_l(answer, sample.turns[-1].text) for answer, sample in zip(answers, told, strict=True)]
        mean = float(np.mean(values))
        return {
            "task": "captions", "rouge_l": mean, "answers": [
                {"id": sample.name, "answer": answer, "rouge_l": value}
                for sample, answer, value in zip(told, answers, values, strict=True)
            ], "said": f"ROUGE-L {mean:.3f} over {len(told)} captions",
        }  # fmt: skip

    return score


def rouge_l(answer: str, reference: str) -> float:
    """
    >>> round(rouge_l("A red circle moves left.", "A red circle moves up, then left."), 3)
    0.833
    """
    ours, theirs = (re.findall(r"\w+", text.lower()) for text in (answer, reference))
    if not ours or not theirs:
        return float(ours == theirs)
    common = np.zeros((len(ours) + 1, len(theirs) + 1), dtype=int)
    for i, one in enumerate(ours):
        for j, other in enumerate(theirs):
            common[i + 1, j + 1] = common[i, j] + 1 if one == other else max(common[i, j + 1], common[i + 1, j])
    longest = int(common[-1, -1])
    return 2 * longest / (len(ours) + len(theirs))
