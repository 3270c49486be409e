"""What of a Hugging Face model "mm_sp" computes rightly, and the refusal of everything else by name.

A model is right under "mm_sp" if its tokens meet in attention alone, and its attention asks transformers' interface
with all that it depends on. Convolutions, state spaces and attention of a model's own see the tokens of one rank
instead, and nothing fails. So `KNOWN` lists the kinds that a test has compared with one process, out of all causal
models of transformers; other kinds are refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

from cost_models.errors import InputError
from executor.mmsp.attention import NAME
from executor.mmsp.rope import see_whole_rows

KNOWN = frozenset((
    "apertus", "arcee", "bitnet", "cohere", "cohere2", "cohere2_moe", "cwm", "ernie4_5", "ernie4_5_moe", "exaone4",
    "exaone_moe", "flex_olmo", "gemma", "gemma3_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode",
    "gpt_neox", "gpt_oss", "granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared", "helium",
    "hy_v3", "hyperclovax", "internlm3", "iquestcoder", "jais2", "llama", "mellum", "minimax_m2", "ministral3",
    "mistral", "mixtral", "nanochat", "olmo", "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi", "phi3",
    "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "solar_open", "starcoder2",
    "qwen2_5_vl_text", "qwen2_vl_text", "qwen3_vl_moe_text", "qwen3_vl_text",
))  # fmt: skip
"""`model_type`s; `tests/executor/test_every_model.py` compares each with one process."""
_LAYERS = ("full_attention", "sliding_attention")
_OF_ATTENTION = (
    "sliding_window", "s_aux", "softcap", "scaling", "is_causal", "cu_seq_lens_q", "cu_seq_lens_k", "block_mask",
)  # fmt: skip
"""Arguments that a call of the model would hand down to its attention."""
_FOR_EACH_TOKEN = (MODEL_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING)
_OUTPUTS = {
    "output_router_logits": "the loss of the routers would be of one rank's tokens",
    "output_attentions": "no rank has the weights of a row",
}


def guard(model: nn.Module) -> None:
    """Refuse, at every call of a Hugging Face model in `model`, arguments that "mm_sp" would never see.

    transformers makes no mask for it and so drops a given one; a model shifts labels inside each rank's tokens, and
    without positions it counts them from 0 on every rank. Kinds of model that are not known, configurations whose
    mask follows from the row that one rank sees, heads that give one answer for a row, and models with another
    attention, which would stay inside a rank's tokens, are refused at once.
    """
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    split = [one for one in models if one.config._attn_implementation == NAME]
    causal = [getattr(module, "config", None) for module in model.modules() if getattr(module, "is_causal", False)]
    configs = list({id(config): config for config in causal if isinstance(config, PreTrainedConfig)}.values())
    _refuse_attentions(configs if split else [one.config for one in models])
    for one in split:
        refuse_config(one.config)
        if not any(one is part for other in split if other is not one for part in other.modules()):
            _refuse_head(one)
    for one in models:
        if any(module in split for module in one.modules()):
            one.register_forward_pre_hook(partial(_refuse_arguments, configs), with_kwargs=True)
    see_whole_rows(split)


def _refuse_attentions(configs: Sequence[PreTrainedConfig]) -> None:
    for config in configs:
        if config._attn_implementation != NAME:
            raise InputError(
                f"attention {config._attn_implementation!r} of model_type={config.model_type} stays inside a rank's "
                f'tokens; build the model with attn_implementation="{NAME}"'
            )


def refuse_config(config: PreTrainedConfig) -> None:
    """InputError: a configuration whose model would give other numbers than one process."""
    if config.model_type not in KNOWN:
        raise InputError(
            f'attention "mm_sp" is not known to be right for model_type={config.model_type}; '
            f"known: {', '.join(sorted(KNOWN))}"
        )
    if others := sorted(set(getattr(config, "layer_types", None) or ()) - set(_LAYERS)):
        raise InputError(f'attention "mm_sp" does not do layer_types={", ".join(others)}; legal: {", ".join(_LAYERS)}')
    if getattr(config, "use_bidirectional_attention", None):
        raise InputError('attention "mm_sp" does not do use_bidirectional_attention; legal: null')
    if getattr(config, "attention_chunk_size", None):
        raise InputError('attention "mm_sp" does not do attention_chunk_size; set it to null in the model\'s config')


def _refuse_head(model: PreTrainedModel) -> None:
    """A class that gives one answer for a row, such as a classifier, would take it from the rank's last token."""
    kind = type(model.config)
    legal: list[Any] = [table[kind] for table in _FOR_EACH_TOKEN if kind in table]
    if not isinstance(model, tuple(legal)):
        names = ", ".join(one.__name__ for one in legal)
        raise InputError(f'attention "mm_sp" is right for what a model gives for each token; legal: {names}')


