"""VILA-format conversations to packed rows, the same rows for every process count.

    JSON/JSONL + media folder --read_samples--> samples --order(seed, epoch)--> documents --pack <= max_tokens--> rows
    step t = the next `rows_per_step` rows of the world; replica i computes rows[i::data_count]

A line is `{"id", "video"|"image": path or list, "conversations": [{"from": "human"|"gpt", "value"}, …]}`; a sample
without media is text. Every process knows every row (ids cost 8 bytes a token) and where the data stands (`Cursor`),
so a run goes on under another process count with the same steps. Faults name file and line: those of the files before
the first step, a broken clip or a sample too long for a row when a row reaches it.
Leaves out weighting of several data sets and reading over a network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longvila.files import read_text
from longvila.job import JobError
from longvila.processor import Clip, FrameCache, Frames, choose_frames, decode, open_clip
from longvila.sharding import IGNORE, Batch, Sharding
from longvila.tokens import ROLES, Rendered, Turn, Writer, media_tags

KEYS = ("id", "video", "image", "conversations")


@dataclass(frozen=True, kw_only=True)
class Sample:
    where: str  # file:line, for messages
    name: str
    images: tuple[Path, ...]
    videos: tuple[Path, ...]
    turns: tuple[Turn, ...]

    @property
    def media(self) -> tuple[Path, ...]:
        return (*self.images, *self.videos)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Frames of a video: a number, or a rate with a cap."""

    frames: int | None = 8
    fps: float | None = None
    max_frames: int | None = None


@dataclass(frozen=True, kw_only=True)
class Document:
    text: Rendered
    media: tuple[Frames, ...]  # in the order of their vision tokens
    name: str = ""  # of its sample


@dataclass(frozen=True, kw_only=True)
class Row:
    documents: tuple[Document, ...]

    @property
    def tokens(self) -> int:
        return sum(len(document.text.input_ids) for document in self.documents)

    @property
    def label_tokens(self) -> int:
        return sum(label != IGNORE for document in self.documents for label in document.text.labels)

    @property
    def frames(self) -> int:
        return sum(len(media.times) for document in self.documents for media in document.media)


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Where reading stands: the next sample is number `position` of epoch `epoch`'s order."""

    epoch: int = 0
    position: int = 0


# What a replica computes when a step's rows do not divide: it joins every collective and adds nothing.
IDLE_ROW = Row(documents=(Document(text=Rendered(input_ids=(0,), labels=(IGNORE,), vision_at=()), media=()),))


def read_samples(files: Sequence[Path], media_folder: Path, *, prompts: bool = False) -> tuple[Sample, ...]:
    """All samples of the files; as `prompts`, they need no last answer, and one is dropped."""
    samples = tuple(_sample(entry, where, media_folder, prompts) for file in files for where, entry in _entries(file))
    if not samples:
        raise JobError(f"data: {', '.join(map(str, files)) or 'no file'} holds no samples")
    return samples


def _entries(file: Path) -> Iterator[tuple[str, Any]]:
    """(file:line, parsed) of JSON lines, or (file: sample N, parsed) of a JSON list."""
    text = read_text(file, "data: ")
    if text.lstrip().startswith("["):
        for place, entry in enumerate(_parsed(text, file, 1), start=1):
            yield f"{file}: sample {place}", entry
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{file}:{number}", _parsed(line, file, number)


