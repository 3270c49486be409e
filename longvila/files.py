"""Files that are complete or absent: writing them, waiting for the disk, their digests, and folders of one process."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
def claimed(folder: Path) -> Iterator[None]:
    """Make a folder, and hold it for this process alone; the system gives it free when the process ends, in any way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        claim = (folder / "claim.json").open("a+", encoding="utf-8")
    except OSError as fault:
        raise JobError(f"{folder} cannot be written: {fault.strerror}") from None
    with claim:
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            claim.seek(0)
            raise JobError(f"another job writes to {folder}: {claim.read()}; name another folder") from None
        claim.truncate(0)
        with suppress(OSError):  # a full disk: the claim holds, it only has no name
            claim.write(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
            claim.flush()
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Silence torch's notice that a process without a group saves or loads alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield
