"""What a server made by a decode or prefill plan answers: the first token, the next ones, how long and how many.

    first token    prefill of one prompt a replica, in the plan's own layout
    a token        one decode step of the batch
    longest        tokens of a row, at the plan's batch, whose cache still fits
    at once        the largest batch of rows as long as asked, and what it makes a second
    apart          prefill planned alone on the same GPUs, and the cache that one prompt hands over

Memory is that of `price` and must fit as the plan's does. Left out: queues, prompts that arrive while others decode,
chunks of a prompt, what a paged cache wastes, and the time of the hand-over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cost_models.cost import StepCost
from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster
from cost_models.longest import most_tokens
from cost_models.pricing import price
from cost_models.profile import Profile
from cost_models.room import Room
from cost_models.workload import DTYPE_BYTES, Mode, Workload
from planner.plan_file import Apart, Serving
from planner.solve import Choice, Solution

STEP_TOKENS = 1024
"""The longest row is a multiple of so many tokens."""
MOST_ROWS = 2**16


def serving(
    cluster: Cluster,
    solution: Solution,
    choice: Choice,
    room: Room,
    profile: Profile | None,
    alone: Callable[[Workload], Solution],
) -> Serving | None:
    """Of a decode or prefill plan; `None` in training. `alone`: plans another workload on the same GPUs."""
    work, one = solution.workload, choice.strategy
    if work.mode == "train":
        return None

    def priced(mode: Mode, rows: int, tokens: int | None = None) -> StepCost | None:
        try:
            here = replace(work, mode=mode, global_batch=rows)
            here = here if tokens is None else replace(here, context_tokens=tokens, text_tokens=None)
            cost = price(cluster, here, one, choice.placement, profile, solution.target.code)
        except InputError:
            return None
        return cost if room.holds(cost) else None

    rows = -(-work.global_batch // one.data) * one.data
    first, token = priced("prefill", one.data), priced("decode", rows)
    fewest = max(1, -(-work.vision_tokens // STEP_TOKENS))
    longest = most_tokens(lambda tokens: priced("decode", rows, tokens) is not None, STEP_TOKENS, fewest)
    most = one.data * most_tokens(
        lambda count: count <= MOST_ROWS and priced("decode", count * one.data) is not None, unit=1
    )
    full = priced("decode", most) if most else None
    return Serving(
        first_token_s=None if first is None else first.step_s,
        token_s=None if token is None else token.step_s,
        longest_tokens=longest,
        most_rows=most,
        most_tokens_per_s=0.0 if full is None else most / full.step_s,
        most_token_s=None if full is None else full.step_s,
        apart=_apart(solution, alone) if work.mode == "decode" else None,
    )


def _apart(solution: Solution, alone: Callable[[Workload], Solution]) -> Apart | None:
    """Prefill of one prompt on GPUs of its own, planned alone; `None` if no layout holds it."""
    model, work = solution.workload.model, solution.workload
    try:
        found = alone(replace(work, mode="prefill", global_batch=1))
    except InputError:
        return None
    best = found.best[0]
    columns, width = 2 * model.kv_heads * model.head_dim, DTYPE_BYTES[work.precision.param]
    scans = model.layer_kinds.count("ssd")
    cache = columns * work.context_tokens * (model.layers - scans) * width
    cache += 0 if model.ssd is None else scans * model.ssd.cached_bytes(width)
    return Apart(strategy=best.strategy, first_token_s=best.cost.step_s, cache_bytes=round(cache))
