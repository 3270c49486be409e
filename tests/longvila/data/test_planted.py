"""Data sets with one planted fault or oddity each: read as it is meant, or one line with file, line and fault."""

import io
import json
import os
import tarfile
import wave

import pytest
from pyarrow import DictionaryArray, Table, array, binary, int32, large_list, list_, nulls, parquet, string, struct

from longvila.data import columns
from longvila.data.__main__ import main
from longvila.data.samples import read_files
from longvila.data.shards import entries
from longvila.data.sources import read_bytes
from longvila.dataset import Documents, Sampling
from longvila.job import JobError
from longvila.tokens import ByteTokenizer, Writer
from tests.longvila.clips import write_clip


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


GOOD = {"id": "good", "conversations": turns("q", "a")}


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    write_clip(folder / "clip.mp4", "libx264", frames=6)
    write_clip(folder / "picture.png", "png", frames=1, pixel="rgb24")
    frames = folder / "frames"
    frames.mkdir()
    for number in (10, 9, 2):
        (frames / f"frame_{number}.png").write_bytes((folder / "picture.png").read_bytes())
    (frames / "Thumbs.db").write_bytes(b"no picture")
    (folder / "empty").mkdir()
    (folder / "text.mp4").write_text("not a video\n" * 40)
    (folder / "cut.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:600])
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "page.jpg").write_text("<html><body>404 Not Found</body></html>")
    (folder / "half.png").write_bytes((folder / "picture.png").read_bytes()[:60])
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        sound.writeframes(bytes(1600))
    (folder / "link.mp4").symlink_to("gone.mp4")
    os.mkfifo(folder / "pipe.mp4")
    for name in ("hidden/.1.png", "torn/1.png"):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(b"no picture")
    return folder


def line(**keys):
    return {"id": "x", **keys}


READ = {  # published lines as they are: (line, the human's first text, videos, pictures)
    "further keys": (
        line(video="clip.mp4", conversations=turns("<image>\nWhat?", "That."), data_source="0_30_s", fps=3),
        ("<video>\nWhat?", 1, 0),
    ),
    "tag at the end": (line(video="clip.mp4", conversations=turns("What?\n<video>", "a")), ("<video>\nWhat?", 1, 0)),
    "no tag": (line(image="picture.png", conversations=turns("What?", "a")), ("<image>\nWhat?", 0, 1)),
    "fewer tags than files": (
        line(image=["picture.png"] * 3, conversations=turns("<image>\nWhich?", "a")),
        ("<image>\n<image>\n<image>\nWhich?", 0, 3),
    ),
    "tags between texts": (
        line(images=["picture.png"] * 2, conversations=turns("First <image> then <image>?", "a")),
        ("First <image> then <image>?", 0, 2),
    ),
    "a picture and a video": (
        line(image="picture.png", video="clip.mp4", conversations=turns("<video> and <image>", "a")),
        ("<video> and <image>", 1, 1),
    ),
    "first turn from gpt": (line(conversations=turns("-", "Sure.", "hi", "hello")[1:]), ("hi", 0, 0)),
    "a system turn": (
        line(conversations=[{"from": "system", "value": "Be short."}, *turns("hi", "hello")]),
        ("hi", 0, 0),
    ),
    "keys in turns": (
        line(conversations=[{**turn, "weight": None} for turn in turns(" hi \n", "hello")]),
        ("hi", 0, 0),
    ),
    "a tag in an answer": (line(video="clip.mp4", conversations=turns("q", "a\n<image>")), ("<video>\nq", 1, 0)),
    "a folder of frames": (line(video="frames", conversations=turns("<video>\nq", "a")), ("<video>\nq", 1, 0)),
}


@pytest.mark.parametrize("name", READ)
def test_published_lines_are_read(media, tmp_path, name):
    entry, (text, videos, images) = READ[name]
    (tmp_path / "data.json").write_text(json.dumps([entry], indent=1))
    reading = read_files([tmp_path / "data.json"], media)
    assert reading.faults == ()
    (sample,) = reading.samples
    human = next(turn.text for turn in sample.turns if turn.role == "human")
    assert (human, len(sample.videos), len(sample.images)) == (text, videos, images)
    assert all("<" not in turn.text for turn in sample.turns if turn.role != "human")


