"""Questions of public benchmarks as multiple choice, read from the files that they are published in.

    VideoMME        questions, or videos that hold `questions`; options "A. text", answer "A"
    LongVideoBench  candidates, or option0 … option4 with "N/A" where there is none; correct_choice (from 0), video_path
    EgoSchema       "option 0" … "option 4", or a list `option`; `answer`, or a second file of right ones {q_uid:
                    place}; questions without an answer, as most are published, are passed over
    NExT-QA         question, answer (from 0), a0 … a4, video

Files are JSON, lines of JSON, CSV or Parquet, as each is found. An answer is a letter, a place from 0, or an option's
text. A video stands in the media folder under its name, or with .mp4, .mkv, .webm, .avi or .mov; NExT-QA's under what
`map_vid_vidorID.json` in that folder says of it. Leaves out subtitles.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvila.data.columns import parquet_rows
from longvila.files import read_text
from longvila.job import JobError

SUFFIXES = ("", ".mp4", ".mkv", ".webm", ".avi", ".mov")
MOST_OPTIONS = 26


@dataclass(frozen=True, kw_only=True)
class Choice:
    name: str
    video: Path
    question: str
    options: tuple[str, ...]
    right: int  # place of the right option
    kind: str  # what the benchmark tells apart: a duration, a type of question


def videomme(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Video-MME's entries as choices."""
    for one in entry.get("questions", [entry]):
        whole = {**entry, **one}
        yield {
            "name": whole.get("question_id", whole.get("video_id")), "video": whole.get("videoID") or whole["video_id"],
            "question": whole["question"], "options": _list(whole, "options"), "right": whole["answer"],
            "kind": whole.get("duration", ""),
        }  # fmt: skip


