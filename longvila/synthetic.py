"""A corpus with known answers: short films of moving shapes, cut into scenes, with lettered cards in single frames.

    python -m longvila.synthetic corpus --short 200 --long 40 --long-frames 64
    seed -> films (scenes, cards) -> pictures -> an encoder -> videos/*.mp4, and conversations about them as JSONL

A scene is one shape of one colour that moves one way over a plain ground. A card fills one frame: a letter on a
colour, no colour twice in a film, so `Which letter is on the red card?` has one answer, found by looking at every
frame: the needle in a haystack. Files, in the form that `longvila.train` reads:

    captions.jsonl      the scenes of a short film in words          stages 1 and 2
    short.jsonl         the letters of all cards of a short film     stage 3
    short-text.jsonl    the same questions about text, no video      stage 3
    long-text.jsonl     and about long text                          stage 4
    long.jsonl          the letters of all cards of a long film      stage 5
    films.jsonl         what is in every film

The same seed gives the same films and lines. Leaves out sound.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from longvila.files import write_whole
from longvila.job import JobError, require
from longvila.one_process import run_command

Picture = NDArray[np.uint8]

COLOURS = {
    "red": (220, 40, 40), "green": (40, 180, 60), "blue": (60, 90, 230), "yellow": (240, 210, 60),
    "purple": (160, 60, 200), "cyan": (60, 220, 220), "orange": (250, 140, 30), "white": (245, 245, 245),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle")
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
LETTERS = {  # 5 dots by 7, a row in two hexadecimal digits
    "A": "0E11111F111111", "C": "0E11101010110E", "E": "1F10101E10101F", "H": "1111111F111111",
    "J": "0702020202120C", "K": "11121418141211", "L": "1010101010101F", "M": "111B1515111111",
    "N": "11191513111111", "O": "0E11111111110E", "P": "1E11111E101010", "S": "0F10100E01011E",
    "T": "1F040404040404", "U": "1111111111110E", "X": "11110A040A1111", "Z": "1F01020408101F",
}  # fmt: skip
PAPER, INK = (235, 235, 235), (15, 15, 15)
FRAMES_PER_S = 8
LONGEST_SCENE = 12
MOST_CARDS = len(COLOURS)
_WEATHER = ("The rain stops.", "A door opens.", "Nobody speaks.", "The lamp is lit.", "A dog barks.", "Wind rises.")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A shape that moves over a stretch of frames."""

    first: int  # frame
    frames: int
    shape: str
    colour: str
    way: str
    ground: tuple[int, int, int]
    size: float  # half the shape's width, of the picture's
    start: tuple[float, float]  # centre, of the picture's width and height
    speed: float  # of the picture's width a frame

    def words(self) -> str:
        return f"A {self.colour} {self.shape} moves {self.way}."


@dataclass(frozen=True, kw_only=True)
class Card:
    """A coloured card with a letter, shown in one frame."""

    frame: int
    colour: str
    letter: str

    def question(self) -> str:
        return f"Which letter is on the {self.colour} card?"


@dataclass(frozen=True, kw_only=True)
class Film:
    """What a film shows: scenes one after another, and cards among them."""

    name: str
    frames: int
    scenes: tuple[Scene, ...]
    cards: tuple[Card, ...]

    def caption(self) -> str:
        return " ".join(scene.words() for scene in self.scenes)


def make_film(
    random: np.random.Generator, name: str, frames: int, cards: int, first_card_at: int | None = None
) -> Film:
    """A film of so many frames with cards in frames of their own, the first of them where it is asked for."""
    scenes: list[Scene] = []
    while (first := sum(scene.frames for scene in scenes)) < frames:
        length = min(int(random.integers(3, LONGEST_SCENE + 1)), frames - first)
        scenes.append(_scene(random, first, length))
    places = [int(place) for place in random.permutation(frames) if place != first_card_at]
    if first_card_at is not None:
        places = [first_card_at, *places]
    colours, letters = random.permutation(list(COLOURS)), random.choice(list(LETTERS), size=cards)
    shown = [
        Card(frame=place, colour=str(colour), letter=str(letter))
        for place, colour, letter in zip(places, colours, letters, strict=False)
    ]
    return Film(name=name, frames=frames, scenes=tuple(scenes), cards=tuple(shown))


