"""Files of shooting scripts to `Script`s, in the two published forms, whichever way their keys are written.

    keyframes   {"Case_1": {"Scene": [id, place], "people": [{"Line", "Emotion", …}], "objects": …, "Timestamp"?}, …}
                as the sample of SkyScript-100M (github vaew/SkyScript-100M, arXiv 2408.09333); also a list of such
    events      {"meta": …, "script": [{"location", "events": [{"timestamp", "character", "dialogue", …}]}]}
                as OmniScript writes (github TencentARC/OmniScript, arXiv 2604.11102)
    .jsonl      a script a line, of either form; {"name", "video", "seconds", "cases": …} tells what the forms do not

Keys are compared without case, blanks and signs ("People" and "people"), numbers may be text, every field may be
missing, keys that are not known are left out. Shots go by their times where all have one, else by the file's order.
A file that is no script is one JobError. Left out: OmniScript's high points and its reasoning.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from longvila.data.samples import TAG
from longvila.job import JobError
from longvila.scripts.shots import Person, Script, Shot

MOST_BYTES = 64 * 2**20
MOST_PARTS = 2**22  # some 200 a shot
MOST_SHOTS = 20_000
MOST_IN_SHOT = 200  # people, objects
MOST_LETTERS = 20_000  # of a field
JUDGED = {"age": ("age",), "gender": ("gender", "sex"), "attractiveness": ("facialattractiveness", "attractiveness")}
_FORMS = 'legal: {"Case_1": {"Scene", "people", …}, …}, a list of such, or {"script": [{"events": […]}]}'
_KEYFRAME = frozenset({"scene", "scenedescription", "people", "objects", "timestamp", "bgm"})


def read_scripts(files: Sequence[Path], *, judged: bool = False) -> list[Script]:
    """All scripts of the files; with `judged`, what they say of people's age, gender and attractiveness is kept."""
    return [script for file in files for script in _file(file, judged)]


def _file(file: Path, judged: bool) -> Iterator[Script]:
    text = _text(file)
    if file.suffix.lower() != ".jsonl":
        yield _script(_parsed(text, str(file)), str(file), file.stem, file.parent, judged)
        return
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise JobError(f"{file} holds no script; {_FORMS}")
    for number, line in lines:
        where = f"{file}:{number}"
        yield _script(_parsed(line, where), where, f"{file.stem}-{number}", file.parent, judged)


def _text(file: Path) -> str:
    try:
        if not file.is_file():
            raise JobError(f"{file} is no file of shooting scripts; legal: a .json or .jsonl file")
        if (size := file.stat().st_size) > MOST_BYTES:
            raise JobError(f"{file} has {size:,} bytes; legal: at most {MOST_BYTES:,} (split it)")
        return file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeError) as fault:
        raise JobError(f"{file} cannot be read ({getattr(fault, 'strerror', None) or 'no UTF-8'})") from None


def _parsed(text: str, where: str) -> object:
    if (parts := sum(map(text.count, "[{:,"))) > MOST_PARTS:
        raise JobError(f"{where}: {parts:,} lists, objects, keys and commas; legal: at most {MOST_PARTS:,} a script")
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as fault:
        raise JobError(f"{where}: no shooting script, broken JSON ({' '.join(str(fault).split())[:80]})") from None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object; a key that is written twice would lose the first shot silently."""
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key[:40]!r} twice in one object")
        found[key] = value
    return found


def _script(value: object, where: str, name: str, folder: Path, judged: bool) -> Script:
    """One script of either form."""
    given = _keys(value)
    cases = given.get("cases", value)
    events = given.get("script", _keys(cases).get("script"))
    meta, video = _keys(given.get("meta")), _words(given.get("video"))
    seconds = _number(given.get("seconds"))
    if isinstance(events, list) and seconds is None:
        seconds = _time(meta.get("duration"))
    try:
        shots = _events(events) if isinstance(events, list) else _keyframes(cases, judged)
    except JobError as fault:
        raise JobError(f"{where}: {fault}") from None
    if not shots:
        raise JobError(f"{where}: no shooting script, there is no shot in it; {_FORMS}")
    if len(shots) > MOST_SHOTS:
        raise JobError(f"{where}: {len(shots):,} shots; legal: at most {MOST_SHOTS:,} a script")
    if all(shot.second is not None for shot in shots):
        shots.sort(key=lambda shot: shot.second or 0.0)
    if seconds is not None and not 0 < seconds < 1e6:
        raise JobError(f"{where}: seconds {seconds:g}; legal: above 0 and below 1,000,000")
    return Script(
        name=_words(given.get("name")) or name, video=str(folder / video) if video else None, shots=tuple(shots),
        seconds=seconds,
    )  # fmt: skip


def _keyframes(cases: object, judged: bool) -> list[Shot]:
    several = list(cases.values()) if isinstance(cases, dict) else cases if isinstance(cases, list) else []
    if isinstance(cases, dict) and _KEYFRAME & _keys(cases).keys():  # one keyframe, bare
        several = [cases]
    frames = [_keys(case) for case in several]
    if not all(_KEYFRAME & frame.keys() for frame in frames):
        return []
    return [_keyframe(frame, judged) for frame in frames]


def _keyframe(frame: Mapping[str, object], judged: bool) -> Shot:
    scene, music = frame.get("scene"), frame.get("bgm")
    named = _keys(scene)
    place = named.get("place", named.get("location")) if named else scene
    place = place[-1] if isinstance(place, list) and place else place
    told = list(map(_words, music)) if isinstance(music, list) else [_words(music)]
    heard = ", ".join(filter(None, told[len(told) > 1 :])) if told[:1] not in (["False"], ["false"]) else ""
    people = [_person(_keys(one), judged) for one in _several(frame.get("people"))]
    objects = [_words(_keys(one).get("object") if isinstance(one, dict) else one)
               for one in _several(frame.get("objects"))]  # fmt: skip
    return Shot(
        second=_time(frame.get("timestamp")), place=_words(place), scene=_words(frame.get("scenedescription")),
        sound=heard, people=tuple(people), objects=tuple(name for name in objects if name),
    )  # fmt: skip


def _person(given: Mapping[str, object], judged: bool) -> Person:
    named = next((_words(given[key]) for key in ("name", "character", "object") if _words(given.get(key))), "")
    felt = _keys(given.get("continuousemotion"))
    feeling = [_number(felt.get(key, felt.get(key[:-1]))) for key in ("valencev", "arousala", "dominanced")]
    known = {
        name: next((_words(given[key]) for key in keys if _words(given.get(key))), "") for name, keys in JUDGED.items()
    }
    return Person(
        name="" if named.lower() in ("person", "people", "man", "woman") else named, looks=_words(given.get("looks")),
        emotion=_words(given.get("emotion")), action=_words(given.get("actions", given.get("action"))),
        line=_words(given.get("line")), size=_words(given.get("shottype")), feeling=tuple(feeling),
        judged={name: value for name, value in known.items() if value} if judged else {},
    )  # fmt: skip


def _events(scenes: Sequence[object]) -> list[Shot]:
    """OmniScript's events, each with the place of its scene."""
    shots = []
    for scene in map(_keys, scenes):
        told = [_words(scene.get(key)) for key in ("environment", "time", "mood")]
        where = Shot(place=_words(scene.get("location")), scene=", ".join(part for part in told if part))
        for event in map(_keys, _several(scene.get("events"))):
            names = event.get("character")
            person = Person(
                name=", ".join(map(_words, names)) if isinstance(names, list) else _words(names),
                action=_words(event.get("action")), emotion=_words(event.get("expression")),
                line=_words(event.get("dialogue")),
            )  # fmt: skip
            shots.append(
                replace(
                    where, second=_time(event.get("timestamp")), sound=_words(event.get("audiocue")),
                    people=() if person == Person() else (person,),
                )
            )  # fmt: skip
    return shots


def _several(value: object) -> list[object]:
    several = value if isinstance(value, list) else [] if value is None else [value]
    if isinstance(value, dict) and all(isinstance(one, dict) for one in value.values()):
        several = [value] if "continuousemotion" in _keys(value) else list(value.values())  # {"Person_1": {…}, …}
    if len(several) > MOST_IN_SHOT:
        raise JobError(f"a shot with {len(several):,} people, objects or events; legal: at most {MOST_IN_SHOT}")
    return several


def _keys(value: object) -> dict[str, object]:
    """A mapping with its keys in small letters and digits alone; anything else has none."""
    if not isinstance(value, dict):
        return {}
    found: dict[str, object] = {}
    for key, one in value.items():
        found.setdefault(re.sub(r"[^a-z0-9]", "", str(key).lower()), one)
    return found


def _words(value: object) -> str:
    """Text on one line, without tags of media and halves of characters; what is no text or number is none."""
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, (str, int, float)):
        return ""
    text = TAG.sub(" ", str(value)[:MOST_LETTERS]).encode("utf-8", "ignore").decode()
    return " ".join(text.split())


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _time(value: object) -> float | None:
    """Seconds of `00:00:07:759` (milliseconds last), `00:01:20`, `01:20`, `01:20 - 01:35` (its start), or a number.

    What no clock shows, such as 99 seconds behind a minute, is no time.

    >>> [_time(text) for text in ("00:00:07:759", "1:00:05.5", "01:20 - 01:35", "12.5", 3, "soon", "00:99")]
    [7.759, 3605.5, 80.0, 12.5, 3.0, None, None]
    """
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, str) and ":" in value:
        found = re.match(r"\s*(\d{1,6}(?::\d{1,3}){1,3})([.,]\d{1,6})?(?![\d:])", value)
        if found is None:
            return None
        parts = [int(part) for part in found[1].split(":")]
        rest = parts.pop() / 1e3 if len(parts) == 4 else float(f"0{found[2].replace(',', '.')}") if found[2] else 0.0
        if max(parts[1:]) >= 60:
            return None
        seconds = 0
        for part in parts:
            seconds = seconds * 60 + part
        return seconds + rest
    number = _number(value)
    return number if number is not None and number >= 0 else None
