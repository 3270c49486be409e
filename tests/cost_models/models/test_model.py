"""Models from presets and from config.json files as public models ship them (fields that matter, as published)."""

import json
from dataclasses import replace

import pytest

from cost_models import InputError, Model

LLAMA3 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 128000, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 8192,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": False, "vocab_size": 128256,
}  # fmt: skip
MISTRAL = {
    "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "sliding_window": 4096, "tie_word_embeddings": False,
    "vocab_size": 32000,
}  # fmt: skip
QWEN2 = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "tie_word_embeddings": False, "vocab_size": 152064,
}  # fmt: skip
QWEN3 = {
    "model_type": "qwen3", "attention_bias": False, "head_dim": 128, "hidden_size": 4096, "intermediate_size": 12288,
    "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "tie_word_embeddings": False,
    "vocab_size": 151936,
}  # fmt: skip
LLAVA = {
    "model_type": "llava", "image_token_index": 32000, "projector_hidden_act": "gelu",
    "text_config": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
        "num_hidden_layers": 32, "vocab_size": 32064,
    },
    "vision_config": {
        "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14,
    },
}  # fmt: skip
QWEN25_VL = {
    "model_type": "qwen2_5_vl", "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
    "vision_config": {
        "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
        "in_chans": 3, "out_hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2, "window_size": 112,
    },
}  # fmt: skip


def config(tmp_path, data, name="config.json"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return str(path)


@pytest.mark.parametrize(
    ("data", "params"),  # as the model cards' safetensors headers count them
    [(LLAMA3, 8_030_261_248), (MISTRAL, 7_241_732_096), (QWEN2, 7_615_616_512), (QWEN3, 8_190_735_360)],
)
def test_language_models_have_their_published_size(tmp_path, data, params):
    path = config(tmp_path, data)
    assert Model.load(path).llm_params == params
    assert Model.load(str(tmp_path)) == Model.load(path)  # the folder serves as well


def test_presets_equal_their_configs(tmp_path):
    by_file = Model.load(config(tmp_path, LLAMA3))
    preset = Model.load("llama-3-8b")
    assert replace(by_file, name=preset.name) == preset


def test_vlms_carry_their_tower(tmp_path):
    llava = Model.load(config(tmp_path / "llava", LLAVA))
    assert llava.vision is not None
    assert (llava.vision.patches, llava.vision.tokens_per_frame, llava.kv_heads) == (576, 576, 32)
    qwen = Model.load(config(tmp_path / "qwen", QWEN25_VL))
    assert qwen.vision is not None
    assert (qwen.layers, qwen.vision.layers, qwen.vision.projector_in) == (28, 32, 5120)
    assert qwen.qkv_bias and qwen.vision.gated


def test_vila_reads_the_folders_beside_its_config(tmp_path):
    vila = {"model_type": "llava_llama", "mm_projector_type": "mlp_downsample", "llm_cfg": None}
    siglip = {"model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304,
              "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14}  # fmt: skip
    config(tmp_path, vila)
    config(tmp_path / "llm", LLAMA3)
    config(tmp_path / "vision_tower", siglip)
    model = Model.load(str(tmp_path))
    assert model.vision is not None
    assert (model.hidden, model.vision.tokens_per_frame, model.vision.projector_in) == (4096, 196, 4608)
    assert model.vision.layers == 27
    config(tmp_path, {"model_type": "llava_llama", "dynamic_s2": True, "s2_scales": "384,768"})
    config(tmp_path / "mm_projector", {"mm_projector_type": "mlp_downsample_3x3_fix"})
    model = Model.load(str(tmp_path))
    assert model.vision is not None
    assert (model.vision.tokens_per_frame, model.vision.projector_in) == (81, 2 * 9 * 1152)
    one, pooled = ({"_target_": "TSPVideoEncoder", "pool_sizes": [[frames, 1, 1]]} for frames in (1, 8))
    config(tmp_path, {"model_type": "llava_llama", "video_encoder": one, "s2": False})
    Model.load(str(tmp_path))
    config(tmp_path, {"model_type": "llava_llama", "video_encoder": pooled, "num_time_tokens": 100})
    vision = Model.load(str(tmp_path)).vision
    assert vision is not None and (vision.frames_pooled, vision.stretches(17)) == (8, 3)
    for key, value in ("s2", True), *(("video_encoder", {"pool_sizes": s}) for s in ([[8, 2, 2]], [[1, 1, 1]] * 2)):
        config(tmp_path, {"model_type": "llava_llama", key: value})
        with pytest.raises(InputError, match=rf"config\.json: {key}=.* is not priced"):
            Model.load(str(tmp_path))


def test_longvila_tiny_is_the_model_that_is_trained():
    longvila_config = pytest.importorskip("longvila.config")
    from longvila.model import LongVilaForConditionalGeneration

    built = LongVilaForConditionalGeneration(longvila_config.load_config("tiny"))
    model = Model.load("longvila-tiny")
    assert sum(p.numel() for p in built.llm.parameters()) == model.llm_params
    built_vision = sum(p.numel() for name, p in built.named_parameters() if not name.startswith("llm"))
    assert model.vision_params == built_vision


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({**LLAMA3, "model_type": "mamba"}, "model_type 'mamba' is not supported; legal: llama, mistral, qwen2"),
        ({k: v for k, v in LLAMA3.items() if k != "hidden_size"}, "hidden_size is missing"),
        ({**LLAMA3, "num_hidden_layers": -1}, "num_hidden_layers=-1 must be a whole number of at least 1"),
        ({**LLAMA3, "num_key_value_heads": 5}, "heads=32 is not a multiple of kv_heads=5"),
        ({"model_type": "llava"}, "needs text_config or llm_cfg"),
        ({**QWEN3, "num_experts": 128}, "model_type 'qwen3' has no experts; legal with experts: mixtral"),
        ([], "not a JSON object"),
    ],
)
def test_configs_that_cannot_be_used_are_refused_by_name(tmp_path, data, message):
    with pytest.raises(InputError, match=message):
        Model.load(config(tmp_path, data))


def test_unknown_names_hint_at_the_nearest():
    with pytest.raises(InputError, match="did you mean longvila-8b"):
        Model.load("longvila-8")
