"""A shooting script, whatever file it came from, and one shot of it in words.

    Script -> shots in their order -> Shot(second, place, people, objects, …) -> 2. 00:07 Garden. Close-up: …

Text is as the file has it, on one line and without tags of media. Age, gender and attractiveness are judgements of
people; `Person.judged` has them only where they were asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Person:
    """Someone in a shot."""

    name: str = ""  # as the file names the person; empty where it says no more than "person"
    looks: str = ""
    emotion: str = ""
    action: str = ""
    line: str = ""
    size: str = ""  # of the shot: close-up, medium shot, …
    feeling: tuple[float | None, ...] = (None, None, None)  # valence, arousal, dominance
    judged: Mapping[str, str] = field(default_factory=dict)

    @property
    def called(self) -> str:
        return self.name or self.looks or "a person"


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A shot of a film as its script has it; times in seconds."""

    second: float | None = None
    place: str = ""
    scene: str = ""  # what the place looks like
    sound: str = ""
    people: tuple[Person, ...] = ()
    objects: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Script:
    """A film's shots in order."""

    name: str
    shots: tuple[Shot, ...]
    video: str | None = None
    seconds: float | None = None

    def spoken(self) -> dict[str, tuple[int, Person]]:
        """Every line once, with its first shot and speaker: keyframes of one dialogue repeat it."""
        found: dict[str, tuple[int, Person]] = {}
        for index, shot in enumerate(self.shots):
            for person in shot.people:
                if person.line:
                    found.setdefault(person.line, (index, person))
        return found


def clock(second: float) -> str:
    """
    >>> clock(7.75), clock(3725)
    ('00:07', '1:02:05')
    """
    whole = int(second)
    hours = f"{whole // 3600}:" if whole >= 3600 else ""
    return f"{hours}{whole // 60 % 60:02d}:{whole % 60:02d}"


def written(script: Script) -> str:
    """The script as text, a shot a line, each line of dialogue where it is first said."""
    unsaid = set(script.spoken())
    told = []
    for index, shot in enumerate(script.shots):
        acts = []
        for person in shot.people:
            acts.append(_acts(person, person.line in unsaid))
            unsaid.discard(person.line)
        told.append(_shot(index, shot, acts))
    return "\n".join(told)


def _shot(index: int, shot: Shot, acts: Sequence[str]) -> str:
    head = f"{index + 1}." if shot.second is None else f"{index + 1}. {clock(shot.second)}"
    parts = [shot.place, shot.scene, *acts]
    parts += [f"Seen: {', '.join(shot.objects)}"] if shot.objects else []
    parts += [f"Heard: {shot.sound}"] if shot.sound else []
    return " ".join((head, *(_sentence(part) for part in parts if part)))


def _acts(person: Person, speaks: bool) -> str:
    told = [f"{person.called.rstrip('.')} {person.action}".strip().rstrip("."), person.emotion]
    told += [
        f"{name} {value:g}"
        for name, value in zip(("valence", "arousal", "dominance"), person.feeling, strict=True)
        if value is not None
    ]
    told += [f"{name} {value}" for name, value in person.judged.items()]
    size = f"{person.size}: " if person.size else ""
    return size + ", ".join(part for part in told if part) + (f': "{person.line}"' if speaks else "")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", '"')) else f"{text}."