def test_a_system_turn_stands_in_place_of_the_chats_own(media, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps([READ["a system turn"][0]]))
    (sample,) = read_files([tmp_path / "data.json"], media).samples
    writer = Writer(tokenizer=ByteTokenizer(), chat="byte", tokens_per_frame=9, frame_separator="")
    assert writer.document(sample.turns, []).input_ids[:11].tolist() == [256, *b"Be short.", 257]


FAULTS = {
    "gone": (line(video="gone.mp4", conversations=turns("q", "a")), "video 'gone.mp4' is not in"),
    "one of two gone": (line(video=["clip.mp4", "g.mp4"], conversations=turns("q", "a")), "'g.mp4' is not in"),
    "an address": (line(image="https://a/b.png", conversations=turns("q", "a")), "media are read from disk alone"),
    "an empty name": (line(video="", conversations=turns("q", "a")), "video must be a path or a list of paths"),
    "no name": (line(video=[None], conversations=turns("q", "a")), "video must be a path"),
    "a picture that is a folder": (line(image="frames", conversations=turns("q", "a")), "is a folder; a folder of"),
    "a folder without pictures": (line(video="empty", conversations=turns("q", "a")), "is a folder without pictures"),
    "no video": (line(video="text.mp4", conversations=turns("q", "a")), "text.mp4: not a video"),
    "cut off": (line(video="cut.mp4", conversations=turns("q", "a")), "cut.mp4: not a video"),
    "a long name": (line(video="a" * 5000, conversations=turns("q", "a")), "cannot be looked up (File name too long)"),
    "a video as picture": (line(image="clip.mp4", conversations=turns("q", "a")), "image 'clip.mp4' is a video"),
    "in capitals": (
        line(Video="clip.mp4", conversations=turns("q", "a")),
        "unknown key 'Video'; did you mean 'video'?",
    ),
    "under another key": (
        line(video_path="clip.mp4", conversations=turns("q", "a")),
        "'video_path' holds 'clip.mp4', and no key 'video'",
    ),
    "misspelt": (line(vide="clip.mp4", conversations=turns("q", "a")), "unknown key 'vide'; did you mean 'video'?"),
    "no conversation": (line(video="clip.mp4"), "conversations must be a list of turns"),
    "another's roles": (line(conversations=[{"from": "user", "value": "q"}]), "turn 1 is from 'user'; legal: human"),
    "two questions": (line(conversations=turns("q", "a", "q") + turns("q", "a")), "turn 4 is from 'human'; turns alt"),
    "system in the middle": (
        line(conversations=[*turns("q", "a"), {"from": "system", "value": "s"}]),
        "turn 3 is from 'system'",
    ),
    "no answer": (line(conversations=turns("q")), "the last turn must be from gpt"),
    "only an answer": (line(conversations=turns("q", "a")[1:]), "the last turn must be from gpt"),
    "a number": (line(conversations=[{"from": "human", "value": 3}]), "turn 1 is not"),
    "half a character": (line(conversations=turns("\ud83d", "a")), "half a surrogate pair"),
    "tags without files": (
        line(conversations=turns("<video>\nq", "a")),
        "turns hold 0 <image> and 1 <video>",
    ),
    "more tags than files": (
        line(image="picture.png", conversations=turns("<image><image> q", "a")),
        "2 <image> and 0 <video>, the sample 1 and 0",
    ),
    "no object": (["q"], "a sample is an object"),
    "an object as video": (line(video={"path": "clip.mp4"}, conversations=turns("q", "a")), "not {'path': 'clip.mp4'}"),
    "a list in a list": (line(video=[["clip.mp4"]], conversations=turns("q", "a")), "not ['clip.mp4']"),
    "two names in one": (line(video="clip.mp4,clip.mp4", conversations=turns("q", "a")), "'clip.mp4,clip.mp4' is not"),
    "another case": (line(video="Clip.MP4", conversations=turns("q", "a")), "video 'Clip.MP4' is not in"),
    "bytes as text": (line(image="data:image/png;base64,AA", conversations=turns("q", "a")), "'data:image/png;base64,"),
    "nothing inside": (line(video="zero.mp4", conversations=turns("q", "a")), "zero.mp4: not a video"),
    "an error page": (line(image="page.jpg", conversations=turns("q", "a")), "page.jpg: holds no frames"),
    "half a picture": (line(image="half.png", conversations=turns("q", "a")), "half.png: holds no frames"),
    "sound alone": (line(video="sound.wav", conversations=turns("q", "a")), "sound.wav: holds no video stream"),
    "a link to nothing": (line(video="link.mp4", conversations=turns("q", "a")), "video 'link.mp4' is not in"),
    "a pipe": (line(video="pipe.mp4", conversations=turns("q", "a")), "video 'pipe.mp4' is not in"),
    "hidden frames": (line(video="hidden", conversations=turns("q", "a")), "is a folder without pictures"),
    "frames that are none": (line(video="torn", conversations=turns("q", "a")), "torn: holds no picture that can be"),
    "a name without its ending": (
        line(video_name="rabbit", conversations=turns("q", "a")),
        "'video_name' holds 'rabbit', and no key 'video'",
    ),
    "a number under vid": (line(vid=7, conversations=turns("q", "a")), "'vid' holds 7, and no key 'video'"),
    "another's list": ({"messages": [{"role": "user", "content": "q"}]}, "conversations must be a list of turns"),
    "turns as text": (line(conversations=json.dumps(turns("q", "a"))), "conversations must be a list of turns"),
    "pairs": (line(conversations=[["q", "a"]]), "turn 1 is not"),
    "parts of a turn": (line(conversations=[{"from": "human", "value": ["q"]}]), "turn 1 is not"),
    "two system turns": (line(conversations=[{"from": "system", "value": "s"}] * 2), "turn 2 is from 'system'"),
}
BROKEN = {
    "two objects": (json.dumps(GOOD) * 2, "broken JSON (Extra data"),
    "a comma at the end": (json.dumps(GOOD)[:-1] + ",}", "broken JSON ("),
    "Python's quotes": (str(GOOD), "broken JSON ("),
    "a mark in the middle": ("\ufeff" + json.dumps(GOOD), "broken JSON ("),
    "a comment": ("// " + json.dumps(GOOD), "broken JSON ("),
    "a long number": (f'{{"id": {"9" * 5000}}}', "broken JSON (Exceeds the limit"),
    "cut JSON": ('{"id": ', "broken JSON ("),
    "deep JSON": ("[" * 100_000, "broken JSON ("),
    "a key twice": ('{"id": 1, "id": 2, "conversations": []}', "key 'id' is given twice"),
}


