"""Scripts of both published forms, as irregular as published ones are, and files that are none."""

import json
import os
from pathlib import Path

import pytest

from longvila.data.samples import TAG
from longvila.job import JobError
from longvila.scripts import reading
from longvila.scripts.reading import read_scripts
from longvila.scripts.shots import written

KEYFRAMES = Path(__file__).with_name("keyframes.json")
EVENTS = {
    "meta": {"title": "Fog", "duration": "00:01:30", "characters": ["Ada", "Ben"]},
    "script": [
        {"scene_id": 1, "location": "Pier", "type": "Exterior", "environment": "Wet planks", "time": "Night",
         "mood": "Tense", "events": [
             {"timestamp": "01:05", "character": "Ben", "action": "runs", "dialogue": "Wait!", "audio_cue": "Bell"},
             {"timestamp": "00:05 - 00:09", "character": "Ada", "expression": "Alert", "dialogue": "Is it you?"}]},
        {"location": "Boat", "events": [{"timestamp": "01:20"}]},
    ],
    "high_points": [{"type": "Reversal", "time_range": ["01:20", "01:25"]}],
}  # fmt: skip


def saved(folder, value, name="a.json"):
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_keyframes_are_read_whichever_way_they_are_written():
    (script,) = read_scripts([KEYFRAMES])
    one, two, three = script.shots
    assert (script.name, script.video, one.second) == ("keyframes", None, None)
    assert [shot.place for shot in script.shots] == ["Lighthouse Kitchen", "Lighthouse Kitchen", "Gallery"]
    assert one.people[0].feeling == (7.0, 2.0, None) and two.people[0].feeling == (None, None, None)
    assert (one.sound, two.sound) == ("Folk, Calm, Slow Tempo", "")
    assert three.people[0].action == "lights the lamp" and three.objects == ("lamp",)
    assert two.people[0].line == "Seven boats. One of them has no light. 3 km out."


def test_people_and_places_may_be_objects_with_names(tmp_path):
    people = {"Person_1": {"Looks": "a tall man", "Line": "Hello."}, "Person_2": {"Looks": "a cook", "Line": "Yes?"}}
    frames = {"Case_1": {"Scene": {"id": 1, "Place": "Garden"}, "people": people}}
    (script,) = read_scripts([saved(tmp_path, frames)])
    assert script.shots[0].place == "Garden" and set(script.spoken()) == {"Hello.", "Yes?"}
    frames["Case_1"]["people"] = {"Continuous Emotion": {"Valence (V)": "3"}}
    (script,) = read_scripts([saved(tmp_path, frames)])
    assert script.shots[0].people[0].feeling == (3.0, None, None)


def test_a_shot_written_twice_under_one_key_is_not_lost_silently(tmp_path):
    path = saved(tmp_path, '{"Case_1": {"Scene": ["1", "A"]}, "Case_1": {"Scene": ["1", "B"]}}')
    with pytest.raises(JobError, match="'Case_1' twice in one object"):
        read_scripts([path])


def test_judgements_of_people_are_left_out_unless_asked_for():
    (script,), (judged,) = read_scripts([KEYFRAMES]), read_scripts([KEYFRAMES], judged=True)
    assert not any(person.judged for shot in script.shots for person in shot.people)
    assert judged.shots[0].people[0].judged == {"age": "adult", "gender": "male", "attractiveness": "3"}
    for word in ("adult", "male", "attractive"):
        assert word not in written(script)
    assert "gender male" in written(judged)


def test_events_are_shots_in_the_order_of_their_times(tmp_path):
    (script,) = read_scripts([saved(tmp_path, EVENTS)])
    assert [shot.second for shot in script.shots] == [5, 65, 80]
    assert [shot.place for shot in script.shots] == ["Pier", "Pier", "Boat"]
    assert script.shots[1].people[0].name == "Ben" and script.shots[1].sound == "Bell"
    assert script.seconds == 90
    assert written(script).splitlines()[0] == '1. 00:05 Pier. Wet planks, Night, Tense. Ada, Alert: "Is it you?"'


def test_keyframes_with_times_are_sorted_and_lists_and_lines_are_read(tmp_path):
    cases = [{"Timestamp": "00:00:07:759", "Scene": ["2", "Roof"]}, {"Timestamp": "00:00:01:500", "Scene": "Yard"}]
    (script,) = read_scripts([saved(tmp_path, cases)])
    assert [(shot.second, shot.place) for shot in script.shots] == [(1.5, "Yard"), (7.759, "Roof")]
    several = [{"name": "n", "video": "v.mp4", "seconds": 9, "cases": cases}, EVENTS]
    one, two = read_scripts([saved(tmp_path, "\n".join(map(json.dumps, several)), "b.jsonl")])
    assert (one.name, one.video, one.seconds) == ("n", str(tmp_path / "v.mp4"), 9)
    assert (two.name, len(two.shots)) == ("b-2", 3)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "broken JSON"), ("{", "broken JSON"), ("[" * 100_000, "broken JSON"), ("9" * 5000, "broken JSON"),
        ("[]", "no shot in it"), ("{}", "no shot in it"), ("7", "no shot in it"), ("null", "no shot in it"),
        ('{"Case_1": 5}', "no shot in it"), ('{"a": {"b": 1}}', "no shot in it"), ('{"script": []}', "no shot in it"),
        ('{"script": [{"events": 3}, 4]}', None), ('{"Case_1": {"Scene": 1, "people": "Ada", "objects": {}}}', None),
        ('{"seconds": -3, "cases": [{"Scene": "a"}]}', "legal: above 0"),
        (json.dumps([{"people": [{}] * 201}]), "at most 200"), (b"\xff\xfe\x00", "no UTF-8"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_one_line(tmp_path, content, told):
    path = tmp_path / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if told is None:
        assert read_scripts([path])[0].shots
        return
    with pytest.raises(JobError, match=told) as raised:
        read_scripts([path])
    assert "\n" not in str(raised.value) and "x.json" in str(raised.value)


def test_what_would_take_long_or_hang_is_refused_at_once(tmp_path, monkeypatch):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for path, told in ((pipe, "is no file"), (tmp_path, "is no file"), (tmp_path / "gone.json", "is no file")):
        with pytest.raises(JobError, match=told):
            read_scripts([path])
    big = tmp_path / "big.json"
    with big.open("wb") as file:
        file.truncate(reading.MOST_BYTES + 1)
    with pytest.raises(JobError, match="at most"):
        read_scripts([big])
    twice = ",".join(f'"{key}": 0' for key in (*range(300_000), 299_999))
    for text, told in (("[" + "[]," * reading.MOST_PARTS + "[]]", "legal: at most"), (f"{{{twice}}}", "twice")):
        with pytest.raises(JobError, match=told):
            read_scripts([saved(tmp_path, text)])
    monkeypatch.setattr(reading, "MOST_SHOTS", 3)
    with pytest.raises(JobError, match="4 shots; legal: at most 3"):
        read_scripts([saved(tmp_path, [{"Scene": "a"}] * 4)])


@pytest.mark.parametrize("text", ["99:99:99:999", "00:60:00", "01:75", "0:0:300.5"])
def test_what_no_clock_shows_is_no_time(text):
    assert reading._time(text) is None and reading._time("90:59") == 5459


def test_texts_that_invite_slow_matches_end():
    assert reading._time("1:" * 50_000) is None
    assert "video" not in reading._words("<video>" * 100_000)


def test_no_text_is_a_tag_of_media(tmp_path):
    (script,) = read_scripts([saved(tmp_path, [{"people": [{"Line": "<vid<video>eo> <image>!"}]}])])
    assert not TAG.search(written(script))
