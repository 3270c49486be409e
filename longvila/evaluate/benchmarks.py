"""Questions of public benchmarks as multiple choice, read from the files that they are published in.

    VideoMME        JSON: questions, or videos that hold `questions`; options "A. text", answer "A"
    LongVideoBench  JSON: candidates, correct_choice (from 0), video_path
    EgoSchema       JSON: "option 0" … "option 4"; the right ones in a second file {q_uid: place}
    NExT-QA         CSV: question, answer (from 0), a0 … a4, video

A video stands in the media folder under its name, or with .mp4, .mkv, .webm, .avi or .mov. Leaves out subtitles.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    for one in entry.get("questions", [entry]):
        whole = {**entry, **one}
        options = tuple(re.sub(r"^[A-Z][.)]\s*", "", str(option)) for option in _list(whole, "options"))
        answer = str(whole["answer"]).strip()
        yield {
            "name": whole.get("question_id", whole.get("video_id")), "video": whole.get("videoID") or whole["video_id"],
            "question": whole["question"], "options": options, "right": ord(answer[:1] or "@") - ord("A"),
            "kind": whole.get("duration", ""),
        }  # fmt: skip


def longvideobench(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield {
        "name": entry.get("id", entry["video_id"]), "video": entry.get("video_path") or entry["video_id"],
        "question": entry["question"], "options": tuple(map(str, _list(entry, "candidates"))),
        "right": entry["correct_choice"], "kind": entry.get("question_category", ""),
    }  # fmt: skip


def egoschema(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    options = tuple(str(entry[f"option {place}"]) for place in range(5))
    yield {"name": entry["q_uid"], "video": entry["q_uid"], "question": entry["question"], "options": options,
           "right": entry["right"], "kind": ""}  # fmt: skip


def nextqa(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    options = tuple(str(entry[f"a{place}"]) for place in range(5))
    yield {"name": f"{entry['video']}-{entry.get('qid', '')}", "video": entry["video"], "question": entry["question"],
           "options": options, "right": entry["answer"], "kind": entry.get("type", "")}  # fmt: skip


BENCHMARKS: dict[str, Callable[[Mapping[str, Any]], Iterator[dict[str, Any]]]] = {
    "videomme": videomme, "longvideobench": longvideobench, "egoschema": egoschema, "nextqa": nextqa,
}  # fmt: skip


def read(
    questions: Callable[[Mapping[str, Any]], Iterator[dict[str, Any]]], file: Path, answers: Path | None, media: Path
) -> list[Choice]:
    """Every question of the file; the first that cannot be used is a JobError."""
    right = {} if answers is None else _json(answers)
    found = []
    for place, entry in enumerate(_entries(file), start=1):
        where = f"{file}: entry {place}"
        try:
            if isinstance(right, dict) and entry.get("q_uid") in right:
                entry = {**entry, "right": right[entry["q_uid"]]}
            elif questions is egoschema and "right" not in entry:
                continue  # its answers are published for a part of the questions
            found += [_choice(given, media, where) for given in questions(entry)]
        except KeyError as fault:
            raise JobError(f"{where}: has no {fault.args[0]!r}") from None
        except (AttributeError, TypeError, ValueError) as fault:
            raise JobError(f"{where}: {' '.join(str(fault).split())[:200]}") from None
    if not found:
        raise JobError(f"{file}: holds no question with an answer")
    return found


def _choice(given: Mapping[str, Any], media: Path, where: str) -> Choice:
    options, right, video = given["options"], int(given["right"]), str(given["video"])
    if not 2 <= len(options) <= MOST_OPTIONS or not 0 <= right < len(options):
        raise JobError(f"{where}: the answer {right} is not one of {len(options)} options")
    paths = [media / (video + suffix) for suffix in SUFFIXES]
    path = next((path for path in paths if path.is_file()), None)
    if path is None or media.resolve() not in path.resolve().parents:
        raise JobError(f"{where}: video {video!r} is not in {media}")
    return Choice(
        name=str(given["name"]), video=path, question=str(given["question"]), options=options, right=right,
        kind=str(given["kind"]),
    )  # fmt: skip


def _entries(file: Path) -> list[Mapping[str, Any]]:
    if file.suffix == ".csv":
        return list(csv.DictReader(read_text(file, "questions: ").splitlines()))
    content = _json(file)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise JobError(f"questions: {file} is no list of objects")
    return content


def _json(file: Path) -> Any:
    try:
        return json.loads(read_text(file, "questions: "))
    except (ValueError, RecursionError) as fault:
        raise fault if isinstance(fault, JobError) else JobError(f"questions: {file} is not JSON") from None


def _list(entry: Mapping[str, Any], key: str) -> list[Any]:
    value = entry[key]
    if not isinstance(value, list):
        raise ValueError(f"{key} is no list")
    return value
