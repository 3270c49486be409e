"""The `plan` console script, and `python -m planner`.

Garbage is left to the end of the process, unless there is very much of it, and then to the operating system: collecting
it while modules are imported, and once more at the end, would take a sixth of the command's time.
"""

from __future__ import annotations

import gc


def main() -> None:
    """Run `plan`, paying for no garbage collection."""
    gc.set_threshold(200_000)
    from planner.command import main as run

    try:
        run()
    finally:
        gc.freeze()


if __name__ == "__main__":
    main()
