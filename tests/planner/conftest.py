"""The `plan` command as typed: one way to run it for all tests of the planner."""

import sys

import pytest

from planner import command


@pytest.fixture(autouse=True)
def piped(monkeypatch):
    """Lines are as wide as in a pipe: what runs several tests at a time may have set a width."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def typed(monkeypatch, tmp_path, capsys):
    """Runs `plan ARGS` in an empty folder -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["plan", *words])
        code = 0
        try:
            command.main()
        except SystemExit as stop:
            code = stop.code or 0
        told = capsys.readouterr()
        return code, told.out, told.err

    return call