def _parsed(text: str, file: Path, line: int) -> Any:
    """Parse JSON that begins in that line; JSON that is broken or nested too deeply is a JobError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as fault:
        raise JobError(f"{file}:{line + fault.lineno - 1}: broken JSON ({fault.msg} at column {fault.colno})") from None
    except (ValueError, RecursionError) as fault:
        raise JobError(f"{file}:{line}: broken JSON ({' '.join(str(fault).split())[:100]})") from None


def _sample(entry: Any, where: str, folder: Path, prompt: bool) -> Sample:
    if not isinstance(entry, dict):
        raise JobError(f"{where}: a sample is an object with {', '.join(KEYS)}")
    for key in entry:
        if key not in KEYS:
            raise JobError(f"{where}: unknown key {key!r}; known: {', '.join(KEYS)}")
    conversation = entry.get("conversations")
    if not isinstance(conversation, list) or not conversation:
        raise JobError(f"{where}: conversations must be a list of turns")
    turns = tuple(_turn(turn, place, where) for place, turn in enumerate(conversation))
    if prompt and turns[-1].role == "gpt":
        turns = turns[:-1]
    elif not prompt and turns[-1].role != "gpt":
        raise JobError(f"{where}: the last turn must be from gpt: nothing else is learned")
    images, videos = (_media(entry.get(kind), kind, where, folder) for kind in ("image", "video"))
    tags = media_tags(turns)
    counts = tags.count("<image>"), tags.count("<video>")
    if tags and counts != (len(images), len(videos)):
        raise JobError(
            f"{where}: the human turns hold {counts[0]} <image> and {counts[1]} <video>, "
            f"the sample {len(images)} and {len(videos)} files"
        )
    return Sample(where=where, name=str(entry.get("id", where)), images=images, videos=videos, turns=turns)


def _turn(turn: Any, place: int, where: str) -> Turn:
    if not isinstance(turn, dict) or set(turn) != {"from", "value"} or not isinstance(turn["value"], str):
        raise JobError(f'{where}: turn {place + 1} is not {{"from": …, "value": text}}')
    role = turn["from"]
    if any("\ud800" <= letter <= "\udfff" for letter in turn["value"]):  # JSON's escapes can name them
        raise JobError(f"{where}: turn {place + 1} holds half a surrogate pair, which is no character")
    if role not in ROLES:
        raise JobError(f"{where}: turn {place + 1} is from {role!r}; legal: {', '.join(ROLES)}")
    if role != ROLES[place % 2]:
        raise JobError(f"{where}: turn {place + 1} is from {role!r}; turns alternate and human begins")
    return Turn(role=role, text=turn["value"])


def _media(given: Any, kind: str, where: str, folder: Path) -> tuple[Path, ...]:
    if given is None:
        return ()
    names = given if isinstance(given, list) else [given]
    for name in names:
        if not isinstance(name, str):
            raise JobError(f"{where}: {kind} must be a path or a list of paths, not {name!r}")
        if not (folder / name).is_file():
            raise JobError(f"{where}: {kind} {name!r} is not in {folder}")
    return tuple(folder / name for name in names)


class Documents:
    """Samples made into documents; remembers each file's index, so that it is read through once."""

    def __init__(self, writer: Writer, sampling: Sampling) -> None:
        self._writer = writer
        self._sampling = sampling
        self._clips: dict[Path, Clip] = {}

    def make(self, sample: Sample, *, prompt: bool = False) -> Document:
        images = iter([choose_frames(self._clip(path, sample), frames=1) for path in sample.images])
        sampling = self._sampling
        videos = iter(
            choose_frames(self._clip(path, sample), sampling.frames, sampling.fps, sampling.max_frames)
            for path in sample.videos
        )
        tags = media_tags(sample.turns)
        media = tuple(next(images if tag == "<image>" else videos) for tag in tags) if tags else (*images, *videos)
        rendered = self._writer.document(sample.turns, [len(m.times) for m in media], prompt=prompt)
        return Document(text=rendered, media=media, name=sample.name)

    def _clip(self, path: Path, sample: Sample) -> Clip:
        if path not in self._clips:
            try:
                self._clips[path] = open_clip(path)
            except JobError as fault:
                raise JobError(f"{sample.where}: {fault}") from None
        return self._clips[path]


