"""The released folder layout, read and written: `llm/`, `vision_tower/`, `mm_projector/`, each with a config.

    folder/config.json  llm/{config.json, *.safetensors, tokenizer}  vision_tower/…  mm_projector/…

Only safetensors: a pickled `.bin` can run code when it is read, so it is refused. Names must match exactly; what the
model does not build (the tower's pooling head, final norm, and layers past the selected one) is left unread.
A sharded parameter reads only its region of the file, so no process ever holds more than one tensor beyond its
shard. Writing gathers a tensor at a time on every process, keeps it on the first; a fault leaves no folder.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import save_torch_state_dict
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from longvila import lora
from longvila.config import LongVilaConfig
from longvila.files import quiet, read_text
from longvila.job import JobError
from longvila.model import LongVilaForConditionalGeneration
from longvila.settings import read_settings
from longvila.sharding import Sharding, whole

PARTS = {"llm": "llm", "vision_tower": "tower", "mm_projector": "projector"}
FILE_BYTES = 4 * 10**9  # a safetensors file of a part holds at most this much
EXTRA_KEYS = ("tokenizer", "chat", "frame_separator", "loss_chunk_tokens", "frames_per_chunk")


def read_config(folder: Path) -> LongVilaConfig:
    """The model that a released folder describes."""
    if not folder.is_dir():
        raise JobError(f"weights: {folder} is not a folder")
    llm, vision, projector = (_read_json(folder / part / "config.json") for part in PARTS)
    kind = projector.get("mm_projector_type")
    if kind != "mlp_downsample":
        raise JobError(f"weights: {folder}/mm_projector is a {kind!r} projector; legal: mlp_downsample")
    top = _read_json(folder / "config.json")
    given = {
        "chat": "llama3" if llm.get("model_type") == "llama" else "chatml",
        **{key: value for key, value in top.get("longvila", {}).items() if key in EXTRA_KEYS},
        "llm": {key: value for key, value in llm.items() if key not in ("torch_dtype", "dtype")},
        "vision": {key: value for key, value in vision.items() if key not in ("torch_dtype", "dtype", "model_type")},
        "vision_select_layer": top.get("mm_vision_select_layer", -2),
    }
    return read_settings(LongVilaConfig, given, f"weights {folder}")


def empty_model(config: LongVilaConfig, attention: str) -> LongVilaForConditionalGeneration:
    """The model with parameters on the meta device (no memory) and its true buffers."""
    try:
        with init_empty_weights(include_buffers=False):
            return LongVilaForConditionalGeneration(config, attention)
    except (StrictDataclassError, ValueError, KeyError, TypeError) as fault:
        raise JobError(f"model: cannot be built ({' '.join(str(fault).split())[:300]})") from None


def materialise(model: nn.Module, device: torch.device, states: torch.device | None = None) -> None:
    """Give every parameter its memory (a shard where it is sharded), on `states` if given, without touching the
    buffers' values, which go to `device`."""
    buffers = {name: buffer.to(device) for name, buffer in model.named_buffers()}
    model.to_empty(device=states or device)
    for name, buffer in [*model.named_buffers()]:
        module, _, last = name.rpartition(".")
        setattr(model.get_submodule(module), last, buffer.to(device).copy_(buffers[name]))


def load_weights(model: LongVilaForConditionalGeneration, folder: Path) -> None:
    """Fill every parameter. Collective; each process reads the regions of its shards."""
    for part, attribute in PARTS.items():
        module, where = getattr(model, attribute), folder / part
        reader = HuggingFaceStorageReader(str(where))
        try:
            sizes = {name: entry.size for name, entry in reader.read_metadata().state_dict_metadata.items()}  # type: ignore[union-attr]
        except (SafetensorError, OSError) as fault:
            raise JobError(f"weights: {where} holds a file that is no safetensors file ({fault})") from None
        pickled = sorted(file.name for file in where.glob("*") if file.suffix in (".bin", ".pt", ".pth"))
        if not sizes and pickled:
            raise JobError(
                f"weights: {where / pickled[0]} is a pickle, which can run code when read; convert it to safetensors"
            )
        wanted = {name: p for name, p in plain_parameters(module).items() if not name.endswith(lora.NAMES)}
        stored = {_plain_name(name): name for name in sizes}
        tied, layers = _tied_names(module) - set(wanted), len(model.tower.encoder.layers)
        extra = [n for n in stored if n not in wanted and n not in tied and not _unbuilt(part, n, layers)]
        missing = [name for name in wanted if name not in stored]
        if missing or extra:
            raise JobError(f"weights: {where}: {_list('missing', missing)}{_list('unexpected', extra)}")
        for plain, parameter in wanted.items():
            if (size := sizes[stored[plain]]) != parameter.shape:
                raise JobError(
                    f"weights: {where}: {stored[plain]} has shape {list(size)}, the model wants {list(parameter.shape)}"
                )
        with quiet():
            load({stored[plain]: parameter.detach() for plain, parameter in wanted.items()}, storage_reader=reader)


