"""Video tokens by each model's own rule, and what a config does not say rightly."""

import json

import pytest

from cost_models import InputError, Model, Workload
from planner.question.options import of_frame_pixels

TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 304,
        "num_key_value_heads": 2, "model_type": "qwen2"}  # fmt: skip
SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 448, "intermediate_size": 4304,
          "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14}  # fmt: skip
SIGLIP_384 = {**SIGLIP, "image_size": 384}
CLIP = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
PIXTRAL = {"model_type": "pixtral", "image_size": 1540, "patch_size": 14}
CHAT = {"model_type": "internvl_chat", "llm_config": TEXT, "vision_config": SIGLIP}
NVILA = {"model_type": "llava_llama", "llm_cfg": TEXT, "vision_tower_cfg": SIGLIP,
         "mm_projector_cfg": {"mm_projector_type": "mlp_downsample_3x3_fix"}}  # fmt: skip
QWEN25 = {**TEXT, "model_type": "qwen2_5_vl", "vision_config": {"depth": 2, "hidden_size": 1280}}
LLAVA_VIDEO = {**TEXT, "model_type": "llava_qwen", "mm_vision_tower": "google/siglip-so400m-patch14-384",
               "mm_spatial_pool_stride": 2, "mm_spatial_pool_mode": "bilinear"}  # fmt: skip


def load(folder, data):
    path = folder / "config.json"
    path.write_text(json.dumps(data))
    return Model.load(str(path))


def nested(kind, tower, **more):
    return {"model_type": kind, "text_config": TEXT, "vision_config": tower} | more


@pytest.mark.parametrize(
    ("data", "tokens"),
    [
        (NVILA, 121),  # 448 / 14 = 32 patches a side, three merged: 11 x 11
        ({**NVILA, "mm_projector_cfg": {"mm_projector_type": "mlp_downsample_2x2_fix"}}, 256),
        ({**NVILA, "mm_projector_cfg": None, "mm_projector": "mlp2x_gelu"}, 1024),
        (QWEN25, 256),
        (nested("qwen3_vl", {}), 196),  # 448 / 32 = 14
        (nested("llava_onevision", SIGLIP_384), 196),  # 27 patches a side, pooled by two, rounded up
        (nested("llava_next_video", CLIP), 144),
        (nested("llava_next_video", CLIP, spatial_pool_stride=3), 64),
        (LLAVA_VIDEO, 196),
        ({**LLAVA_VIDEO, "mm_newline_position": "grid"}, 210),  # a token behind each of 14 rows
        ({**LLAVA_VIDEO, "mm_spatial_pool_mode": "average"}, 169),
        (
            {
                **TEXT,
                "model_type": "llava_llama",
                "mm_vision_tower": "openai/clip-vit-large-patch14-336",
                "mm_projector_type": "mlp2x_gelu",
            },
            576,
        ),
        (nested("internvl", {"image_size": [448, 448], "patch_size": [14, 14]}), 256),
        (nested("gemma3", {**SIGLIP, "image_size": 896}), 256),
        (nested("smolvlm", {**SIGLIP, "image_size": 512, "patch_size": 16}, scale_factor=4), 64),
        (nested("mistral3", {"patch_size": 14}), 256),
        (nested("mistral3", {}), 196),  # the class's patches are of 16
        (nested("qwen2_5_vl", {"hidden_size": 1280}, vision_config={"patch_size": 16, "spatial_merge_size": 3}), 81),
        (nested("llava", CLIP), 576),
        (nested("llava", CLIP, vision_feature_select_strategy="full"), 577),
        (nested("llava", SIGLIP_384, vision_feature_select_strategy="full"), 729),  # no class token
        (nested("llava", SIGLIP_384), 728),  # the class drops the first patch then
        (nested("llava", {**PIXTRAL, "patch_size": 16}, vision_feature_select_strategy="full"), 784),
        (CHAT, 256),
        ({**CHAT, "force_image_size": 224}, 64),
    ],
)
def test_tokens_of_a_frame(tmp_path, data, tokens):
    vision = load(tmp_path, data).vision
    assert vision is not None and vision.tokens_per_frame == tokens


def test_two_frames_share_a_grid(tmp_path):
    model = load(tmp_path, QWEN25)
    assert Workload(model, frames=768).vision_tokens == 98_304
    assert Workload(model, frames=767).vision_tokens == 98_304
    assert "768 frames, 256 for each 2" in Workload(model, frames=768).describe()


def test_deepstack_adds_a_projector_for_each_level(tmp_path):
    vision = load(tmp_path, nested("qwen3_vl", {"deepstack_visual_indexes": [8, 16]})).vision
    assert vision is not None and vision.projectors == 3
    assert vision.projector_params(64) == 3 * (2 * 4608 + 4608**2 + 4608 + 4608 * 64 + 64)


def test_frames_of_another_size(tmp_path):
    vision = load(tmp_path, QWEN25).vision
    assert vision is not None
    small = vision.of_pixels(224, 420)
    assert (small.tokens_per_frame, small.patches) == (8 * 15, 4 * 8 * 15)
    assert of_frame_pixels(load(tmp_path, QWEN25), "224x420").vision == small
    with pytest.raises(InputError, match="--frame-pixels '448'; legal: HEIGHTxWIDTH"):
        of_frame_pixels(load(tmp_path, QWEN25), "448")
    with pytest.raises(InputError, match="has no vision tower"):
        of_frame_pixels(load(tmp_path, TEXT), "448x448")
    fixed = load(tmp_path, NVILA).vision
    assert fixed is not None
    with pytest.raises(InputError, match="this tower resizes every frame; legal: 448x448"):
        fixed.of_pixels(224, 224)