def _scene(random: np.random.Generator, first: int, frames: int) -> Scene:
    red, green, blue = (int(value) for value in random.integers(20, 100, 3))
    across, down = (float(value) for value in random.uniform(0.25, 0.75, 2))
    return Scene(
        first=first, frames=frames, shape=str(random.choice(SHAPES)), colour=str(random.choice(list(COLOURS))),
        way=str(random.choice(list(WAYS))), ground=(red, green, blue), size=float(random.uniform(0.14, 0.24)),
        start=(across, down), speed=float(random.uniform(0.02, 0.05)),
    )  # fmt: skip


def pictures(film: Film, side: int) -> Iterator[Picture]:
    """Every frame, [side, side, 3] in red, green, blue."""
    cards = {card.frame: card for card in film.cards}
    for scene in film.scenes:
        for frame in range(scene.first, scene.first + scene.frames):
            yield _card(cards[frame], side) if frame in cards else _moment(scene, frame - scene.first, side)


def _moment(scene: Scene, moment: int, side: int) -> Picture:
    down, across = (np.mgrid[:side, :side] + 0.5) / side
    (right, below), size = WAYS[scene.way], scene.size
    far = scene.speed * moment
    x, y = (across - scene.start[0] - right * far), (down - scene.start[1] - below * far)
    inside = {
        "circle": x**2 + y**2 < size**2,
        "square": np.maximum(abs(x), abs(y)) < size,
        "triangle": (abs(x) < (y + size) / 2) & (y < size),
    }[scene.shape]
    return _two_colours(inside, scene.ground, COLOURS[scene.colour])


