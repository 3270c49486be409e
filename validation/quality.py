"""`python -m validation.quality`: the quality estimates against published evaluations, and the refit of their weights.

    measurements/quality_obsscaling.csv (eight benchmarks) + quality_shapes.csv -> models that the law's domain holds
    error = predicted - measured, in points of 100: the law's MMLU; a refit with the model's family left out of it

The refit minimises squared errors of `chance + (100 - chance) / (1 + exp(-w . terms))` over the five weights of each
benchmark. `--markdown` writes the page; `--write` the weights and the bands that `cost_models/quality.py` reads. Left
out: models without published tokens, with experts, with layers of several shapes, recurrent ones.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from cost_models import quality
from cost_models.errors import InputError
from validation import tables
from validation.rows import FOLDER, Row, read
from validation.tables import Table, display, paragraphs, write

SCORES, SHAPES = "quality_obsscaling", "quality_shapes"
DIGEST = "511996815735a4c46251dc585dcc525e370d148201f86561e6f927f9df2d0db8"
"""SHA-256 of the scores as they were published."""
CHANCE = {
    "MMLU": 25.0, "ARC-C": 25.0, "HellaSwag": 25.0, "Winograd": 50.0, "TruthfulQA": 0.0, "GSM8K": 0.0,
    "XWinograd": 50.0, "HumanEval": 0.0,
}  # fmt: skip
PRIOR = 0.01
"""Of squared weights, in squared points: it decides only where the models say nothing."""
PRESET = Path(quality.__file__).with_name("presets") / "quality.yaml"
Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A published model in the law's domain."""

    name: str
    family: str
    terms: tuple[float, ...]
    law: float  # its MMLU
    scores: Mapping[str, float]  # points of 100; a benchmark that was not run is missing


def published(folder: Path = FOLDER) -> list[Row]:
    """The scores as published; InputError if the file was edited."""
    found = hashlib.sha256((folder / f"{SCORES}.csv").read_bytes()).hexdigest()
    if found != DIGEST:
        raise InputError(f"{SCORES}.csv is not what was published: SHA-256 {found[:12]}…, legal: {DIGEST[:12]}…")
    return read(SCORES, folder)


def models(folder: Path = FOLDER) -> list[Scored]:
    """Every model with a shape and tokens that the law's domain holds, in the file's order."""
    shapes = {row.text("model"): row for row in read(SHAPES, folder)}
    found = []
    for row in published(folder):
        shape = shapes.get(row.text("Model"))
        if shape is None or not row.cell("Pretraining Data Size (T)"):
            continue
        layers, hidden, ffn = (shape.count(name) for name in ("layers", "hidden", "ffn"))
        trillions, billions = row.positive("Pretraining Data Size (T)"), row.positive("Model Size (B)")
        limits = (quality.LAYERS, quality.HIDDEN, quality.FFN, quality.TERA_TOKENS)
        if not all(
            low <= value <= high for value, (low, high) in zip((layers, hidden, ffn, trillions), limits, strict=True)
        ):
            continue
        given = (layers, hidden, ffn, min(trillions, billions), quality.instability(layers, hidden, ffn))
        found.append(
            Scored(
                name=row.text("Model"), family=row.text("Model Family"), terms=quality.terms(*given),
                law=quality.mmlu(*given),
                scores={name: 100 * row.number_of(name) for name in CHANCE if row.cell(name)},
            )
        )  # fmt: skip
    return found


def fitted(terms: Numbers, scores: Numbers, chance: float) -> Numbers:
    """Weights of one benchmark: terms [models, 5], scores [models] in points."""
    from scipy.optimize import least_squares

    def errors(weights: Numbers) -> Numbers:
        return np.concatenate([_predicted(terms, weights, chance) - scores, math.sqrt(PRIOR) * weights[:-1]])

    return np.asarray(least_squares(errors, np.array([0.5, 0.1, 0.0, 0.3, -4.0])).x)


def _predicted(terms: Numbers, weights: Numbers, chance: float) -> Numbers:
    return chance + (100 - chance) / (1 + np.exp(-np.clip(terms @ weights, -500, 500)))


@dataclass(frozen=True, kw_only=True)
class Refit:
    """One benchmark: weights from all models, errors of each from the other families alone."""

    name: str
    weights: Numbers
    errors: Numbers
    constant: Numbers  # errors if all had the other families' mean
    families: int


def refit(found: Sequence[Scored], name: str) -> Refit:
    """The law refitted to a benchmark, its errors with each family left out."""
    held = [one for one in found if name in one.scores]
    terms, scores = np.array([one.terms for one in held]), np.array([one.scores[name] for one in held])
    families = np.array([one.family for one in held])
    errors, constant = np.empty(len(held)), np.empty(len(held))
    for family in dict.fromkeys(families.tolist()):
        out = families == family
        weights = fitted(terms[~out], scores[~out], CHANCE[name])
        errors[out] = _predicted(terms[out], weights, CHANCE[name]) - scores[out]
        constant[out] = scores[~out].mean() - scores[out]
    return Refit(
        name=name, weights=fitted(terms, scores, CHANCE[name]), errors=errors, constant=constant,
        families=len(set(families.tolist())),
    )  # fmt: skip


