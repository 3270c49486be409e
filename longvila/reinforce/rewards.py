"""Rewards by rule: an answer and the one in the data in, a number from 0 to 1 out.

    exact    1 if both texts are equal but for blanks around them
    letter   1 if both name the same option first (`longvila.evaluate.choice.first_letter`)
    words    ROUGE-L, for captions and open answers
    format   1 if the answer is `<think>…</think><answer>…</answer>`

Where an answer has such tags, the other rules look at what stands in `<answer>` alone, as LongVILA-R1 does. A reward is
the sum of the rules by their weights. Leaves out rewards by another model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from longvila.evaluate.captions import rouge_l
from longvila.evaluate.choice import first_letter

_FORM = re.compile(r"\s*<think>.*?</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_INSIDE = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_OPTIONS = 26


def _letter(answer: str, wanted: str) -> float:
    named = first_letter(answer, _OPTIONS)
    return float(named is not None and named == first_letter(wanted, _OPTIONS))


RULES: Mapping[str, Callable[[str, str], float]] = {
    "exact": lambda answer, wanted: float(answer.strip() == wanted.strip()),
    "letter": _letter,
    "words": rouge_l,
}
FORMAT = "format"
NAMES = (*RULES, FORMAT)


def judge(answer: str, wanted: str, rules: Mapping[str, float]) -> dict[str, float]:
    """What each rule of `rules` says of an answer.

    >>> judge("<think>It is red.</think><answer>B</answer>", "B", {"exact": 1.0, "format": 0.5})
    {'exact': 1.0, 'format': 1.0}
    """
    inside = _INSIDE.search(answer)
    said = answer if inside is None else inside[1]
    return {
        rule: float(_FORM.fullmatch(answer) is not None) if rule == FORMAT else RULES[rule](said, wanted)
        for rule in rules
    }