def _card(card: Card, side: int) -> Picture:
    rows = [int(LETTERS[card.letter][at : at + 2], 16) for at in range(0, 14, 2)]
    dots = np.array([[row >> place & 1 for place in range(4, -1, -1)] for row in rows], dtype=bool)
    down = np.floor(((np.arange(side) + 0.5) / side - 0.1) / 0.8 * 7).astype(int)
    across = np.floor(((np.arange(side) + 0.5) / side - 0.2) / 0.6 * 5).astype(int)
    framed = ((down >= 0) & (down < 7))[:, None] & ((across >= 0) & (across < 5))
    inked = framed & dots[np.clip(down, 0, 6)][:, np.clip(across, 0, 4)]
    rim, edge = np.full((side, side), True), max(1, side // 16)
    rim[edge:-edge, edge:-edge] = False
    return np.where(rim[..., None], np.array(COLOURS[card.colour], dtype=np.uint8), _two_colours(inked, PAPER, INK))


def _two_colours(inside: NDArray[np.bool_], ground: Sequence[int], colour: Sequence[int]) -> Picture:
    return np.where(inside[..., None], np.array(colour, dtype=np.uint8), np.array(ground, dtype=np.uint8))


def encode(film: Film, path: Path, side: int) -> None:
    """The film as H.264 in MP4, a key frame every two seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_S, options={"crf": "18", "preset": "veryfast"})
        stream.width = stream.height = side
        stream.pix_fmt, stream.gop_size, stream.thread_count = "yuv420p", 2 * FRAMES_PER_S, 1
        for place, picture in enumerate(pictures(film, side)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = place, Fraction(1, FRAMES_PER_S)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def line(name: str, asked: Sequence[tuple[str, str]], video: str | None = None) -> dict[str, Any]:
    """A conversation of questions and answers, about a video where there is one."""
    turns: list[dict[str, str]] = []
    for place, (question, answer) in enumerate(asked):
        tag = "<video>\n" if video is not None and place == 0 else ""
        turns += [{"from": "human", "value": tag + question}, {"from": "gpt", "value": answer}]
    return {"id": name, **({} if video is None else {"video": video}), "conversations": turns}


def text_line(random: np.random.Generator, name: str, length: int, most: int) -> dict[str, Any]:
    """Questions about at most `most` cards in a text of about `length` bytes, most of which says nothing of them."""
    frames = 2 * MOST_CARDS
    shown = make_film(random, name, frames, _count(random, most, frames)).cards
    told = [f"The letter on the {card.colour} card is {card.letter}." for card in shown]
    filler = length - sum(len(words) + 1 for words in told)
    idle: list[str] = []
    while sum(len(words) + 1 for words in idle) < filler:
        idle.append(str(random.choice(_WEATHER)))
    for words in told:
        idle.insert(int(random.integers(len(idle) + 1)), words)
    asked = [(card.question(), card.letter) for card in shown]
    return line(name, [(" ".join(idle) + "\n" + asked[0][0], asked[0][1]), *asked[1:]])


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """How much is made."""

    short: int = 4000
    long: int = 400
    text: int = 4000  # short ones, and as many long ones
    cards: int = 1  # the most of a film or text
    short_frames: int = 16  # the most of a short film; the fewest are a quarter
    long_frames: int = 64
    short_text_bytes: int = 200  # the most of a short text; the fewest are a quarter
    long_text_bytes: int = 700
    side: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("short", "long", "text"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name, least, most in (("short_frames", 4, 2048), ("long_frames", 4, 2048), ("side", 16, 2048),
                                  ("short_text_bytes", 100, 2**24), ("long_text_bytes", 100, 2**24),
                                  ("cards", 1, MOST_CARDS)):  # fmt: skip
            value = getattr(self, name)
            require(least <= value <= most, name, value, f"{least} … {most}")
        require(self.side % 2 == 0, "side", self.side, "even")


def write(folder: Path, wanted: Corpus) -> None:
    """Render the films and write the lines about them to a new folder."""
    if folder.exists():
        raise JobError(f"{folder} exists already; name a new folder")
    videos = folder / "videos"
    videos.mkdir(parents=True)
    films: list[Film] = []
    of_kind: dict[str, list[dict[str, Any]]] = {"captions": [], "short": [], "long": []}
    plan = [("short", wanted.short_frames, number) for number in range(wanted.short)]
    plan += [("long", wanted.long_frames, number) for number in range(wanted.long)]
    for kind, most, number in track(plan, "films", console=Console(stderr=True), disable=not sys.stderr.isatty()):
        random = np.random.default_rng([wanted.seed, kind == "long", number])
        frames = int(random.integers(-(-most // 4), most + 1))
        film = make_film(random, f"{kind}-{number:05d}", frames, _count(random, wanted.cards, frames))
        encode(film, videos / f"{film.name}.mp4", wanted.side)
        films.append(film)
        video, asked = f"videos/{film.name}.mp4", [(card.question(), card.letter) for card in film.cards]
        of_kind[kind].append(line(film.name, asked, video))
        if kind == "short":
            of_kind["captions"].append(line(film.name, [("What happens?", film.caption())], video))
    for place, (kind, most) in enumerate((("short", wanted.short_text_bytes), ("long", wanted.long_text_bytes))):
        random = np.random.default_rng([wanted.seed, 2 + place])
        of_kind[f"{kind}-text"] = [
            text_line(random, f"{kind}-text-{number:05d}", int(random.integers(most // 4, most + 1)), wanted.cards)
            for number in range(wanted.text)
        ]
    for name, lines in {**of_kind, "films": [asdict(film) for film in films]}.items():
        write_whole(folder / f"{name}.jsonl", "".join(json.dumps(entry) + "\n" for entry in lines))


def _count(random: np.random.Generator, most: int, frames: int) -> int:
    return int(random.integers(1, min(most, frames // 2) + 1))


@click.command(context_settings={"show_default": True})
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--short", default=Corpus.short, help="Short films.")
@click.option("--long", default=Corpus.long, help="Long films.")
@click.option("--text", default=Corpus.text, help="Short texts, and as many long ones.")
@click.option("--cards", default=Corpus.cards, help="The most cards of a film or text.")
@click.option("--short-frames", default=Corpus.short_frames, help="The most frames of a short film.")
@click.option("--long-frames", default=Corpus.long_frames, help="The most frames of a long film.")
@click.option("--short-text-bytes", default=Corpus.short_text_bytes, help="The most bytes of a short text.")
@click.option("--long-text-bytes", default=Corpus.long_text_bytes, help="The most bytes of a long text.")
@click.option("--side", default=Corpus.side, help="Width and height in pixels.")
@click.option("--seed", default=Corpus.seed)
def main(folder: Path, **wanted: int) -> None:
    """Write a corpus of films, texts and conversations to a new FOLDER.

    \b
        python -m longvila.synthetic corpus
        python -m longvila.synthetic long --short 0 --long 4 --long-frames 2048
    """
    write(folder, Corpus(**wanted))


if __name__ == "__main__":
    run_command(main)
