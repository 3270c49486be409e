"""Documents as padded rows of tokens, the same at every step for the same seed.

    {"text": "..."}    {"tokens": [...]}    {"prompt": ..., "answer": ...}       one JSON object a line

A prompt and its answer are one document. Text is read by the tokenizer of the teacher's folder. A document longer than
a row is cut into several. Rows of a step are padded on the right; an epoch passes each once, in an order of its own.
Leaves out packing several documents into a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer

from longvila.files import read_text
from longvila.job import JobError

Tokens = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Document:
    tokens: Tokens
    answer: int = 0  # tokens at the end that are the answer to what precedes them
    group: str = ""  # for scores by group


def read_documents(files: Sequence[str], folder: Path, words: int) -> list[Document]:
    """The documents of JSONL files; `words` is the vocabulary's size, `folder` has the tokenizer."""
    reader = _Reader(folder, words)
    found = [
        reader.read(line, f"{name}:{number}")
        for name in files
        for number, line in enumerate(read_text(Path(name), "data: ").splitlines(), start=1)
        if line.strip()
    ]
    if not found:
        raise JobError(f"data: {', '.join(files)} hold no document")
    return found


class _Reader:
    def __init__(self, folder: Path, words: int) -> None:
        self._folder, self._words = folder, words
        self._tokenizer: Any = None

    def read(self, line: str, where: str) -> Document:
        try:
            given = json.loads(line)
        except (ValueError, RecursionError):
            raise JobError(f"{where} is not JSON") from None
        keys = set(given) - {"group"} if isinstance(given, dict) else set()
        if keys not in ({"text"}, {"tokens"}, {"prompt", "answer"}):
            raise JobError(f"{where} must be an object with text, or tokens, or prompt and answer")
        parts = [
            self._tokens(given[key], f"{where}: {key}") for key in ("text", "tokens", "prompt", "answer") if key in keys
        ]
        answer = len(parts[1]) if len(parts) == 2 else 0
        return Document(tokens=np.concatenate(parts), answer=answer, group=str(given.get("group", "")))

    def _tokens(self, value: Any, where: str) -> Tokens:
        if isinstance(value, str):
            value = self._encoded(value)
        legal = (
            isinstance(value, list)
            and bool(value)
            and all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < self._words for one in value)
        )
        if not legal:
            raise JobError(f"{where} must be text, or a list of tokens from 0 to {self._words - 1}, and not empty")
        return np.array(value, dtype=np.int64)

    def _encoded(self, text: str) -> list[int]:
        if self._tokenizer is None:
            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
            except (OSError, ValueError) as fault:
                raise JobError(
                    f"teacher: {self._folder} has no tokenizer ({' '.join(str(fault).split())[:200]})"
                ) from None
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows that are trained on; `measured` others are kept apart."""

    rows: tuple[Tokens, ...]
    measured: tuple[Tokens, ...]
    seed: int
    device: str

    @classmethod
    def cut(
        cls, documents: Sequence[Document], *, max_tokens: int, measured: int, seed: int, device: str = "cpu"
    ) -> Rows:
        rows = [
            document.tokens[start : start + max_tokens]
            for document in documents
            for start in range(0, len(document.tokens), max_tokens)
        ]
        rows = [row for row in rows if len(row) > 1]
        if len(rows) <= measured:
            raise JobError(f"data: {len(rows)} rows are not more than measured_rows {measured}: give more data")
        order = np.random.default_rng(seed).permutation(len(rows))
        kept = [rows[number] for number in order]
        return cls(rows=tuple(kept[measured:]), measured=tuple(kept[:measured]), seed=seed, device=device)

    def parts(self, first: int, count: int, at_a_time: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows number `first` … of the endless sequence of epochs, some at a time: as `padded` gives them."""
        epochs: dict[int, Tokens] = {}
        taken = []
        for number in range(first, first + count):
            epoch, place = divmod(number, len(self.rows))
            if epoch not in epochs:
                epochs[epoch] = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
            taken.append(self.rows[epochs[epoch][place]])
        for start in range(0, count, at_a_time):
            yield padded(taken[start : start + at_a_time], self.device)


def padded(rows: Sequence[Tokens], device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
    """Tokens [B, L] filled up with 0 on the right, and where they are a row's own [B, L]."""
    longest = max(len(row) for row in rows)
    tokens, kept = np.zeros((len(rows), longest), dtype=np.int64), np.zeros((len(rows), longest), dtype=bool)
    for number, row in enumerate(rows):
        tokens[number, : len(row)], kept[number, : len(row)] = row, True
    return torch.from_numpy(tokens).to(device), torch.from_numpy(kept).to(device)
