"""Every kind of config against transformers: the language model's weights, built on the meta device, and windows.

Small sizes are written here; what a config leaves out has the class's default on both sides.
"""

import itertools
import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from cost_models import Model
from cost_models.errors import InputError
from cost_models.models.huggingface import VLM
from cost_models.models.huggingface_experts import COUNT_KEYS
from cost_models.models.model import LAYER_KINDS
from cost_models.models.text_kinds import TEXT_KINDS

SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "num_attention_heads": 8, "vocab_size": 304,
    "num_key_value_heads": 2,
}  # fmt: skip
PADS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
"""Defaults of some classes lie beyond a small vocabulary."""
QWEN_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1}
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12,
          "n_shared_experts": 1, "first_k_dense_replace": 2, "num_key_value_heads": 8}  # fmt: skip
NEEDED = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "ministral": {"head_dim": 8},  # the class itself fails without
    "hunyuan_v1_dense": {"head_dim": 8},  # so does this one
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**QWEN_MOE, "shared_expert_intermediate_size": 48},
    "qwen3_moe": QWEN_MOE,
    "qwen3_vl_moe_text": QWEN_MOE,
    "deepseek_v2": {**ROUTED, **LATENT},
    "deepseek_v3": {**ROUTED, **LATENT},
    "glm4_moe": {**ROUTED, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "glm4v_moe_text": {**ROUTED, "n_shared_experts": 1, "first_k_dense_replace": 1},
}
CHANGES = [
    {}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}, {"attention_bias": True}, {"mlp_bias": True},
    {"attention_bias": False}, {"attention_out_bias": True}, {"head_dim": 24},
    {"num_key_value_heads": None}, {"num_key_value_heads": 4},
    {"qkv_bias": False}, {"use_qk_norm": True}, {"q_lora_rank": None}, {"decoder_sparse_step": 2},
    {"mlp_only_layers": [0, 3]}, {"first_k_dense_replace": 3}, {"n_shared_experts": 2},
]  # fmt: skip
WINDOWS = [
    {}, {"sliding_window": 32}, {"sliding_window": None}, {"sliding_window": 32, "use_sliding_window": True},
    {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 3}, {"use_sliding_window": False},
    {"sliding_window": 32, "sliding_window_pattern": 4}, {"sliding_window": 32, "layer_types": "mixed"},
    {"sliding_window": 32, "use_sliding_window": True, "no_rope_layer_interval": 3},
]  # fmt: skip
ALONE = [kind for kind in TEXT_KINDS if not kind.endswith("_text") or kind == "gemma3_text"]


def test_the_kinds_of_this_file_are_those_that_are_read():
    assert set(ALONE) | {VLM[name].text for name in VLM} >= set(TEXT_KINDS)


def load(folder, data):
    path = folder / "config.json"
    path.write_text(json.dumps(data))
    return Model.load(str(path))


def built(auto, config):
    with torch.device("meta"):
        return auto.from_config(config)


def parameters(module):
    """Each weight once, a tied one too."""
    return sum(p.numel() for p in module.parameters())


def llm_parameters(model):
    """Decoder and output head of a vision-language model."""
    inner = model.model
    decoder = inner.text_model if hasattr(inner, "text_model") else inner.language_model
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return parameters(decoder) + (0 if head.weight is embedding.weight else head.weight.numel())


def allowed(kind, change):
    """Changes that mean something to a class; what transformers refuses is not a config of that kind."""
    one = TEXT_KINDS[kind]
    if one.latent:
        return not {"attention_bias", "mlp_bias", "head_dim", "num_key_value_heads"} & set(change) or change == {
            "attention_bias": False
        }
    if "num_key_value_heads" in change and change["num_key_value_heads"] is None:
        return kind in ("llama", "qwen2", "qwen3", "phi3", "smollm3", "granite")
    return True


