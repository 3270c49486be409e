"""A line of VILA's or LLaVA's conversations to a sample, or to all that is wrong with it.

    {"id", "video"|"image"|"videos"|"images": path or list, "conversations": [{"from", "value"}, …], …}

What published lines carry is read as VILA and LLaVA read it (NVlabs/VILA `llava/data/dataset_impl/llava.py`, LLaVA's
`preprocess_multimodal`): keys besides these are left alone; a turn from gpt before the first question is dropped; a
first turn from system replaces the model's own; one `<image>` or `<video>` in a turn means the media stand before its
text, several stand where they are written; `<image>` serves for a video; with fewer tags than files all media come
first. A video may be a folder of pictures. Media are looked up beside the line in its shard, then in the media folder.
More tags than files is a fault: text would ask of what is not there.
"""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvila.data.shards import Entry, entries
from longvila.data.sources import PICTURES, VIDEOS, Source, frame_files
from longvila.job import JobError
from longvila.tokens import Turn

TAG = re.compile(r"<image>|<video>|<vila/video>")
_TAG_LINE = re.compile(rf"(?:{TAG.pattern})\n?|\n(?:{TAG.pattern})")
_ROLES = ("human", "gpt", "system")
_IMAGES, _VIDEOS = ("image", "images"), ("video", "videos")
_NAMES = re.compile(r"vid|clip|(?:video|vid|image|picture|clip)_?(?:name|id|uid|file|filename|path)", re.IGNORECASE)
_HOLDS = re.compile(r"video|image|picture|media|clip", re.IGNORECASE)  # keys that may name media


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A conversation; every tag in its human turns has its file, images and videos each in their order."""

    where: str  # file:line, for messages
    name: str
    images: tuple[Source, ...]
    videos: tuple[Source, ...]
    turns: tuple[Turn, ...]

    @property
    def media(self) -> tuple[Source, ...]:
        return (*self.images, *self.videos)


@dataclass(frozen=True)
class Reading:
    """The samples of some files and every fault found, each as `file:line: fault`."""

    samples: tuple[Sample, ...]
    faults: tuple[str, ...]


def read_files(files: Sequence[Path], media_folder: Path, *, prompts: bool = False) -> Reading:
    """All samples of the files; as `prompts`, they need no last answer, and one is dropped."""
    samples, faults = [], []
    for file in files:
        for entry in entries(file):
            read = _Line(entry, media_folder)
            sample = read.sample(prompts)
            samples += [] if sample is None else [sample]
            faults += [f"{entry.where}: {fault}" for fault in read.faults]
    return Reading(tuple(samples), tuple(faults))


def read_samples(
    files: Sequence[Path], media_folder: Path, *, prompts: bool = False, skip: bool = False
) -> tuple[Sample, ...]:
    """All samples; a fault is a JobError, unless such samples are to be left out (`skip`)."""
    reading = read_files(files, media_folder, prompts=prompts)
    if reading.faults and not skip:
        raise JobError(first_fault(reading.faults, files))
    if not reading.samples:
        why = f": {reading.faults[0]}" if reading.faults else ""
        raise JobError(f"data: {', '.join(map(str, files)) or 'no file'} holds no samples{why}")
    return reading.samples


def first_fault(faults: Sequence[str], files: Sequence[Path]) -> str:
    """One line: the first fault, how many more there are, and how to see them all."""
    if len(faults) == 1:
        return faults[0]
    named = " ".join(map(str, files))
    return f"{faults[0]} (and {len(faults) - 1} more: python -m longvila.data check {named})"


def _named(key: str, value: object) -> str | None:
    """Which key should hold the medium that another key names, by the end of a file or as `video_id` does."""
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        return None
    suffix = Path(str(value)[-999:]).suffix.lower()
    if _HOLDS.search(key) and suffix in PICTURES | VIDEOS:
        return "video" if suffix in VIDEOS else "image"
    if _NAMES.fullmatch(key) is None:
        return None
    return "image" if key.lower().startswith(("image", "picture")) else "video"


class _Line:
    """One entry while it is read: what is wrong with it gathers in `faults`."""

    def __init__(self, entry: Entry, folder: Path) -> None:
        self._entry, self._folder = entry, folder
        self.faults: list[str] = [] if entry.fault is None else [entry.fault]

    def sample(self, prompt: bool) -> Sample | None:
        value, where = self._entry.value, self._entry.where
        if self.faults:
            return None
        if not isinstance(value, dict):
            self.faults.append("a sample is an object with conversations and, for media, video or image")
            return None
        self._near_misses(value)
        images, videos = (
            tuple(source for kind in kinds for source in self._media(value.get(kind), kind))
            for kinds in (_IMAGES, _VIDEOS)
        )
        turns = self._turns(value.get("conversations"), prompt)
        if not self.faults:
            turns = self._placed(turns, len(images), len(videos))
        if self.faults:
            return None
        return Sample(where=where, name=str(value.get("id", where)), images=images, videos=videos, turns=turns)

    def _near_misses(self, value: Mapping[str, Any]) -> None:
        """Media under another name would train on text alone."""
        kinds, named = (*_IMAGES, *_VIDEOS), False
        for key in value:
            close = difflib.get_close_matches(str(key).lower(), kinds, n=1, cutoff=0.85)
            named |= key in kinds
            if close and str(key) not in kinds:
                self.faults.append(f"unknown key {key!r}; did you mean {close[0]!r}?")
        for key in () if named or self.faults else value:
            kind = _named(str(key), value[key])
            if kind is not None:
                held = repr(value[key])[:200]
                self.faults.append(f"{key!r} holds {held}, and no key {kind!r}: media are read from that alone")

    def _media(self, given: Any, kind: str) -> list[Source]:
        names = given if isinstance(given, list) else [] if given is None else [given]
        found = [self._source(name, kind) for name in names]
        return [source for source in found if source is not None]

    def _source(self, name: Any, kind: str) -> Source | None:
        if not isinstance(name, str) or not name.strip():
            self.faults.append(f"{kind} must be a path or a list of paths, not {name!r}")
            return None
        if re.match(r"\w+://", name):
            self.faults.append(f"{kind} {name!r} is an address: media are read from disk alone")
            return None
        if kind in _IMAGES and Path(name).suffix.lower() in VIDEOS:
            self.faults.append(
                f"{kind} {name!r} is a video, of which a picture would be its first frame: name it video"
            )
            return None
        member = self._entry.members.get(name) or self._entry.members.get(posixpath.normpath(name))
        if member is not None:
            return member
        path = self._folder / name
        try:
            is_file, is_folder = path.is_file(), path.is_dir()
        except OSError as fault:
            self.faults.append(f"{kind} {name[:40]!r}… cannot be looked up ({fault.strerror})")
            return None
        if is_file:
            return path
        if not is_folder:
            self.faults.append(f"{kind} {name!r} is not in {self._folder}")
        elif kind in _IMAGES:
            self.faults.append(f"{kind} {name!r} is a folder; a folder of pictures is a video")
        elif not frame_files(path):
            self.faults.append(f"{kind} {name!r} is a folder without pictures")
        else:
            return path
        return None

    def _turns(self, given: Any, prompt: bool) -> tuple[Turn, ...]:
        if not isinstance(given, list) or not given:
            self.faults.append("conversations must be a list of turns")
            return ()
        turns = [self._turn(turn, place) for place, turn in enumerate(given, start=1)]
        if self.faults:
            return ()
        system = [turn for turn in turns[:1] if turn.role == "system"]
        turns = turns[len(system) :]
        if turns and turns[0].role == "gpt":  # an answer to nothing
            turns = turns[1:]
        start = len(given) - len(turns) + 1
        for place, turn in enumerate(turns):
            if turn.role != _ROLES[place % 2]:
                self.faults.append(f"turn {start + place} is from {turn.role!r}; turns alternate and human begins")
                return ()
        if prompt and turns and turns[-1].role == "gpt":
            turns = turns[:-1]
        elif not turns or (not prompt and turns[-1].role != "gpt"):
            self.faults.append("the last turn must be from gpt: nothing else is learned")
        return (*system, *turns)

    def _turn(self, turn: Any, place: int) -> Turn:
        value = turn.get("value") if isinstance(turn, dict) else None
        if not isinstance(turn, dict) or "from" not in turn or not isinstance(value, str):
            self.faults.append(f'turn {place} is not {{"from": …, "value": text}}')
        elif turn["from"] not in _ROLES:
            self.faults.append(f"turn {place} is from {turn['from']!r}; legal: {', '.join(_ROLES)}")
        elif any("\ud800" <= letter <= "\udfff" for letter in value):  # JSON's escapes can name them
            self.faults.append(f"turn {place} holds half a surrogate pair, which is no character")
        else:
            text = value if turn["from"] == "human" else _TAG_LINE.sub("", value)
            return Turn(role=turn["from"], text=text.strip())
        return Turn(role="human", text="")

    def _placed(self, turns: tuple[Turn, ...], images: int, videos: int) -> tuple[Turn, ...]:
        """The turns with one tag for every medium, of its kind, where it stands."""
        tags = [tag for turn in turns if turn.role == "human" for tag in TAG.findall(turn.text)]
        counts = tags.count("<image>"), len(tags) - tags.count("<image>")
        if len(tags) > images + videos:
            self.faults.append(
                f"the human turns hold {counts[0]} <image> and {counts[1]} <video>, "
                f"the sample {images} and {videos} files"
            )
            return turns
        kinds = ["<image>"] * images + ["<video>"] * videos
        first = len(tags) < len(kinds)
        if counts == (images, videos):
            kinds = ["<image>" if tag == "<image>" else "<video>" for tag in tags]
        following, placed = iter(kinds), []
        asked = next(place for place, turn in enumerate(turns) if turn.role == "human")
        for place, turn in enumerate(turns):
            if turn.role == "human":
                own = kinds if first and place == asked else []
                if not first:
                    own = [next(following) for _ in TAG.findall(turn.text)]
                text = _TAG_LINE.sub("", turn.text).strip()
                if len(own) > 1 and not first:
                    inside = iter(own)
                    text = TAG.sub(lambda _, inside=inside: next(inside), turn.text)  # type: ignore[misc]
                elif own:
                    text = "\n".join((*own, text)) if text else "\n".join(own)
                turn = Turn(role=turn.role, text=text)
            placed.append(turn)
        return tuple(placed)
