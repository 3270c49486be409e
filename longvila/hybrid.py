"""Hybrid language models: a Llama or Qwen2 some of whose layers mix tokens by `ssd` instead of attention.

    config.json   "layer_types": ["full_attention" | "sliding_attention" | "ssd", ...],
                  "ssd": {"heads": 64, "head_size": 64, "state": 64, "conv": 4, "chunk": 128}

`convert` puts `DiscreteMamba2` in place of `self_attn`; MLPs, norms and embeddings stay. A converted layer starts from
the attention's weights where the sizes allow: x from values, B from keys, C from queries times the attention's scale
(keys and values of a group repeated for each of its queries), out from output; its biases are dropped. The gate starts
at 1 and a at 0. transformers knows no layer type `ssd`: its configuration object says `full_attention`, the file `ssd`.
Leaves out: kinds of model whose attention is asked otherwise (refused).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from longvila.files import read_text, write_whole
from longvila.job import JobError
from longvila.settings import read_settings
from longvila.ssd import DiscreteMamba2

KINDS = ("llama", "qwen2")
LAYER_TYPES = ("full_attention", "sliding_attention", "ssd")


@dataclass(frozen=True, kw_only=True)
class SsdShape:
    """The sizes of a model's `ssd` layers, all alike."""

    heads: int
    head_size: int
    state: int
    conv: int = 4  # tokens that the convolution sees
    chunk: int = 128  # tokens of a step of the scan

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise JobError(f"model: ssd {name} {value} must be at least 1")


def of_attention(config: Any) -> SsdShape:
    """The sizes that let a layer start from the attention's weights: a head for each query head, state = head size."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return SsdShape(heads=config.num_attention_heads, head_size=size, state=size)


def shape_of(llm: Mapping[str, Any]) -> SsdShape | None:
    """The sizes that a configuration file names, checked against its layer types; None without `ssd` layers."""
    types, given = llm.get("layer_types") or (), llm.get("ssd")
    if "ssd" not in types:
        if given is not None:
            raise JobError("model: the configuration has ssd, but no layer of layer_types is ssd")
        return None
    if odd := sorted({str(one) for one in types} - set(LAYER_TYPES)):
        raise JobError(f"model: layer_types {', '.join(odd)} are not run; legal: {', '.join(LAYER_TYPES)}")
    if llm.get("model_type") not in KINDS:
        raise JobError(f"model: ssd layers with model_type {llm.get('model_type')!r}; legal: {', '.join(KINDS)}")
    if not isinstance(given, Mapping):
        raise JobError("model: layer_types has ssd, but ssd does not give heads, head_size and state")
    return read_settings(SsdShape, dict(given), "model: ssd")


def plain(llm: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as transformers can read it: `full_attention` where the file says `ssd`."""
    kept = {key: value for key, value in llm.items() if key != "ssd"}
    if "layer_types" in kept and kept["layer_types"] is not None:
        kept["layer_types"] = ["full_attention" if one == "ssd" else one for one in kept["layer_types"]]
    return kept


def build(llm: Mapping[str, Any], attention: str = "sdpa") -> PreTrainedModel:
    """The language model of a configuration file, with random weights."""
    shape, given = shape_of(llm), plain(llm)
    config = AutoConfig.for_model(given.pop("model_type"), **given)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    if shape is not None:
        keep = {layer for layer, kind in enumerate(llm["layer_types"]) if kind != "ssd"}
        convert(model, keep, shape, copied=False)
    return model


def convert(
    model: PreTrainedModel, keep: Collection[int], shape: SsdShape | None = None, *, copied: bool = True
) -> None:
    """Replace, in place, the attention of all layers but `keep` by `ssd` layers on the same device, in its dtype.

    Without `shape` the sizes are the attention's; `copied` starts from its weights where the sizes are.
    """
    layers = model.model.layers
    if model.config.model_type not in KINDS:
        raise JobError(f"model: {model.config.model_type} is not converted; legal: {', '.join(KINDS)}")
    if odd := sorted(layer for layer in keep if not 0 <= layer < len(layers)):
        raise JobError(f"model: layer {odd[0]} is not one of the {len(layers)} layers, 0 to {len(layers) - 1}")
    given = of_attention(model.config)
    shape = shape or given
    for number, layer in enumerate(layers):
        if number in keep:
            continue
        old = layer.self_attn
        weight = next(old.parameters())
        made = DiscreteMamba2(model.config.hidden_size, **asdict(shape), layer=number)
        made = made.to(device=weight.device, dtype=weight.dtype)
        nn.init.normal_(made.in_proj.weight, std=model.config.initializer_range)
        nn.init.normal_(made.out_proj.weight, std=model.config.initializer_range)
        if copied and not isinstance(old, DiscreteMamba2):
            _copy(made, old, shape, alike=(shape.heads, shape.head_size, shape.state) == _sizes(given))
        layer.self_attn = made


