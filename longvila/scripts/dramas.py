"""Synthetic short dramas: silent films of moving shapes with intertitles, as episodes and as whole dramas.

    seed -> cast, places -> episodes of shots -> films (longvila.synthetic) + their shooting scripts, exactly true

A shot is one actor, a shape of one colour, that moves one way at one place, which is the ground's colour. What an actor
says is an intertitle, as in silent films: one frame of the shot, a letter rimmed in the actor's colour. No letter is
said twice in a drama, so that a line has one speaker, one shot and one place; whoever is asked for it has to find one
frame. A drama is its episodes one after another. Files, in a new folder:

    episodes.jsonl, dramas.jsonl     the scripts, in the form of published keyframes (`reading.py`)
    videos/*.mp4                     their films, unless left out

Seconds of an episode are drawn from a log-normal around the mean, episodes of a drama from a Poisson law: assumptions;
the means of SkyScript-100M (arXiv 2408.09333: 2,000 hours, 80,000 episodes, 6,660 dramas) are 90 s and 12.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from longvila.files import write_whole
from longvila.job import JobError, require
from longvila.synthetic import COLOURS, FRAMES_PER_S, LETTERS, SHAPES, WAYS, Card, Film, Scene, encode

PLACES = {"Cellar": (24, 24, 30), "Garden": (24, 90, 36), "Harbour": (24, 50, 110), "Kitchen": (100, 56, 24)}
SIZES = {"Long shot": 0.10, "Medium shot": 0.17, "Close-up": 0.26}
SPREAD = 0.3
"""Standard deviation of the logarithm of an episode's seconds."""
LEAST_FRAMES = 4
"""Of a shot: an intertitle, and the actor before and after it."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How much is made."""

    dramas: int = 100
    episodes: float = 12.0  # of a drama, in the mean
    seconds: float = 90.0  # of an episode, in the mean
    shot_seconds: float = 6.0  # in the mean
    lines: int = 16  # the most of a drama
    side: int = 48  # pixels
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("dramas", 1, 100_000), ("episodes", 1, 1000), ("seconds", 1, 10_000), ("shot_seconds", 0.5, 1000),
            ("lines", 0, len(LETTERS)), ("side", 16, 2048), ("seed", 0, 2**63 - 1),
        ):  # fmt: skip
            require(least <= getattr(self, name) <= most, name, getattr(self, name), f"{least} … {most}")
        require(self.side % 2 == 0, "side", self.side, "even")


@dataclass(frozen=True, kw_only=True)
class Drama:
    """One film; `firsts` are the indices of the shots that begin an episode."""

    film: Film
    firsts: tuple[int, ...]

    def episodes(self) -> Iterator[Film]:
        scenes = self.film.scenes
        for number, (first, end) in enumerate(zip(self.firsts, (*self.firsts[1:], len(scenes)), strict=True), 1):
            yield cut(self.film, scenes[first:end], f"{self.film.name}-{number:02d}")


