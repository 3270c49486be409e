"""What this project's executor runs of a plan; the rest is priced for comparison.

A user may fix what is not executed (`--fix tensor=2`): the plan is written, the screen says what refuses it, and
`executor launch` does.
"""

from __future__ import annotations

from cost_models.layer.recompute import EXECUTED, KEEPING_INPUT, policy
from cost_models.token_layout import RING_LAYOUTS
from planner.plan_file import Plan


def unsupported(plan: Plan) -> list[str]:
    """What the plan asks for that the executor does not do; nothing where it runs."""
    strategy, work, model = plan.strategy, plan.workload, plan.workload.model
    precision = work.precision
    stored = {precision.master, precision.grad, precision.optimizer}
    formats = (
        f"precision master={precision.master} grad={precision.grad} optimizer={precision.optimizer} is not executed; "
        "legal: all three fp32, or all three fp64"
    )
    refused = [
        (not plan.target.is_ours, f"the plan is for {plan.target.name}: `plan export` it, or plan with --for mmsp"),
        (model.experts, f"{model.name} has experts, which are priced but not executed; plan a dense model"),
        (model.latent, f"{model.name} has latent attention, which is priced but not executed; plan another model"),
        *((degree > 1, f"{axis}={degree} is priced but not executed; plan with {axis}=1")
          for axis, degree in (("tensor", strategy.tensor), ("pipeline", strategy.pipeline))),
        (strategy.ring_kind not in RING_LAYOUTS,
         f"ring_kind={strategy.ring_kind} is not executed; legal: {', '.join(RING_LAYOUTS)}"),
        (strategy.offload_states == "optimizer" and strategy.zero != 3,
         f"offload_states=optimizer with zero={strategy.zero} is not executed; legal here: zero=3"),
        *((part.recompute not in EXECUTED,
           f"recompute={part.recompute} is not executed; legal: {', '.join(EXECUTED)}") for part in strategy.layers),
        *((part.offload != "none" and not policy(part.recompute).keeps_input,
           f"offload={part.offload} is executed with recompute={', '.join(KEEPING_INPUT)} alone, not {part.recompute}")
          for part in strategy.layers),
        (stored not in ({"fp32"}, {"fp64"}), formats),
        (work.optimizer != "adamw", f"optimizer={work.optimizer} is not executed; legal: adamw"),
    ]  # fmt: skip
    return list(dict.fromkeys([*(text for broken, text in refused if broken), *_number_formats(plan)]))


def _number_formats(plan: Plan) -> list[str]:
    """Number formats of layers and gradient sums that cannot be run or would give wrong results."""
    precision, problems = plan.workload.precision, []
    # A loss over a million tokens has gradients below fp16's smallest number, and nothing scales them up.
    legal = ("fp64", "fp32", "bf16") if plan.workload.mode == "train" else ("fp64", "fp32", "bf16", "fp16")
    for name in ("param", "reduce"):
        if (chosen := getattr(precision, name)) not in legal:
            problems.append(
                f"precision {name}={chosen} is not executed for mode={plan.workload.mode}; legal: {', '.join(legal)}"
            )
    if precision.param == precision.master != precision.reduce:
        problems.append(
            f"precision reduce={precision.reduce} is executed only with a param that differs from master; "
            f"plan with reduce={precision.param}"
        )
    on_gpu = any(run.node.device.architecture != "cpu" for run in plan.cluster.runs)
    if on_gpu and precision.param not in ("bf16", "fp16"):
        problems.append(f"precision param={precision.param} has no attention kernel on GPUs; legal: bf16")
    return problems
