"""Files that are complete or absent: writing them, waiting until they are on the disk, and their digests."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longvila.job import JobError


def read_text(path: Path, where: str) -> str:
    """A text file; `where` opens the message of the JobError for one that cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        why = getattr(fault, "strerror", None) or type(fault).__name__
        raise JobError(f"{where}{path} cannot be read ({why})") from None


def write_whole(path: Path, text: str) -> None:
    """Write a text; it gets its name once it is on the disk. An OSError leaves what was there."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    to_disk(partial)
    partial.replace(path)


def to_disk(*paths: Path) -> None:
    """Wait until files, or the names in folders, would survive a power cut."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def digest(file: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence torch's notice that a process without a group saves or loads alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield
