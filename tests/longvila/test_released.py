"""Released folders of every kind, written here by their names, shapes and dtypes; projectors said again in loops."""

import json
import math
import re
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, SiglipVisionModel

from longvila import weights
from longvila.assemble import build_model
from longvila.config import LongVilaConfig, load_config, presets
from longvila.dataset import Documents, Row, Sample, Sampling, row_batch
from longvila.job import Job, JobError
from longvila.projector import COLUMNS, Projector
from longvila.released import keys, read_config, tokenizer_folder, unknown
from longvila.scales import multiscale
from longvila.sharding import OneProcess
from longvila.tokens import ByteTokenizer, FolderTokenizer, Turn, Writer
from tests.longvila.clips import MEDIA

QWEN_05, QWEN_7 = (896, 4864, 24, 14, 2, 151648), (3584, 18944, 28, 28, 4, 151648)
QWEN_15, LLAMA_3 = (1536, 8960, 28, 12, 2, 151936), (4096, 14336, 32, 32, 8, 128259)
SMALL = (32, 64, 2, 4, 2, 300)
ENCODERS = {f"{kind}_encoder": {"_target_": f"llava.model.encoders.Basic{kind.title()}Encoder"}
            for kind in ("image", "video")}  # fmt: skip


def llm_config(kind, sizes):
    width, ffn, layers, heads, kv_heads, words = sizes
    return {
        "model_type": kind, "hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": words,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "model_max_length": 4096,
    }  # fmt: skip


def llm_shapes(config):
    d, ffn, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = d // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (words, d), "model.norm.weight": (d,), "lm_head.weight": (words, d)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{n}_proj.weight": (d if n in "qo" else kv, d) for n in "qkvo"}
        if config["model_type"] == "qwen2":
            shapes |= {f"{at}self_attn.{n}_proj.bias": (d if n == "q" else kv,) for n in "qkv"}
        shapes |= {f"{at}mlp.{n}_proj.weight": (ffn, d) for n in ("gate", "up")} | {
            f"{at}mlp.down_proj.weight": (d, ffn)
        }
        shapes |= {f"{at}input_layernorm.weight": (d,), f"{at}post_attention_layernorm.weight": (d,)}
    return shapes


def vision_config(size=384, width=1152, ffn=4304, layers=27, heads=16, patch=14):
    return {
        "model_type": "siglip_vision_model", "architectures": ["SiglipVisionModel"], "hidden_size": width,
        "image_size": size, "intermediate_size": ffn, "num_attention_heads": heads, "num_hidden_layers": layers,
        "patch_size": patch, "num_channels": 3, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    }  # fmt: skip