@pytest.mark.parametrize("kind", ALONE)
def test_weights_of_language_models_equal_transformers_count(tmp_path, kind):
    for change in CHANGES:
        if not allowed(kind, change):
            continue
        data = {"model_type": kind, **SMALL, **PADS, **NEEDED.get(kind, {}), **change}
        theirs = built(AutoModelForCausalLM, CONFIG_MAPPING[kind].from_dict(data))
        assert load(tmp_path, data).llm_params == parameters(theirs), change


@pytest.mark.parametrize("kind", [kind for kind in ALONE if TEXT_KINDS[kind].experts])
def test_experts_are_counted_by_the_key_that_the_class_reads_or_refused(tmp_path, kind):
    """Classes have one name for it or two: num_local_experts beside Qwen3's num_experts was passed over in silence."""
    needed = {key: value for key, value in NEEDED[kind].items() if key not in COUNT_KEYS}
    counts = [dict(zip(COUNT_KEYS, some, strict=True)) for some in itertools.product((None, 4, 6), repeat=3)]
    read = 0
    for count in counts:
        given = {key: value for key, value in count.items() if value is not None}
        data = {"model_type": kind, **SMALL, **PADS, **needed, **given}
        try:
            ours = load(tmp_path, data)
        except InputError:
            continue
        theirs = built(AutoModelForCausalLM, CONFIG_MAPPING[kind].from_dict(data))
        assert ours.llm_params == parameters(theirs), given
        read += 1
    assert read == (6 if TEXT_KINDS[kind].count_also else 2)


@pytest.mark.parametrize("kind", ALONE)
def test_windows_are_those_of_the_class(tmp_path, kind):
    for change in WINDOWS:
        data = {"model_type": kind, **SMALL, **PADS, **NEEDED.get(kind, {}), **change}
        if change.get("layer_types"):
            if TEXT_KINDS[kind].windows in ("none", "all", "switch"):
                continue
            data["layer_types"] = ["sliding_attention", "full_attention"] * 3 + ["full_attention"] * 2
        theirs = CONFIG_MAPPING[kind].from_dict(data)
        window = getattr(theirs, "sliding_window", None) or 0
        types = getattr(theirs, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * 8
        reads = TEXT_KINDS[kind].windows != "none"
        expected = [reads and window > 0 and one == "sliding_attention" for one in types]
        ours = load(tmp_path, data)
        assert [LAYER_KINDS[one].mixer == "window" for one in ours.layer_kinds] == expected, change
        assert ours.window == (window if any(expected) else 0), change


def vlm_config(kind, text_kind, top, nested):
    """A small VLM whose text config names as little as it may."""
    text = {**SMALL, **PADS, **NEEDED.get(text_kind, {}), "model_type": text_kind}
    if text_kind.startswith(("qwen2_vl", "qwen2_5", "qwen3_vl", "glm4v")):
        text["rope_parameters"] = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    data = {"model_type": kind, "text_config": text, "vision_config": {}}
    if nested is not None:
        text["tie_word_embeddings"] = nested
    if top is not None:
        data["tie_word_embeddings"] = top
    return data


TOWER = {"llava": "clip_vision_model", "llava_next": "clip_vision_model", "llava_next_video": "clip_vision_model",
         "llava_onevision": "siglip_vision_model", "gemma3": "siglip_vision_model", "mistral3": "pixtral"}  # fmt: skip
TEXTS = [
    *((kind, one.text) for kind, one in VLM.items() if one.text and kind in CONFIG_MAPPING),
    ("mistral3", "ministral3"), ("internvl", "qwen3"), ("internvl", "llama"), ("llava", "mistral"),
    ("llava_next", "qwen2"), ("internvl", "qwen3_moe"), ("internvl", "gpt_oss"), ("llava_onevision", "qwen3"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), TEXTS)
def test_weights_behind_towers_equal_transformers_count(tmp_path, kind, text):
    for top, nested in itertools.product((None, True, False), repeat=2):
        data = vlm_config(kind, text, top, nested)
        if kind in TOWER:
            data["vision_config"]["model_type"] = TOWER[kind]
        theirs = built(AutoModelForImageTextToText, CONFIG_MAPPING[kind].from_dict(data))
        assert load(tmp_path, data).llm_params == llm_parameters(theirs), (top, nested)


@pytest.mark.parametrize(("kind", "text"), TEXTS)
@pytest.mark.parametrize("brief", [True, False])
def test_what_transformers_saves_is_read_back(tmp_path, kind, text, brief):
    """It leaves out what equals a default, or writes all."""
    data = vlm_config(kind, text, None, None)
    if kind in TOWER:
        data["vision_config"]["model_type"] = TOWER[kind]
    saved = CONFIG_MAPPING[kind].from_dict(data).to_json_string(use_diff=brief)
    assert load(tmp_path, json.loads(saved)).llm_params == load(tmp_path, data).llm_params


@pytest.mark.parametrize("kind", ALONE)
@pytest.mark.parametrize("brief", [True, False])
def test_a_language_model_that_transformers_saves_is_read_back(tmp_path, kind, brief):
    data = {"model_type": kind, **SMALL, **PADS, **NEEDED.get(kind, {})}
    saved = CONFIG_MAPPING[kind].from_dict(data).to_json_string(use_diff=brief)
    ours, given = load(tmp_path, json.loads(saved)), load(tmp_path, data)
    assert (ours.llm_params, ours.layer_kinds, ours.window) == (given.llm_params, given.layer_kinds, given.window)


@pytest.mark.parametrize(("kind", "text"), TEXTS)
def test_a_nested_config_that_names_its_kind_alone_has_the_sizes_of_its_class(tmp_path, kind, text):
    theirs = CONFIG_MAPPING[text]()
    ours = load(tmp_path, {"model_type": kind, "text_config": {"model_type": text, "num_experts_per_tok": 2},
                           "vision_config": {"model_type": TOWER.get(kind, "siglip_vision_model")}})  # fmt: skip
    got = (ours.vocab, ours.hidden, ours.ffn, ours.layers, ours.heads, ours.kv_heads)
    assert got == (theirs.vocab_size, theirs.hidden_size, theirs.intermediate_size, theirs.num_hidden_layers,
                   theirs.num_attention_heads, theirs.num_key_value_heads or theirs.num_attention_heads)  # fmt: skip
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads)
    assert math.prod(got) > 0


SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304,
          "num_attention_heads": 16, "num_hidden_layers": 8, "patch_size": 14, "vision_use_head": False}  # fmt: skip
QWEN_TOWER = {"depth": 8, "hidden_size": 1280, "out_hidden_size": 4096, "intermediate_size": 3420, "num_heads": 16}
GLM_TOWER = {"depth": 8, "hidden_size": 1536, "num_heads": 12, "out_hidden_size": 4096}
TOWERS = [
    ("llava", {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "patch_size": 14,
               "num_attention_heads": 16, "num_hidden_layers": 8, "image_size": 336}),
    ("llava_onevision", SIGLIP), ("gemma3", {**SIGLIP, "image_size": 896}), ("smolvlm", SIGLIP), ("idefics3", SIGLIP),
    ("internvl", {"num_hidden_layers": 8}), ("mistral3", {"model_type": "pixtral", "num_hidden_layers": 8}),
    ("qwen2_vl", {"depth": 8, "embed_dim": 1280, "hidden_size": 4096}), ("qwen2_5_vl", QWEN_TOWER),
    ("qwen3_vl", {**QWEN_TOWER, "deepstack_visual_indexes": [1, 2]}),
    ("glm4v", {**GLM_TOWER, "intermediate_size": 13696}), ("glm4v_moe", {**GLM_TOWER, "intermediate_size": 10944}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "tower"), TOWERS)
