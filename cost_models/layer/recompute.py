"""The recompute policies: which operators of a layer keep nothing for the backward pass, and which run again there.

    keeps        whose kept bytes stay; all others are made again, and are alive while the layer's gradients are made
    again        whose forward work runs again before the layer's backward pass, with its communication; of "full" only
                 until the last kept tensor is back, where a framework's checkpoint ends early (PyTorch's)
    host         whose calls the host makes again: those that PyTorch's checkpoint makes, also of frameworks whose own
                 runs the layer to its end

A new policy is a name in `strategy.Recompute` and a row here; to run it, `executor/recompute.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cost_models.framework import Framework
from cost_models.layer.operators import Table
from cost_models.number import Number, somewhere
from cost_models.strategy import Recompute

Names = Callable[[str], bool]
INSIDE = frozenset(
    ("mlp norm", "mlp sum", "up gather", "router", "permute", "dispatch", "up", "activation", "shared up")
)
"""Of an MLP: what leads to its last product."""
OUTPUTS = frozenset(("down", "combine", "shared down", "mlp scatter", "slices", "join", "weight sums"))
"""Of an MLP: its last product and what follows; slices run forward again in any case, so nothing else needs them."""

MIXTURE = frozenset(
    ("router", "permute", "dispatch", "up", "activation", "down", "combine", "shared up", "shared down")
)
"""A mixture of experts from its gate to the sum of what experts gave."""
CHEAP = ("norm", "mlp norm", "activation")
"""Without products."""


def _everything(name: str) -> bool:
    return True


def _nothing(name: str) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Which operators of a layer keep their results, on the GPU or the host, and which run again in backward."""

    keeps: Names
    again: Names
    host: Names
    keeps_input: bool = False  # by itself: the operators that would keep it keep nothing; the layer starts again there
    returns: bool = True  # what it does not keep is alive again while the layer's gradients are made
    passes: int = 1  # over the layer's weights in the backward pass, with a framework's casts and gathers each time
    planned: bool = True  # whether `plan` tries it
    remakes: Names = _nothing  # of those that stay, whose results alone are made again
    every_other: bool = False  # keeps the first, third, … product's result, and makes only the others' again


def _only(*names: str) -> Names:
    return frozenset(names).__contains__


def _all_but(*names: str) -> Names:
    left_out = frozenset(names)
    return lambda name: name not in left_out


_ENDS = ("down", "mlp sum", "join")
POLICIES: dict[Recompute, Policy] = {
    "none": Policy(keeps=_everything, again=_nothing, host=_nothing, returns=False),
    "mlp": Policy(keeps=_all_but("activation"), again=_only(*INSIDE), host=_only("up", "activation")),
    "all_but_attention": Policy(
        keeps=_only("attention"), again=_all_but("attention", *OUTPUTS),
        host=_all_but("attention", "result", "slices", *_ENDS), keeps_input=True,
    ),
    "full": Policy(keeps=_nothing, again=_everything, host=_all_but(*_ENDS), keeps_input=True, passes=2),
    "core_attention": Policy(
        keeps=_all_but("scores"), again=_only("attention"), host=_only("attention"), returns=False, planned=False
    ),
    "other_products": Policy(
        keeps=_only("attention"), again=_all_but("attention", *OUTPUTS),
        host=_all_but("attention", "result", "slices", *_ENDS), keeps_input=True, planned=False, every_other=True,
    ),
    "mixture": Policy(
        keeps=_all_but(*MIXTURE), again=_only("norm", "mlp norm", *MIXTURE), host=_only("norm", "mlp norm", *MIXTURE),
        remakes=_only("norm", "mlp norm"), planned=False,
    ),
    "elementwise": Policy(
        keeps=_everything, again=_only(*CHEAP), host=_only(*CHEAP), remakes=_only(*CHEAP), planned=False
    ),
}  # fmt: skip
EXECUTED = tuple(name for name, one in POLICIES.items() if one.planned)
"""Those that the executor runs; the others are priced only."""
KEEPING_INPUT = tuple(name for name in EXECUTED if POLICIES[name].keeps_input)
"""Under which a layer's input is kept by itself, so that it can wait in host memory."""
"""`other_products` is torchtitan's selective checkpoint of operators (its save list leaves out every second mm).
`core_attention` is Megatron's: unfused scores are made again; that they return is part of attention's work. `mixture`
is Megatron's modules moe and layernorm: all of a mixture runs again, with its exchanges, and both norms; `elementwise`
its modules moe_act and layernorm, and Kuaishou's norms and activations. Of norms and activations it is the results that
are made again."""
NORMS_AGAIN = _only("norm", "sum", "mlp norm")
"""What a framework with `norm_copies` runs again under "none"."""


def run_again(table: Table, recompute: str, framework: Framework) -> Table:
    """The operators whose forward work comes before the backward pass of a layer."""
    chosen = NORMS_AGAIN if recompute == "none" and framework.norm_copies else policy(recompute).again
    if policy(recompute).every_other:
        table = every_other(table, first=False)
    if recompute == "full" and framework.checkpoint_ends_early:
        table = _until_all_is_back(table)
    return tuple(one for one in table if chosen(one.name))


def _until_all_is_back(table: Table) -> Table:
    """Without what follows the last operator that keeps something: mostly the MLP's last product.

    Slices run forward again in any case, and what a mixture's gate multiplies comes last.
    """
    if any(one.reruns or one.name == "router" for one in table):
        return table
    last = max(place for place, one in enumerate(table) if somewhere(one.kept > 0))
    return table[: last + 1]


def every_other(table: Table, first: bool) -> Table:
    """The operators with every second of their products, counted through the layer, from the first or second on.

    Grouped products are no such operators, and all of them are made again.
    """
    made, place = [], 0 if first else 1
    for one in table:
        products = []
        for product in one.products:
            if somewhere(product.groups > 1):
                products += [] if first else [product]
                continue
            taken = len(range(place % 2, product.equal, 2))
            place += product.equal
            products += [product._replace(equal=taken)] if taken else []
        made.append(one._replace(products=tuple(products)))
    return tuple(made)


def kept_products(table: Table, width: float, last: bool) -> Number:
    """Bytes of the results that `other_products` keeps; `last`: also that of the layer's last product."""
    taken = (one for one in every_other(table, first=True) if last or one.name != "down")
    return sum(p.rows * p.out * p.equal for one in taken for p in one.products) * width


def policy(recompute: str) -> Policy:
    """The policy of that name."""
    return POLICIES[recompute]  # type: ignore[index]
