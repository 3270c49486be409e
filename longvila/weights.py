"""The weights of a released folder, read and written; `released.py` reads what its configs say.

    folder/config.json  llm/{config.json, *.safetensors, tokenizer}  vision_tower/…  mm_projector/…
    folder/config.json  model*.safetensors, named llm.…, vision_tower.vision_tower.…, mm_projector.…, with one index
    python -m longvila.weights inspect FOLDER     what is in it, what is left unread and why, its tokens per frame

Only safetensors: a pickled `.bin` can run code when it is read, so it is refused. Names must match exactly; what the
model does not build (the tower's pooling head, final norm, and layers past the selected one) is left unread.
A sharded parameter reads only its region of the file, so no process ever holds more than one tensor beyond its
shard. Writing gathers a tensor at a time on every process, keeps it on the first; a fault leaves no folder.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import save_torch_state_dict
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from longvila import hybrid, lora, projector
from longvila.config import LongVilaConfig
from longvila.files import quiet
from longvila.job import JobError
from longvila.model import LongVilaForConditionalGeneration
from longvila.one_process import one_line
from longvila.released import PARTS, read_json, root_config, tokenizer_folder, unknown
from longvila.released import read_config as read_config
from longvila.sharding import Sharding, whole

_EDGE_BYTES = 2**20
FILE_BYTES = 4 * 10**9  # a safetensors file of a part holds at most this much
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def empty_model(
    config: LongVilaConfig, attention: str, kind: type[LongVilaForConditionalGeneration] | None = None
) -> LongVilaForConditionalGeneration:
    """The model, of a `kind` of its own if given, with parameters on the meta device (no memory) and true buffers."""
    try:
        with init_empty_weights(include_buffers=False):
            return (kind or LongVilaForConditionalGeneration)(config, attention)
    except (StrictDataclassError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as fault:
        raise JobError(f"model: cannot be built ({' '.join(str(fault).split())[:300]})") from None


def materialise(model: nn.Module, device: torch.device, states: torch.device | None = None) -> None:
    """Give every parameter its memory (a shard where it is sharded), on `states` if given, without touching the
    buffers' values, which go to `device`."""
    buffers = {name: buffer.to(device) for name, buffer in model.named_buffers()}
    model.to_empty(device=states or device)
    for name, buffer in [*model.named_buffers()]:
        module, _, last = name.rpartition(".")
        setattr(model.get_submodule(module), last, buffer.to(device).copy_(buffers[name]))


@dataclass(frozen=True)
class Stored:
    """The tensors of a part as files hold them."""

    folder: Path
    names: Mapping[str, str]  # of the model's parameter -> of the file
    shapes: Mapping[str, torch.Size]  # by the parameter's name
    dtypes: Mapping[str, torch.dtype]


def load_weights(model: LongVilaForConditionalGeneration, folder: Path) -> None:
    """Fill every parameter. Collective; each process reads the regions of its shards."""
    for part, attribute in PARTS.items():
        stored, module = stored_part(folder, part), getattr(model, attribute)
        check_part(model, part, stored)
        tensors = {stored.names[plain]: parameter.detach() for plain, parameter in _stored_parameters(module).items()}
        with quiet():
            load(tensors, storage_reader=HuggingFaceStorageReader(str(stored.folder)))


def fingerprint(folder: Path) -> list[tuple[str, int, str]]:
    """Name and size of every safetensors file, and a hash of its first and last MiB: names, shapes, some numbers."""
    told = []
    for file in sorted(folder.rglob("*.safetensors")):
        size = file.stat().st_size
        with file.open("rb") as content:
            first = content.read(_EDGE_BYTES)
            content.seek(max(0, size - _EDGE_BYTES))
            told.append((str(file.relative_to(folder)), size, hashlib.sha256(first + content.read()).hexdigest()))
    return told