def longvideobench(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """LongVideoBench's entries as choices."""
    several = [entry[key] for key in (f"option{place}" for place in range(5)) if entry.get(key) not in (None, "N/A")]
    yield {
        "name": entry.get("id", entry["video_id"]), "video": entry.get("video_path") or entry["video_id"],
        "question": entry["question"], "options": several or _list(entry, "candidates"),
        "right": entry["correct_choice"], "kind": entry.get("question_category", ""),
    }  # fmt: skip


def egoschema(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """EgoSchema's entries as choices."""
    video = entry["q_uid"] if "q_uid" in entry else entry["video_idx"]
    options = _list(entry, "option") if "option" in entry else [entry[f"option {place}"] for place in range(5)]
    yield {"name": video, "video": video, "question": entry["question"], "options": options,
           "right": entry["right"] if "right" in entry else entry["answer"], "kind": ""}  # fmt: skip


def nextqa(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """NExT-QA's entries as choices."""
    options = [entry[f"a{place}"] for place in range(5)]
    yield {"name": f"{entry['video']}-{entry.get('qid', '')}", "video": entry["video"], "question": entry["question"],
           "options": options, "right": entry["answer"], "kind": entry.get("type", "")}  # fmt: skip


BENCHMARKS: dict[str, Callable[[Mapping[str, Any]], Iterator[dict[str, Any]]]] = {
    "videomme": videomme, "longvideobench": longvideobench, "egoschema": egoschema, "nextqa": nextqa,
}  # fmt: skip


def read(
    questions: Callable[[Mapping[str, Any]], Iterator[dict[str, Any]]], file: Path, answers: Path | None, media: Path,
    *, skip: bool = False,
) -> tuple[list[Choice], list[str]]:  # fmt: skip
    """Every question of the file, and what is wrong with those that cannot be used: a JobError unless they are left
    out (`skip`)."""
    right, folders = {} if answers is None else _json(answers), _folders(media)
    found: list[Choice] = []
    faults: list[str] = []
    for place, entry in enumerate(_entries(file), start=1):
        where = f"{file}: entry {place}"
        try:
            if isinstance(right, dict) and entry.get("q_uid") in right:
                entry = {**entry, "right": right[entry["q_uid"]]}
            elif questions is egoschema and entry.get("answer") in (None, "", "None", "none", "null"):
                continue  # its answers are published for a part of the questions
            for given in questions(entry):
                try:
                    found.append(_choice(given, media, folders))
                except ValueError as fault:
                    faults.append(f"{where}: {fault}")
        except KeyError as fault:
            faults.append(f"{where}: has no {fault.args[0]!r}")
        except (AttributeError, TypeError, ValueError) as fault:
            faults.append(f"{where}: {' '.join(str(fault).split())[:200]}")
    if faults and (not skip or not found):
        raise JobError(faults[0] + (f" (and {len(faults) - 1} more; on_error: skip)" if len(faults) > 1 else ""))
    if not found:
        raise JobError(f"{file}: holds no question with an answer")
    return found, faults


def _choice(given: Mapping[str, Any], media: Path, folders: Mapping[str, str]) -> Choice:
    options, video = _options(given["options"]), str(given["video"])
    if not 2 <= len(options) <= MOST_OPTIONS:
        raise ValueError(f"{len(options)} options; legal are 2 to {MOST_OPTIONS}")
    right = _place(given["right"], options)
    paths = [media / (name + suffix) for name in (video, folders.get(video, video)) for suffix in SUFFIXES]
    path = next((path for path in paths if path.is_file()), None)
    if path is None or media.resolve() not in path.resolve().parents:
        raise ValueError(f"video {video!r} is not in {media}")
    return Choice(
        name=str(given["name"]), video=path, question=str(given["question"]), options=options, right=right,
        kind=str(given["kind"] or ""),
    )  # fmt: skip


def _options(given: Sequence[Any]) -> tuple[str, ...]:
    """Without their letters, where every option has its own.

    >>> _options(["A. red", "B) blue"]), _options(["E. coli", "B. subtilis"]), _options([3, 4.5])
    (('red', 'blue'), ('E. coli', 'B. subtilis'), ('3', '4.5'))
    """
    if any(option is None for option in given):
        raise ValueError(f"option {given.index(None)} is empty")
    texts = tuple(str(option).strip() for option in given)
    lettered = [re.match(rf"\(?{chr(ord('A') + place)}[.):]\s*", text) for place, text in enumerate(texts)]
    if all(lettered):
        return tuple(text[letter.end() :] for text, letter in zip(texts, lettered, strict=True) if letter)
    return texts


def _place(answer: Any, options: Sequence[str]) -> int:
    """The option that an answer names by letter, place from 0, or text.

    >>> [_place(answer, ("red", "a blue one")) for answer in ("B", "(b)", "A. red", 1, "0", "1.0", "A Blue one ")]
    [1, 1, 0, 1, 0, 1, 1]
    """
    text = str(answer).strip()
    letter = re.fullmatch(r"\(?([A-Za-z])(?:\)|[.):].*)?", text, re.DOTALL)
    same = [place for place, option in enumerate(options) if option.strip().casefold() == text.casefold()]
    if letter:
        place = ord(letter[1].upper()) - ord("A")
    elif re.fullmatch(r"\d{1,3}(\.0)?", text):
        place = int(float(text))
    else:
        place = same[0] if len(same) == 1 else -1
    if not 0 <= place < len(options):
        raise ValueError(f"the answer {text[:40]!r} is not one of {len(options)} options")
    return place


def _folders(media: Path) -> dict[str, str]:
    """Where NExT-QA's videos are, which it publishes by their numbers."""
    file = media / "map_vid_vidorID.json"
    content = _json(file) if file.is_file() else {}
    return {str(video): str(place) for video, place in content.items()} if isinstance(content, dict) else {}


def _entries(file: Path) -> list[Mapping[str, Any]]:
    if file.suffix == ".parquet":
        return parquet_rows(file)
    if file.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(_text(file), newline="")))
    if file.suffix == ".jsonl":
        content = [_parsed(line, file) for line in _text(file).split("\n") if line.strip()]
    else:
        content = _json(file)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise JobError(f"questions: {file} is no list of objects")
    return content


def _json(file: Path) -> Any:
    return _parsed(_text(file), file)


def _parsed(text: str, file: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise JobError(f"questions: {file} is not JSON") from None


def _text(file: Path) -> str:
    return read_text(file, "questions: ").removeprefix("\ufeff")


def _list(entry: Mapping[str, Any], key: str) -> list[Any]:
    value = entry[key]
    if not isinstance(value, list):
        raise ValueError(f"{key} is no list")
    return value
