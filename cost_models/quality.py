"""How good a dense language model becomes, from its shape and tokens: two estimates, each with a measured band.

    u  = exp(-((10 / d + 20 / h) gamma N)^2)          instability, in (0, 1]: deep and narrow models train badly
    T' = min(T, S)                                    of tokens no more count than 1,000 for each weight
    M  = 13.95 ln(u N) + 0.2307 ln(u h) - 0.4852 ln(u d) + 5.398 ln(u T') + 9.195         N layers, h wide, d of the MLP
    MMLU = max(M, 25); above 90: 90 + 10 tanh(M / 10 - 9)                                 T in 10^12, S in 10^9
    refit: chance + (100 - chance) / (1 + exp(-w . (ln uN, ln uh, ln ud, ln uT', 1)))     for each of eight benchmarks

The law (Performance Law; Wu, Tang; arXiv 2408.09895) has the equation and digits of its first author's program (github
wuch15/performance-law-planner, plan.py) and knows good data of 2024. The refit has the law's terms and weights fitted
to 99 published models of 35 families, on good and bad data (`validation/quality.py`; `presets/quality.yaml`). Depth is
worth by far the most, and only u holds it back: who seeks the best M finds the deepest model, so `DEEPEST` bounds it.
Left out: what was trained on, row length, experts. It is no constraint of any plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from msgspec import Struct

from cost_models import strict
from cost_models.errors import InputError
from cost_models.models.model import Model

CHANCE, SOFT = 25.0, 90.0
"""MMLU of four choices by chance, and where the ceiling begins."""
LAW = (13.95018192, 0.23072027, -0.48523402, 5.39801689, 9.195410648934768)
LAYERS = (16, 126)
HIDDEN = (896, 16384)
FFN = (4864, 53248)
TERA_TOKENS = (0.1, 20.0)
"""The domain: shapes from Qwen2-0.5B to Llama-3.1-405B, the ends of what the law was checked on; tokens from Phi-1.5's
(0.15) to the most that the author's program plans."""
DEEPEST = 64
"""hidden / layers is at least this where shapes are sought. Of trained models Llama-3 has 102 to 130."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark's refit; points of 100."""

    chance: float
    weights: tuple[float, ...]  # of `terms`
    low: float  # 10th percentile of predicted - measured, each model's family left out of the fit
    high: float  # the 90th


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What published evaluations say of both estimates."""

    models: int
    families: int
    law_low: float  # 10th percentile of the law's MMLU - measured
    law_high: float  # the 90th
    benchmarks: Mapping[str, Benchmark]


class Estimate(Struct, frozen=True, kw_only=True):
    """A score in percent; 80% of published models lie within its ends."""

    value: float
    low: float
    high: float


class Quality(Struct, frozen=True, kw_only=True):
    """The law's MMLU in percent, its band (80%), and what it rests on."""

    mmlu: float
    low: float
    high: float
    instability: float  # u; 1 is none
    saturated: bool  # further tokens are worth nothing to the law


@cache
def measured() -> Measured:
    """`presets/quality.yaml`, which `python -m validation.quality` writes."""
    text = (resources.files("cost_models") / "presets" / "quality.yaml").read_text(encoding="utf-8")
    return strict.read(Measured, strict.parse_yaml(text, "quality"), "quality")


def words() -> str:
    """What has to be said beside every value of the law."""
    found = measured()
    return (
        "an estimate, not a measurement: Performance Law, arXiv 2408.09895, for good data of 2024; of "
        f"{found.models} published models 80% lie from {found.law_high:.0f} points below it to "
        f"{-found.law_low:.0f} above"
    )


