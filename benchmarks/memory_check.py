"""The plan's memory against what `executor check` counts on the real step, for every recompute policy.

    python benchmarks/memory_check.py [--contexts 8,64,256] [--quick]

longvila-8b at 8,192 tokens a rank on context groups of 8, 64 and 256 ranks, and the tiny model in fp32: planned,
counted and difference of each component, the worst last. Fake tensors, no GPU; 10 to 20 s for each plan of the 8B
(--quick: the first context and the tiny model). Exits with 1 where parameters, gradients or activations differ by more
than 3%, or where gathered + working + logits (upper bounds by design) are planned below the count.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.progress import Progress

from cost_models import Cluster, LayerRange, Strategy
from cost_models.strategy import Recompute
from cost_models.units import show_bytes
from cost_models.workload import Precision
from executor.check.check import TRANSIENT, Checked, check
from planner.plan_file import Plan
from tests.executor.planned import make_plan

LIMIT = 0.03
HELD = ("parameters", "gradients", "activations")
BOUND = " + ".join(TRANSIENT)
TOKENS = 8192
POLICIES: dict[str, tuple[tuple[Recompute, float], ...]] = {
    "none": (("none", 1.0),),
    "mlp": (("mlp", 1.0),),
    "all_but_attention": (("all_but_attention", 1.0),),
    "full": (("full", 1.0),),
    "mlp and full": (("mlp", 0.5), ("full", 0.5)),
}


def layers_of(policy: str, layers: int) -> tuple[LayerRange, ...]:
    return tuple(LayerRange(recompute=name, count=round(layers * share)) for name, share in POLICIES[policy])


def plans(contexts: tuple[int, ...]) -> Iterator[tuple[str, Plan]]:
    """(name, plan) of every case."""
    for policy in POLICIES:
        strategy = Strategy(ring=2, ulysses=2, shard=4, layers=layers_of(policy, 4))
        yield f"tiny fp32, context 4, {policy}", make_plan(strategy, tokens=4096, frames=16)
    for context in contexts:
        for policy in POLICIES:
            strategy = Strategy(ring=context // 8, ulysses=8, shard=context, layers=layers_of(policy, 32))
            cluster = Cluster.load("dgx-h100", nodes=context // 8)
            yield (
                f"8B bf16, context {context}, {policy}",
                make_plan(
                    strategy, cluster=cluster, model="longvila-8b", tokens=TOKENS * context, precision=Precision()
                ),
            )


def wrong(found: Checked) -> list[str]:
    """Components beyond the limits."""
    names = [part.name for part in found.components if part.name in HELD and abs(part.difference) > LIMIT]
    return names + [part.name for part in found.components if part.name == BOUND and part.difference < 0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", default="8,64,256", help="Context groups of the 8B model, multiples of 8.")
    parser.add_argument("--quick", action="store_true", help="The first context only.")
    given = parser.parse_args()
    contexts = tuple(int(text) for text in given.contexts.split(","))
    every = list(plans(contexts[:1] if given.quick else contexts))
    worst: dict[str, tuple[float, str]] = {}
    faults: list[str] = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("counting", total=len(every))
        for name, plan in every:
            bar.update(task, description=name)
            found = check(plan, 0)
            print(name)
            for part in found.components:
                shown = f"{show_bytes(part.planned_bytes):>11} {show_bytes(part.counted_bytes):>11}"
                print(f"  {part.name:<28} {shown} {part.difference:>+8.2%}", flush=True)
                if abs(part.difference) >= abs(worst.get(part.name, (0.0, ""))[0]):
                    worst[part.name] = (part.difference, name)
            faults += [f"{name}: {part}" for part in wrong(found)]
            bar.advance(task)
    print("worst")
    for part, (difference, name) in worst.items():
        print(f"  {part:<28} {difference:>+8.2%}  {name}")
    print("\n".join(f"BEYOND THE LIMIT  {fault}" for fault in faults) or f"all of {', '.join(HELD)} within {LIMIT:.0%}")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
