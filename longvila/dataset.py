"""Samples to packed rows and batches, the same rows for every process count.

    samples --order(seed, epoch)--> documents --pack <= max_tokens--> rows --own frames, decoded--> batch
    step t = the next `rows_per_step` rows of the world; replica i computes rows[i::data_count]

Samples come from `longvila.data`. Every process knows every row (ids cost 8 bytes a token) and where the data stands
(`Cursor`), so a run goes on under another process count with the same steps. A sample that shows itself unusable when a
row reaches it (a broken clip, one longer than a row) stops the run with its file and line, or is left out and counted;
every process finds the same ones, since all index every clip. Leaves out reading over a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
import torch

from longvila.data.mixture import Part, epoch_order
from longvila.data.samples import Sample as Sample
from longvila.data.samples import read_samples as read_samples
from longvila.data.sources import Source
from longvila.job import JobError
from longvila.processor import Clip, FrameCache, Frames, choose_frames, normalised, open_clip, pictures, tile
from longvila.sharding import IGNORE, Batch, Sharding
from longvila.tokens import Rendered, Turn, Writer, media_tags


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Frames of a video: a number, or a rate with a cap; of neither, as the model has it."""

    frames: int | None = None
    fps: float | None = None
    max_frames: int | None = None


@dataclass(frozen=True, kw_only=True)
class Document:
    """One sample as tokens, with its media."""

    text: Rendered
    media: tuple[Frames, ...]  # in the order of their vision tokens
    name: str = ""  # of its sample
    where: str = ""  # its sample's file and line


@dataclass(frozen=True, kw_only=True)
class Row:
    """Documents that are packed into one row."""

    documents: tuple[Document, ...]

    @property
    def tokens(self) -> int:
        return sum(len(document.text.input_ids) for document in self.documents)

    @property
    def label_tokens(self) -> int:
        return sum(int(np.count_nonzero(document.text.labels != IGNORE)) for document in self.documents)

    @property
    def frames(self) -> int:
        """Frames, tiles, or means of several frames, each with its tokens."""
        return sum(media.count for document in self.documents for media in document.media)


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Where reading stands: the next sample is number `position` of epoch `epoch`'s order."""

    epoch: int = 0
    position: int = 0
    left_out: int = 0  # samples that could not be used, over the whole run


# What a replica computes when a step's rows do not divide: it joins every collective and adds nothing.
IDLE_ROW = Row(
    documents=(
        Document(
            text=Rendered(
                input_ids=np.zeros(1, dtype=np.int64), labels=np.array([IGNORE]), vision_at=np.zeros(0, dtype=np.int64)
            ),
            media=(),
        ),
    )
)


