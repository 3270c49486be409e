"""`python -m longvila.reinforce settings.yaml [key=value …]`: the job in one process."""

from __future__ import annotations

import sys

from longvila import one_process
from longvila.reinforce import main

if __name__ == "__main__":
    one_process.run("longvila.reinforce", main, sys.argv[1:])
