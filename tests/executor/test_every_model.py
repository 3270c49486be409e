"""Every causal model of transformers under "mm_sp": the numbers of one process, or refused by name; nothing third."""

import copy
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from cost_models.errors import InputError
from cost_models.token_layout import Layout
from executor.mmsp.attention import NAME, MmSp, register
from executor.mmsp.exchange import Alone
from executor.mmsp.guard import KNOWN, guard, refuse_config
from executor.sharding import _check_heads, _is_decoder
from tests.executor.threads import local_exchanges

TOKENS = 30
SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embed_dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"), 48),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("attention_dropout", "hidden_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "dropout"), 0.0),
    "vocab_size": 64, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "n_positions": 128,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "sliding_window": 11, "activation_dropout": 0.0,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""Of a tiny model, by every name that a config may use."""


def tiny(name: str, **more: object) -> torch.nn.Module:
    """A model of this kind whose attention shapes its logits: weights far larger than those it would start from."""
    plain = CONFIG_MAPPING[name]()
    known = {*vars(plain), *plain.to_dict(), *getattr(plain, "attribute_map", {})}
    given = {key: value for key, value in SIZES.items() if key in known and getattr(plain, key, None) is not None}
    if name.endswith(("_vl_text", "_vl_moe_text")):
        given["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    config = CONFIG_MAPPING[name](**given | more)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    maker = AutoModelForCausalLM if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else AutoModel
    model = maker.from_config(config).float().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.5 * parameter.shape[-1] ** -0.5)
    return model


def places(name: str) -> torch.Tensor:
    """Positions (1, L), or (3, 1, L) of time, height and width."""
    if "_vl_" not in name:
        return torch.arange(TOKENS)[None]
    return torch.randint(0, TOKENS, (3, 1, TOKENS), generator=torch.Generator().manual_seed(1))


def result(model: torch.nn.Module, **given) -> torch.Tensor:
    found = model(use_cache=False, **given)
    return found.logits if "logits" in found else found.last_hidden_state


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_known_models_give_the_numbers_of_one_process(name: str) -> None:
    check(name, tiny(name))


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "short_factor": [1.0, 1.0, 1.0, 1.0],
    "long_factor": [4.0, 5.0, 6.0, 7.0], "original_max_position_embeddings": 24,
}  # fmt: skip
LENGTHS: dict[tuple[str, str], dict[str, object]] = {
    ("llama", "dynamic"): {"rope_parameters": DYNAMIC, "max_position_embeddings": 24},
    ("gemma3_text", "dynamic"): {
        "rope_parameters": {"full_attention": DYNAMIC, "sliding_attention": DYNAMIC}, "max_position_embeddings": 24,
    },
    ("phi3", "longrope"): {"rope_parameters": LONG, "original_max_position_embeddings": 24},
    ("phimoe", "longrope"): {
        "rope_parameters": LONG | {"short_mscale": 1.1, "long_mscale": 1.3}, "original_max_position_embeddings": 24,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", LENGTHS, ids="-".join)
def test_rotary_embeddings_that_follow_the_rows_length_give_the_numbers_of_one_process(case: tuple[str, str]) -> None:
    """Of the ring's two ranks, one has no position beyond the length from which the angles change."""
    check(case[0], tiny(case[0], **LENGTHS[case]))


@torch.no_grad()
def check(name: str, model: torch.nn.Module) -> None:
    """The model under "mm_sp" on a ring of two gives its numbers in one process."""
    ids, at = torch.randint(3, 60, (1, TOKENS), generator=torch.Generator().manual_seed(2)), places(name)
    want = result(model, input_ids=ids, position_ids=at)
    apart = result(model, input_ids=ids[:, 15:], position_ids=at[..., 15:])
    size = want.abs().max()
    assert (apart - want[:, 15:]).abs().max() > 0.1 * size, "what comes before does not matter: nothing is tested"
    for block in model.modules():
        if _is_decoder(block):
            _check_heads(block, 2)
    register()
    model.set_attn_implementation(NAME)
    guard(model)
    layout, ring = Layout(tokens=TOKENS, ring=2), local_exchanges(2)
    models = {exchange.index: copy.deepcopy(model) for exchange in ring}  # what a call keeps is each rank's own

    def rank(exchange) -> tuple[torch.Tensor, torch.Tensor]:
        index_S = torch.from_numpy(layout.index(exchange.index, 0))
        real = index_S[index_S < TOKENS]
        take = index_S.clamp(max=TOKENS - 1)
        call = MmSp(layout=layout, ulysses=Alone(), ring=exchange)
        with torch.no_grad():
            got = result(models[exchange.index], input_ids=ids[:, take], position_ids=at[..., take], mm_sp=call)
        return real, got[:, : len(real)]

    with ThreadPoolExecutor(2) as pool:
        for real, got in pool.map(rank, ring):
            torch.testing.assert_close(got, want[:, real], rtol=0, atol=float(1e-5 * size))


OTHERS = sorted({CONFIG_MAPPING[name].model_type for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - KNOWN)


@pytest.mark.parametrize("kind", OTHERS)
def test_all_others_are_refused_by_name(kind: str) -> None:
    with pytest.raises(InputError, match=f"is not known to be right for model_type={kind};"):
        refuse_config(SimpleNamespace(model_type=kind))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": ["full_attention", "conv"]}, "does not do layer_types=conv; legal: full_attention, sliding"),
        ({"use_bidirectional_attention": True}, "does not do use_bidirectional_attention"),
        ({"attention_chunk_size": 8}, "does not do attention_chunk_size"),
    ],
)
def test_configs_of_known_kinds_that_mix_tokens_otherwise_are_refused(change: dict, message: str) -> None:
    config = CONFIG_MAPPING["llama"]()
    for key, value in change.items():
        setattr(config, key, value)
    with pytest.raises(InputError, match=message):
        refuse_config(config)
