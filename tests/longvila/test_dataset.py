"""Reading VILA's format, labels, packing, and that the rows do not depend on the number of replicas."""

import json

import pytest
import torch

from longvila.dataset import Cursor, Documents, Rows, Sampling, most_frames, read_samples, replica_rows, row_batch
from longvila.job import JobError
from longvila.sharding import IGNORE, OneProcess
from longvila.tokens import ByteTokenizer, Turn, Writer
from tests.longvila.clips import EXAMPLES, MEDIA


def writer(separator=""):
    return Writer(tokenizer=ByteTokenizer(), chat="byte", tokens_per_frame=9, frame_separator=separator)


def rows_of(max_tokens=640, pack=True, seed=0, shuffle=True, frames=4):
    samples = read_samples([EXAMPLES / "clips.jsonl"], MEDIA)
    documents = Documents(writer(), Sampling(frames=frames))
    return Rows(samples, documents, max_tokens=max_tokens, pack=pack, seed=seed, shuffle=shuffle)


def write(path, *entries):
    path.write_text("\n".join(json.dumps(entry) for entry in entries))
    return path


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def test_labels_are_the_next_tokens_of_answers_and_their_ends():
    rendered = writer("|").document([Turn(role="human", text="a<video>\nb"), Turn(role="gpt", text="yes")], [2])
    frame = [0] * 9 + [ord("|")]
    ids = [256, 257, ord("a"), *frame, *frame, ord("b"), 259, 258, *b"yes", 259]
    assert list(rendered.input_ids) == ids
    assert list(rendered.vision_at) == [*range(3, 12), *range(13, 22)]
    learned = {i: label for i, label in enumerate(rendered.labels) if label != IGNORE}
    start = ids.index(258)  # the opened assistant turn predicts the answer's first byte
    assert learned == {start: ord("y"), start + 1: ord("e"), start + 2: ord("s"), start + 3: 259}


def test_text_of_a_user_is_never_a_special_token():
    ids = ByteTokenizer().encode("<|end|>")
    assert ids == list(b"<|end|>")


def test_media_without_a_tag_come_before_the_text():
    rendered = writer().document([Turn(role="human", text="q"), Turn(role="gpt", text="a")], [1])
    assert list(rendered.vision_at) == list(range(2, 11))


def test_a_prompt_is_the_document_up_to_the_answer():
    question, answer = Turn(role="human", text="<video>\nWhat?"), Turn(role="gpt", text="That.")
    whole, prompt = writer().document([question, answer], [2]), writer().document([question], [2], prompt=True)
    assert whole.input_ids[: len(prompt.input_ids)].tolist() == prompt.input_ids.tolist()
    assert writer().tokenizer.decode(whole.input_ids[len(prompt.input_ids) :]) == "That."


def test_rows_pack_within_the_limit_and_visit_every_sample_once_an_epoch():
    rows, cursor, seen = rows_of(max_tokens=300), Cursor(), []
    while cursor.epoch == 0:
        (row,), cursor = rows.step(cursor, 1)
        assert sum(len(d.text.input_ids) for d in row.documents) <= 300
        seen.extend(d.name for d in row.documents)
    assert len(seen) == len(set(seen)) == 7
    assert len(rows.step(Cursor(), 1)[0][0].documents) > 1
    assert len(rows_of(pack=False).step(Cursor(), 1)[0][0].documents) == 1


def test_order_depends_on_seed_and_epoch_only():
    def firsts(seed, epoch):
        step, _ = rows_of(seed=seed, pack=False).step(Cursor(epoch=epoch), 7)
        return [row.documents[0].name for row in step]

    assert firsts(0, 0) == firsts(0, 0)
    assert firsts(0, 0) != firsts(1, 0) and firsts(0, 0) != firsts(0, 1)
    assert sorted(firsts(0, 0)) == sorted(firsts(3, 5))


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 7])
def test_replicas_share_out_the_same_rows_and_compute_equally_often(replicas):
    rows, _ = rows_of(pack=False).step(Cursor(), 5)
    shares = [replica_rows(rows, i, replicas) for i in range(replicas)]
    assert len({len(share) for share in shares}) == 1
    assert sum(row.label_tokens for share in shares for row in share) == sum(row.label_tokens for row in rows)
    real = [row for share in shares for row in share if row.label_tokens]
    assert sorted(map(id, real)) == sorted(map(id, rows))


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 7])
def test_every_replica_knows_the_most_frames_of_each_turn(replicas):
    rows, _ = rows_of(pack=False).step(Cursor(), 5)
    shares = [replica_rows(rows, i, replicas) for i in range(replicas)]
    expected = [max(row.frames for row in turn) for turn in zip(*shares, strict=True)]
    assert most_frames(rows, replicas) == expected
    assert max(expected) > 0