def checked(capsys, *arguments):
    code = main(["check", *map(str, arguments)])
    return code, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("name", [*FAULTS, *BROKEN])
def test_a_planted_fault_is_one_line_with_file_and_line(media, tmp_path, capsys, name):
    text, reason = BROKEN[name] if name in BROKEN else (json.dumps(FAULTS[name][0]), FAULTS[name][1])
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join((json.dumps(GOOD), text, json.dumps(GOOD))))
    code, (fault, held) = checked(capsys, file, "--media", media, "--decode")
    assert code == 2 and fault.startswith(f"{file}:2: ") and reason in fault and len(fault) < 400
    assert held.endswith("1 faults") and ("2 samples" in held or "3 samples" in held)


def test_all_faults_are_listed_at_once(media, tmp_path, capsys):
    faulty = [entry for entry, _ in FAULTS.values()]
    file = tmp_path / "data.json"
    file.write_text(json.dumps([GOOD, *faulty], indent=1))
    code, lines = checked(capsys, file, "--media", media, "--decode")
    assert code == 2 and len(lines) == len(faulty) + 1
    for number, (_, reason) in enumerate(FAULTS.values(), start=2):
        assert any(f"(sample {number}): " in line and reason in line for line in lines)


def test_a_sound_set_has_none_and_marks_of_byte_order_are_no_fault(media, tmp_path, capsys):
    for name, encoding in {"a": "utf-8-sig", "b": "utf-16", "c": "utf-8"}.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(READ["further keys"][0]) + "\r\n", encoding=encoding)
    code, lines = checked(capsys, *sorted(tmp_path.glob("*.jsonl")), "--media", media, "--decode")
    assert (code, lines) == (0, ["3 samples can be read: 3 videos, 0 pictures; 0 faults"])
    (tmp_path / "a.jsonl").write_bytes(b'{"id": "\xff\xff"}')
    assert checked(capsys, tmp_path / "a.jsonl")[1][0].endswith("a.jsonl:1: is not UTF-8 (byte 0xff)")
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\x00")
    assert checked(capsys, tmp_path / "a.jsonl")[1][0].endswith("a.jsonl: cannot be read (UnicodeDecodeError)")


