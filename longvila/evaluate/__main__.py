"""`python -m longvila.evaluate settings.yaml [key=value …]`: the job in one process."""

from __future__ import annotations

import sys

from longvila import one_process
from longvila.evaluate import main

if __name__ == "__main__":
    one_process.run("longvila.evaluate", main, sys.argv[1:])
