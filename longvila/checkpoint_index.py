"""Reading a checkpoint's index as data: torch keeps it as a pickle, and a checkpoint may come from anywhere.

    .metadata --only the classes of an index, no others--> where each tensor lies --every file inside the folder-->

A pickle can name any function to call. This reader resolves only the handful of plain classes that an index is made of,
refuses entries that are not tensors (torch would unpickle those freely), and file names that leave the folder.
"""

from __future__ import annotations

import pickle
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as index
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from longvila.job import JobError

_INDEX = (
    "ChunkStorageMetadata",
    "Metadata",
    "MetadataIndex",
    "StorageMeta",
    "TensorProperties",
    "TensorStorageMetadata",
    "_MEM_FORMAT_ENCODING",
)


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == index.__name__ and name in _INDEX:
            return getattr(index, name)
        if (module, name) == (filesystem.__name__, "_StorageInfo"):
            return filesystem._StorageInfo
        if (module, name) == ("torch", "Size") or (
            module == "torch" and isinstance(getattr(torch, name, 0), torch.dtype)
        ):
            return getattr(torch, name)
        if (module, name) == ("torch.serialization", "_get_layout"):
            return _layout
        if module in ("pathlib", "pathlib._local") and name in ("PosixPath", "PurePosixPath", "WindowsPath", "Path"):
            return PurePosixPath
        raise JobError(f"checkpoint index names {module}.{name}, which no index of tensors needs; it is not read")


def _layout(name: str) -> torch.layout:
    if name != "torch.strided":
        raise JobError(f"checkpoint index: layout {name!r} is not torch.strided")
    return torch.strided


class IndexReader(filesystem.FileSystemReader):
    """torch's reader with the index read as data."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as file:
                found = _IndexUnpickler(file).load()
        except (OSError, pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError) as fault:
            raise JobError(
                f"checkpoint {self.path} has no readable index: {' '.join(str(fault).split())[:200]}"
            ) from None
        _check(found, str(self.path))
        if found.storage_meta is None:
            found.storage_meta = StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found


def _check(found: object, where: str) -> None:
    if not isinstance(found, Metadata) or not isinstance(found.state_dict_metadata, dict):
        raise JobError(f"checkpoint {where}: its index is of another kind")
    for name, entry in found.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise JobError(f"checkpoint {where}: {name!r} is not a tensor; only tensors are read")
    files = {info.relative_path for info in (found.storage_data or {}).values()}
    for file in sorted(files):
        if not isinstance(file, str) or Path(file).name != file:
            raise JobError(f"checkpoint {where}: the index names the file {file!r}, which is not in its folder")
