"""A needle in a haystack: one card in a film, found or not, by the film's length and the card's depth in it.

    (frames, depth) -> films with one card there -> "Which letter is on the red card?" -> letter, right or wrong

The films are `longvila.synthetic`'s, encoded and decoded as any video, and every frame is shown to the model. A letter
that is guessed is right once in sixteen times. Writes heatmap.png and heatmap.html.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longvila.data.samples import Sample
from longvila.evaluate import heatmap
from longvila.evaluate.model import Evaluated
from longvila.synthetic import FRAMES_PER_S, Film, encode, make_film
from longvila.tokens import Turn

MOST_FRAMES = 2048


def make_films(frames: int, depths: int, films: int, seed: int) -> list[Film]:
    """The films of one length, `films` for each depth in turn."""
    found = []
    for depth in range(depths):
        place = round(depth / max(depths - 1, 1) * (frames - 1))
        for number in range(films):
            random = np.random.default_rng([seed, frames, depth, number])
            found.append(make_film(random, f"needle-{frames}-{depth}-{number}", frames, 1, first_card_at=place))
    return found


def task(
    *, frames: Sequence[int], depths: int, films: int, seed: int, output: Path
) -> Callable[[Evaluated], dict[str, Any]]:
    def score(model: Evaluated) -> dict[str, Any]:
        folder, side = output / "films", model.config.image_size + model.config.image_size % 2
        every = [film for count in frames for film in make_films(count, depths, films, seed)]
        if model.job.sharding.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for film in every:
                encode(film, folder / f"{film.name}.mp4", side)
        model.job.sharding.total(0.0)  # nobody reads a film before it is written
        asked = [
            Sample(
                where=film.name, name=film.name, images=(), videos=(folder / f"{film.name}.mp4",),
                turns=(Turn(role="human", text=f"<video>\n{film.cards[0].question()}"),),
            )
            for film in every
        ]  # fmt: skip
        answers = list(model.at_rate(FRAMES_PER_S).texts(asked, most_tokens=4))
        right = [answer.strip() == film.cards[0].letter for answer, film in zip(answers, every, strict=True)]
        found = np.array(right, dtype=float).reshape(len(frames), depths, films).mean(axis=2)
        names = [f"{depth / max(depths - 1, 1):.0%}" for depth in range(depths)]
        if model.job.sharding.rank == 0:
            heatmap.write(output, found, [str(count) for count in frames], names)
        said = [f"{found.mean():.1%} of {len(every)} needles found; by length and depth ({', '.join(names)}):"]
        for count, row in zip(frames, found, strict=True):
            said.append(f"{count:6,} frames  {' '.join(f'{value:4.0%}' for value in row)}")
        return {
            "task": "needle", "frames": list(frames), "found": found.tolist(), "films_per_cell": films,
            "answers": dict(zip((film.name for film in every), answers, strict=True)), "said": "\n".join(said),
        }  # fmt: skip

    return score