class Documents:
    """Samples made into documents; remembers each file's index, so that it is read through once.

    With `tried`, a frame of each clip is decoded where it is indexed, so that every process knows one that has none.
    """

    def __init__(self, writer: Writer, sampling: Sampling, *, tried: bool = False) -> None:
        self._writer = writer
        self._sampling = sampling
        self._tried = tried
        self._clips: dict[Source, Clip] = {}

    def make(self, sample: Sample, *, prompt: bool = False) -> Document:
        try:
            images = [self._picture(path) for path in sample.images]
            videos = [self._video(path) for path in sample.videos]
            self._check_moments(() if prompt else sample.turns)
        except JobError as fault:
            raise JobError(f"{sample.where}: {fault}") from None
        left = {"<image>": iter(images), "<video>": iter(videos)}
        tags = media_tags(sample.turns)
        media = tuple(next(left[tag]) for tag in tags) if tags else (*images, *videos)
        counts, tiled = [m.count for m in media], [m.grid is not None for m in media]
        rendered = self._writer.document(sample.turns, counts, prompt=prompt, tiled=tiled)
        return Document(text=rendered, media=media, name=sample.name, where=sample.where)

    def _check_moments(self, turns: Sequence[Turn]) -> None:
        """VILA learns a time token as a distribution over its neighbours (`soft_cross_entropy`), which is not run."""
        answers = [turn.text for turn in turns if turn.role == "gpt"]
        for moment in self._writer.view.moments:
            if any(moment in text for text in answers):
                raise JobError(f"an answer holds {moment}, a time token of this model: its soft loss is not run")

    def _picture(self, path: Source) -> Frames:
        clip, view = self._clip(path), self._writer.view
        if view.no_pictures is not None:
            raise JobError(f"{path}: a picture: {view.no_pictures}")
        if view.most > 1:
            return tile(clip, view.size, view.fewest, view.most)
        return choose_frames(clip, frames=1).pooled(view.pool)

    def _video(self, path: Source) -> Frames:
        own, view = self._sampling, self._writer.view
        if own.frames is None and own.fps is None:
            return choose_frames(self._clip(path), view.frames, view.fps, view.frames).pooled(view.pool)
        return choose_frames(self._clip(path), own.frames or view.frames, own.fps, own.max_frames).pooled(view.pool)

    def _clip(self, path: Source) -> Clip:
        if path not in self._clips:
            clip = open_clip(path)
            if self._tried:
                pictures(choose_frames(clip, frames=1), range(1), 16)
            self._clips[path] = clip
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
    parts: Sequence[Part] = ()  # of the samples, where their weights differ
    skip: bool = False  # leave out a sample that cannot be used

    def step(self, cursor: Cursor, rows: int) -> tuple[list[Row], Cursor]:
        """The next `rows` rows of the world and where the next step goes on."""
        taken: list[Row] = []
        empty = 0
        while len(taken) < rows:
            before = cursor.epoch
            row, cursor = self._row(cursor)
            taken += [row] if row.documents else []
            empty = 0 if row.documents else empty + cursor.epoch - before
            if empty > 1:
                raise JobError(f"data: none of the {len(self.samples)} samples can be used")
        return taken, cursor

    def order(self, epoch: int) -> np.ndarray:
        """The samples that an epoch passes, as places in `samples`."""
        parts = self.parts or (Part(len(self.samples)),)
        return epoch_order(parts, self.seed, epoch, shuffle=self.shuffle)

    def _row(self, cursor: Cursor) -> tuple[Row, Cursor]:
        """A row ends when the next sample does not fit, when the epoch ends, or after one sample unless packing.

        It is empty where an epoch ends with samples that are left out.
        """
        order, tokens = self.order(cursor.epoch), 0
        taken: list[Document] = []
        position, left_out = cursor.position, cursor.left_out
        while position < len(order) and (self.pack or not taken):
            try:
                document = self._document(self.samples[order[position]])
            except JobError:
                if not self.skip:
                    raise
                left_out, position = left_out + 1, position + 1
                continue
            length = len(document.text.input_ids)
            if tokens + length > self.max_tokens:
                break
            taken.append(document)
            tokens += length
            position += 1
        done = position == len(order)
        after = replace(cursor, position=position, left_out=left_out)
        return Row(documents=tuple(taken)), replace(after, epoch=cursor.epoch + 1, position=0) if done else after

    def _document(self, sample: Sample) -> Document:
        document = self.documents.make(sample)
        length = len(document.text.input_ids)
        if length > self.max_tokens:
            raise JobError(
                f"{sample.where}: sample {sample.name!r} has {length} tokens, max_tokens is {self.max_tokens}: "
                "raise max_tokens or take fewer frames"
            )
        return document


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
    # Bytes go to the device, a quarter of float32.
    pictures_FHWC = _pictures(row, sharding.own_frames(row.frames), image_size, cache).to(device)

    def column(parts: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts))

    return Batch(
        input_ids_L=column([text.input_ids for text in texts]).to(device),
        labels_L=column([text.labels for text in texts]).to(device),
        positions_L=torch.from_numpy(np.arange(lengths.sum()) - starts.repeat(lengths)).to(device),
        document_L=torch.from_numpy(np.arange(len(texts)).repeat(lengths)),
        vision_at_V=column([first + text.vision_at for first, text in zip(starts, texts, strict=True)]),
        frames=row.frames,
        pixels_FCHW=normalised(pictures_FHWC, dtype),
        most_frames=most_frames,
    )


def _pictures(row: Row, here: range, size: int, cache: FrameCache | None) -> torch.Tensor:
    """Frames `here` of all media of the row, as bytes [frames, size, size, 3]; only they are decoded."""
    taken, start = [np.zeros((0, size, size, 3), dtype=np.uint8)], 0
    for document in row.documents:
        for frames in document.media:
            count, pool = frames.count, frames.pool
            mine = range(max(here.start, start) - start, min(here.stop, start + count) - start)
            start += count
            if not len(mine):
                continue
            try:
                taken.append(pictures(frames, range(mine.start * pool, mine.stop * pool), size, cache))
            except JobError as fault:
                raise JobError(f"{document.where}: {fault}") from None
    return torch.from_numpy(np.concatenate(taken) if len(taken) != 2 else taken[1])
