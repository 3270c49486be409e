"""How good a dense language model becomes, as its MMLU: Performance Law (Wu, Tang; arXiv 2408.09895), an estimate.

    u  = exp(-((10 / d + 20 / h) gamma N)^2)          instability, in (0, 1]: deep and narrow models train badly
    T' = min(T, S)                                    of tokens no more count than 1,000 for each weight
    M  = 13.95 ln(u N) + 0.2307 ln(u h) - 0.4852 ln(u d) + 5.398 ln(u T') + 9.195         N layers, h wide, d of the MLP
    MMLU = max(M, 25); above 90: 90 + 10 tanh(M / 10 - 9)                                 T in 10^12, S in 10^9

Equation and digits are those of the first author's program (github wuch15/performance-law-planner, plan.py). Depth is
worth by far the most, and only u holds it back: who seeks the best M finds the deepest model, so `DEEPEST` bounds it.
Left out: what was trained on (the law knows data of 2024), row length, experts. It is no constraint of any plan.
"""

from __future__ import annotations

import math

from msgspec import Struct

from cost_models.errors import InputError
from cost_models.models.model import Model

CHANCE, SOFT = 25.0, 90.0
"""MMLU of four choices by chance, and where the ceiling begins."""
BAND = 8.0
"""Points on either side: of twelve models of late 2023 and 2024 the law was off by 4.6 in the mean, by 7.6 at most.
Of eight models of 2020 to mid 2023 it said 10 too much: their data were worse."""
LAYERS = (16, 126)
HIDDEN = (896, 16384)
FFN = (4864, 53248)
TERA_TOKENS = (0.1, 20.0)
"""The domain: shapes from Qwen2-0.5B to Llama-3.1-405B, the ends of what the law was checked on; tokens from Phi-1.5's
(0.15) to the most that the author's program plans."""
DEEPEST = 64
"""hidden / layers is at least this where shapes are sought. Of trained models Llama-3 has 102 to 130."""
WORDS = f"an estimate: Performance Law, arXiv 2408.09895; data of 2024, ±{BAND:.0f}, not a measurement"


class Quality(Struct, frozen=True, kw_only=True):
    """A predicted MMLU in percent, and what it rests on."""

    mmlu: float
    low: float
    high: float
    instability: float  # u; 1 is none
    saturated: bool  # further tokens are worth nothing to the law


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
    low, high = max(CHANCE, value - BAND), min(100.0, value + BAND)
    return Quality(mmlu=value, low=low, high=high, instability=unstable, saturated=trillions > billions)


def instability(layers: int, hidden: int, ffn: int, gamma: float = 1.0) -> float:
    """u: 1 for shallow and wide models."""
    return math.exp(-(((10 / ffn + 20 / hidden) * gamma * layers) ** 2))


def mmlu(layers: int, hidden: int, ffn: int, trillions: float, unstable: float) -> float:
    """The law itself; `trillions` of tokens that count, `unstable` is u."""
    log_u = math.log(max(unstable, 1e-300))
    value = (
        13.95018192 * (log_u + math.log(layers))
        + 0.23072027 * (log_u + math.log(hidden))
        - 0.48523402 * (log_u + math.log(ffn))
        + 5.39801689 * (log_u + math.log(trillions))
        + 9.195410648934768
    )
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
