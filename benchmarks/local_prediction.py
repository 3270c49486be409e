"""Predicted against measured step time of LongVILA-tiny on this machine, for six plans: the profile's honesty.

    profile -> plan (priced from it) -> executor launch -> median of the steps' seconds in metrics.jsonl

Run as `python -m benchmarks.local_prediction [profile.json]`; without a profile one is measured first (quick). Rows are
text of exactly the planned length, so that what is priced is what runs. Prints every plan, the worst last, and exits
with 1 if one is off by more than 25% or two that differ by more than 20% come out in the wrong order.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

from cost_models import Profile, Strategy
from planner.plan_file import Plan
from tests.executor.planned import make_plan

CASES = (
    (Strategy(), 1024),
    (Strategy(ulysses=2, shard=2), 2048),
    (Strategy(ring=2, shard=2), 4096),
    (Strategy(data=2, shard=2), 1024),
    (Strategy(ring=2, ulysses=2, shard=4), 2048),
    (Strategy(data=2, ulysses=2, shard=4), 4096),
)
STEPS, WARM_UP, LIMIT, CLEARLY = 10, 3, 0.25, 0.2


def write_rows(path: Path, tokens: int) -> None:
    """Documents that the byte tokenizer makes about `tokens` long."""
    lines = []
    for number in range(8):
        text = ("the quick brown fox jumps over the lazy dog " * tokens)[number : number + tokens - 24]
        turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": text}]
        lines.append(json.dumps({"id": str(number), "conversations": turns}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure(plan: Plan, folder: Path, **more: object) -> tuple[float, dict[str, Any]]:
    """(median seconds of a step after the warm-up, what the last step printed); `more`: settings of the job."""
    folder.mkdir()
    plan.save(folder / "plan.json")
    write_rows(folder / "rows.jsonl", plan.workload.context_tokens)
    settings = {"data": [str(folder / "rows.jsonl")], "run": str(folder / "run"), "steps": STEPS, "lr": 1e-4, **more}
    command = [sys.executable, "-m", "executor.command", "launch", str(folder / "plan.json")]
    command += [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    subprocess.run([*command, f"--run-dir={folder / 'launch'}"], check=True, stderr=subprocess.PIPE)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return statistics.median(line["seconds"] for line in lines[WARM_UP:]), lines[-1]


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="prediction-") as name:
        folder = Path(name)
        path = Path(arguments[0]) if arguments else folder / "profile.json"
        if not arguments:
            command = [sys.executable, "-m", "executor.command", "profile", "--quick", "--ranks=4", "-o", str(path)]
            subprocess.run(command, check=True)
        profile, rows = Profile.load(path), []
        for number, (strategy, tokens) in enumerate(CASES):
            plan = make_plan(strategy, tokens=tokens, profile=profile)  # one row a replica: no accumulation
            measured_s, _ = measure(plan, folder / str(number))
            rows.append((plan.cost.step_s / measured_s - 1.0, plan.cost.step_s, measured_s, strategy, tokens))
            print(f"  {strategy.describe():<50} {tokens:>5} tokens", file=sys.stderr, flush=True)
    print(f"{'plan':<52}{'tokens':>7}{'predicted':>12}{'measured':>12}{'error':>8}")
    for error, predicted_s, measured_s, strategy, tokens in sorted(rows, key=lambda row: abs(row[0])):
        times = f"{predicted_s * 1e3:>9.1f} ms{measured_s * 1e3:>9.1f} ms"
        print(f"{strategy.describe():<52}{tokens:>7}{times}{error:>+8.0%}")
    swapped = [
        (a, b)
        for a, b in combinations(rows, 2)
        if abs(a[2] - b[2]) > CLEARLY * min(a[2], b[2]) and (a[2] < b[2]) != (a[1] < b[1])
    ]
    worst = max(abs(row[0]) for row in rows)
    print(f"worst error {worst:.0%}; {len(swapped)} pairs in the wrong order")
    return 1 if worst > LIMIT or swapped else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
