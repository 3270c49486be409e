"""Text to token ids and back, and how a conversation with pictures becomes one document with labels.

    begin | user: <video> What happens? end | assistant: A rabbit stretches. end |
            \\__ frames x tokens per frame (+ separator)    \\________________/ labels, shifted by one

Only assistant text and the token that ends its turn carry a label. `ByteTokenizer` (264 ids, no files) serves the
tiny model; released models bring a tokenizer in the `llm` folder. Text of a user is never read as a special
token. Leaves out system prompts per sample and tool turns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from longvila.job import JobError
from longvila.sharding import IGNORE

ROLES = ("human", "gpt")
_MEDIA_TAG = re.compile(r"(<image>|<video>)\n?")


class Tokenizer(Protocol):
    def encode(self, text: str) -> list[int]:
        """Ids of plain text; nothing in it is special."""

    def special(self, text: str) -> list[int]:
        """Ids of a template's text, special tokens included."""

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Chat:
    """The text around turns; `close` ends a turn and, after an answer, its first token stops generation."""

    begin: str
    human: str
    gpt: str
    close: str
    after: str = ""  # follows a closed turn and is never learned


@dataclass(frozen=True, kw_only=True)
class Turn:
    role: str  # human | gpt
    text: str


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """One document: ids, labels already shifted to the position that predicts them, places of the vision tokens."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    vision_at: tuple[int, ...]


CHATS = {
    "byte": Chat(begin="<|begin|>", human="<|user|>", gpt="<|assistant|>", close="<|end|>"),
    "llama3": Chat(
        begin="<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
        "provides, and assist the user with a variety of tasks using natural language.<|eot_id|>",
        human="<|start_header_id|>user<|end_header_id|>\n\n",
        gpt="<|start_header_id|>assistant<|end_header_id|>\n\n",
        close="<|eot_id|>",
    ),
    "chatml": Chat(
        begin="<|im_start|>system\nYou are a helpful assistant<|im_end|>\n",
        human="<|im_start|>user\n",
        gpt="<|im_start|>assistant\n",
        close="<|im_end|>",
        after="\n",
    ),
}


class ByteTokenizer:
    """UTF-8 bytes are ids 0–255, four marks follow; 260–263 are unused.

    >>> tokenizer = ByteTokenizer()
    >>> tokenizer.encode("Aé"), tokenizer.special("<|user|>"), tokenizer.decode([65, 195, 169, 259])
    ([65, 195, 169], [257], 'Aé')
    """

    marks = ("<|begin|>", "<|user|>", "<|assistant|>", "<|end|>")
    vocab_size = 264

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def special(self, text: str) -> list[int]:
        return [256 + self.marks.index(mark) for mark in re.findall(r"<\|\w+\|>", text)]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


class FolderTokenizer:
    """A Hugging Face tokenizer from a local folder; runs no code from the folder and asks no network."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        if not folder.is_dir():
            raise JobError(f"{folder}: no such tokenizer folder")
        try:
            self._inner: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError) as fault:
            raise JobError(f"{folder}: holds no usable tokenizer ({' '.join(str(fault).split())[:200]})") from None

    def encode(self, text: str) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=False, split_special_tokens=True))

    def special(self, text: str) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._inner.decode(list(ids), skip_special_tokens=True))


class Writer:
    """Writes conversations for one model: its tokenizer, chat template and tokens per frame."""

    def __init__(self, *, tokenizer: Tokenizer, chat: str, tokens_per_frame: int, frame_separator: str) -> None:
        if chat not in CHATS:
            raise JobError(f"model: chat {chat!r} is none of {', '.join(CHATS)}")
        self.tokenizer = tokenizer
        self._chat = CHATS[chat]
        self._tokens_per_frame = tokens_per_frame
        self._separator = tokenizer.encode(frame_separator)

    @property
    def stop_id(self) -> int:
        return self.tokenizer.special(self._chat.close)[0]

    def document(self, turns: Sequence[Turn], frames: Sequence[int], *, prompt: bool = False) -> Rendered:
        """`frames[i]` frames stand where the i-th `<image>` or `<video>` is written; with no tag, before the text.

        A `prompt` ends with the opened assistant turn and has no labels.
        """
        special, chat = self.tokenizer.special, self._chat
        ids: list[int] = special(chat.begin)
        learned: list[bool] = [False] * len(ids)
        vision_at: list[int] = []
        media = iter(frames)
        untagged = not media_tags(turns)

        def add(new: Sequence[int], learn: bool = False) -> None:
            ids.extend(new)
            learned.extend([learn] * len(new))

        def add_frames(count: int) -> None:
            for _ in range(count):
                vision_at.extend(range(len(ids), len(ids) + self._tokens_per_frame))
                add([0] * self._tokens_per_frame)
                add(self._separator)

        for place, turn in enumerate(turns):
            answer = turn.role == "gpt"
            add(special(chat.gpt if answer else chat.human))
            if untagged and place == 0:
                for count in media:
                    add_frames(count)
            for part in [turn.text] if answer else _MEDIA_TAG.split(turn.text):
                if not answer and part in ("<image>", "<video>"):
                    add_frames(next(media))
                else:
                    add(self.tokenizer.encode(part), answer)
            add(special(chat.close), answer)
            add(special(chat.after))
        if prompt:
            add(special(chat.gpt))
        labels = [i if learn else IGNORE for i, learn in zip(ids, learned, strict=True)]
        return Rendered(input_ids=tuple(ids), labels=(*labels[1:], IGNORE), vision_at=tuple(vision_at))


def media_tags(turns: Sequence[Turn]) -> list[str]:
    """The media tags of the human turns in order, each `<image>` or `<video>`."""
    return [tag for turn in turns if turn.role == "human" for tag in _MEDIA_TAG.findall(turn.text)]
