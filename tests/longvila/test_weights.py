"""The released folder layout: written, read back, sharded files, what is left unread, and what is refused."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, SiglipVisionConfig, SiglipVisionModel

import longvila.weights
from longvila.assemble import build_model, build_writer, model_config
from longvila.config import load_config
from longvila.job import Job, JobError
from longvila.model import LongVilaForConditionalGeneration
from longvila.projector import COLUMNS, Projector
from longvila.sharding import OneProcess
from longvila.weights import empty_model, load_weights, materialise, read_config, save_weights
from tests.longvila.test_model import batch_of


def fresh(seed=0, config=None):
    torch.manual_seed(seed)
    return LongVilaForConditionalGeneration(config or load_config("tiny"))


def load(folder):
    return build_model(read_config(folder), Job(), dtype=torch.float32, seed=9, weights=str(folder), trained=("llm",))


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    save_weights(fresh(), tmp_path / "weights", OneProcess())
    return tmp_path / "weights"


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_round_trip_is_bit_exact_and_needs_no_preset(folder):
    original, back = fresh(), load(folder)
    assert same(original, back)
    batch = dataclasses.replace(batch_of(), pixels_FCHW=batch_of().pixels_FCHW.float())
    assert torch.equal(original(batch), back(batch))
    config = model_config(None, str(folder), None)
    assert build_writer(config, str(folder)).stop_id == 259
    assert not list(folder.parent.glob("*.partial"))


def test_files_of_a_part_may_be_several_with_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(longvila.weights, "FILE_BYTES", 300_000)
    save_weights(fresh(), tmp_path / "w", OneProcess())
    assert (tmp_path / "w/llm/model.safetensors.index.json").is_file()
    assert len(list((tmp_path / "w/llm").glob("model-*.safetensors"))) > 3
    assert same(fresh(), load(tmp_path / "w"))
    next((tmp_path / "w/llm").glob("model-*.safetensors")).unlink()
    with pytest.raises(JobError, match=r"index.json names model-.*, which is not there"):
        load(tmp_path / "w")


def test_a_folder_that_hugging_face_wrote_is_read(tmp_path):
    """As released: a tower with its head and all layers, whose last one the selected output (-2) has no use for."""
    config = load_config("tiny")
    torch.manual_seed(3)
    vision = SiglipVisionConfig(**{**config.vision, "num_hidden_layers": 3})
    tower, llm = SiglipVisionModel(vision), AutoModelForCausalLM.from_config(config.llm_config())
    tower.save_pretrained(tmp_path / "vision_tower")
    llm.save_pretrained(tmp_path / "llm")
    projector = Projector(COLUMNS, 64, 128)  # what a folder of Llama's kind without later keys means
    (tmp_path / "mm_projector").mkdir()
    save_file(projector.state_dict(), tmp_path / "mm_projector/model.safetensors")
    (tmp_path / "mm_projector/config.json").write_text('{"mm_projector_type": "mlp_downsample"}')
    (tmp_path / "config.json").write_text('{"mm_vision_select_layer": -2, "hidden_size": 128}')
    model = load(tmp_path)
    assert model.config.chat == "llama3" and model.config.frame_separator == "\n"
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        expected = projector(states[-2]).flatten(0, 1)
        torch.testing.assert_close(model.encode_frames(pixels, len(pixels)), expected, rtol=0, atol=0)
        ids = torch.arange(20)[None]
        torch.testing.assert_close(model.llm(ids).logits, llm(ids).logits, rtol=0, atol=0)


def test_tied_embeddings_stay_tied(tmp_path):
    tiny = load_config("tiny")
    config = dataclasses.replace(tiny, llm={**tiny.llm, "model_type": "qwen2", "tie_word_embeddings": True})
    save_weights(fresh(config=config), tmp_path / "w", OneProcess())
    assert "lm_head.weight" not in load_file(tmp_path / "w/llm/model.safetensors")
    model = load(tmp_path / "w")
    assert model.llm.lm_head.weight is model.llm.model.embed_tokens.weight
    assert same(fresh(config=config), model)


def test_empty_model_takes_no_memory_and_keeps_its_buffers(folder):
    model = empty_model(load_config("tiny"), "sdpa")
    assert all(p.is_meta for p in model.parameters())
    materialise(model, torch.device("cpu"))
    load_weights(model, folder)
    assert torch.equal(model.llm.model.rotary_emb.inv_freq, fresh().llm.model.rotary_emb.inv_freq)


def test_bf16_parameters_keep_float32_rotary_frequencies(folder):
    model = build_model(
        read_config(folder), Job(), dtype=torch.bfloat16, seed=0, weights=str(folder), trained=("projector",)
    )
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.llm.model.rotary_emb.inv_freq.dtype == torch.float32
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        n for n, _ in model.named_parameters() if n.startswith("projector")
    ]


def drop(folder, part, name):
    file = folder / part / "model.safetensors"
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file)


def test_missing_unexpected_and_misshapen_tensors_are_named(folder):
    drop(folder, "vision_tower", "vision_model.encoder.layers.1.mlp.fc1.bias")
    with pytest.raises(JobError, match=r"vision_tower: missing encoder\.layers\.1\.mlp\.fc1\.bias"):
        load(folder)
    tensors = load_file(folder / "llm/model.safetensors")
    save_file({**tensors, "extra.weight": torch.zeros(2)}, folder / "llm/model.safetensors")
    with pytest.raises(JobError, match=r"llm: unexpected extra\.weight"):
        load(folder)
    save_file({**tensors, "model.norm.weight": torch.zeros(2)}, folder / "llm/model.safetensors")
    with pytest.raises(JobError, match=r"model\.norm\.weight has shape \[2\], the model wants \[128\]"):
        load(folder)


def test_pickles_are_refused(folder):
    (folder / "llm/model.safetensors").rename(folder / "llm/pytorch_model.bin")
    with pytest.raises(JobError, match=r"pytorch_model\.bin is a pickle, which can run code when read"):
        load(folder)


def test_wrong_folders_are_refused_in_one_line(folder, tmp_path):
    with pytest.raises(JobError, match="is not a folder"):
        read_config(tmp_path / "gone")
    edit(folder / "mm_projector/config.json", lambda c: c.update(mm_projector_type="identity"))
    with pytest.raises(JobError, match=r"config.json: mm_projector 'identity' is not run; legal: mlp_downsample"):
        read_config(folder)
    (folder / "llm/config.json").write_text("{")
    with pytest.raises(JobError, match=r"config\.json cannot be read \(not JSON\)"):
        read_config(folder)
    with pytest.raises(JobError, match="exists already"):
        save_weights(fresh(), folder, OneProcess())


def test_damaged_safetensors_are_refused(folder):
    (folder / "mm_projector/model.safetensors").write_bytes(b"\x10" * 40)
    with pytest.raises(JobError, match=r"mm_projector holds a file that is no safetensors file"):
        load(folder)


@pytest.mark.parametrize("size", [None, -48, "x"])
def test_a_tower_without_a_size_is_refused(folder, size):
    edit(folder / "vision_tower/config.json", lambda config: config.update(image_size=size))
    with pytest.raises(JobError, match=r"vision image_size .* is not a whole number of pixels"):
        load(folder)
