"""Questions whose answers stand in a video or text: right is what equals the file's own answer.

    line of a file in the training format -> a prompt for each question, with the turns before it -> right or wrong

Case and blanks at the ends do not count. Gives the share that is right, with Wilson's interval (95%), in all and by the
part of a line's name behind its last slash: the task of `longvila.scripts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from longvila.data.samples import Sample, read_samples
from longvila.evaluate.choice import share
from longvila.evaluate.model import Evaluated


def task(file: Path, media: Path | None, *, most_tokens: int) -> Callable[[Evaluated], dict[str, Any]]:
    asked = [one for sample in read_samples([file], media or file.parent) for one in single(sample)]

    def score(model: Evaluated) -> dict[str, Any]:
        answers = list(model.texts([sample for sample, _ in asked], most_tokens))
        right = [same(answer, own) for answer, (_, own) in zip(answers, asked, strict=True)]
        kinds = [sample.name.rpartition("/")[2] for sample, _ in asked]
        shares = {"all": share(right)}
        for kind in sorted(set(kinds)) if len(set(kinds)) > 1 else ():
            shares[kind] = share([one for one, of in zip(right, kinds, strict=True) if of == kind])
        said = "\n".join(
            f"{name}: {one['share']:.1%} of {one['count']} ({one['low']:.1%}–{one['high']:.1%}, 95%)"
            for name, one in shares.items()
        )
        told = [
            {"id": sample.name, "question": sample.turns[-1].text, "answer": answer, "right": own}
            for answer, (sample, own) in zip(answers, asked, strict=True)
        ]
        return {"task": "retrieval", "shares": shares, "answers": told, "said": said}

    return score


def single(sample: Sample) -> Iterator[tuple[Sample, str]]:
    """Every question of a sample, after those before it and their answers, and its own answer."""
    for place, turn in enumerate(sample.turns):
        if turn.role == "gpt":
            yield replace(sample, turns=sample.turns[:place]), turn.text


def same(answer: str, right: str) -> bool:
    return answer.strip().casefold() == right.strip().casefold()
