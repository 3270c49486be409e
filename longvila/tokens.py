"""Text to token ids and back, and how a conversation with pictures becomes one document with labels.

    begin | user: <video> What happens? end | assistant: A rabbit stretches. end |
            \\__ frames x tokens per frame (+ separator)    \\________________/ labels, shifted by one

Only assistant text and the token that ends its turn carry a label. `ByteTokenizer` (264 ids, no files) serves the
tiny model; released models bring a tokenizer in the `llm` folder. Text of a user is never read as a special
token. A first turn from `system` stands in place of the chat's own. A document's ids are one array, so that a row of
2M tokens takes no work token by token. Leaves out tool turns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from longvila.job import JobError
from longvila.sharding import IGNORE

_MEDIA_TAG = re.compile(r"(<image>|<video>)\n?")


class Tokenizer(Protocol):
    """Text to ids and back."""

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; nothing in it is special."""

    def special(self, text: str) -> list[int]:
        """Ids of a template's text, special tokens included."""

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Chat:
    """The text around turns; `close` ends a turn and, after an answer, its first token stops generation."""

    begin: str
    system: str = ""  # between `begin` and `open`, unless a sample has its own
    open: str = ""
    human: str
    gpt: str
    close: str
    human_close: str | None = None  # where a human's turn is closed otherwise
    human_text: str | None = None  # opens a human's turn that does not begin with media, where it is another
    after: str = ""  # follows a closed turn and is never learned


@dataclass(frozen=True, kw_only=True)
class View:
    """What a model sees of media where a run does not say."""

    frames: int = 8  # of a video
    fps: float | None = None  # instead, up to `frames`
    pool: int = 1  # frames that share their tokens
    fewest: int = 1  # tiles of a picture
    most: int = 1
    size: int = 1  # pixels of a tile's side
    no_pictures: str | None = None  # why pictures cannot be given
    moments: tuple[str, ...] = ()  # time tokens, which no answer that is learned may hold


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one side says."""

    role: str  # system | human | gpt
    text: str


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """One document: ids, labels already shifted to the position that predicts them, places of the vision tokens."""

    input_ids: np.ndarray  # int64, as all three
    labels: np.ndarray
    vision_at: np.ndarray


CHATS = {
    "byte": Chat(begin="<|begin|>", human="<|user|>", gpt="<|assistant|>", close="<|end|>"),
    "llama3": Chat(
        begin="<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n",
        system="You are a helpful language and vision assistant. You are able to understand the visual content that "
        "the user provides, and assist the user with a variety of tasks using natural language.",
        open="<|eot_id|>",
        human="<|start_header_id|>user<|end_header_id|>\n\n",
        gpt="<|start_header_id|>assistant<|end_header_id|>\n\n",
        close="<|eot_id|>",
    ),
    "chatml": Chat(
        begin="<|im_start|>system\n",
        system="You are a helpful assistant",
        open="<|im_end|>\n",
        human="<|im_start|>user\n",
        gpt="<|im_start|>assistant\n",
        close="<|im_end|>",
        after="\n",
    ),
    # VILA-1.5 of 3B and 13B (Llama 2), and of 40B (Yi): `llava/conversation.py`, "vicuna_v1" and "hermes-2".
    "vicuna": Chat(
        begin="<s>",
        system="A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions.",
        open=" ",
        human="USER: ",
        human_text="USER:",  # Llama 2's tokenizer begins a text with a blank
        gpt="ASSISTANT:",
        close="</s>",
        human_close=" ",
    ),
    "hermes": Chat(
        begin="<|im_start|>system\n",
        system="Answer the questions.",
        open="<|im_end|>",
        human="<|im_start|>user\n",
        gpt="<|im_start|>assistant\n",
        close="<|im_end|>",
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
        if not self.encode("a"):  # transformers makes one without words where a folder has a config alone
            raise JobError(f"{folder}: holds no tokenizer's words (tokenizer.json, or vocab.json and merges.txt)")

    def encode(self, text: str) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=False, split_special_tokens=True))

    def special(self, text: str) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._inner.decode(list(ids), skip_special_tokens=True))


class Writer:
    """Writes conversations for one model: its tokenizer, chat template and tokens per frame."""

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        chat: str,
        tokens_per_frame: int,
        frame_separator: str,
        frame_opening: str = "",
        view: View | None = None,
    ) -> None:
        if chat not in CHATS:
            raise JobError(f"model: chat {chat!r} is none of {', '.join(CHATS)}")
        self.tokenizer = tokenizer
        self.view = view or View()
        self._chat = CHATS[chat]
        self._tokens_per_frame = tokens_per_frame
        self._before, self._after = tokenizer.encode(frame_opening), tokenizer.encode(frame_separator)

    @property
    def stop_id(self) -> int:
        return self.tokenizer.special(self._chat.close)[0]

    def document(
        self, turns: Sequence[Turn], frames: Sequence[int], *, prompt: bool = False, tiled: Sequence[bool] = ()
    ) -> Rendered:
        """`frames[i]` frames stand where the i-th `<image>` or `<video>` is written; with no tag, before the text.

        The tiles of a `tiled` picture are written a line each. A `prompt` ends with the opened assistant turn and has
        no labels.
        """
        special, chat = self.tokenizer.special, self._chat
        page = _Page()
        own_system = turns[0].text if turns and turns[0].role == "system" else None
        if own_system is None:
            page.add(special(chat.begin + chat.system + chat.open))
        else:
            page.add([*special(chat.begin), *self.tokenizer.encode(own_system), *special(chat.open)])
            turns = turns[1:]
        media = iter([self._frames(n, place < len(tiled) and tiled[place]) for place, n in enumerate(frames)])
        untagged = not media_tags(turns)
        for place, turn in enumerate(turns):
            answer = turn.role == "gpt"
            seen = (untagged and place == 0 and bool(frames)) or _MEDIA_TAG.match(turn.text)
            human = chat.human if seen or chat.human_text is None else chat.human_text
            page.add(special(chat.gpt if answer else human))
            if untagged and place == 0:
                for piece in media:
                    page.add_vision(*piece)
            for part in [turn.text] if answer else _MEDIA_TAG.split(turn.text):
                if not answer and part in ("<image>", "<video>"):
                    page.add_vision(*next(media))
                elif part:
                    page.add(self.tokenizer.encode(part), answer)
            close = chat.close if answer or chat.human_close is None else chat.human_close
            page.add(special(close), answer)
            page.add(special(chat.after))
        if prompt:
            page.add(special(chat.gpt))
        return page.rendered()

    def _frames(self, count: int, tiled: bool) -> tuple[np.ndarray, np.ndarray]:
        """Ids of that many frames with the text around each, and the places of the vision tokens in them."""
        end = [*self._after, *self.tokenizer.encode("\n")] if tiled else self._after
        one = np.array([*self._before, *[0] * self._tokens_per_frame, *end], dtype=np.int64)
        starts_F = np.arange(count) * len(one) + len(self._before)
        return np.tile(one, count), (starts_F[:, None] + np.arange(self._tokens_per_frame)).ravel()


class _Page:
    """A document while it is written: pieces of ids, whether each is learned, and where vision tokens stand."""

    def __init__(self) -> None:
        self._pieces: list[tuple[np.ndarray, bool]] = []
        self._vision: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
        self._length = 0

    def add(self, ids: Sequence[int] | np.ndarray, learn: bool = False) -> None:
        self._pieces.append((np.asarray(ids, dtype=np.int64), learn))
        self._length += len(ids)

    def add_vision(self, ids: np.ndarray, vision_at: np.ndarray) -> None:
        self._vision.append(vision_at + self._length)
        self.add(ids)

    def rendered(self) -> Rendered:
        ids = np.concatenate([piece for piece, _ in self._pieces])
        learned = np.concatenate([piece if learn else np.full(len(piece), IGNORE) for piece, learn in self._pieces])
        labels = np.append(learned[1:], IGNORE)
        return Rendered(input_ids=ids, labels=labels, vision_at=np.concatenate(self._vision))


def media_tags(turns: Sequence[Turn]) -> list[str]:
    """The media tags of the human turns in order, each `<image>` or `<video>`."""
    return [tag for turn in turns if turn.role == "human" for tag in _MEDIA_TAG.findall(turn.text)]
