"""Multiple choice: the letter that the model writes, or the option that it holds for likeliest.

    letters      question, "A. …" for each option, "Answer with the option's letter …" -> first letter of the answer
    likelihood   log P(option text | question) per token of the option -> the largest

Gives the share that is right, with Wilson's interval (95%), in all and by the benchmark's own kinds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from longvila.data.samples import Sample
from longvila.evaluate.benchmarks import Choice, read
from longvila.evaluate.model import Evaluated
from longvila.tokens import Turn

WAYS = ("letters", "likelihood")
_ASK = "Answer with the option's letter from the given choices directly."


def task(
    questions: Callable[[Mapping[str, Any]], Iterator[dict[str, Any]]],
    file: Path,
    answers: Path | None,
    media: Path | None,
    *,
    likelihood: bool,
    skip: bool = False,
) -> Callable[[Evaluated], dict[str, Any]]:
    choices, faults = read(questions, file, answers, media or file.parent, skip=skip)

    def score(model: Evaluated) -> dict[str, Any]:
        chosen = _likeliest(model, choices) if likelihood else _written(model, choices)
        right = [picked == choice.right for picked, choice in zip(chosen, choices, strict=True)]
        kinds = sorted({choice.kind for choice in choices})
        shares = {"all": share(right)}
        if len(kinds) > 1:
            of = {kind: [r for r, choice in zip(right, choices, strict=True) if choice.kind == kind] for kind in kinds}
            shares |= {kind: share(values) for kind, values in of.items()}
        said = "\n".join(
            f"{name or 'other'}: {one['share']:.1%} of {one['count']} ({one['low']:.1%}–{one['high']:.1%}, 95%)"
            for name, one in shares.items()
        )
        if faults:
            said += f"\nleft out: {len(faults)} questions; the first: {faults[0]}"
        picks = {choice.name: picked for choice, picked in zip(choices, chosen, strict=True)}
        return {"task": "choice", "shares": shares, "chosen": picks, "left_out": faults, "said": said}

    return score


def _written(model: Evaluated, choices: Sequence[Choice]) -> list[int | None]:
    answers = model.texts([_sample(choice, listed=True) for choice in choices], most_tokens=8)
    return [first_letter(answer, len(choice.options)) for answer, choice in zip(answers, choices, strict=True)]


def _likeliest(model: Evaluated, choices: Sequence[Choice]) -> list[int | None]:
    found: list[int | None] = []
    for choice in choices:
        values = model.log_likelihoods(_sample(choice, listed=False), choice.options)
        tokens = [len(model.writer.tokenizer.encode(option)) + 1 for option in choice.options]
        each = [value / count for value, count in zip(values, tokens, strict=True)]
        found.append(each.index(max(each)))
    return found


def _sample(choice: Choice, *, listed: bool) -> Sample:
    options = [f"{chr(ord('A') + place)}. {option}" for place, option in enumerate(choice.options)]
    lines = [f"<video>\n{choice.question}", *(options if listed else []), *([_ASK] if listed else [])]
    turn = Turn(role="human", text="\n".join(lines))
    return Sample(where=choice.name, name=choice.name, images=(), videos=(choice.video,), turns=(turn,))


def first_letter(answer: str, options: int) -> int | None:
    """The option that an answer names first, such as `B`, `(B)`, `B. text` or `The answer is B`; None if it names none.

    >>> [first_letter(text, 4) for text in ("B", "(C) a dog", "The answer is D.", "A dog", "Elephant", "E")]
    [1, 2, 3, 0, None, None]
    """
    named = re.search(rf"\b([A-{chr(ord('A') + options - 1)}])\b", answer)
    return None if named is None else ord(named[1]) - ord("A")


def share(right: Sequence[bool]) -> dict[str, float]:
    """The share and Wilson's interval of it.

    >>> {name: round(value, 3) for name, value in share([True] * 8 + [False] * 2).items()}
    {'share': 0.8, 'count': 10, 'low': 0.49, 'high': 0.943}
    """
    count, z = len(right), 1.959964
    mean = sum(right) / count
    middle, scale = mean + z * z / (2 * count), 1 + z * z / count
    half = z * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    return {"share": mean, "count": count, "low": (middle - half) / scale, "high": (middle + half) / scale}
