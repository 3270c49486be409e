"""Tokens with known answers, for a tiny model: cards with a letter hidden among words, and questions about them.

    w w w CARD(red, K) w w w w CARD(blue, M) w ... ASK red -> K END   ASK blue -> M END

A card is one token that bears a colour and a letter. The next word follows from the two before it and a coin, so the
words ask for local attention and the questions for attention to one far place. Same seed, same documents. What a
training document asks at its end, of every card, an asked one asks of one card; its group is the card's depth.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longvila.files import write_whole
from longvila.job import JobError

ASK, END = 0, 1


@dataclass(frozen=True, kw_only=True)
class Needles:
    words: int = 10
    colours: int = 8
    letters: int = 8
    cards: int = 8
    haystack: int = 88  # words around the cards
    language: int = 7  # seed of the rule by which words follow each other

    @property
    def vocabulary(self) -> int:
        return 2 + self.words + self.colours + self.letters + self.colours * self.letters

    def document(self, random: np.random.Generator, cards: int, haystack: int) -> tuple[list[int], list[list[int]]]:
        """The haystack with its cards, and a question with its answer for each card, from first to last."""
        words = self._words(random, haystack)
        colours = random.permutation(self.colours)[:cards]
        letters = random.integers(0, self.letters, cards)
        shown = 2 + self.words + self.colours + self.letters + colours * self.letters + letters
        places = np.sort(random.permutation(haystack + cards)[:cards])
        text = np.empty(haystack + cards, dtype=np.int64)
        text[places] = shown
        text[np.setdiff1d(np.arange(haystack + cards), places)] = words
        asked = 2 + self.words + colours, 2 + self.words + self.colours + letters
        return text.tolist(), [[ASK, int(colour), int(letter), END] for colour, letter in zip(*asked, strict=True)]

    def _words(self, random: np.random.Generator, count: int) -> NDArray[np.int64]:
        follows = np.random.default_rng(self.language).integers(0, self.words, (self.words, self.words, 2))
        coins, words = random.integers(0, 2, count), random.integers(0, self.words, count)
        for place in range(2, count):
            words[place] = follows[words[place - 2], words[place - 1], coins[place]]
        return words + 2

    def training(self, random: np.random.Generator, documents: int) -> Iterator[dict[str, object]]:
        """Documents that ask for every card, in any order."""
        for _ in range(documents):
            text, questions = self.document(random, self.cards, self.haystack)
            order = random.permutation(len(questions))
            yield {"tokens": text + [token for place in order for token in questions[place]]}

    def asked(self, random: np.random.Generator, documents: int) -> Iterator[dict[str, object]]:
        """Documents that ask for one card, each of the cards in turn."""
        for number in range(documents):
            text, questions = self.document(random, self.cards, self.haystack)
            place = number % self.cards
            question = questions[place]
            yield {"prompt": text + question[:2], "answer": question[2:], "group": f"card {place + 1}"}


def write(folder: Path, needles: Needles, *, documents: int, asked: int, seed: int = 0) -> None:
    """`train.jsonl` and `asked.jsonl` in a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise JobError(f"{folder} cannot be written: {fault.strerror}") from None
    random, other = (np.random.default_rng([seed, part]) for part in (0, 1))
    for name, lines in (("train", needles.training(random, documents)), ("asked", needles.asked(other, asked))):
        write_whole(folder / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