def test_a_file_that_is_no_list_is_one_fault_and_one_sample_over_many_lines_is_read(tmp_path, capsys):
    file = tmp_path / "data.json"
    for content, told in {
        json.dumps({"data": [GOOD] * 3}, indent=1): "data.json:1: one object is no list of samples",
        json.dumps(GOOD, indent=1)[:-9]: "data.json:10: broken JSON",
        "\x1f\x8b": "data.json: is compressed: decompress it first",
    }.items():
        file.write_text(content, encoding="latin-1")
        code, (fault, _) = checked(capsys, file)
        assert code == 2 and told in fault
    file.write_text(json.dumps(GOOD, indent=1))
    assert checked(capsys, file) == (0, ["1 samples can be read: 0 videos, 0 pictures; 0 faults"])
    file.write_bytes(json.dumps([GOOD, "caf\xe9", GOOD], indent=1, ensure_ascii=False).encode("latin-1"))
    assert next(line.partition(": ")[2] for line in checked(capsys, file)[1]) == "is not UTF-8 (byte 0xe9)"
    assert [sample.name for sample in read_files([file], tmp_path).samples] == ["good", "good"]


def test_a_name_with_a_colon_is_a_file(media, tmp_path, monkeypatch, capsys):
    (tmp_path / "a:b.mp4").write_bytes((media / "clip.mp4").read_bytes())
    _lines(tmp_path / "data.jsonl", line(video="a:b.mp4", conversations=turns("q", "a")))
    monkeypatch.chdir(tmp_path)
    assert checked(capsys, "data.jsonl", "--decode")[0] == 0


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def shard(path, media):
    clip, picture = (media / "clip.mp4").read_bytes(), (media / "picture.png").read_bytes()
    with tarfile.open(path, "w") as archive:
        add(archive, "a/0001.mp4", clip)
        add(archive, "a/0001.json", json.dumps({"id": "tar", "conversations": turns("<video>\nq", "a")}).encode())
        add(archive, "a/0002.jpg.png", picture)
        add(archive, "a/0002.txt", b"a caption")
        add(archive, "a/0003.json", b"{")
        add(archive, "a/0004.json", json.dumps(line(video="a/0001.mp4", conversations=turns("q", "a"))).encode())
        add(archive, "a/0005.mp4", clip)
        add(archive, "a/._0001.txt", b"\xff")
        add(archive, "a/0006.txt", b"a caption of nothing")
        for number, kind, target in ((7, tarfile.LNKTYPE, "a/0005.mp4"), (8, tarfile.SYMTYPE, "0007.mp4")):
            link(archive, f"a/000{number}.mp4", kind, target)
            add(archive, f"a/000{number}.txt", b"a caption")
        link(archive, "a/0009.mp4", tarfile.SYMTYPE, "0010.mp4")
        entry = line(video="0011.mp4", conversations=turns("q", "a"))
        add(archive, "./0011.json", json.dumps(entry).encode())
        add(archive, "./0011.mp4", clip)
    return path


def link(archive, name, kind, target):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    archive.addfile(member)


def documents():
    writer = Writer(tokenizer=ByteTokenizer(), chat="byte", tokens_per_frame=9, frame_separator="")
    return Documents(writer, Sampling(frames=3))


def test_shards_of_tar_are_read_in_place(media, tmp_path):
    reading = read_files([shard(tmp_path / "shard.tar", media)], media)
    assert [fault.partition(": ")[2] for fault in reading.faults] == [
        "a/0003: broken JSON (Expecting property name enclosed in double quotes at column 2)",
        "a/0005: has neither a .json nor a .txt member",
        "a/0006: a caption without a picture or video of a known kind beside it",
        "a/0009: a/0009.mp4 is sparse, or a link to what is not in the shard",
    ]
    assert [(len(s.videos), len(s.images)) for s in reading.samples] == [(1, 0), (0, 1)] + 4 * [(1, 0)]
    for sample in reading.samples[3:]:
        assert len(documents().make(sample).media[0].clip.times) == 6
    plain = read_files([_lines(tmp_path / "plain.jsonl", READ["no tag"][0], READ["further keys"][0])], media).samples
    assert len(documents().make(reading.samples[0]).media[0].times) == 3
    assert documents().make(reading.samples[1]).media[0].clip.times == documents().make(plain[0]).media[0].clip.times
    assert documents().make(reading.samples[0]).media[0].clip.times == documents().make(plain[1]).media[0].clip.times
    with tarfile.open(tmp_path / "shard.tar.gz", "w:gz"):
        pass
    assert "decompress it to .tar" in read_files([tmp_path / "shard.tar.gz"], media).faults[0]
    (tmp_path / "no.tar").write_bytes(b"x" * 600)
    assert "is no readable tar" in read_files([tmp_path / "no.tar"], media).faults[0]