def _sizes(shape: SsdShape) -> tuple[int, int, int]:
    return shape.heads, shape.head_size, shape.state


@torch.no_grad()
def _copy(made: DiscreteMamba2, old: Any, shape: SsdShape, *, alike: bool) -> None:
    inner, state = shape.heads * shape.head_size, shape.heads * shape.state
    x, b, c, z, a = made.in_proj.weight.split((inner, state, state, inner, shape.heads))
    z.zero_()
    a.zero_()
    if not alike:
        return

    def repeated(weight: Tensor) -> Tensor:
        groups = shape.heads // (weight.shape[0] // shape.head_size)
        return weight.unflatten(0, (-1, shape.head_size)).repeat_interleave(groups, 0).flatten(0, 1)

    x.copy_(repeated(old.v_proj.weight))
    b.copy_(repeated(old.k_proj.weight))
    c.copy_(old.q_proj.weight * old.scaling)
    made.out_proj.weight.copy_(old.o_proj.weight)


def layer_types(model: Any) -> list[str]:
    """The kind of each layer, as the configuration file names it."""
    given = getattr(model.config, "layer_types", None) or ["full_attention"] * len(model.model.layers)
    return [
        "ssd" if isinstance(layer.self_attn, DiscreteMamba2) else kind
        for layer, kind in zip(model.model.layers, given, strict=True)
    ]


def save_config(model: Any, folder: Path) -> None:
    """Write the language model's config.json into a folder."""
    model.config.save_pretrained(folder)
    mixers = [layer.self_attn for layer in model.model.layers if isinstance(layer.self_attn, DiscreteMamba2)]
    if not mixers:
        return
    one = mixers[0]
    shape = SsdShape(
        heads=one.heads, head_size=one.head_size, state=one.state, conv=one.conv1d.kernel_size[0], chunk=one.chunk
    )
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"layer_types": layer_types(model), "ssd": asdict(shape)}
    write_whole(path, json.dumps(config, indent=2) + "\n")


def save(model: PreTrainedModel, folder: Path) -> None:
    """A new folder with config.json and safetensors; complete or absent."""
    if folder.exists():
        raise JobError(f"{folder} exists already; name a new folder")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_config(model, partial)
        save_torch_state_dict(model.state_dict(), partial)
        partial.rename(folder)
    except OSError as fault:
        raise JobError(f"{folder} cannot be written: {fault.strerror}") from None


def load(folder: Path, *, attention: str = "sdpa", dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model of a folder of config.json and safetensors, hybrid or not, in its own dtype unless one is given."""
    try:
        llm = json.loads(read_text(folder / "config.json", "model: "))
        if llm.get("quantization_config"):
            raise JobError(f"model: {folder} holds quantised weights (quantization_config); legal: fp32, bf16 or fp16")
        model = build(llm, attention)
    except (ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as fault:
        if isinstance(fault, JobError):
            raise
        raise JobError(f"model: {folder}/config.json is not usable ({' '.join(str(fault).split())[:200]})") from None
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise JobError(f"model: {folder} holds no safetensors file")
    tensors: dict[str, Tensor] = {}
    try:
        for file in files:
            tensors |= load_file(file)
        tensors = {name: one for name, one in tensors.items() if not name.endswith("rotary_emb.inv_freq")}  # of 2023
    except (SafetensorError, OSError) as fault:
        raise JobError(f"model: {folder} holds a file that is no safetensors file ({fault})") from None
    for parameter in model.parameters():  # buffers keep theirs: rotary frequencies
        parameter.data = parameter.data.to(dtype or next(iter(tensors.values())).dtype)
    _fill(model, tensors, folder)
    return model


def _fill(model: PreTrainedModel, tensors: Mapping[str, Tensor], folder: Path) -> None:
    wanted = model.state_dict()
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set[str]()
    missing, extra = wanted.keys() - tensors.keys() - tied, tensors.keys() - wanted.keys()
    shapes = {name for name in wanted.keys() & tensors.keys() if wanted[name].shape != tensors[name].shape}
    for what, names in (("no", missing), ("an unexpected", extra), ("another shape of", shapes)):
        if names:
            raise JobError(f"model: {folder} holds {what} {min(names)} (of {len(names)})")
    model.load_state_dict({**tensors}, strict=False)
