"""`python -m validation.fit`: fit the device and link curves, pack them, print the error on families left out.

    measurements/*.csv -> cost_models/curves/<device>.npz, <device>.json (sources, errors), links.*, checks.json
Same input, same bytes. `--no-check` keeps the packed errors and skips the left-out fits (two minutes);
`--page docs/curves.md` writes the packed errors into that page's tables and fits nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import track

from cost_models.certificate import PROBABILITIES
from cost_models.curves.grid import Floats, pack
from cost_models.errors import InputError
from cost_models.timing.packed import FOLDER
from validation.fit import checks, devices, rates
from validation.fit.rows import DEFAULT_FOLDER
from validation.tables import Table, display, percent, signed, write


def summary(errors: Floats) -> dict[str, Any]:
    """Median and 90th percentile of the absolute error, the bias, the number of rows; quantiles for the certificate."""
    size, logs = np.abs(errors), -np.log1p(errors)
    return {
        "quantiles": [round(float(one), 4) for one in np.quantile(logs, PROBABILITIES)],
        "median": round(float(np.median(size)), 4),
        "p90": round(float(np.percentile(size, 90)), 4),
        "bias": round(float(np.median(errors)), 4),
        "rows": len(errors),
    }


def left_out(
    measurements: Path, out: Path, recipe: devices.Recipe, arrays: dict[str, Any], check: bool
) -> dict[str, dict[str, Any]]:
    """The errors by family of one device (those of the last check if `check` is off); `arrays` is its fit."""
    if check:
        return {name: summary(e) for name, e in devices.left_out(measurements, recipe, arrays).items()}
    path = out / f"{recipe.device}.json"
    kept: dict[str, dict[str, Any]] = json.loads(path.read_text())["left_out"] if path.is_file() else {}
    return kept


def write_facts(
    out: Path, recipe: devices.Recipe, errors: dict[str, dict[str, Any]], scaled: dict[str, dict[str, Any]]
) -> None:
    """Per operation its source, the presets that were measured, and the error where another is scaled from them."""
    facts: dict[str, Any] = {
        op: {**words, "scaled": scaled[op]} if op in scaled else words for op, words in recipe.sources.items()
    }
    facts["left_out"] = errors
    (out / f"{recipe.device}.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


def fit_links(measurements: Path, out: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Fit and pack the links; errors by link and family."""
    pack(out / "links.npz", rates.link_tables(measurements))
    errors = {
        link: {f"collectives, {name}": summary(e) for name, e in rates.links_left_out(measurements, link).items()}
        for link in rates.MEASURED
    }
    (out / "links.json").write_text(json.dumps(errors, indent=1, sort_keys=True) + "\n")
    return errors


def cells(e: dict[str, Any]) -> tuple[str, str, str, str]:
    """As tables show them: rows, median, 90th percentile, bias."""
    return str(e["rows"]), percent(e["median"]), percent(e["p90"]), signed(e["bias"])


def show(title: str, first: str, errors: dict[str, dict[str, Any]]) -> None:
    """One table of errors."""
    rows = [(name, *cells(e)) for name, e in errors.items()]
    display([Table(title=title, columns=(first, "rows", "median", "p90", "bias"), rows=rows)])


def with_errors(page: str, folder: Path) -> str:
    """The page with its tables of errors as the packed files in `folder` have them; its prose stays."""

    def read(name: str) -> Any:
        return json.loads((folder / f"{name}.json").read_text())

    measured = {recipe.device: read(recipe.device) for recipe in devices.RECIPES}
    curves = read("links") | {device: facts["left_out"] for device, facts in measured.items()}
    scaled = next(iter(measured.values()))
    rows = {
        "| curve | left out |": {
            f"{curve} | {name}": e for curve, by in curves.items() for name, e in sorted(by.items())
        },
        "| operation | rows |": {op: facts["scaled"] for op, facts in scaled.items() if "scaled" in facts},
        "| rows | count |": read("checks"),
    }
    lines = page.split("\n")
    for head, errors in rows.items():
        start = next(place for place, line in enumerate(lines) if line.startswith(head)) + 2
        end = lines.index("", start)
        lines[start:end] = [f"| {' | '.join((name, *cells(e)))} |" for name, e in errors.items()]
    return "\n".join(lines)


@click.command()
@click.option(
    "--measurements", type=click.Path(path_type=Path), default=DEFAULT_FOLDER, help="Folder of measured rows."
)
@click.option("--out", type=click.Path(path_type=Path), default=FOLDER, help="Where the packed curves go.")
@click.option("--check/--no-check", default=True, help="Refit with each family left out and print the errors.")
@click.option("--page", type=click.Path(path_type=Path), help="Only renew the tables of this page; fit nothing.")
def main(measurements: Path, out: Path, check: bool, page: Path | None) -> None:
    """Fit device and link curves from published measurements and pack them."""
    console = Console()
    if page is not None:
        write(page, with_errors(page.read_text(encoding="utf-8"), out))
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = fit_links(measurements, out)
        fitted = {}
        for recipe in track(devices.RECIPES, "fitting", console=console, transient=True):
            fitted[recipe.device] = devices.fit(measurements, recipe)
            pack(out / f"{recipe.device}.npz", fitted[recipe.device])
            found[recipe.device] = left_out(measurements, out, recipe, fitted[recipe.device], check)
        scaled = {op: summary(e) for op, e in checks.scaled_errors(measurements, fitted).items()}
        for recipe in devices.RECIPES:
            write_facts(out, recipe, found[recipe.device], scaled)
        others = {name: summary(e) for name, e in checks.errors(measurements).items()} if check else {}
    except InputError as error:
        raise click.UsageError(str(error)) from error
    families = {f"{curve}: {name}": e for curve, by_name in found.items() for name, e in by_name.items()}
    show("error on families left out of the fit", "left out", families)
    show("a measured device scaled from another by data sheets", "operation", scaled)
    show("against other set-ups", "rows", others)
    if others:
        (out / "checks.json").write_text(json.dumps(others, indent=1, sort_keys=True) + "\n")
    size = sum(path.stat().st_size for path in out.glob("*.npz")) + sum(p.stat().st_size for p in out.glob("*.json"))
    console.print(f"packed {size / 1000:.0f} kB in {out}")


if __name__ == "__main__":
    main()
