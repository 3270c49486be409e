"""Films whose content is known: what is told of them is what their decoded frames show."""

import json

import numpy as np
import pytest

from longvila.processor import choose_frames, decode, open_clip
from longvila.synthetic import COLOURS, Corpus, main, make_film, pictures, text_line, write
from tests.longvila.commands import ran

SMALL = Corpus(short=6, long=1, text=3, cards=4, short_frames=12, long_frames=40, side=32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "corpus"
    write(folder, SMALL)
    return folder


def entries(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_decoded_frames_show_the_cards_where_the_film_has_them(corpus):
    for film in entries(corpus / "films.jsonl"):
        clip = open_clip(corpus / "videos" / f"{film['name']}.mp4")
        assert len(clip.times) == film["frames"]
        shown = decode(choose_frames(clip), range(film["frames"]), 32)
        corners = (shown[:, :, 1, 1] + 1) * 127.5  # a card's rim
        for card in film["cards"]:
            assert np.abs(corners[card["frame"]].numpy() - COLOURS[card["colour"]]).max() < 30
        grounds = {tuple(COLOURS[card["colour"]]) for card in film["cards"]}
        assert len(grounds) == len(film["cards"])
        near = [np.abs(corner.numpy() - COLOURS["white"]).max() for corner in corners]
        assert sum(distance < 30 for distance in near) == sum(card["colour"] == "white" for card in film["cards"])


def test_lines_say_what_the_films_hold(corpus):
    films = {film["name"]: film for film in entries(corpus / "films.jsonl")}
    for name in ("short", "long"):
        for line in entries(corpus / f"{name}.jsonl"):
            turns, film = line["conversations"], films[line["id"]]
            asked = {
                turn["value"].split()[-2]: answer["value"] for turn, answer in zip(turns[::2], turns[1::2], strict=True)
            }
            assert asked == {card["colour"]: card["letter"] for card in film["cards"]}
    for line in entries(corpus / "captions.jsonl"):
        scenes = films[line["id"]]["scenes"]
        words = line["conversations"][1]["value"].split(". ")
        assert [text.split()[1:3] for text in words] == [[scene["colour"], scene["shape"]] for scene in scenes]


def test_a_text_answers_its_question():
    line = text_line(np.random.default_rng(3), "t", 500, 3)
    text, answer = (turn["value"] for turn in line["conversations"][:2])
    colour = text.split()[-2]
    assert f"The letter on the {colour} card is {answer}." in text
    assert 450 <= len(text) <= 560


def test_the_same_seed_gives_the_same_pictures_and_a_needle_lies_where_it_is_asked_for():
    one, other = (make_film(np.random.default_rng(5), "f", 20, 2, first_card_at=7) for _ in range(2))
    assert one == other
    assert one.cards[0].frame == 7
    assert [card.frame for card in one.cards[1:]] != [7]
    frames = list(pictures(one, 32))
    assert len(frames) == 20
    assert tuple(frames[7][0, 0]) == COLOURS[one.cards[0].colour]


@pytest.mark.parametrize(("given", "told"), [
    (["--short=-1"], "short -1 must be at least 0"),
    (["--side=33"], "side 33 must be even"),
    (["--long-frames=100000"], "long_frames 100000 must be 4 … 2048"),
])  # fmt: skip
def test_a_corpus_that_cannot_be_made_is_one_line(tmp_path, given, told):
    assert ran(main, tmp_path / "c", *given) == (2, f"longvila: settings: {told}")
    assert not (tmp_path / "c").exists()