def test_weights_of_tower_and_projector_are_transformers_count_within_one_percent(tmp_path, kind, tower):
    """Class tokens, positions by another rule and biases are left out."""
    text = VLM[kind].text
    assert text is not None
    data = vlm_config(kind, text, None, None)
    data["text_config"].update(hidden_size=4096, num_attention_heads=32, num_hidden_layers=2)
    if "rope_parameters" in data["text_config"]:
        data["text_config"]["rope_parameters"]["mrope_section"] = [16, 24, 24]
    data["vision_config"] = tower
    theirs = built(AutoModelForImageTextToText, CONFIG_MAPPING[kind].from_dict(data))
    assert load(tmp_path, data).vision_params == pytest.approx(parameters(theirs) - llm_parameters(theirs), rel=0.01)


def tower(kind, side, patch):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    return {"model_type": kind, "image_size": side, "patch_size": patch, **sizes}


CLASSES = ("clip_vision_model", "siglip_vision_model")
FRAMES = [
    *(("llava", tower(one, *size), {"vision_feature_select_strategy": strategy})
      for one in CLASSES for size in ((336, 14), (384, 14), (224, 32)) for strategy in ("default", "full")),
    *(("llava_next_video", tower(CLASSES[0], 384, 14), {"spatial_pool_stride": stride}) for stride in (2, 3)),
    ("llava_next_video", tower(CLASSES[1], 384, 14), {"vision_feature_select_strategy": "full"}),
    *(("internvl", tower("internvl_vision", [side, side], [14, 14]), {"downsample_ratio": ratio})
      for side in (448, 224) for ratio in (0.5, 0.25)),
    *((kind, tower(f"{kind}_vision", side, patch), {"scale_factor": scale})
      for kind in ("smolvlm", "idefics3") for side, patch, scale in ((512, 16, 4), (384, 14, 3))),
    *(("gemma3", tower(CLASSES[1], 896, 14), {"mm_tokens_per_image": tokens}) for tokens in (256, 64)),
    ("mistral3", tower("pixtral", 1540, 14), {"spatial_merge_size": 2}),
    ("mistral3", tower("pixtral", 1540, 16), {"spatial_merge_size": 4}),
    ("llava", tower("pixtral", 1024, 16), {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "tower", "more"), FRAMES)
def test_tokens_of_a_frame_are_the_features_that_the_class_makes_of_it(tmp_path, kind, tower, more):
    data = {**vlm_config(kind, VLM[kind].text, None, None), "vision_config": tower, **more}
    theirs = built(AutoModelForImageTextToText, CONFIG_MAPPING[kind].from_dict(data)).model
    pixtral = tower["model_type"] == "pixtral"
    side = (
        448
        if pixtral
        else math.isqrt(math.prod([tower["image_size"]] * 2 if kind != "internvl" else tower["image_size"]))
    )
    on = "cpu" if pixtral or kind in ("smolvlm", "idefics3") else "meta"  # these look into frames or sizes
    theirs, frame = theirs.to_empty(device=on), torch.ones(1, 3, side, side, device=on)
    if kind == "llava_next_video":
        out = theirs.get_video_features(frame[None]).pooler_output
    elif kind in ("smolvlm", "idefics3"):
        out = theirs.get_image_features(frame[None]).pooler_output
    else:
        out = theirs.get_image_features(frame, **({"image_sizes": torch.tensor([[side, side]])} if pixtral else {}))
        out = out.pooler_output
    tokens = sum(one.numel() for one in out) // SMALL["hidden_size"]
    assert load(tmp_path, data).vision.tokens_per_frame == tokens


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in TEXTS}))
def test_keys_that_a_tower_leaves_out_are_those_of_its_class(tmp_path, kind):
    data = vlm_config(kind, VLM[kind].text, None, None)
    whole = json.loads(CONFIG_MAPPING[kind].from_dict(data).to_json_string(use_diff=False))
    assert load(tmp_path, data).vision == load(tmp_path, whole).vision
