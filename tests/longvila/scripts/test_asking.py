"""Lines about scripts: every answer stands where the question says, and dramas show what their scripts tell."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from longvila.data.samples import read_samples
from longvila.processor import choose_frames, decode, open_clip
from longvila.scripts.__main__ import main
from longvila.scripts.asking import TASKS, questions
from longvila.scripts.dramas import PLACES, Wanted, make_drama
from longvila.scripts.reading import read_scripts
from longvila.scripts.shots import Person, Script, Shot
from longvila.synthetic import COLOURS, FRAMES_PER_S
from tests.longvila.commands import ran

KEYFRAMES = Path(__file__).with_name("keyframes.json")


@pytest.fixture(scope="module")
def dramas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "dramas"
    given = [
        "--dramas",
        "2",
        "--episodes",
        "2",
        "--seconds",
        "2",
        "--shot-seconds",
        "0.8",
        "--side",
        "32",
        "--seed",
        "3",
    ]
    assert CliRunner().invoke(main, ["dramas", str(folder), *given]).exit_code == 0
    return folder


def run(*given):
    return ran(main, *given)


def test_where_in_a_film_of_one_shot_is_no_question(tmp_path):
    film = tmp_path / "a.json"
    film.write_text('{"Case_1": {"Scene": ["1", "Garden"], "people": [{"Line": "Hello."}]}}')
    code, told = run("lines", film, "-o", tmp_path / "l.jsonl")
    assert code == 2 and "1 scripts leave nothing to ask; legal: some of script, find, place, says (script" in told


def test_scripts_of_one_name_give_lines_of_their_own_ids(tmp_path):
    cases = {f"Case_{n}": {"Scene": [n, f"Place {n}"], "people": [{"Line": f"Line {n}."}]} for n in (1, 2)}
    named = [{"name": name, "cases": cases} for name in ("a", "a", "a-2", "a", "b")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, named)))
    (tmp_path / "b.json").write_text(json.dumps(cases))
    assert (
        run("lines", tmp_path / "a.jsonl", tmp_path / "b.json", "-o", tmp_path / "l.jsonl", "--tasks", "find")[0] == 0
    )
    ids = [json.loads(one)["id"] for one in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert ids == ["a/find", "a-3/find", "a-2/find", "a-4/find", "b/find", "b-2/find"]


def test_frames_of_a_drama_are_its_scripts_places_and_speakers(dramas):
    spoken = 0
    for script in read_scripts([dramas / "episodes.jsonl", dramas / "dramas.jsonl"]):
        clip = open_clip(Path(script.video))
        frames = (decode(choose_frames(clip), range(len(clip.times)), 32).numpy() + 1) * 127.5
        corners = frames[:, :, 1, 1]
        assert len(frames) == script.seconds * FRAMES_PER_S
        starts = [round(shot.second * FRAMES_PER_S) for shot in script.shots]
        for shot, first, end in zip(script.shots, starts, [*starts[1:], len(frames)], strict=True):
            (person,) = shot.people
            colour = COLOURS[person.name.split()[1]]
            rims = [place for place in range(first, end) if np.abs(corners[place] - colour).max() < 30]
            ground = [place for place in range(first, end) if np.abs(corners[place] - PLACES[shot.place]).max() < 20]
            assert (len(rims), len(ground)) == (bool(person.line), end - first - bool(person.line))
            spoken += bool(person.line)
    assert spoken >= 8


def test_whole_dramas_hold_their_episodes_one_after_another():
    drama = make_drama(np.random.default_rng(2), "d", Wanted(episodes=9, seconds=4, shot_seconds=1))
    episodes = list(drama.episodes())
    assert sum(film.frames for film in episodes) == drama.film.frames
    assert [card.letter for film in episodes for card in film.cards] == [card.letter for card in drama.film.cards]
    assert len({card.letter for card in drama.film.cards}) == len(drama.film.cards) == 16


def test_answers_are_what_the_script_says(dramas, tmp_path):
    code, said = run("lines", dramas / "episodes.jsonl", dramas / "dramas.jsonl", "-o", tmp_path / "lines.jsonl",
                     "--questions", 99)  # fmt: skip
    assert code == 0, said
    scripts = {script.name: script for script in read_scripts([dramas / "episodes.jsonl", dramas / "dramas.jsonl"])}
    asked = 0
    for sample in read_samples([tmp_path / "lines.jsonl"], tmp_path):  # media are found from the folder of the lines
        name, _, task = sample.name.rpartition("/")
        shots = scripts[name].shots
        speaks = {person.line: (number, shot, person) for number, shot in enumerate(shots, 1) for person in shot.people}
        for question, answer in zip(sample.turns[::2], sample.turns[1::2], strict=True):
            quoted = re.findall('"(.)"', question.text)
            number, shot, person = speaks[quoted[0]] if quoted else (None, None, None)
            right = {
                "says": lambda p=person: p.name,
                "place": lambda s=shot: s.place,
                "find": lambda n=number: f"shot {n}",
            }
            if quoted:
                assert answer.text == right[task]()
                asked += 1
            elif task == "find":
                thing = question.text.split("shot is ")[1].removesuffix(" first seen?")
                first = next(n for n, shot in enumerate(shots, 1) if shot.people[0].name == thing)
                assert answer.text == f"shot {first}"
            else:
                assert len(answer.text.splitlines()) == len(shots)
    assert asked >= 20


def test_published_keyframes_give_lines_whose_text_holds_the_answer(tmp_path):
    assert run("lines", KEYFRAMES, "-o", tmp_path / "a.jsonl")[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["keyframes/find", "keyframes/place", "keyframes/says"]
    turns = {line["id"].split("/")[1]: [turn["value"] for turn in line["conversations"]] for line in lines}
    assert turns["says"][0].startswith("A shooting script:\n1. Lighthouse Kitchen.")
    told = dict(zip(turns["says"][::2], turns["says"][1::2], strict=True))
    assert [answer for question, answer in told.items() if '"Seven boats."' in question] == ["Red scarf, short braids."]
    pairs = zip(turns["find"][::2], turns["find"][1::2], strict=True)
    found = {question.split("\n")[-1]: answer for question, answer in pairs}
    assert found["In which shot is lamp first seen?"] == "shot 3" and "male" not in str(lines)


def test_nothing_is_asked_that_has_no_answer_or_two():
    ada, ben = (Person(name=name, line="Yes.") for name in ("Ada", "Ben"))
    script = Script(name="s", shots=(Shot(people=(ada,), place="Yard"), Shot(people=(ben,), place="Yard")))
    assert {task: questions(script, task, 9, 0) for task in ("script", "place", "says")} == {
        "script": [], "place": [], "says": [],
    }  # fmt: skip
    assert set(TASKS) == {"script", "find", "place", "says"}


def test_lengths_are_frames_and_text(tmp_path):
    cases = [{"Timestamp": place, "people": [{"Line": "x" * 40}]} for place in range(4)]
    for name, seconds in (("a", 10), ("b", 10.5)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"seconds": seconds, "cases": cases}))
    code, _ = run("lengths", tmp_path / "a.json", tmp_path / "b.json", "-o", tmp_path / "l.csv")
    header, first, second = (tmp_path / "l.csv").read_text().splitlines()
    lengths = [int(line.split(",")[0]) for line in (first, second)]
    assert (code, header) == (0, "tokens,count") and lengths[1] - lengths[0] == 196
    assert 10 * 196 < lengths[0] < 10 * 196 + 60


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["lines", KEYFRAMES, "-o", "l.jsonl", "--tasks", "sing"], "--tasks 'sing' is none; legal: some of script"),
        (["lines", KEYFRAMES, "-o", "l.jsonl", "--tasks", "script"], "leave nothing to ask"),
        (["lines", KEYFRAMES, "-o", "l.jsonl", "--videos", "."], "has no film keyframes.mp4"),
        (["lines", KEYFRAMES, "-o", "gone/l.jsonl"], "cannot be written"),
        (["lines", "gone.json", "-o", "l.jsonl"], "gone.json is no file of shooting scripts"),
        (["lengths", KEYFRAMES, "-o", "l.csv"], "does not say how long its film is"),
        (["lengths", KEYFRAMES, "-o", "l.csv", "--fps", "nan"], "fps nan must be above 0"),
        (["dramas", "d", "--seconds", "0"], "seconds 0.0 must be 1"),
        (["lines", KEYFRAMES, "-o", "l.jsonl", "--questions", "0"], "'--questions': 0 is not in the range"),
        (["lines", KEYFRAMES, "-o", "."], "is a directory"),
        (["lines"], "Missing argument 'FILES...'"),
        (["sing"], "No such command 'sing'"),
        (["dramas", "d", "--episodes", "nan"], "episodes nan must be 1"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(tmp_path, monkeypatch, given, told):
    monkeypatch.chdir(tmp_path)
    code, said = run(*given)
    assert code == 2 and told in said and "\n" not in said
    assert list(tmp_path.iterdir()) == []
