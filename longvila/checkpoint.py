"""Checkpoints of a run: parameters, optimizer, place in the data; complete or absent, readable under another sharding.

    run/checkpoints/step-000020.partial/ --all ranks write, rank 0 marks and renames--> run/checkpoints/step-000020/
                                                                                  shard-*.safetensors + complete.json

Written by `torch.distributed.checkpoint` as safetensors, every tensor under its parameter's plain name, so that any
number of processes and any shard degree reads it, and nothing that is read can run code. `complete.json` is the marker:
a folder without it does not count. It holds the SHA-256 of every file, the model, and the settings that a resumed run
must share. Files reach the disk before the folder gets its name. Leaves out asynchronous writing.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from longvila.dataset import Cursor
from longvila.files import digest, quiet, to_disk, write_whole
from longvila.job import JobError
from longvila.optimizer import Optimizer
from longvila.weights import plain_parameters

FORMAT = 3
MARKER = "complete.json"


@dataclass(frozen=True, kw_only=True)
class Marker:
    """What `complete.json` says."""

    step: int  # optimizer steps done
    cursor: Cursor
    model: Mapping[str, Any]
    settings: Mapping[str, Any]  # those that the losses after a resume depend on
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)  # file name -> SHA-256, filled in by `save`


def save(folder: Path, model: nn.Module, optimizer: Optimizer, marker: Marker, *, rank: int, keep: int) -> None:
    """Collective. Writes to `.partial`, then renames; older checkpoints beyond `keep` go last."""
    target = folder / f"step-{marker.step:06d}"
    partial = target.with_suffix(".partial")
    try:
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        writer = _Writer(partial)
        with quiet():  # returns when every process has written
            state_dict_saver.save(_tensors(model, optimizer), storage_writer=writer)
        if rank == 0:
            marker = dataclasses.replace(marker, files=writer.digests)
            write_whole(partial / MARKER, json.dumps({"format": FORMAT, **dataclasses.asdict(marker)}, indent=2))
            to_disk(partial)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            to_disk(folder)
            for old in complete(folder)[:-keep]:
                shutil.rmtree(old)
    except (CheckpointException, OSError) as fault:
        raise JobError(f"checkpoint {target} cannot be written{_room(folder)}: {_cause(fault)}") from None


def load(path: Path, model: nn.Module, optimizer: Optimizer | None) -> None:
    """Collective. Fills the parameters, and the optimizer where one is given."""
    tensors, files = _tensors(model, optimizer), read_marker(path).files
    try:
        with quiet():
            state_dict_loader.load(tensors, storage_reader=_Reader(path, files))
    except (CheckpointException, RuntimeError, KeyError, ValueError, OSError) as fault:
        raise JobError(f"checkpoint {path} cannot be read: {_cause(fault)}") from None
    if optimizer is not None:
        torch.set_rng_state(tensors["rng"])


class _Writer(HuggingFaceStorageWriter):
    """Every process writes a file; rank 0 gets the `digests` of all files."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), save_distributed=True)
        self._folder = folder
        self.digests: dict[str, str] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results = super().write_data(plan, planner).value()
        names = {result.storage_data.relative_path for result in results}
        digests = {name: digest(self._folder / name) for name in names}
        done: Future[list[WriteResult]] = Future()
        done.set_result([dataclasses.replace(result, storage_data=digests) for result in results])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        for written in results:
            self.digests.update(written[0].storage_data if written else {})


class _Reader(HuggingFaceStorageReader):
    """Reads the files that the marker names, each after comparing its content with the marker."""

    def __init__(self, folder: Path, digests: Mapping[str, str]) -> None:
        super().__init__(str(folder))
        self._folder, self._digests = folder, digests

    def read_metadata(self) -> Metadata:
        here = {file.name for file in self._folder.glob("*.safetensors")}
        if odd := sorted(here ^ set(self._digests)):
            raise JobError(f"{odd[0]} is {'not named by' if odd[0] in here else 'missing, though it is in'} {MARKER}")
        return super().read_metadata()

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for file in sorted({Path(self.storage_data[item.storage_index].relative_path) for item in plan.items}):
            if digest(file) != self._digests[file.name]:
                raise JobError(f"{file.name} is not as it was written: its SHA-256 is not that of {MARKER}")
        return super().read_data(plan, planner)


def _room(folder: Path) -> str:
    """Free space of the disk: torch's writer does not say that a disk is full."""
    try:
        return f" ({shutil.disk_usage(folder).free / 2**20:,.0f} MiB free)"
    except OSError:
        return ""


def _cause(fault: BaseException) -> str:
    """The fault on one line; the first one where several processes met faults."""
    if isinstance(fault, CheckpointException) and fault.failures:
        fault = next(iter(fault.failures.values()))[0]
    return " ".join(str(fault).split())[:300] or type(fault).__name__


def read_marker(path: Path) -> Marker:
    """What a checkpoint says of itself, strictly read; a JobError says what is wrong with it."""
    try:
        content = json.loads((path / MARKER).read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.pop("format", None) != FORMAT:
            raise JobError(
                f"checkpoint {path} is of another format version; this one reads {FORMAT}: export it with the version "
                "that wrote it, and set weights to that folder"
            )
        marker = Marker(**{**content, "cursor": Cursor(**content["cursor"])})
        counts = (marker.step, marker.cursor.epoch, marker.cursor.position)
        if not all(isinstance(number, int) and number >= 0 for number in counts) or marker.step == 0:
            raise ValueError(f"step {marker.step} at {marker.cursor}")
        if not all(isinstance(part, dict) for part in (marker.model, marker.settings, marker.files)):
            raise ValueError("model, settings and files are no objects")
    except JobError:
        raise
    except OSError:
        raise JobError(f"checkpoint {path} is not complete: it has no {MARKER}") from None
    except (ValueError, TypeError, KeyError, RecursionError) as fault:
        raise JobError(f"checkpoint {path}: its {MARKER} is damaged ({_cause(fault)})") from None
    return marker


def complete(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    steps = {path.parent: path.parent.name.removeprefix("step-") for path in folder.glob(f"step-*/{MARKER}")}
    return sorted((path for path, step in steps.items() if step.isdecimal()), key=lambda path: int(steps[path]))


def latest(folder: Path) -> Path:
    """A checkpoint itself, or the newest complete one of a run or of its checkpoint folder."""
    if (folder / MARKER).is_file():
        return folder
    newest_last = complete(folder) or complete(folder / "checkpoints")
    if not newest_last:
        raise JobError(f"checkpoint: {folder} holds no complete checkpoint")
    return newest_last[-1]


def _tensors(model: nn.Module, optimizer: Optimizer | None) -> dict[str, Any]:
    parameters: dict[str, Tensor] = {name: p.detach() for name, p in plain_parameters(model).items()}
    if optimizer is None:
        return {"model": parameters}
    return {"model": parameters, "optimizer": optimizer.state(), "rng": torch.get_rng_state()}