def _refuse_arguments(
    configs: Sequence[PreTrainedConfig], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    if kwargs.get("mm_sp") is None:
        return
    if len(args) > 1:
        raise InputError('attention "mm_sp": pass all but the token ids by keyword')
    if kwargs.get("attention_mask") is not None:
        raise InputError('attention "mm_sp" takes no attention_mask: documents are in the layout, padding ends the row')
    if kwargs.get("labels") is not None:
        raise InputError("the model would shift labels inside a rank's tokens: take the loss from local.labels_S")
    if kwargs.get("position_ids") is None:
        raise InputError('attention "mm_sp" needs position_ids: pass position_ids=local.positions_S[None]')
    if kwargs["position_ids"].ndim < 2:
        raise InputError("position_ids has no dimension of rows: pass position_ids=local.positions_S[None]")
    if isinstance(kwargs.get("logits_to_keep"), int) and kwargs["logits_to_keep"]:
        raise InputError("logits_to_keep counts from the end of a rank's tokens: leave it out")
    if given := sorted(name for name in _OF_ATTENTION if kwargs.get(name) is not None):
        raise InputError(f'attention "mm_sp" takes {given[0]} from the model\'s config and layout: leave it out')
    _refuse_attentions(configs)  # it may have been set to another since
    for name, why in _OUTPUTS.items():
        asked = kwargs.get(name)
        if asked or (asked is None and getattr(module.config, name, False)):
            raise InputError(f'attention "mm_sp" does not do {name}={asked or True}: {why}; set it to False')


def refuse_later_weights(model: nn.Module) -> None:
    """Refuse to train a sharded model whose weights came, were replaced or were tied after it was sharded: no rank
    sums their gradients, and sharding puts its own tensors back. Also another type of weights after the first call,
    which sized the tensors that they are gathered into."""
    known, types = _weights(model), dict[str, torch.dtype]()

    def check(module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled() and (now := _weights(module)) != known:
            name = next(name for name in {**known, **now} if known.get(name) != now.get(name))
            raise InputError(f"{name} has changed since sharding.wrap: add, replace and tie weights before, not after")
        for name, (owner, _) in known.items():  # not by walking the modules: this runs for every token of an answer
            weight = owner._parameters.get(name.rpartition(".")[2])
            if isinstance(weight, DTensor) and (first := types.setdefault(name, weight.dtype)) != weight.dtype:
                raise InputError(
                    f"{name} is {weight.dtype}, in the first call it was {first}: change the type of weights before"
                )

    model.register_forward_pre_hook(check, prepend=True)  # before FSDP2 puts the gathered tensors in their places
    for one in model.modules():
        if one is model or isinstance(one, PreTrainedModel):
            one.register_load_state_dict_pre_hook(_refuse_whole)
        if isinstance(one, PreTrainedModel):
            for name, refuse in _LATER.items():
                if own := getattr(one, name, None):
                    setattr(one, name, partial(refuse, own))


def refuse_parts(model: nn.Module) -> None:
    """Refuse to call a part of a sharded model outside of its forward: parts that no layer holds would meet shards, and
    a layer that is called first would pass for the whole model with FSDP2. What a layer holds is left to torch: a hook
    in every module of it would take a host's time, and break graphs."""
    begun: list[bool] = []

    def begins(module: nn.Module, args: tuple[Any, ...]) -> None:
        begun[:] = [True]

    def check(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        shards = isinstance(module, FSDPModule) or any(isinstance(x, DTensor) for x in module._parameters.values())
        if shards and not (begun and isinstance(module, FSDPModule)):
            raise InputError(
                f"{name} is called outside of the wrapped model's forward, where its weights are sharded: call the "
                "model that sharding.wrap returned"
            )

    inside = tuple(f"{name}." for name, one in model.named_modules() if name and isinstance(one, FSDPModule))
    for name, one in model.named_modules():
        if name and not name.startswith(inside) and (one._parameters or isinstance(one, FSDPModule)):
            one.register_forward_pre_hook(partial(check, name), prepend=True)
    model.register_forward_pre_hook(begins, prepend=True)


def _refuse_whole(model: nn.Module, given: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, weight in model.named_parameters():
        whole = given.get(prefix + name)
        if isinstance(weight, DTensor) and isinstance(whole, Tensor) and not isinstance(whole, DTensor):
            raise InputError(
                f"load_state_dict: {name} is given whole, and is sharded here; load it before sharding.wrap, or with "
                "set_model_state_dict of torch.distributed.checkpoint.state_dict and full_state_dict=True"
            )


def _save(save: Callable[..., Any], *args: Any, **given: Any) -> Any:
    if given.get("state_dict") is None:
        raise InputError(
            "save_pretrained: each rank has shards; pass state_dict=get_model_state_dict(model, options="
            "StateDictOptions(full_state_dict=True)) of torch.distributed.checkpoint.state_dict"
        )
    return save(*args, **given)


def _resize(*_: Any, **__: Any) -> Any:
    raise InputError("resize_token_embeddings: the weights are sharded; resize them before sharding.wrap")


def _batch(*_: Any, **__: Any) -> Any:
    raise InputError("generate_batch: its paged cache and own threads are not done over ranks; use model.generate")


_LATER = {"save_pretrained": _save, "resize_token_embeddings": _resize, "init_continuous_batching": _batch}
"""Methods of a sharded model that would end in an error of a shard's, or in none."""


def _weights(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """For each weight the module that has it, and the first name of the same tensor."""
    first: dict[int, str] = {}
    return {
        (name := f"{path}.{own}".lstrip(".")): (module, first.setdefault(id(weight), name))
        for path, module in model.named_modules(remove_duplicate=False)
        for own, weight in module._parameters.items()
        if weight is not None
    }


def needing_split(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A state-space layer's forward, refused without the keyword argument `ssd`: it would see a rank's tokens alone."""

    @functools.wraps(forward)
    def call(*args: Any, **given: Any) -> Any:
        if given.get("ssd") is None:
            raise InputError("a state-space layer over ranks needs the keyword argument ssd: pass **local.attention")
        return forward(*args, **given)

    return call