@pytest.mark.parametrize(
    ("size", "tokens"),  # of PixtralImageProcessor(patch_size=28, size={"longest_edge": 1540}), transformers 5.23
    [((450, 450), 289), ((462, 434), 272), ((1080, 1920), 1705), ((20, 300), 11), ((448, 448), 256)],
)
def test_pixtrals_frames_shrink_to_their_longest_side_and_round_up(tmp_path, size, tokens):
    vision = load(tmp_path, nested("mistral3", PIXTRAL)).vision
    assert vision is not None
    sized = vision.of_pixels(*size)
    assert (sized.tokens_per_frame, sized.patches) == (tokens, 4 * tokens)


def test_layers_of_the_tower_side_by_side_widen_the_projector(tmp_path):
    one = load(tmp_path, nested("llava", SIGLIP, vision_feature_select_strategy="full"))
    two = load(tmp_path, nested("llava", SIGLIP, vision_feature_select_strategy="full", vision_feature_layer=[-2, -1]))
    assert two.vision.projector_in == 2 * one.vision.projector_in


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (nested("llava_onevision", SIGLIP, vision_feature_select_strategy="default"), "leaves 1023 features of 32"),
        (nested("llava", CLIP, vision_feature_select_strategy="both"), "='both'; legal: default, full"),
        (nested("llava_next_video", PIXTRAL), "a tower of model_type 'pixtral' is not known; legal: clip"),
        (nested("gemma3", CLIP), "a tower of model_type 'clip_vision_model' is not known; legal: siglip"),
        (nested("mistral3", PIXTRAL, vision_feature_layer=[-2, -1]), "vision_feature_layer="),
        (
            {**LLAVA_VIDEO, "mm_vision_tower": "clip-vit-large-patch14-336", "mm_vision_select_feature": "cls_patch"},
            "mm_vision_select_feature='cls_patch' behind CLIP",
        ),
        ({**TEXT, "sparse_config": {"block_size": 64}}, "sparse_config is not a key of model_type"),
        ({**TEXT, "index_topk": 2048}, "index_topk is not a key of model_type .*: its attention is not known"),
        ({**TEXT, "is_causal": False}, "tokens that see later ones"),
        ({**TEXT, "model_type": "gemma", "use_bidirectional_attention": True}, "tokens that see later ones"),
        (
            {**NVILA, "mm_projector_cfg": {"mm_projector_type": "perceiver"}},
            "mm_projector_type='perceiver' is not known",
        ),
        ({**LLAVA_VIDEO, "mm_vision_tower": "some/tower"}, "mm_vision_tower='some/tower' is not known"),
        ({**LLAVA_VIDEO, "mm_newline_position": "row"}, "mm_newline_position='row'; legal: grid"),
        ({**LLAVA_VIDEO, "mm_newline_position": ["grid"]}, r"mm_newline_position=\['grid'\]; legal: grid"),
        ({**TEXT, "model_type": ["qwen2"]}, r"model_type \['qwen2'\] is not supported"),
        (nested("llava", SIGLIP, text_config={**TEXT, "model_type": {}}), "language model kind {} is not supported"),
        ({**TEXT, "num_hidden_layers": 10**12}, "num_hidden_layers=1000000000000; legal: 1 to 10000"),
        (nested("internvl", {}, downsample_ratio=0.4), "downsample_ratio=0.4 must be 1 over"),
        ({**TEXT, "layer_types": ["full_attention", "linear_attention"]}, "layer_types has 'linear_att"),
        (
            {**TEXT, "model_type": "gemma2", "layer_types": ["full_attention", "linear_attention"]},
            "layer_types has",
        ),
        ({**TEXT, "linear_num_key_heads": 4}, "linear_num_key_heads is not a key of model_type 'qwen2'"),
        ({**TEXT, "model_type": "llama", "hidden_act": "relu2"}, "hidden_act='relu2' is not known"),
        ({**TEXT, "model_type": "mistral", "sliding_window": "wide"}, "sliding_window='wide' must be a whole number"),
    ],
)
def test_what_is_not_known_is_refused_by_its_key(tmp_path, data, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path, data)


@pytest.mark.parametrize(
    ("named", "weights"),  # of VILA's base_projector.py and LLaVA's builder, from 1,152 channels to 64
    [
        ("linear", 1152 * 64),
        ("mlp2x_gelu", 1152 * 64 + 64 * 64),
        ("mlp3x_gelu", 1152 * 64 + 2 * 64 * 64),
        ("mlp_downsample", 4 * 1152 * 64 + 64 * 64),
        ("mlp_downsample_3x3_fix", 9 * 1152 * 3 * 1152 + 3 * 1152 * 64 + 64 * 64),
    ],
)
def test_a_projector_has_the_weights_of_its_maps(tmp_path, named, weights):
    data = {**NVILA, "mm_projector_cfg": {"mm_projector_type": named}}
    without = load(tmp_path, {**NVILA, "mm_projector_cfg": {"mm_projector_type": "identity"}}).vision_params
    assert load(tmp_path, data).vision_params - without == pytest.approx(weights, rel=0.02)