def test_a_batch_holds_the_own_frames_of_the_whole_row():
    (row,), _ = rows_of(max_tokens=640).step(Cursor(), 1)

    class Half(OneProcess):
        def own_frames(self, frames):
            return range(frames // 2, frames)

    whole, half = (row_batch(row, s, 24, torch.device("cpu"), torch.float32) for s in (OneProcess(), Half()))
    assert whole.frames == half.frames == whole.pixels_FCHW.shape[0] > 4
    assert torch.equal(half.pixels_FCHW, whole.pixels_FCHW[whole.frames // 2 :])
    assert whole.vision_at_V.numel() == 9 * whole.frames
    starts = (whole.positions_L == 0).nonzero().flatten()
    assert len(starts) == len(row.documents) == int(whole.document_L[-1]) + 1
    assert torch.all(whole.labels_L[starts[1:] - 1] == IGNORE)


def test_json_lists_are_read_like_lines(tmp_path):
    lines = [json.loads(line) for line in (EXAMPLES / "clips.jsonl").read_text().splitlines()]
    (tmp_path / "list.json").write_text(json.dumps(lines))
    (as_list, as_lines) = (read_samples([f], MEDIA) for f in (tmp_path / "list.json", EXAMPLES / "clips.jsonl"))
    assert [s.turns for s in as_list] == [s.turns for s in as_lines]
    assert as_list[1].where.endswith("list.json:1 (sample 2)") and as_lines[1].where.endswith("clips.jsonl:2")


GOOD = {"id": "0", "conversations": turns("q", "a")}


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"id": "1", "video": "gone.mp4", "conversations": turns("q", "a")}, "video 'gone.mp4' is not in"),
        ({"id": "1", "video": 7, "conversations": turns("q", "a")}, "video must be a path"),
        ({"id": "1", "conversations": [{"from": "user", "value": "q"}]}, "turn 1 is from 'user'; legal: human, gpt"),
        ({"id": "1", "conversations": turns("q", "a") + turns("q")}, "the last turn must be from gpt"),
        ({"id": "1", "conversations": turns("q", "a") + turns("q", "a")[1:]}, "turn 3 is from 'gpt'; turns alternate"),
        ({"id": "1", "conversations": [{"from": "human"}]}, "turn 1 is not"),
        ({"id": "1", "conversations": turns("q")}, "the last turn must be from gpt"),
        ({"id": "1", "conversations": []}, "conversations must be a list of turns"),
        ({"id": "1", "vide": "x", "conversations": turns("q", "a")}, "unknown key 'vide'; did you mean 'video'?"),
        ({"id": "1", "conversations": turns("<video>\nq", "a")}, "0 <image> and 1 <video>, the sample 0 and 0 files"),
        ({"id": "1", "conversations": turns("\ud800", "a")}, "turn 1 holds half a surrogate pair"),
        (["q"], "a sample is an object"),
    ],
)
def test_faults_name_the_file_and_the_line(tmp_path, entry, reason):
    file = write(tmp_path / "data.jsonl", GOOD, entry)
    with pytest.raises(JobError) as fault:
        read_samples([file], MEDIA)
    assert str(fault.value).startswith(f"{file}:2: ") and reason in str(fault.value)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"id": ' + "9" * 5000 + "}", '{"id": '])
def test_json_that_cannot_be_read_is_one_line(tmp_path, line):
    file = write(tmp_path / "data.jsonl", GOOD)
    file.write_text(file.read_text().rstrip("\n") + "\n" + line + "\n")
    with pytest.raises(JobError, match=r"data.jsonl:2: broken JSON \(") as fault:
        read_samples([file], MEDIA)
    assert "\n" not in str(fault.value) and len(str(fault.value)) < 300


def test_broken_json_and_empty_files_are_refused(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(GOOD) + "\n\n{broken\n")
    with pytest.raises(JobError, match=r"data.jsonl:3: broken JSON"):
        read_samples([file], MEDIA)
    file.write_text(json.dumps([GOOD])[:-1] + ",\n{]")
    with pytest.raises(JobError, match=r"data.jsonl:2: broken JSON"):
        read_samples([file], MEDIA)
    file.write_text("\n")
    with pytest.raises(JobError, match="holds no samples"):
        read_samples([file], MEDIA)
    with pytest.raises(JobError, match="cannot be read"):
        read_samples([tmp_path / "gone.jsonl"], MEDIA)


def test_a_sample_that_is_too_long_names_the_fix():
    with pytest.raises(JobError, match="tokens, max_tokens is 40: raise max_tokens or take fewer frames"):
        rows_of(max_tokens=40, shuffle=False).step(Cursor(), 1)


class Letters:
    """A tokenizer whose ids are letters, so that a document can be read."""

    def encode(self, text):
        return [ord(letter) for letter in text]

    special = encode


VILAS = {  # NVlabs/VILA: llava/conversation.py, and the template of Qwen2
    "chatml": "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
    "<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n",
    "hermes": "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\nq<|im_end|>"
    "<|im_start|>assistant\na<|im_end|><|im_start|>user\nr<|im_end|><|im_start|>assistant\nb<|im_end|>",
    "vicuna": "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER:q ASSISTANT:a</s>USER:r ASSISTANT:b</s>",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision "
    "assistant. You are able to understand the visual content that the user provides, and assist the user with a "
    "variety of tasks using natural language.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nr<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nb<|eot_id|>",
}


@pytest.mark.parametrize("chat", VILAS)
def test_turns_are_written_as_vila_writes_them(chat):
    """Texts begin with the blank that Llama 2's tokenizer puts there, which is why vicuna's roles end without one."""
    made = Writer(tokenizer=Letters(), chat=chat, tokens_per_frame=1, frame_separator="|")
    talk = [Turn(role="human", text="q"), Turn(role="gpt", text="a")]
    talk += [Turn(role="human", text="r"), Turn(role="gpt", text="b")]
    assert "".join(map(chr, made.document(talk, []).input_ids)) == VILAS[chat]
    seen = "".join(map(chr, made.document([Turn(role="human", text="<video>\nq"), *talk[1:2]], [1]).input_ids))
    assert ("USER: \0|q" in seen) if chat == "vicuna" else ("\n\0|q" in seen)
    tiles = made.document([Turn(role="human", text="<image>\nq"), *talk[1:2]], [2], tiled=[True])
    assert "\0|\n\0|\nq" in "".join(map(chr, tiles.input_ids))
