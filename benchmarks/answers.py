"""Answers of commands as pages show them: what stands below a marker is written anew from the command that it names.

    python -m benchmarks.answers [README.md …]

    <!-- answer: plan --gpus 256 --ctx 2M -->      what follows, up to the end of its block, is what this prints

The command runs in an empty folder, its lines as wide as in a pipe. A page is written whole or not at all.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from validation.tables import write

PAGES = ("README.md",)
BLOCK = re.compile(r"(<!-- answer: (plan .+?) -->\n```text\n)(.*?)(```\n)", re.DOTALL)


def answer(command: str) -> str:
    """What `plan …` prints into a pipe."""
    words = [sys.executable, "-m", "planner", *shlex.split(command)[1:]]
    plain = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(words, cwd=folder, env=plain, check=True, capture_output=True, text=True).stdout


def renewed(text: str) -> str:
    """A page with its answers as they are now."""
    return BLOCK.sub(lambda found: f"{found[1]}{answer(found[2])}{found[4]}", text)


def main(pages: list[str]) -> None:
    """Write these pages anew."""
    for page in map(Path, pages or PAGES):
        write(page, renewed(page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main(sys.argv[1:])