def save_weights(
    model: LongVilaForConditionalGeneration, folder: Path, sharding: Sharding, tokenizer_from: Path | None = None
) -> None:
    """Write the released layout to a new folder; collective, the first process writes."""
    first, partial = sharding.rank == 0, folder.with_name(folder.name + ".partial")
    if first:
        if folder.exists():
            raise JobError(f"export: {folder} exists already; name a new folder")
        shutil.rmtree(partial, ignore_errors=True)
    for part, attribute in PARTS.items():
        module = getattr(model, attribute)
        tensors = _gathered(module, first)
        if first:
            tensors = lora.merged(tensors, {_unwrapped(name): scale for name, scale in lora.scales(module).items()})
            (partial / part).mkdir(parents=True)
            prefix = "vision_model." if part == "vision_tower" else ""
            named = {prefix + name: tensor for name, tensor in tensors.items()}
            save_torch_state_dict(named, partial / part, max_shard_size=FILE_BYTES)
    if not first:
        return
    config = model.config
    model.llm.config.save_pretrained(partial / "llm")
    config.vision_config().save_pretrained(partial / "vision_tower")
    projector = {"mm_projector_type": "mlp_downsample", "model_type": "v2l_projector"}
    (partial / "mm_projector" / "config.json").write_text(json.dumps(projector, indent=2))
    extra = {key: getattr(config, key) for key in EXTRA_KEYS}
    top = {"model_type": "llava_" + model.llm.config.model_type, "mm_vision_select_layer": -1, "longvila": extra}
    (partial / "config.json").write_text(json.dumps(top, indent=2))
    if tokenizer_from is not None:
        for file in (tokenizer_from / "llm").iterdir():
            if file.suffix not in (".safetensors", ".bin") and not (partial / "llm" / file.name).exists():
                shutil.copy(file, partial / "llm" / file.name)
    partial.rename(folder)


def plain_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by the name they have without wrappers (recompute, compile)."""
    return {_unwrapped(name): parameter for name, parameter in module.named_parameters()}


def _unwrapped(name: str) -> str:
    return re.sub(r"(_checkpoint_wrapped_module|_orig_mod)\.", "", name)


def _gathered(module: nn.Module, kept: bool) -> dict[str, Tensor]:
    """Every parameter in full, on the CPU. Collective; a process that keeps none returns an empty mapping."""
    full = {}
    for name, parameter in plain_parameters(module).items():
        value = whole(parameter.detach())
        if kept:
            full[name] = value.cpu()
    return full


def _plain_name(name: str) -> str:
    return name.removeprefix("vision_model.")


def _unbuilt(part: str, name: str, layers: int) -> bool:
    """Whether released files hold this tensor and the model does not build it."""
    if name.endswith(("rotary_emb.inv_freq", "position_ids")):
        return True
    layer = re.match(r"encoder\.layers\.(\d+)\.", name)
    late = layer is not None and int(layer.group(1)) >= layers
    return part == "vision_tower" and (late or name.startswith(("head.", "post_layernorm.")))


def _tied_names(module: nn.Module) -> set[str]:
    """The second name of a tensor that two places share: files may hold it and need not."""
    tied = getattr(getattr(module, "config", None), "tie_word_embeddings", False)
    return {"lm_head.weight"} if tied else set()


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(read_text(path, "weights: "))
    except (ValueError, RecursionError) as fault:
        raise fault if isinstance(fault, JobError) else JobError(f"weights: {path} cannot be read (not JSON)") from None
    if not isinstance(content, Mapping):
        raise JobError(f"weights: {path} is not a JSON object")
    return content


def _list(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what} {', '.join(names[:3])}{more}; "