def _lines(path, *entries):
    path.write_text("\n".join(json.dumps(entry) for entry in entries))
    return path


def test_parquet_holds_lines_with_pictures_as_bytes_or_paths(media, tmp_path):
    content = (media / "picture.png").read_bytes()
    rows = [
        {"id": "1", "image": {"bytes": content, "path": "x.png"}, "video": None, "conversations": turns("q", "a")},
        {"id": "2", "image": None, "video": "clip.mp4", "conversations": turns("q", "a")},
        {"id": "3", "image": {"bytes": None, "path": None}, "video": None, "conversations": turns("q", "a")},
        {"id": "4", "image": None, "video": "gone.mp4", "conversations": turns("q", "a")},
    ]
    file = tmp_path / "data.parquet"
    parquet.write_table(Table.from_pylist(rows), file, row_group_size=2)
    reading = read_files([file], media)
    assert [s.name for s in reading.samples] == ["1", "2", "3"]
    assert reading.faults == (f"{file}: row 4: video 'gone.mp4' is not in {media}",)
    assert len(documents().make(reading.samples[0]).media[0].times) == 1
    with pytest.raises(JobError, match=r"row 3: .*holds no bytes"):
        documents().make(reading.samples[2])
    parquet.write_table(Table.from_pylist([{**rows[0], "image": [content] * 2}]), file)
    (sample,) = read_files([tmp_path], media).samples  # a folder of shards
    assert [len(m.times) for m in documents().make(sample).media] == [1, 1]
    file.write_bytes(b"PAR1")
    assert "is no readable Parquet file" in read_files([file], media).faults[0]


@pytest.mark.parametrize("kind", [list_, large_list, lambda kind: list_(kind, 2)])
def test_pictures_of_parquet_by_path_are_files(media, tmp_path, kind):
    """As Hugging Face writes pictures that it does not embed, bytes and paths mixed in one list."""
    content = (media / "picture.png").read_bytes()
    held = {"bytes": content, "path": "gone.png"}
    rows = [[{"bytes": None, "path": "picture.png"}, held], [{"bytes": None, "path": "gone.png"}, held], [held, held]]
    images = array(rows, kind(struct([("bytes", binary()), ("path", string())])))
    table = Table.from_arrays([images, array([turns("q", "a")] * 3)], ["images", "conversations"])
    parquet.write_table(table, tmp_path / "a.parquet")
    reading = read_files([tmp_path / "a.parquet"], media)
    assert reading.faults == (f"{tmp_path}/a.parquet: row 2: images 'gone.png' is not in {media}",)
    assert reading.samples[0].images[0] == media / "picture.png"
    assert [read_bytes(image) for sample in reading.samples for image in sample.images] == [content] * 4


def grown(path, text, rows):
    """A small Parquet file whose many rows all hold one long text, which stands in its dictionary once."""
    ids = DictionaryArray.from_arrays(array([0] * rows, int32()), array([text]))
    parquet.write_table(Table.from_arrays([ids, array([turns("q", "a")] * rows)], ["id", "conversations"]), path)


def linked(path, text, links):
    """A small tar whose many members are links to one long caption."""
    with tarfile.open(path, "w") as archive:
        add(archive, "0.txt", text.encode())
        for number in range(links):
            link(archive, f"{number + 1}.txt", tarfile.LNKTYPE, "0.txt")
            link(archive, f"{number + 1}.mp4", tarfile.LNKTYPE, "0.txt")
    return path


