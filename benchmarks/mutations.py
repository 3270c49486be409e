"""Break the executor and the job line by line, and see whether a test notices: each break must be noticed.

    python benchmarks/mutations.py [NAME …]        all 62 take three quarters of an hour on two cores; one a few seconds

The breaks are `mutations.yaml`. Each is made in a copy of this working tree, and the tests named beside it run there
until the first fails. A break that no test notices is printed as `survived`, and the exit code is 1. Leaves out: breaks
that need a GPU to show.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
COPIED = ("cost_models", "planner", "executor", "longvila", "tests", "benchmarks", "examples", "pyproject.toml")


def breaks() -> dict[str, dict[str, Any]]:
    """The table by name: file, tests, and edits, each of a text that is in the file once."""
    return {one["name"]: one for one in yaml.safe_load((ROOT / "benchmarks" / "mutations.yaml").read_text())}


def broken(one: dict[str, Any], text: str) -> str:
    """The file's text with the break; a text that is not there once is an error of the table."""
    for edit in one["edits"]:
        if text.count(edit["was"]) != 1:
            raise ValueError(f"{one['name']}: {one['file']} holds {text.count(edit['was'])} times {edit['was']!r}")
        text = text.replace(edit["was"], edit["is"])
    return text


def noticed(one: dict[str, Any], folder: Path) -> str:
    """The first test that fails with the break in place; empty if none does."""
    file = folder / one["file"]
    whole = file.read_text()
    file.write_text(broken(one, whole))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    try:
        done = subprocess.run(
            [*command, *one["tests"].split()], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    finally:
        file.write_text(whole)
    failed = [line.split(" ")[1] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return (failed or [f"pytest ended with {done.returncode}"])[0] if done.returncode else ""


def main() -> int:
    every = breaks()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(every))
    names = parser.parse_args().names or list(every)
    if unknown := sorted({*names} - {*every}):
        parser.error(f"{unknown[0]} is none of {', '.join(every)}")
    survived = []
    with tempfile.TemporaryDirectory(prefix="mutations-") as scratch:
        folder = Path(scratch)
        for part in COPIED:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, folder / part)
            else:
                shutil.copy(ROOT / part, folder / part)
        for number, name in enumerate(names, start=1):
            began_s = time.monotonic()
            by = noticed(every[name], folder)
            survived += [] if by else [name]
            took_s = time.monotonic() - began_s
            print(f"{number:2}/{len(names)} {name:34} {took_s:4.0f} s  {by or 'survived'}", flush=True)
    print(f"{len(names) - len(survived)} of {len(names)} noticed; survived: {', '.join(survived) or 'none'}")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