@dataclass(frozen=True)
class Rows:
    """The endless sequence of packed rows of a data set."""

    samples: Sequence[Sample]
    documents: Documents
    _: KW_ONLY
    max_tokens: int
    pack: bool  # several samples in a row
    seed: int
    shuffle: bool

    def step(self, cursor: Cursor, rows: int) -> tuple[list[Row], Cursor]:
        """The next `rows` rows of the world and where the next step goes on."""
        taken = []
        for _ in range(rows):
            row, cursor = self._row(cursor)
            taken.append(row)
        return taken, cursor

    def _order(self, epoch: int) -> list[int]:
        if not self.shuffle:
            return list(range(len(self.samples)))
        return [int(i) for i in np.random.default_rng([self.seed, epoch]).permutation(len(self.samples))]

    def _row(self, cursor: Cursor) -> tuple[Row, Cursor]:
        """A row ends when the next sample does not fit, when the epoch ends, or after one sample unless packing."""
        order, tokens = self._order(cursor.epoch), 0
        taken: list[Document] = []
        position = cursor.position
        while position < len(order) and (self.pack or not taken):
            sample = self.samples[order[position]]
            document = self.documents.make(sample)
            length = len(document.text.input_ids)
            if length > self.max_tokens:
                raise JobError(
                    f"{sample.where}: sample {sample.name!r} has {length} tokens, max_tokens is {self.max_tokens}: "
                    "raise max_tokens or take fewer frames"
                )
            if tokens + length > self.max_tokens:
                break
            taken.append(document)
            tokens += length
            position += 1
        done = position == len(order)
        after = Cursor(epoch=cursor.epoch + 1) if done else Cursor(epoch=cursor.epoch, position=position)
        return Row(documents=tuple(taken)), after


def replica_rows(rows: Sequence[Row], data_index: int, data_count: int) -> list[Row]:
    """The rows of one replica. Idle rows fill up where they do not divide, so that all replicas have as many."""
    each = -(-len(rows) // data_count)
    here = list(rows[data_index::data_count])
    return here + [IDLE_ROW] * (each - len(here))


def most_frames(rows: Sequence[Row], data_count: int) -> list[int]:
    """For each of the rows of `replica_rows` in turn, the most frames of the rows that all replicas have then.

    >>> most_frames([], 2)
    []
    """
    return [max(row.frames for row in rows[start : start + data_count]) for start in range(0, len(rows), data_count)]


def row_batch(
    row: Row,
    sharding: Sharding,
    image_size: int,
    device: torch.device,
    dtype: torch.dtype,
    cache: FrameCache | None = None,
    most_frames: int = 0,
) -> Batch:
    """The row as tensors, with the pixels of this process's frames only; `most_frames` as in `Batch`."""
    texts = [document.text for document in row.documents]
    lengths = np.array([len(text.input_ids) for text in texts], dtype=np.int64)
    starts = lengths.cumsum() - lengths
    document_L = np.arange(len(texts)).repeat(lengths)
    media = [frames for document in row.documents for frames in document.media]
    pixels_FCHW = _pixels(media, sharding.own_frames(row.frames), image_size, cache)

    def column(parts: Iterable[Sequence[int]]) -> torch.Tensor:
        return torch.tensor([value for part in parts for value in part], dtype=torch.int64)

    return Batch(
        input_ids_L=column(text.input_ids for text in texts).to(device),
        labels_L=column(text.labels for text in texts).to(device),
        positions_L=torch.from_numpy(np.arange(lengths.sum()) - starts.repeat(lengths)).to(device),
        document_L=torch.from_numpy(document_L),
        vision_at_V=column([first + at for at in text.vision_at] for first, text in zip(starts, texts, strict=True)),
        frames=row.frames,
        pixels_FCHW=pixels_FCHW.to(device=device, dtype=dtype),
        most_frames=most_frames,
    )


def _pixels(media: Sequence[Frames], here: range, size: int, cache: FrameCache | None) -> torch.Tensor:
    """Frames `here` of all media in sequence, [len(here), 3, size, size]; others are decoded only on the way."""
    pixels, start = [torch.zeros(0, 3, size, size)], 0
    for frames in media:
        count = len(frames.times)
        mine = range(max(here.start, start) - start, min(here.stop, start + count) - start)
        if len(mine):
            pixels.append(decode(frames, mine, size, cache))
        start += count
    return torch.cat(pixels)