def test_a_small_file_may_not_stand_for_much(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(columns, "LEAST_BYTES", 2**20)
    for name, text, told in (("a.parquet", "x" * 50_000, True), ("b.parquet", "x" * 500, False)):
        grown(tmp_path / name, text, 100)
        assert ("stands for more than" in checked(capsys, tmp_path / name)[1][0]) == told
        if told:
            with pytest.raises(JobError, match="stands for more than 1 MiB"):
                columns.parquet_rows(tmp_path / name)
    parquet.write_table(
        Table.from_pylist([{"id": "x" * 2**24, "conversations": turns("q", "a")}]),
        tmp_path / "c.parquet",
        compression="zstd",
    )
    parquet.write_table(Table.from_arrays([nulls(10**6)], ["id"]), tmp_path / "d.parquet")
    linked(tmp_path / "e.tar", "x" * 200_000, 300)
    for name in ("c.parquet", "d.parquet", "e.tar"):
        assert f"{tmp_path / name}: stands for more than" in read_files([tmp_path / name], tmp_path).faults[-1]


def test_texts_in_a_tar_are_bounded_and_holes_count_for_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(columns, "LEAST_BYTES", 2**20)
    with (tmp_path / "a.tar").open("wb") as shard:
        for number, size in enumerate((10 * 2**30, 2**20, 2**20)):
            claim = tarfile.TarInfo(f"{number}.json")
            claim.size = size
            shard.write(claim.tobuf(tarfile.GNU_FORMAT))
            shard.seek(size, 1)
        shard.truncate(shard.tell() + 1024)
    faults = [fault.removeprefix(f"{tmp_path}/a.tar: ") for fault in read_files([tmp_path / "a.tar"], tmp_path).faults]
    assert faults[0] == "0: 0.json is a text of 10,240 MiB; at most 16"
    assert faults[-1].startswith("stands for more than 1 MiB, the most that 0.0 MiB on the disk")


def test_captions_beside_what_is_known_of_a_picture_and_two_texts_of_one_sample(media, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("1.png", "2.png"):
            add(archive, name, (media / "picture.png").read_bytes())
        add(archive, "1.json", b'{"id": "of img2dataset", "caption": "a cat", "width": 9}')
        add(archive, "1.txt", b"a cat")
        add(archive, "2.a.json", b"{}")
        add(archive, "2.b.json", b"{}")
    reading = read_files([tmp_path / "a.tar"], media)
    assert reading.faults == (f"{tmp_path}/a.tar: 2: has two .json members: 2.a.json, 2.b.json",)
    (sample,) = reading.samples
    assert (sample.name, sample.turns[-1].text, len(sample.images)) == ("of img2dataset", "a cat", 1)


def test_a_picture_that_many_rows_show_is_held_once(media, tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "LEAST_BYTES", 2**20)
    content = (media / "picture.png").read_bytes() + bytes(50_000)  # a hundred of them would be too much
    pictures = DictionaryArray.from_arrays(array([0] * 100, int32()), array([content]))
    table = Table.from_arrays([pictures, array([turns("q", "a")] * 100)], ["image", "conversations"])
    parquet.write_table(table, tmp_path / "a.parquet")
    reading = read_files([tmp_path / "a.parquet"], media)
    assert (len(reading.samples), reading.faults) == (100, ())
    assert read_bytes(reading.samples[99].images[0]) == content


def test_rows_that_python_cannot_hold_and_columns_of_one_name_are_faults(tmp_path, capsys):
    texts = array([b"a", b"\xff", b"c"]).view(string())
    table = Table.from_arrays([texts, array([turns("q", "a")] * 3)], ["id", "conversations"])
    parquet.write_table(table, tmp_path / "a.parquet")
    assert [line.partition(" (")[0] for line in checked(capsys, tmp_path / "a.parquet")[1]] == [
        f"{tmp_path}/a.parquet: row 2: holds a value that cannot be read",
        "2 samples can be read: 0 videos, 0 pictures; 1 faults",
    ]
    parquet.write_table(Table.from_arrays([array(["a"])] * 2, ["id", "id"]), tmp_path / "b.parquet")
    assert "has two columns of the name 'id'" in checked(capsys, tmp_path / "b.parquet")[1][0]


def test_what_holds_nothing_or_has_no_end_is_a_fault(tmp_path, capsys):
    for name, content in {"a.jsonl": "", "b.json": "[]", "c.json": " \n"}.items():
        (tmp_path / name).write_text(content)
        assert checked(capsys, tmp_path / name)[1][0] == f"{tmp_path / name}: holds no samples"
    os.mkfifo(tmp_path / "d.jsonl")
    for endless in (tmp_path / "d.jsonl", "/dev/zero"):
        assert checked(capsys, endless)[1][0] == f"{endless}: is neither a file nor a folder"


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet", "none.tar", "none"])
def test_a_file_that_is_not_there_is_one_fault_of_every_kind(tmp_path, name):
    (found,) = entries(tmp_path / name)
    assert found.fault == "cannot be read (No such file or directory)"
