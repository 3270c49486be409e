"""Commands as the pages print them: each `plan` and `executor` line has words that these commands take."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from executor.command import cli as executor
from planner.command import cli as plan

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _commands(program: str) -> list[tuple[str, list[str]]]:
    """(page, words) of each line of a code block that calls this program."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.strip().removeprefix("$ ")
                if line.startswith(program + " "):
                    words = shlex.split(re.split(r" [>|] ", line)[0], comments=True)
                    found.append((page.name, words[len(program.split()) :]))
    return found


def _parse(command: click.Command, words: list[str]) -> None:
    """Down to the last command of a group, without running it; a UsageError where a word is none of its own."""
    context = command.make_context("", list(words))
    while isinstance(command, click.Group) and (rest := [*context._protected_args, *context.args]):
        _, command, words = command.resolve_command(context, rest)
        assert command is not None
        context = command.make_context("", list(words), parent=context)


@pytest.mark.parametrize(("program", "command", "fewest"), [("plan", plan, 50), ("executor", executor, 10)])
def test_commands_of_the_pages_are_commands(program: str, command: click.Command, fewest: int) -> None:
    printed = _commands(program)
    assert len(printed) >= fewest
    faults = []
    for page, words in printed:
        try:
            _parse(command, words)
        except click.UsageError as fault:
            faults.append(f"{page}: {program} {' '.join(words)}: {fault.format_message()}")
    assert not faults


def test_modules_that_the_pages_run_exist() -> None:
    for page, words in _commands("python -m"):
        assert find_spec(words[0]), f"{page}: python -m {words[0]}"


def test_every_benchmark_is_listed() -> None:
    listed = (ROOT / "benchmarks" / "README.md").read_text()
    children = {"simgrid_child", "train_runs"}  # run by others
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        if "__main__" in path.read_text() and path.stem not in children:
            assert f"`{path.stem}`" in listed, f"benchmarks/README.md does not list {path.stem}"
