"""VILA lines about shooting scripts: the whole script, and questions whose answers stand in one shot of it.

    script   Write the shooting script of this film.        all shots, one a line
    find     In which shot is "…" first said?               shot 7
             In which shot is the red lamp first seen?      shot 2
    place    Where is "…" first said?                       Garden
    says     Who says "…"?                                  the red circle

A question is asked only where it has one answer. Of long dialogue the first sentence is quoted that no other line has;
who is not named is called by what the first shot says of their looks. Where a script has its film, lines are about the
film; where it has none, the script itself stands before the question, and nothing is asked to be written. The same
scripts and seed give the same lines. Left out: questions that have to be inferred.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from longvila.scripts.shots import Person, Script, written
from longvila.synthetic import line as vila_line

Asked = tuple[str, str]


def lines(scripts: Sequence[Script], tasks: Sequence[str], most: int, seed: int) -> Iterator[dict[str, object]]:
    """The lines of every script, one for each task, its id `name/task`; at most so many questions in one.

    Of scripts of one name the second is `name-2`, so that no two lines have one id.
    """
    for script in _distinct(scripts):
        for task in tasks:
            if asked := questions(script, task, most, seed):
                yield vila_line(f"{script.name}/{task}", _told(script, asked), script.video)


def _distinct(scripts: Sequence[Script]) -> Iterator[Script]:
    taken, names = set[str](), {script.name for script in scripts}
    for script in scripts:
        name = script.name
        others = (f"{script.name}-{number}" for number in itertools.count(2))
        if name in taken:
            name = next(other for other in others if other not in names | taken)
        taken.add(name)
        yield replace(script, name=name)


def questions(script: Script, task: str, most: int, seed: int) -> list[Asked]:
    """Questions of one task in an order drawn from the seed and the script's name; empty if there are none."""
    found = TASKS[task](script)
    random = np.random.default_rng([seed, *f"{script.name}/{task}".encode()])
    return [found[place] for place in random.permutation(len(found))[:most].tolist()]


def _told(script: Script, asked: list[Asked]) -> list[Asked]:
    if script.video is not None:
        return asked
    (question, answer), *rest = asked
    return [(f"A shooting script:\n{written(script)}\n\n{question}", answer), *rest]


def _write(script: Script) -> list[Asked]:
    return [("Write the shooting script of this film.", written(script))] if script.video is not None else []


def _find(script: Script) -> list[Asked]:
    if len(script.shots) < 2:
        return []
    said = [(f'In which shot is "{quote}" first said?', f"shot {index + 1}") for quote, index, _ in _quotes(script)]
    return said + [(f"In which shot is {thing} first seen?", f"shot {index + 1}") for thing, index in _seen(script)]


def _place(script: Script) -> list[Asked]:
    places = {shot.place for shot in script.shots}
    if len(places) < 2:
        return []
    asked = [(f'Where is "{quote}" first said?', script.shots[index].place) for quote, index, _ in _quotes(script)]
    return [(question, answer) for question, answer in asked if answer]


def _says(script: Script) -> list[Asked]:
    names: dict[str, set[str]] = {}
    for shot in script.shots:
        for person in shot.people:
            names.setdefault(person.line, set()).update({person.name} - {""})
    quotes = _quotes(script)
    if len({person.called for _, _, person in quotes}) < 2:
        return []
    return [
        (f'Who says "{quote}"?', person.called)
        for quote, _, person in quotes if len(names[person.line]) < 2 and (person.name or person.looks)
    ]  # fmt: skip


TASKS: dict[str, Callable[[Script], list[Asked]]] = {"script": _write, "find": _find, "place": _place, "says": _says}


def _quotes(script: Script) -> list[tuple[str, int, Person]]:
    """Of every line the words it is known by, its first shot and its speaker."""
    spoken = script.spoken()
    known = Counter(sentence for line in spoken for sentence in set(_sentences(line)))
    found = []
    for line, (index, person) in spoken.items():
        quote = next((sentence for sentence in _sentences(line) if known[sentence] == 1), None)
        if quote is not None:
            found.append((quote, index, person))
    return found


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?])\s+|(?<=[。！？])", text) if part]


def _seen(script: Script) -> list[tuple[str, int]]:
    """Named people and things that some shot does not show, with their first shot."""
    first: dict[str, int] = {}
    shots_of: Counter[str] = Counter()
    for index, shot in enumerate(script.shots):
        names = {*(person.name for person in shot.people if person.name), *shot.objects}
        shots_of.update(names)
        for name in sorted(names):
            first.setdefault(name, index)
    return [(name, index) for name, index in first.items() if shots_of[name] < len(script.shots)]
