"""Files that appear complete or not at all: written next to their target, flushed, then renamed over it.

A folder that is missing or cannot be written is the user's error, named before anything is computed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from cost_models.errors import InputError


def check_target(path: str | Path, flag: str) -> Path:
    """The path, if a file can be written there; else an InputError that says why."""
    target = Path(os.path.realpath(path) if os.path.islink(path) else path)  # a link stays; its target is written
    folder = target.parent
    if target.is_dir():
        raise InputError(f"{flag} {str(path)!r} is a folder; give a file name")
    if target.exists() and not target.is_file():
        raise InputError(f"{flag} {str(path)!r} is a device or a pipe; give a file name")
    if not folder.is_dir():
        raise InputError(f"{flag} {str(path)!r}: the folder {str(folder)!r} is not there; create it first")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{flag} {str(path)!r}: the folder {str(folder)!r} cannot be written to")
    return target


def write_whole(path: str | Path, text: str | Iterable[str], flag: str = "-o") -> None:
    """Write `text` (or its parts) so that a reader sees the old file or the new one, never a part."""
    target = check_target(path, flag)
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.writelines((text,) if isinstance(text, str) else text)
                file.flush()
                os.fsync(file.fileno())
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(name, 0o666 & ~mask)
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise InputError(f"{flag} {str(path)!r} cannot be written: {error.strerror}") from error
