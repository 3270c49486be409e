"""`plan prove PLAN`: checks the proof that a plan carries (`plan --proof`), without the search."""

from __future__ import annotations

import click

from cost_models.errors import InputError
from planner import console


@click.command()
@click.argument("plan_file", metavar="PLAN")
def prove(plan_file: str) -> None:
    """Check a plan's proof (`plan --proof`): its regions are the whole space, and no number of them is forged."""
    from planner.plan_file import Plan
    from planner.prove.proof import check

    plan = Plan.load(plan_file)
    if plan.proof is None:
        raise InputError(f"{plan_file} has no proof; plan again with --proof")
    with console.Progress() as progress:
        progress.show("computing the bound of every region")
        bound = check(plan_file, plan, plan.proof)
    step, layouts = plan.cost.step_s, sum(len(one.layouts) for one in plan.proof.regions)
    own = f"The plan's own bound of {plan.bound:.4g} s"
    own += " is of equal shares alone" if plan.equal_shares_bound else f" ({plan.gap:.2%}) is of its search"
    click.echo(
        f"{plan_file}: proven. {len(plan.proof.regions)} regions hold all {layouts} layouts of the space; none takes "
        f"less than {bound:.4g} s with any shares of a row, {1 - bound / step:.2%} below this plan's {step:.4g} s. "
        f"{own}; `plan check` searches for it again."
    )
