"""What is priced but not planned: the search counts layers that are all alike and that the executor can run.

mixtures of experts, latent attention, layers with and without a window: priced (`plan price`, `cost_models.price`),
not searched and not simulated. A model whose layers all have the same window is planned.
"""

from __future__ import annotations

from cost_models.errors import InputError
from cost_models.models.model import LAYER_KINDS, Model


def check_plannable(model: Model) -> None:
    """One clear line for a model that cannot be planned."""
    found = []
    if model.experts is not None:
        found.append("experts")
    if model.latent is not None:
        found.append("latent attention")
    if len({LAYER_KINDS[kind].mixer for kind in model.layer_kinds}) > 1:
        found.append("layers with and without a window")
    if found:
        raise InputError(
            f"--model {model.name!r} has {' and '.join(found)}: priced, but neither planned nor run; "
            "price a layout with `plan price --strategy data=8,…`, or plan a model whose layers are alike"
        )