def law_errors(found: Sequence[Scored]) -> Numbers:
    """The law's MMLU - measured; the law was not fitted to these files."""
    return np.array([one.law - one.scores["MMLU"] for one in found if "MMLU" in one.scores])


def preset(found: Sequence[Scored], refits: Sequence[Refit]) -> str:
    """The file that `cost_models/quality.py` reads."""
    low, high = np.quantile(law_errors(found), [0.1, 0.9])
    lines = [
        "# Written by `python -m validation.quality --write`, which says how; points of 100.",
        f"models: {len(found)}", f"families: {len({one.family for one in found})}",
        f"law_low: {low:.1f}", f"law_high: {high:.1f}", "benchmarks:",
    ]  # fmt: skip
    for one in refits:
        ends = [f"{end:.1f}" for end in np.quantile(one.errors, [0.1, 0.9])]
        weights = ", ".join(f"{weight:.4f}" for weight in one.weights)
        lines += [
            f"  {one.name}: {{chance: {CHANCE[one.name]}, weights: [{weights}], low: {ends[0]}, high: {ends[1]}}}"
        ]
    return "\n".join(lines) + "\n"


def report(found: Sequence[Scored], refits: Sequence[Refit]) -> list[Table]:
    law = law_errors(found)
    columns = ("benchmark", "models", "families", "mean error", "90th percentile", "bias", "band (80%)",
               "mean error of a constant")  # fmt: skip
    rows = [("MMLU by the law", len(law), len({one.family for one in found}), *_told(law), None)]
    rows += [
        (
            one.name + " by the refit",
            len(one.errors),
            one.families,
            *_told(one.errors),
            _points(abs(one.constant).mean()),
        )
        for one in refits
    ]
    mmlu = next(one for one in refits if one.name == "MMLU")
    order = np.argsort(-abs(law))[:8].tolist() + np.argsort(law)[:4].tolist()
    worst = [
        (
            found[at].name,
            _points(found[at].scores["MMLU"]),
            _points(found[at].law),
            _points(law[at]),
            _points(mmlu.errors[at]),
        )
        for at in order
    ]
    return [
        Table(title="Errors", columns=columns, rows=rows, key="errors", text=(
            "Predicted - measured in points of 100. The law was fitted by its authors to other tables; the refit's "
            "errors are of families that were left out of it. The last column is what one would be off by without "
            "looking at the model."
        )),
        Table(title="Where the law is off most", key="worst", rows=worst, columns=(
            "model", "MMLU", "the law", "its error", "the refit's error"),
            text="The eight largest errors, then the four models that the law rates lowest."),
    ]  # fmt: skip


def _told(errors: Numbers) -> tuple[str, ...]:
    low, high = np.quantile(errors, [0.1, 0.9])
    sizes = abs(errors)
    return (
        _points(sizes.mean()),
        _points(np.quantile(sizes, 0.9)),
        _points(errors.mean()),
        f"{-high:+.1f} to {-low:+.1f}",
    )


def _points(value: float) -> str:
    return f"{value:.1f}"


WORDS = """
What `plan --backbones` says of quality, against the evaluations that ObsScaling published of open models in one
protocol (github ryoungj/ObsScaling, Apache-2.0): those with published tokens, dense layers of one shape, inside
Performance Law's domain. Written by `python -m validation.quality --markdown docs/quality.md`.

The law was made for models of 2024 with good data, and it meets these: Llama-3, Gemma-2, Qwen1.5 and Yi within a few
points. Nothing that it reads says how good the data are, and models of the same shape and tokens on other data score
10 to 30 points less. So its band is wide, and lies below it. The refit is of all these data, good and bad: it is off by
half as much, and rates a model on good data too low.

The band is from the 10th to the 90th percentile of measured - predicted. Models of one family are alike, so a family
counts by how many models it has. A shape is from the table of TransformerLens or the configuration of LitGPT, else it
was written down from memory (`recalled` in `quality_shapes.csv`) and agrees with the published number of weights.
"""


@click.command(help=__doc__)
@click.option("--markdown", "page", type=click.Path(path_type=Path), help="Write the page here.")
@click.option("--write", "preset_too", is_flag=True, help="Write cost_models/presets/quality.yaml.")
def main(page: Path | None, preset_too: bool) -> None:
    try:
        found = models()
        refits = [refit(found, name) for name in CHANCE]
        shown = report(found, refits)
        display(shown)
        if page:
            write(page, markdown(shown))
        if preset_too:
            write(PRESET, preset(found, refits))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def markdown(shown: Sequence[Table]) -> str:
    return tables.markdown("Quality", paragraphs(WORDS), shown)


if __name__ == "__main__":
    main()