def vision_shapes(config):
    c, ffn, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    shapes = {
        "embeddings.patch_embedding.weight": (c, 3, patch, patch), "embeddings.patch_embedding.bias": (c,),
        "embeddings.position_embedding.weight": ((config["image_size"] // patch) ** 2, c),
        "post_layernorm.weight": (c,), "post_layernorm.bias": (c,), "head.probe": (1, 1, c),
        "head.attention.in_proj_weight": (3 * c, c), "head.attention.in_proj_bias": (3 * c,),
        "head.attention.out_proj.weight": (c, c), "head.attention.out_proj.bias": (c,), "head.layernorm.weight": (c,),
        "head.layernorm.bias": (c,), "head.mlp.fc1.weight": (ffn, c), "head.mlp.fc1.bias": (ffn,),
        "head.mlp.fc2.weight": (c, ffn), "head.mlp.fc2.bias": (c,),
    }  # fmt: skip
    for layer in range(config["num_hidden_layers"]):
        linear = {f"self_attn.{n}_proj": (c, c) for n in ("q", "k", "v", "out")} | {
            "mlp.fc1": (ffn, c),
            "mlp.fc2": (c, ffn),
        }
        for name, shape in linear.items():
            shapes |= {f"encoder.layers.{layer}.{name}.weight": shape, f"encoder.layers.{layer}.{name}.bias": shape[:1]}
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"encoder.layers.{layer}.{norm}.{n}": (c,) for n in ("weight", "bias")}
    return {f"vision_model.{name}": shape for name, shape in shapes.items()}


def projector_shapes(kind, c, d):
    linear = {
        "mlp_downsample": {2: (d, 4 * c), 4: (d, d)}, "mlp_downsample_2x2_fix": {2: (d, 4 * c), 4: (d, d)},
        "mlp_downsample_3x3_fix": {2: (3 * c, 9 * c), 5: (d, 3 * c), 7: (d, d)}, "mlp2x_gelu": {0: (d, c), 2: (d, d)},
    }  # fmt: skip
    norms = {"mlp_downsample_3x3_fix": {1: 9 * c, 4: 3 * c}, "mlp2x_gelu": {}}.get(kind, {1: 4 * c})
    if kind == "linear":
        return {"layers.weight": (d, c), "layers.bias": (d,)}
    shapes = {}
    for place, (out, into) in linear[kind].items():
        shapes |= {f"layers.{place}.weight": (out, into), f"layers.{place}.bias": (out,)}
    for place, width in norms.items():
        shapes |= {f"layers.{place}.weight": (width,), f"layers.{place}.bias": (width,)}
    return shapes


def sparse(path, shapes):
    """A safetensors file of that header whose numbers take no disk: a hole."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)


def dense(path, shapes):
    generator = torch.Generator().manual_seed(len(shapes))
    save_file({name: torch.randn(shape, generator=generator).bfloat16() / 8 for name, shape in shapes.items()}, path)


def release(folder, *, llm, vision, kind, top=None, root=False, write=sparse, scales=1):
    """Write a folder as released; with `root`, weights and configs stand at the root under one index."""
    parts = {
        "llm": (llm, llm_shapes(llm)), "vision_tower": (vision, vision_shapes(vision)),
        "mm_projector": ({"model_type": "v2l_projector", "mm_projector_type": kind},
                         projector_shapes(kind, vision["hidden_size"] * scales, llm["hidden_size"])),
    }  # fmt: skip
    config = {"architectures": ["LlavaLlamaModel"], "model_type": "llava_llama", "mm_vision_select_layer": -2,
              "mm_vision_select_feature": "cls_patch", "mm_projector": kind, **(top or {})}  # fmt: skip
    folder.mkdir()
    index = {}
    for number, (part, (own, shapes)) in enumerate(parts.items(), start=1):
        config[f"{part}_cfg"] = own
        if root:
            inside = "vision_tower.vision_tower." if part == "vision_tower" else f"{part}."
            named = {inside + name: shape for name, shape in shapes.items()}
            write(folder / f"model-{number:05d}-of-00003.safetensors", named)
            index |= dict.fromkeys(named, f"model-{number:05d}-of-00003.safetensors")
            continue
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(own))
        write(folder / part / "model.safetensors", shapes)
    if root:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


S2 = {"dynamic_s2": True, "s2_scales": "448,896,1344", "s2_resize_output_to_scale_idx": -1, "s2_max_split_size": 448}
NVILA = {**ENCODERS, "num_video_frames": 8, "fps": 0.0, "mm_use_im_start_end": False, "num_time_tokens": 0,
         "ps3": False, "time_token_ids": [], "quantize_model": "false", "Ubit": "100", "min_tiles": 1,
         "max_tiles": 12}  # fmt: skip
RELEASES = {  # name: what it is written of, projector as it is run, tokens a frame, turns
    "VILA1.5-3b": (
        {"llm": llm_config("llama", (2560, 6912, 32, 20, 20, 32000)), "vision": vision_config(),
         "kind": "mlp_downsample",
         "top": {"s2": False, "image_aspect_ratio": "resize", "vision_resolution": -1, "num_video_frames": 8}},
        COLUMNS, 196, "vicuna",
    ),
    "Llama-3-LongVILA-8B-512frames": (
        {"llm": llm_config("llama", LLAMA_3), "vision": vision_config(), "kind": "mlp_downsample",
         "top": {"num_video_frames": 512, "fps": 2.0, "mm_use_im_patch_token": False}},
        COLUMNS, 196, "llama3",
    ),
    "qwen2-1.5b-longvila-256f": (
        {"llm": llm_config("qwen2", QWEN_15), "vision": vision_config(448), "kind": "mlp_downsample_2x2_fix",
         "top": {"num_video_frames": 256, "fps": 2.0}},
        "mlp_downsample_2x2_fix", 256, "chatml",
    ),
    "qwen2-7b-longvila-1M": (
        {"llm": llm_config("qwen2", QWEN_7), "vision": vision_config(), "kind": "mlp_downsample",
         "top": {"num_video_frames": 2048}},
        "mlp_downsample", 196, "chatml",
    ),
    "NVILA-8B": (
        {"llm": llm_config("qwen2", QWEN_7), "vision": vision_config(448), "kind": "mlp_downsample", "scales": 3,
         "top": {**NVILA, **S2, "image_aspect_ratio": "dynamic_s2"}},
        "mlp_downsample", 256, "chatml",
    ),
    "NVILA-Lite-2B-hf": (
        {"llm": llm_config("qwen2", QWEN_05), "vision": vision_config(448), "kind": "mlp_downsample_3x3_fix",
         "root": True, "top": {**NVILA, "image_aspect_ratio": "dynamic"}},
        "mlp_downsample_3x3_fix", 121, "chatml",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASES)
def test_every_release_is_read_in_full_shape(tmp_path, capsys, name):
    given, kind, tokens, chat = RELEASES[name]
    folder = release(tmp_path / "release", **given)
    config = read_config(folder)
    assert (config.projector, config.tokens_per_frame, config.chat) == (kind, tokens, chat)
    assert config.video_frames == given["top"]["num_video_frames"]
    assert config.max_tiles == (12 if given["top"].get("image_aspect_ratio") == "dynamic" else 1)
    weights.main(["inspect", str(folder)])
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "ignored         nothing" and f"{tokens} tokens, '' before, '\\n' after" in printed[3]
    counts = [len(llm_shapes(given["llm"])), len(vision_shapes(given["vision"]))]
    assert [int(line.split()[1]) for line in printed if "tensors" in line][:2] == counts


KINDS = ("mlp_downsample", "mlp_downsample_2x2_fix", "mlp_downsample_3x3_fix", "mlp2x_gelu", "linear")


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_release_runs_with_its_numbers(tmp_path, kind, root):
    """Tower by Hugging Face's own class, projector in loops below, and Hugging Face's language model."""
    llm, vision = llm_config("qwen2", SMALL), vision_config(40, 24, 48, 3, 4, 8)
    folder = release(tmp_path / "r", llm=llm, vision=vision, kind=kind, root=root, write=dense)
    model = build_model(read_config(folder), Job(), dtype=torch.float32, seed=1, weights=str(folder), trained=())
    pixels = torch.randn(2, 3, 40, 40)
    tower = SiglipVisionModel(read_config(folder).vision_config().__class__(**vision)).eval()
    file = folder / ("model-00002-of-00003.safetensors" if root else "vision_tower/model.safetensors")
    held = {name.rpartition("vision_model.")[2]: value.float() for name, value in load_file(file).items()}
    tower.load_state_dict(held, strict=True)
    with torch.no_grad():
        patches = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
        expected = said_again(kind, model.projector.state_dict(), patches.double().numpy())
        made = model.encode_frames(pixels, 2).numpy().reshape(expected.shape)
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-5)
    projected = load_file(folder / ("model-00003-of-00003.safetensors" if root else "mm_projector/model.safetensors"))
    for name, value in projected.items():
        assert torch.equal(model.projector.state_dict()[name.removeprefix("mm_projector.")], value.float())


def said_again(kind, state, patches_FPC, columns=False):
    """A projector from its sentence: loops over tokens, rows and columns, in float64."""
    state = {name.removeprefix("layers."): value.double().numpy() for name, value in state.items()}
    frames, count, width = patches_FPC.shape
    side = math.isqrt(count)
    merge = 3 if "3x3" in kind else 2 if "downsample" in kind else 1
    tokens = []
    for across, down in np.ndindex(-(-side // merge), -(-side // merge)):
        row, column = (down, across) if columns else (across, down)
        parts = []
        for y, x in np.ndindex(merge, merge):
            at = (row * merge + y, column * merge + x)
            inside = max(at) < side
            parts.append(patches_FPC[:, at[0] * side + at[1]] if inside else np.zeros((frames, width)))
        tokens.append(np.concatenate(parts, axis=-1))
    x = np.stack(tokens, axis=1)
    if kind == "linear":
        return x @ state["weight"].T + state["bias"]
    numbers = sorted({int(name.split(".")[0]) for name in state})
    for place in range(min(numbers), max(numbers) + 1):
        if place not in numbers:
            x = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        elif state[f"{place}.weight"].ndim == 1:
            centred = x - x.mean(-1, keepdims=True)
            scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
            x = scaled * state[f"{place}.weight"] + state[f"{place}.bias"]
        else:
            x = x @ state[f"{place}.weight"].T + state[f"{place}.bias"]
    return x


@pytest.mark.parametrize("side", [4, 5, 6, 7])
@pytest.mark.parametrize("kind", [*KINDS, COLUMNS, "mlp3x_gelu"])
def test_projectors_are_what_their_sentences_say(kind, side):
    torch.manual_seed(side)
    projector = Projector(kind, 3, 5).double()
    patches = torch.randn(2, side * side, 3, dtype=torch.float64)
    expected = said_again(kind, projector.state_dict(), patches.numpy(), columns=kind == COLUMNS)
    np.testing.assert_allclose(projector(patches).detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_the_order_of_tokens_follows_from_who_wrote_the_folder(tmp_path):
    """Columns first where Llama's kind was written without the keys of NVILA's release; rows first else."""
    for number, (kind, top, expected) in enumerate([
        ("llama", {}, COLUMNS), ("llama", ENCODERS, "mlp_downsample"), ("qwen2", {}, "mlp_downsample"),
        ("llama", {"video_encoder": json.dumps(ENCODERS["video_encoder"])}, "mlp_downsample"),
    ]):  # fmt: skip
        llm, vision = llm_config(kind, SMALL), vision_config(40, 24, 48, 2, 4, 8)
        folder = release(tmp_path / str(number), llm=llm, vision=vision, kind="mlp_downsample", top=top)
        assert read_config(folder).projector == expected


REFUSED = {
    "image_aspect_ratio": "pad", "video_max_tiles": 4, "num_time_tokens": -1, "time_token_format": "<t>",
    "mm_use_im_start_end": True, "ps3": True, "quantize_model": "true", "mm_vision_select_feature": "patch",
    "vision_resolution": 980, "chat_template": "mistral", "mm_projector": "mlp_downsample_3x3_s2",
    "video_encoder": {"_target_": "llava.model.encoders.TSPVideoEncoder", "pool_sizes": [[8, 1, 1], [1, 2, 2]]},
    "image_encoder": {"_target_": "llava.model.encoders.BasicImageEncoder", "end_tokens": None},
    "s2_scales": "wide",
}  # fmt: skip


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_not_run_is_refused_by_its_key(tmp_path, key):
    kind, scales = (REFUSED[key] if key == "mm_projector" else "linear"), {"s2": key == "s2_scales"}
    folder = release(tmp_path / "r", llm=llm_config("qwen2", SMALL), vision=vision_config(40, 24, 48, 2, 4, 8),
                     kind="linear", top={"num_time_tokens": 9, **scales, key: REFUSED[key]})  # fmt: skip
    (folder / "mm_projector/config.json").write_text(json.dumps({"mm_projector_type": kind}))
    with pytest.raises(JobError, match=rf"config\.json: {key} .* is not run; ") as fault:
        read_config(folder)
    assert "\n" not in str(fault.value)


def test_pictures_are_made_as_the_towers_processor_says_or_refused(tmp_path):
    folder = release(tmp_path / "r", llm=llm_config("qwen2", SMALL), vision=vision_config(40, 24, 48, 2, 4, 8),
                     kind="linear", top={"s2": True, "s2_scales": "40,80", "s2_resize_output_to_scale_idx": -1,
                                         "s2_max_split_size": 40})  # fmt: skip
    with pytest.raises(JobError, match=r"s2_resize_output_to_scale_idx '-1' is not run; run with s2 is 0"):
        read_config(folder)
    top = json.loads((folder / "config.json").read_text()) | {"s2_resize_output_to_scale_idx": 0}
    for split in (80, 40):
        (folder / "config.json").write_text(json.dumps({**top, "s2_max_split_size": split}))
        if split == 80:
            with pytest.raises(JobError, match=r"s2_max_split_size '80' is not run; run with s2 is 40"):
                read_config(folder)
    file = folder / "vision_tower/preprocessor_config.json"
    siglip = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 0.00392156862745098, "resample": 3}
    for side in (40, 80):  # VILA saves the processor of an s2 model with the size of its largest scale
        file.write_text(json.dumps({**siglip, "size": {"height": side, "width": side}}))
        assert read_config(folder).s2_scales == (40, 80)
    for key, value in {"image_mean": [0.48, 0.46, 0.41], "resample": 2, "size": {"shortest_edge": 40}}.items():
        file.write_text(json.dumps({**siglip, key: value}))
        with pytest.raises(JobError, match=rf"preprocessor_config\.json: {key} .* is not run; run is "):
            read_config(folder)


def test_every_key_is_known_once_and_others_are_told(tmp_path):
    names = [name for group in keys().values() for name in group]
    assert len(names) == len(set(names))
    folder = release(tmp_path / "r", llm=llm_config("qwen2", SMALL), vision=vision_config(40, 24, 48, 2, 4, 8),
                     kind="linear", top={"frame_pooling": 4, "nothing": None}, write=dense)  # fmt: skip
    assert unknown(folder) == ["frame_pooling"]
    assert weights.inspect(folder).endswith("ignored         frame_pooling")


def test_texts_around_frames_and_a_videos_own_frames_are_run(tmp_path):
    texts = {"start_tokens": "<f>", "end_tokens": None}
    top = {key: {**value, **texts} for key, value in ENCODERS.items()} | {"num_video_frames": 64, "fps": 2.0}
    folder = release(tmp_path / "r", llm=llm_config("qwen2", SMALL), vision=vision_config(40, 24, 48, 2, 4, 8),
                     kind="linear", top=top)  # fmt: skip
    config = read_config(folder)
    assert (config.frame_opening, config.frame_separator, config.video_frames, config.video_fps) == ("<f>", "", 64, 2.0)
    view = config.view()
    assert (view.frames, view.fps, view.most) == (64, 2.0, 1)


def test_frames_are_pooled_as_the_video_encoder_says_and_time_tokens_are_not_learned(tmp_path):
    """VILA's TSPVideoEncoder: the mean of each three frames' embeddings; a picture's are its own."""
    encoder = {"_target_": "llava.model.encoders.TSPVideoEncoder", "pool_sizes": [[3, 1, 1]]}
    top = ENCODERS | {"video_encoder": encoder, "num_time_tokens": 9, "time_token_ids": [290, 298]}
    folder = release(tmp_path / "r", llm=llm_config("qwen2", SMALL), vision=vision_config(40, 24, 48, 2, 4, 8),
                     kind="linear", top=top, write=dense)  # fmt: skip
    said = weights.inspect(folder)
    assert "the mean of each 3" in said and "time tokens     9: answers" in said
    config = replace(read_config(folder), frames_per_chunk=4)
    model = build_model(config, Job(), dtype=torch.float32, seed=1, weights=str(folder), trained=())
    writer = Writer(tokenizer=ByteTokenizer(), chat="byte", tokens_per_frame=config.tokens_per_frame,
                    frame_separator="", view=config.view())  # fmt: skip
    turns = (Turn(role="human", text="<video><image>"), Turn(role="gpt", text="at once"))
    media = {"videos": (MEDIA / "taxi.mp4",), "images": (MEDIA / "taxi.mp4",)}
    sample = Sample(where="data:1", name="x", turns=turns, **media)
    documents = Documents(writer, Sampling(frames=7))
    row = Row(documents=(documents.make(sample),))
    batch = row_batch(row, OneProcess(), config.image_size, torch.device("cpu"), torch.float32)
    assert (row.frames, len(batch.pixels_FCHW), len(batch.vision_at_V)) == (4, 12, 4 * config.tokens_per_frame)
    assert row.documents[0].media[0].times[6:] == 3 * row.documents[0].media[0].times[6:7]  # 7 frames are 9
    with torch.no_grad():
        each = model.projector(model.tower(pixel_values=batch.pixels_FCHW).last_hidden_state)
        expected = torch.stack([each[i : i + 3].mean(0) for i in range(0, 12, 3)]).flatten(0, 1)
        torch.testing.assert_close(model.encode_frames(batch.pixels_FCHW, 4), expected)
        torch.testing.assert_close(expected[-config.tokens_per_frame :], each[9])
        assert model.encode_frames(batch.pixels_FCHW[:0], 4).shape == (0, 32)
    moment = replace(sample, turns=(turns[0], Turn(role="gpt", text="at <t3>.")))
    with pytest.raises(JobError, match=r"data:1: an answer holds <t3>, a time token"):
        documents.make(moment)
    documents.make(moment, prompt=True)


def test_weights_in_two_places_and_of_no_part_are_refused(tmp_path):
    given = {"llm": llm_config("qwen2", SMALL), "vision": vision_config(40, 24, 48, 2, 4, 8), "kind": "linear"}
    folder = release(tmp_path / "r", **given, write=dense)
    dense(folder / "model.safetensors", {"llm.lm_head.weight": (3, 3)})
    with pytest.raises(JobError, match=r"llm is in .* and in .*llm: one of them must go"):
        weights.inspect(folder)
    dense(folder / "model.safetensors", {"audio.weight": (3, 3)})
    with pytest.raises(JobError, match=r"unexpected audio.weight"):
        weights.inspect(folder)
    with pytest.raises(SystemExit, match="2"):
        weights.main(["inspect"])


def edited(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def twice(folder):
    (folder / "llm/model-2.safetensors").write_bytes((folder / "llm/model.safetensors").read_bytes())


ODD = {  # of a small release: what is changed, what is said
    "whole numbers": (
        lambda f: edited(
            f / "llm/model.safetensors", lambda t: t.update({"lm_head.weight": t["lm_head.weight"].char()})
        ),
        "lm_head.weight is stored as int8; run are float64, float32, bfloat16, float16",
    ),
    "a tensor twice": (twice, r"is in .*model-2.safetensors and in .*model.safetensors: one of them must go"),
    "an index of what is gone": (
        lambda f: (f / "llm/model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}'),
        r"model.safetensors.index.json names b.safetensors, which is not there",
    ),
    "one part without weights": (lambda f: (f / "llm/model.safetensors").unlink(), r"llm: missing model.embed_tokens"),
}
TOPS = {  # config.json's key and value: what is said
    "fps": (-2, "fps '-2' is not run"), "mm_vision_select_layer": (0, "vision_select_layer 0 is not within"),
    "video_encoder": ([1], "video_encoder .* it is a mapping"),
    "image_encoder": ({"_target_": None}, "'None' is not run"),
    "chat_template": (["a"], "chat_template .* is not run; legal"),
}  # fmt: skip
LITTLE = {"llm": llm_config("qwen2", SMALL), "vision": vision_config(40, 24, 48, 2, 4, 8), "kind": "linear"}


@pytest.mark.parametrize("name", [*ODD, *TOPS])
def test_odd_folders_are_refused_in_one_line(tmp_path, capsys, name):
    change, told = ODD.get(name) or (None, TOPS[name][1])
    folder = release(tmp_path / "r", **LITTLE, write=dense, top=None if change else {name: TOPS[name][0]})
    if change:
        change(folder)
    with pytest.raises(SystemExit, match="2"):
        weights.main(["inspect", str(folder)])
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(told, line)


def test_a_folder_without_weights_is_inspected(tmp_path, capsys):
    folder = release(tmp_path / "r", **LITTLE, write=dense)
    for file in folder.glob("*/*.safetensors"):
        file.unlink()
    weights.main(["inspect", str(folder)])
    assert "none in this folder: it can be planned, not trained" in capsys.readouterr().out
    (folder / "llm/config.json").write_text(json.dumps({**LITTLE["llm"], "num_attention_heads": 0}))
    with pytest.raises(SystemExit, match="2"):
        weights.main(["inspect", str(folder)])
    assert "model: cannot be built (integer division" in capsys.readouterr().err


def test_s2_is_the_tower_at_every_scale():
    """Against tiles cut and put together by hand; channels of each scale stand side by side."""
    torch.manual_seed(2)
    patch = nn.Conv2d(3, 5, 4, stride=4).double()

    def tower(pixels):
        return patch(pixels).flatten(2).transpose(1, 2)

    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    seen = multiscale(tower, pixels, (8, 16))
    assert seen.shape == (2, 4, 10)
    small = nn.functional.interpolate(pixels, size=8, mode="bicubic")
    torch.testing.assert_close(seen[..., :5], tower(small), rtol=1e-9, atol=1e-9)
    large = patch(pixels).reshape(2, 5, 2, 2, 2, 2).mean((3, 5)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(seen[..., 5:], large, rtol=1e-9, atol=1e-9)


def test_models_of_several_scales_run_and_repeat_channels():
    tiny = load_config("tiny")
    pixels = torch.randn(1, 3, 96, 96)
    for changes in ({"s2_scales": (48, 96)}, {"s2_repeat": 3}):
        config = LongVilaConfig(**{**vars(tiny), **changes})
        model = build_model(config, Job(), dtype=torch.float32, seed=0, weights=None, trained=())
        size = config.image_size
        assert model.encode_frames(pixels[..., :size, :size], 1).shape == (config.tokens_per_frame, 128)
        assert model.projector.layers[1].weight.numel() == 4 * 64 * (2 if config.s2_scales else 3)
    with pytest.raises(JobError, match=r"s2_scales \[48, 100\] are not multiples"):
        LongVilaConfig(**{**vars(tiny), "s2_scales": (48, 100)})
    assert load_config("longvila-8b").projector == COLUMNS
    assert all(load_config(name).tokens_per_frame == 196 for name in presets() if name != "tiny")


def test_what_is_exported_is_read_by_transformers(tmp_path):
    model = build_model(load_config("tiny"), Job(), dtype=torch.float32, seed=3, weights=None, trained=())
    weights.save_weights(model, tmp_path / "out", OneProcess())
    llm = AutoModelForCausalLM.from_pretrained(tmp_path / "out/llm").eval()
    tower = SiglipVisionModel.from_pretrained(tmp_path / "out/vision_tower").eval()
    ids, pixels = torch.arange(12)[None], torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(llm(ids).logits, model.llm(ids).logits)
        states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        torch.testing.assert_close(states[-1], model.tower(pixel_values=pixels).last_hidden_state)
    assert read_config(tmp_path / "out").projector == "mlp_downsample"
    assert weights.inspect(tmp_path / "out").endswith("ignored         nothing")


@pytest.mark.parametrize("changes", [
    {"projector": COLUMNS}, {"projector": "mlp_downsample_3x3_fix", "min_tiles": 2, "max_tiles": 6, "video_fps": 2.0},
    {"s2_repeat": 3}, {"video_pool": 8, "time_tokens": 100},
    {"s2_scales": (48, 96), "frame_opening": "<f>", "frame_separator": "", "video_frames": 32},
])  # fmt: skip
def test_an_export_says_what_it_is_in_the_published_keys_alone(tmp_path, changes):
    """So that VILA's own code, which knows nothing of the key `longvila`, reads the same model."""
    config = LongVilaConfig(**{**vars(load_config("tiny")), "frame_separator": "\n", **changes})
    model = build_model(config, Job(), dtype=torch.float32, seed=3, weights=None, trained=())
    weights.save_weights(model, tmp_path / "out", OneProcess())
    again = read_config(tmp_path / "out")
    top = json.loads((tmp_path / "out/config.json").read_text())
    for key, value in (("image_aspect_ratio", None), ("num_video_frames", 99), ("fps", 7.0)):
        (tmp_path / "out/config.json").write_text(json.dumps({**top, key: value}))
        with pytest.raises(JobError, match=f"{key} .* is not run; its key longvila says .*: change both"):
            read_config(tmp_path / "out")
    del top["longvila"]
    (tmp_path / "out/config.json").write_text(json.dumps(top))
    published = read_config(tmp_path / "out")
    for name in ("projector", "min_tiles", "max_tiles", "video_fps", "video_frames", "s2_scales", "s2_repeat",
                 "video_pool", "time_tokens", "frame_opening", "frame_separator", "tokens_per_frame"):  # fmt: skip
        assert getattr(config, name) == getattr(again, name) == getattr(published, name), name
    assert unknown(tmp_path / "out") == []


def test_a_folder_without_a_tokenizers_words_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(llm_config("qwen2", SMALL)))
    with pytest.raises(JobError, match=r"holds no (tokenizer's words|usable tokenizer)"):
        FolderTokenizer(tmp_path)


def test_a_tokenizer_is_with_the_language_model_or_at_the_root(tmp_path):
    (tmp_path / "llm").mkdir()
    assert tokenizer_folder(tmp_path) == tmp_path / "llm"
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert tokenizer_folder(tmp_path) == tmp_path
    (tmp_path / "llm/tokenizer_config.json").write_text("{}")
    assert tokenizer_folder(tmp_path) == tmp_path / "llm"
