"""`python -m longvila.evaluate settings.yaml [key=value …]`: the job in one process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from longvila.evaluate import main as evaluate
from longvila.files import read_text
from longvila.job import Job, JobError
from longvila.settings import read_yaml


def main(arguments: Sequence[str]) -> int:
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            raise JobError("usage: python -m longvila.evaluate settings.yaml [key=value ...]")
        given = read_yaml(read_text(Path(arguments[0]), ""), arguments[0])
        for text in arguments[1:]:
            key, sign, value = text.partition("=")
            if not sign:
                raise JobError(f"{text!r} is not key=value")
            given[key] = yaml.safe_load(value)
        evaluate(Job(config=given))
    except JobError as error:
        print(f"longvila: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
