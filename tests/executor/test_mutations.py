"""The table of breaks fits the code: each text that a break replaces is there once, and each named test file exists."""

from benchmarks.mutations import ROOT, breaks, broken


def test_every_break_can_be_made_and_names_tests_that_are_there():
    table = breaks()
    assert len(table) >= 62
    for one in table.values():
        whole = (ROOT / one["file"]).read_text()
        assert broken(one, whole) != whole
        files = [part for part in one["tests"].split() if part.startswith("tests/")]
        assert files and all((ROOT / part.split("::")[0]).exists() for part in files), one["name"]