def make_drama(random: np.random.Generator, name: str, wanted: Wanted) -> Drama:
    scenes: list[Scene] = []
    firsts: list[int] = []
    cast = [(str(random.choice(SHAPES)), str(colour)) for colour in random.permutation(list(COLOURS))[:4]]
    for _ in range(1 + int(random.poisson(wanted.episodes - 1))):
        mean = wanted.seconds * FRAMES_PER_S
        frames = max(LEAST_FRAMES, round(float(random.lognormal(np.log(mean) - SPREAD**2 / 2, SPREAD))))
        shots = max(1, min(frames // LEAST_FRAMES, round(frames / (wanted.shot_seconds * FRAMES_PER_S))))
        firsts.append(len(scenes))
        spare = random.multinomial(frames - LEAST_FRAMES * shots, np.full(shots, 1 / shots))
        for extra in spare.tolist():
            first = scenes[-1].first + scenes[-1].frames if scenes else 0
            scenes.append(_shot(random, cast, first, LEAST_FRAMES + extra))
    letters = random.permutation(list(LETTERS))[: wanted.lines]
    speaking = sorted(random.permutation(len(scenes))[: len(letters)].tolist())
    cards = tuple(
        Card(
            frame=scenes[index].first + int(random.integers(1, scenes[index].frames - 1)),
            colour=scenes[index].colour, letter=str(letter),
        )
        for index, letter in zip(speaking, letters, strict=False)
    )  # fmt: skip
    frames = scenes[-1].first + scenes[-1].frames
    return Drama(film=Film(name=name, frames=frames, scenes=tuple(scenes), cards=cards), firsts=tuple(firsts))


def _shot(random: np.random.Generator, cast: Sequence[tuple[str, str]], first: int, frames: int) -> Scene:
    shape, colour = cast[int(random.integers(len(cast)))]
    across, down = (float(value) for value in random.uniform(0.35, 0.65, 2))
    return Scene(
        first=first, frames=frames, shape=shape, colour=colour, way=str(random.choice(list(WAYS))),
        ground=PLACES[str(random.choice(list(PLACES)))], size=SIZES[str(random.choice(list(SIZES)))],
        start=(across, down), speed=0.3 / frames,
    )  # fmt: skip


def cut(film: Film, scenes: Sequence[Scene], name: str) -> Film:
    """Some successive shots of a film as a film of its own, which begins at 0."""
    begin, frames = scenes[0].first, sum(scene.frames for scene in scenes)
    return Film(
        name=name, frames=frames,
        scenes=tuple(replace(scene, first=scene.first - begin) for scene in scenes),
        cards=tuple(
            Card(frame=card.frame - begin, colour=card.colour, letter=card.letter)
            for card in film.cards if begin <= card.frame < begin + frames
        ),
    )  # fmt: skip


def script_of(film: Film) -> dict[str, object]:
    """The film's shooting script as a line of a file of scripts."""
    said = {
        index: card.letter
        for card in film.cards
        for index, scene in enumerate(film.scenes)
        if scene.first <= card.frame < scene.first + scene.frames
    }
    places = {ground: place for place, ground in PLACES.items()}
    sizes = {size: name for name, size in SIZES.items()}
    cases = {}
    for index, scene in enumerate(film.scenes):
        person = {
            "object": f"the {scene.colour} {scene.shape}", "Actions": f"moves {scene.way}",
            "Shot Type": sizes[scene.size],
        }  # fmt: skip
        line = {"Line": said[index]} if index in said else {}
        cases[f"Case_{index + 1}"] = {
            "Timestamp": _timestamp(scene.first / FRAMES_PER_S), "Scene": [str(index + 1), places[scene.ground]],
            "people": [{**person, **line}],
        }  # fmt: skip
    return {
        "name": film.name, "video": f"videos/{film.name}.mp4", "seconds": film.frames / FRAMES_PER_S, "cases": cases,
    }  # fmt: skip


def _timestamp(second: float) -> str:
    """
    >>> _timestamp(7.75)
    '00:00:07:750'
    """
    whole = int(second)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}:{round(second % 1 * 1000):03d}"


def write(folder: Path, wanted: Wanted, *, films: bool) -> None:
    """Scripts of episodes and of whole dramas to a new folder, and their films."""
    if folder.exists():
        raise JobError(f"{folder} exists already; name a new folder")
    (folder / "videos").mkdir(parents=True)
    told: dict[str, list[dict[str, object]]] = {"episodes": [], "dramas": []}
    numbers = track(range(wanted.dramas), "dramas", console=Console(stderr=True), disable=not sys.stderr.isatty())
    for number in numbers:
        random = np.random.default_rng([wanted.seed, number])
        drama = make_drama(random, f"drama-{number:04d}", wanted)
        episodes = list(drama.episodes())
        told["dramas"].append(script_of(drama.film))
        told["episodes"] += [script_of(film) for film in episodes]
        for film in (drama.film, *episodes) if films else ():
            encode(film, folder / "videos" / f"{film.name}.mp4", wanted.side)
    for name, scripts in told.items():
        write_whole(folder / f"{name}.jsonl", "".join(json.dumps(one) + "\n" for one in scripts))
