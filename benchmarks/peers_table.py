"""The runs of `benchmarks.peers` that its targets are about, one after the other into one file.

    python -m benchmarks.peers_table results.txt        15 to 20 minutes on two quiet cores (an estimate); needs root

One host at 2, 4 and 8 ranks; packed rows of a real histogram at 4 and 8 ranks; two nodes with slow links. Each run that
ends well is a section of the file, with the machine's load before it; the same command again runs what is missing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

PACKED = "--lengths measurements/lengths_longca_pile.csv --rows 1"
RUNS = (
    "--ranks 2 --seq 8192 --rounds 5",
    "--ranks 4 --seq 8192 --rounds 5",
    "--ranks 8 --seq 8192 --rounds 5",
    "--ranks 2 --seq 16384 --rounds 3",
    f"--ranks 4 --seq 16384 --rounds 5 {PACKED}",
    f"--ranks 8 --seq 16384 --rounds 5 {PACKED}",
    "--nodes 2 --ranks 4 --seq 2048 --rate-mbit 50 --rounds 3",
    "--nodes 2 --ranks 4 --seq 2048 --rate-mbit 200 --rounds 5",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    file, failed = parser.parse_args().file, 0
    for number, run in enumerate(RUNS, start=1):
        title = f"== {run}"
        if file.exists() and f"{title} (" in file.read_text(encoding="utf-8"):
            continue
        print(f"run {number} of {len(RUNS)}: {run}", file=sys.stderr, flush=True)
        load, began_s = os.getloadavg()[0], time.monotonic()
        command = [sys.executable, "-m", "benchmarks.peers", *run.split()]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            failed += 1
            continue
        with file.open("a", encoding="utf-8") as to:
            to.write(f"{title} (load {load:.1f} before, {time.monotonic() - began_s:.0f} s)\n{done.stdout}\n")
    print(file.read_text(encoding="utf-8") if file.exists() else "nothing ran")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
