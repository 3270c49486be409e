"""`python -m cost_models.fit`: fit the device and link curves, pack them, print the error on families left out.

    measurements/*.csv -> cost_models/curves/<device>.npz, <device>.json (sources, errors), links.*, checks.json
Same input, same bytes. `--no-check` keeps the packed errors and skips the left-out fits (a minute).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cost_models.curves.grid import Floats, pack
from cost_models.curves.packed import FOLDER
from cost_models.errors import InputError
from cost_models.fit import checks, devices, links
from cost_models.fit.rows import DEFAULT_FOLDER


def summary(errors: Floats) -> dict[str, float]:
    """Median and 90th percentile of the absolute error, the bias, and the number of rows."""
    size = np.abs(errors)
    return {
        "median": round(float(np.median(size)), 4),
        "p90": round(float(np.percentile(size, 90)), 4),
        "bias": round(float(np.median(errors)), 4),
        "rows": len(errors),
    }


def fit_device(measurements: Path, out: Path, recipe: devices.Recipe, check: bool) -> dict[str, dict[str, float]]:
    """Fit and pack one device; the errors by family (of the last check if `check` is off)."""
    arrays = devices.fit(measurements, recipe)
    pack(out / f"{recipe.device}.npz", arrays)
    facts_path = out / f"{recipe.device}.json"
    if check:
        errors = {name: summary(e) for name, e in devices.left_out(measurements, recipe).items()}
    else:
        errors = json.loads(facts_path.read_text())["left_out"] if facts_path.is_file() else {}
    facts: dict[str, Any] = {
        op: {"source": words, "measured_on": list(presets)} for op, (words, presets) in recipe.sources.items()
    }
    facts["left_out"] = errors
    facts_path.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    return errors


def fit_links(measurements: Path, out: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Fit and pack the links; errors by link and family."""
    pack(out / "links.npz", links.tables(measurements))
    errors = {
        link: {f"collectives, {name}": summary(e) for name, e in links.left_out(measurements, link).items()}
        for link in links.MEASURED
    }
    (out / "links.json").write_text(json.dumps(errors, indent=1, sort_keys=True) + "\n")
    return errors


def other_rows(errors: dict[str, dict[str, float]]) -> Table:
    """Rows that shaped no curve, against the packed curves."""
    shown = Table("rows that shaped no curve", "rows", "median", "p90", "bias", title="against other set-ups")
    for name, e in errors.items():
        shown.add_row(name, str(e["rows"]), f"{e['median']:.1%}", f"{e['p90']:.1%}", f"{e['bias']:+.1%}")
    return shown


@click.command()
@click.option(
    "--measurements", type=click.Path(path_type=Path), default=DEFAULT_FOLDER, help="Folder of measured rows."
)
@click.option("--out", type=click.Path(path_type=Path), default=FOLDER, help="Where the packed curves go.")
@click.option("--check/--no-check", default=True, help="Refit with each family left out and print the errors.")
def main(measurements: Path, out: Path, check: bool) -> None:
    """Fit device and link curves from published measurements and pack them."""
    console = Console()
    shown = Table("curve", "left out", "rows", "median", "p90", "bias", title="error on families left out of the fit")
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = fit_links(measurements, out)
        for recipe in track(devices.RECIPES, "fitting", console=console, transient=True):
            found[recipe.device] = fit_device(measurements, out, recipe, check)
        others = {name: summary(e) for name, e in checks.errors(measurements).items()} if check else {}
    except InputError as error:
        raise click.UsageError(str(error)) from error
    for curve, families in found.items():
        for name, e in families.items():
            cells = (f"{e['median']:.1%}", f"{e['p90']:.1%}", f"{e['bias']:+.1%}")
            shown.add_row(curve, name, str(e["rows"]), *cells)
    console.print(shown)
    if others:
        console.print(other_rows(others))
        (out / "checks.json").write_text(json.dumps(others, indent=1, sort_keys=True) + "\n")
    size = sum(path.stat().st_size for path in out.glob("*.npz")) + sum(p.stat().st_size for p in out.glob("*.json"))
    console.print(f"packed {size / 1000:.0f} kB in {out}")


if __name__ == "__main__":
    main()