def quality(model: Model, tokens: float, gamma: float = 1.0) -> Quality:
    """Of a dense model trained on so many tokens; `gamma` >= 1 is the loss of precision (1: bf16). InputError outside
    the law's domain.

    >>> round(quality(Model.load("llama-3-8b"), 15e12).mmlu, 1)
    65.5
    """
    check(model, tokens)
    if not 1 <= gamma < 100:
        raise InputError(f"gamma={gamma} must be from 1 (bf16) to 100")
    billions, trillions = model.llm_params / 1e9, tokens / 1e12
    unstable = instability(model.layers, model.hidden, model.ffn, gamma)
    value = mmlu(model.layers, model.hidden, model.ffn, min(trillions, billions), unstable)
    found = measured()
    low, high = max(CHANCE, value - found.law_high), min(100.0, value - found.law_low)
    return Quality(mmlu=value, low=low, high=high, instability=unstable, saturated=trillions > billions)


def refitted(model: Model, tokens: float) -> dict[str, Estimate]:
    """Each benchmark's score by the refit, of a dense model trained on so many tokens. InputError outside the domain.

    >>> score = refitted(Model.load("llama-3-8b"), 15e12)["MMLU"]
    >>> score.low < score.value < score.high
    True
    """
    check(model, tokens)
    trillions = min(tokens / 1e12, model.llm_params / 1e9)
    given = terms(model.layers, model.hidden, model.ffn, trillions, instability(model.layers, model.hidden, model.ffn))
    found = {}
    for name, one in measured().benchmarks.items():
        value = logistic(sum(w * x for w, x in zip(one.weights, given, strict=True)), one.chance)
        low, high = max(one.chance, value - one.high), min(100.0, value - one.low)
        found[name] = Estimate(value=value, low=low, high=high)
    return found


def instability(layers: int, hidden: int, ffn: int, gamma: float = 1.0) -> float:
    """u: 1 for shallow and wide models."""
    return math.exp(-(((10 / ffn + 20 / hidden) * gamma * layers) ** 2))


def terms(layers: int, hidden: int, ffn: int, trillions: float, unstable: float) -> tuple[float, ...]:
    """What the law and the refit weigh; `trillions` of tokens that count, `unstable` is u."""
    log_u = math.log(max(unstable, 1e-300))
    return (*(log_u + math.log(value) for value in (layers, hidden, ffn, trillions)), 1.0)


def logistic(score: float, chance: float) -> float:
    """From chance to 100."""
    return chance + (100 - chance) / (1 + math.exp(-max(-500.0, score)))


def mmlu(layers: int, hidden: int, ffn: int, trillions: float, unstable: float) -> float:
    """The law itself."""
    given = terms(layers, hidden, ffn, trillions, unstable)
    value = sum(weight * one for weight, one in zip(LAW, given, strict=True))
    return max(CHANCE, SOFT + 10 * math.tanh(0.1 * value - 9) if value > SOFT else value)


def check(model: Model, tokens: float) -> None:
    """Refuse what the law knows nothing of."""
    if model.experts is not None:
        raise InputError(f"{model.name} has experts, and Performance Law is of dense models; legal: a dense model")
    for name, value, (least, most) in (
        ("layers", model.layers, LAYERS),
        ("hidden", model.hidden, HIDDEN),
        ("ffn", model.ffn, FFN),
        ("tokens", tokens / 1e12, TERA_TOKENS),
    ):
        if not least <= value <= most:
            unit = " trillion" if name == "tokens" else ""
            raise InputError(
                f"{name}={value:g}{unit} is outside Performance Law's domain; legal: {least} to {most}{unit}"
            )


def backbone(layers: int, hidden: int, ffn: int) -> Model:
    """The dense model that the author's program means by a shape: heads of 128, 8 of keys, SwiGLU, 150,000 words.

    >>> backbone(62, 4096, 8192).llm_params
    10070904832
    """
    return Model(
        name=f"{layers} x {hidden} x {ffn}", layers=layers, hidden=hidden, ffn=ffn, heads=hidden // 128, kv_heads=8,
        head_dim=128, vocab=150_000,
    )  # fmt: skip
