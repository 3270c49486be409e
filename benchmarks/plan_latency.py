"""How fast `plan` answers: the whole command against only importing what it stands on, in one run.

    python benchmarks/plan_latency.py [--runs 20] [--seed 0]

Random GPU counts (8 to 16,384) and contexts (8K to 4M); each question is asked once as a process of its own, next to
two that only import what the command was seen to import: the installed packages, and these with our own modules.
Prints the medians and the medians of the pairwise ratios; the target is a ratio of at most 2 to the packages alone. No
result is cached: every question is new to its process. Python's compiled files are kept, as where the command is
installed.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGET = 2.0
SEEN = """
import sys
from planner.__main__ import main
sys.argv = ["plan", "--gpus", "256", "--ctx", "2M", "-o", sys.argv[1]]
try:
    main()
except SystemExit:
    pass
files = {name: str(getattr(module, "__file__", "")) for name, module in sys.modules.items()}
installed = {name.partition(".")[0] for name, file in files.items() if "site-packages" in file}
packages = sorted(name for name in installed if not name.startswith("_"))
ours = sorted(name for name in files if name.partition(".")[0] in ("planner", "cost_models"))
print("import " + ", ".join(packages))
print("import " + ", ".join(packages + ours))
"""
"""Plans once and prints the packages that were imported on the way, and these with our modules."""


def imports(output: str) -> list[str]:
    """Two import statements: of everything installed that the command imports, and of our own modules besides."""
    done = subprocess.run([sys.executable, "-c", SEEN, output], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-2:]


COMPILED = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def seconds(command: list[str]) -> tuple[float, int]:
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, env=COMPILED)
    return time.perf_counter() - start, done.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    choose = random.Random(asked.seed)
    plan = [sys.executable, "-m", "planner"]
    output = str(Path(tempfile.mkdtemp()) / "plan.json")
    stands_on, with_ours = imports(output)
    print(f"the command stands on: {stands_on}")
    seconds([sys.executable, "-c", stands_on])  # warm the file cache for both sides
    seconds([*plan, "--gpus", "8", "--ctx", "8K", "-o", output])
    seconds([sys.executable, "-c", with_ours])
    ratios, whole, ours, theirs = [], [], [], []
    print(f"{'GPUs':>7} {'tokens':>9} {'plan s':>8} {'import s':>9} {'ratio':>6} {'with ours':>9}  answer")
    for _ in range(asked.runs):
        gpus = 8 * round(2 ** choose.uniform(0, 11))
        context = 1024 * round(2 ** choose.uniform(3, 12))
        mine, code = seconds([*plan, "--gpus", str(gpus), "--ctx", str(context), "-o", output])
        base, _ = seconds([sys.executable, "-c", stands_on])
        every, _ = seconds([sys.executable, "-c", with_ours])
        ours.append(mine)
        whole.append(mine / every)
        theirs.append(base)
        ratios.append(mine / base)
        answer = {0: "plan", 2: "nothing fits"}.get(code, f"exit code {code}")
        print(
            f"{gpus:>7} {context:>9} {mine:>8.3f} {base:>9.3f} {mine / base:>6.2f} {mine / every:>9.2f}  {answer}",
            flush=True,
        )
    print(f"\nmedian plan {statistics.median(ours):.3f} s, median imports {statistics.median(theirs):.3f} s")
    print(f"median ratio {statistics.median(ratios):.2f} (target at most {TARGET:g}), worst {max(ratios):.2f}")
    print(f"to all imports, our modules too: median ratio {statistics.median(whole):.2f}, worst {max(whole):.2f}")


if __name__ == "__main__":
    main()