def stored_part(folder: Path, part: str) -> Stored:
    """What the files hold of a part: those in its own folder, else those at the root that bear its name."""
    own, root = _metadata(folder / part), _metadata(folder)
    if own and any(name.startswith(f"{part}.") for name in root):
        raise JobError(f"weights: {part} is in {folder} and in {folder / part}: one of them must go")
    if odd := sorted(name for name in root if name.split(".")[0] not in PARTS):
        raise JobError(f"weights: {folder}: {_list('unexpected', odd)}")
    held = own or {name: entry for name, entry in root.items() if name.startswith(f"{part}.")}
    where = folder / part if own else folder
    if not held:
        for place in (folder / part, folder):
            for file in sorted(place.glob("*")):
                if file.suffix in (".bin", ".pt", ".pth"):
                    raise JobError(
                        f"weights: {file} is a pickle, which can run code when read; convert it to safetensors"
                    )
    names = {_plain_name(part, name): name for name in held}
    if len(names) < len(held):
        raise JobError(f"weights: {where}: a tensor of {part} is stored under two names")
    entries = {plain: held[name] for plain, name in names.items()}
    return Stored(
        where, names, {plain: entry.size for plain, entry in entries.items()},
        {plain: entry.properties.dtype for plain, entry in entries.items()},
    )  # fmt: skip


def check_part(model: LongVilaForConditionalGeneration, part: str, stored: Stored) -> list[str]:
    """Names and shapes must be the model's; returns the stored tensors that it does not build."""
    module = getattr(model, PARTS[part])
    wanted = _stored_parameters(module)
    tied, layers = _tied_names(module) - set(wanted), len(model.tower.encoder.layers)
    beside = [name for name in stored.names if name not in wanted]
    extra = [name for name in beside if name not in tied and not _unbuilt(part, name, layers)]
    missing = [name for name in wanted if name not in stored.names]
    where = stored.folder if stored.folder.name == part else f"{stored.folder}: {part}"
    if missing or extra:
        wrong = filter(None, (_list("missing", missing), _list("unexpected", extra)))
        raise JobError(f"weights: {where}: {'; '.join(wrong)}")
    for plain, parameter in wanted.items():
        if stored.dtypes[plain] not in DTYPES:
            kinds = ", ".join(map(_dtype_name, DTYPES))
            raise JobError(
                f"weights: {where}: {stored.names[plain]} is stored as {_dtype_name(stored.dtypes[plain])}; run are "
                f"{kinds}: numbers of fewer bits mean something only with their scales"
            )
        if (size := stored.shapes[plain]) != parameter.shape:
            raise JobError(
                f"weights: {where}: {stored.names[plain]} has shape {list(size)}, "
                f"the model wants {list(parameter.shape)}"
            )
    return beside


def _metadata(folder: Path) -> Mapping[str, Any]:
    """The tensors of a folder's safetensors files, each in one file, and all files that its index names."""
    files: dict[str, Path] = {}
    try:
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as content:
                for name in content.keys():  # noqa: SIM118
                    if name in files:
                        raise JobError(f"weights: {name} is in {files[name]} and in {file}: one of them must go")
                    files[name] = file
        for index in folder.glob("*.safetensors.index.json"):
            named = set((read_json(index).get("weight_map") or {}).values())
            if gone := sorted(named - {file.name for file in files.values()}):
                raise JobError(f"weights: {index} names {_list('', gone)}, which is not there")
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata if files else {}
    except (SafetensorError, OSError) as fault:
        raise JobError(f"weights: {folder} holds a file that is no safetensors file ({fault})") from None
    return found


