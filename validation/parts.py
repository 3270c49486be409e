"""Domains of the certificate for parts of a step: kernels and collectives, by rows that no curve was fitted to.

    attention, products, elementwise     measured: families left out of the fit (`fit/devices.py`), and other set-ups'
                                         rows (`fit/checks.py`)      scaled: one generation from another's curves
    collectives inside a node            sizes and numbers of ranks left out of the tables (`fit/rates.py`)

A family of one device is one source. What has no rows is stated, wider than its measured relatives, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from cost_models.certificate import Domain
from cost_models.curves.grid import Floats
from validation.domains import Error, measured, stated
from validation.fit import checks, devices, rates

FAMILIES = {
    "gemm": "products", "busy products": "products", "grouped products": "products", "attention": "attention",
    "unequal dims": "attention", "memory-bound": "elementwise", "memory_bound": "elementwise",
}  # fmt: skip
"""By the first words of a family's name."""
CHECKED = {"projections": "products", "matmuls": "products", "prefill": "attention", "FA3": "attention"}
"""By a word of a check's name. Products at the burst clock are not what a step runs."""
STATED: Mapping[str, tuple[float, str]] = {
    "collectives over PCIe": (0.3, "rates are closed forms of one board's fit: no row was left out of it"),
    "collectives across nodes": (0.25, "the first tables across nodes came out 20 to 60% early at 1 to 64 MiB"),
    "offload": (0.3, "no rows of copies to host memory alone"),
    "host": (0.3, "launches of a layer are counted, their time comes from one source"),
}


def domains(folder: Path, on_step: Callable[[str], None]) -> dict[str, Domain]:
    """Every part's domain; minutes."""
    found: dict[str, list[Error]] = {}
    fitted = {}
    for recipe in devices.RECIPES:
        on_step(f"{recipe.device}: families left out")
        fitted[recipe.device] = arrays = devices.fit(folder, recipe)
        for family, errors in devices.left_out(folder, recipe, arrays).items():
            _put(found, f"{_kernel(family, FAMILIES)}, measured", f"{recipe.device}: {family}", errors)
    on_step("other set-ups")
    for name, errors in checks.errors(folder).items():
        if "burst" not in name:
            kernel = next(kernel for word, kernel in CHECKED.items() if word in name)
            _put(found, f"{kernel}, measured", name, errors)
    for op, errors in checks.scaled_errors(folder, fitted).items():
        _put(found, f"{_kernel(op, FAMILIES)}, scaled", op, errors)
    for link in rates.MEASURED:
        for family, errors in rates.links_left_out(folder, link).items():
            _put(found, "collectives inside a node", f"{link}: {family}", errors)
    made = {name: measured(errors) for name, errors in sorted(found.items())}
    return made | {name: stated(*words) for name, words in STATED.items() if name not in made}


def _kernel(family: str, names: Mapping[str, str]) -> str:
    """A family that no domain knows ends the run: it must be named here."""
    return next(kernel for words, kernel in names.items() if family.startswith(words))


def _put(found: dict[str, list[Error]], domain: str, source: str, errors: Floats) -> None:
    """`errors` are predicted / measured - 1."""
    logs: Iterable[float] = -np.log1p(errors)
    found.setdefault(domain, []).extend(Error(source=source, error=float(one)) for one in logs)
