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
    step, layouts = plan.cost.step_s, sum(one.rings[1] - one.rings[0] + 1 for one in plan.proof.regions)
    equal = " with equal shares of a row" if plan.strategy.token_shares else ""
    click.echo(
        f"{plan_file}: proven. {len(plan.proof.regions)} regions hold all {layouts} layouts of the space; none takes "
        f"less than {bound:.4g} s{equal}, {1 - bound / step:.2%} below this plan's {step:.4g} s. The plan's own bound "
        f"of {plan.bound:.4g} s ({plan.gap:.2%}) counts every link, too; `plan check` searches for it again."
    )