def inspect(folder: Path) -> str:
    """What a folder holds, as lines; a folder that cannot be run is a JobError, as it would be in training."""
    config = read_config(folder)
    model = empty_model(config, "sdpa")
    llm, vision = config.llm_config(), config.vision
    side = int(vision["image_size"]) // int(vision["patch_size"])
    order = "columns" if config.projector == projector.COLUMNS else "rows"
    tiles = f"{config.min_tiles} to {config.max_tiles} tiles" if config.max_tiles > 1 else "not tiled"
    rate = f", at {config.video_fps:g} a second" if config.video_fps else ""
    rate += f", the mean of each {config.video_pool}" if config.video_pool > 1 else ""
    scales = f", at {', '.join(map(str, config.s2_scales))} pixels" if config.s2_scales else ""
    scales += f", channels {config.s2_repeat} times" if config.s2_repeat > 1 else ""
    layers = f"{config.vision_config().num_hidden_layers} of {vision.get('num_hidden_layers', 12)} layers"
    size = f"{llm.num_hidden_layers} layers, {llm.hidden_size} wide, {llm.vocab_size} words"
    around = f"{config.frame_opening!r} before, {config.frame_separator!r} after"
    lines = [
        f"language model  {llm.model_type}: {size}; turns as {config.chat}",
        f"tower           SigLIP: {config.image_size} pixels, {layers} are run{scales}",
        f"projector       {config.projector}: {side} x {side} patches, {order} first",
        f"frame           {config.tokens_per_frame} tokens, {around}",
        f"media           {config.video_frames} frames of a video{rate}; pictures {tiles}",
    ]
    if config.time_tokens:
        lines.append(f"time tokens     {config.time_tokens}: answers that hold one are not learned")
    held = {part: stored_part(folder, part) for part in PARTS}
    if not any(stored.names for stored in held.values()):
        lines.append("weights         none in this folder: it can be planned, not trained or asked")
        held = {}
    for part, stored in held.items():
        beside = check_part(model, part, stored)
        kinds = ", ".join(sorted(set(map(_dtype_name, stored.dtypes.values()))))
        size_gb = sum(prod(shape) * stored.dtypes[name].itemsize for name, shape in stored.shapes.items()) / 1e9
        lines.append(f"{part:15} {len(stored.names)} tensors, {size_gb:.3f} GB of {kinds}, in {stored.folder}")
        if beside:
            lines.append(f"{'':15} not built: {_list('', beside)}")
    odd = unknown(folder)
    lines.append(f"ignored         {', '.join(odd) if odd else 'nothing'}")
    return "\n".join(lines)


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
    hybrid.save_config(model.llm, partial / "llm")
    config.vision_config().save_pretrained(partial / "vision_tower")
    top = root_config(config)
    projected = {"mm_projector_type": top["mm_projector"], "model_type": "v2l_projector"}
    (partial / "mm_projector" / "config.json").write_text(json.dumps(projected, indent=2))
    (partial / "config.json").write_text(json.dumps(top, indent=2))
    if tokenizer_from is not None:
        for file in tokenizer_folder(tokenizer_from).iterdir():
            if file.is_dir() or file.name == "config.json" or file.name.endswith(".index.json"):
                continue
            if file.suffix not in (".safetensors", ".bin") and not (partial / "llm" / file.name).exists():
                shutil.copy(file, partial / "llm" / file.name)
    partial.rename(folder)


def plain_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by the name they have without wrappers (recompute, compile)."""
    return {_unwrapped(name): parameter for name, parameter in module.named_parameters()}


def _stored_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Those that released files hold: adapters are of a run alone."""
    return {name: p for name, p in plain_parameters(module).items() if not name.endswith(lora.NAMES)}


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


def _plain_name(part: str, name: str) -> str:
    return re.sub(rf"^({part}\.)*(vision_model\.)?", "", name)


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


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _list(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what} {', '.join(names[:3])}{more}".strip() if names else ""


@one_line()
def main(arguments: Sequence[str]) -> None:
    """Print what `inspect FOLDER` finds."""
    if len(arguments) != 2 or arguments[0] != "inspect":
        raise JobError("usage: python -m longvila.weights inspect FOLDER")
    print(inspect(Path(arguments[1])))


if __name__ == "__main__":
    main(sys.argv[1:])
