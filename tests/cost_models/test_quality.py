"""Performance Law: the author's ten rows digit for digit, and how the law behaves at its ends."""

import pytest

from cost_models.errors import InputError
from cost_models.models.model import Model
from cost_models.quality import CHANCE, backbone, mmlu, quality

GOLDEN = [
    (62, 4096, 8192, 6.5, "10.07", "71.69", "0.9838"),
    (63, 4096, 8192, 6.5, "10.21", "71.82", "0.9978"),
    (46, 4096, 12288, 6.5, "10.10", "68.75", "0.9871"),
    (63, 4096, 8192, 6.0, "10.21", "71.39", "0.9210"),
    (62, 4096, 8192, 6.0, "10.07", "71.25", "0.9082"),
    (38, 6144, 8192, 6.0, "10.93", "66.70", "0.9855"),
    (47, 4096, 12288, 6.0, "10.30", "68.56", "0.9286"),
    (46, 4096, 12288, 6.0, "10.10", "68.32", "0.9112"),
    (55, 4096, 12288, 5.5, "11.84", "69.78", "0.9788"),
    (63, 4096, 8192, 5.5, "10.21", "70.92", "0.8443"),
]
"""layers, hidden, ffn, 10^12 tokens -> 10^9 weights, MMLU, share of the budget: plan.png of the author's program."""
BUDGET = 376e12 * 86400 * 0.4 * 1024 * 30
"""Its FLOP: 1,024 GPUs of 376 TFLOPS at 40% for 30 days."""


@pytest.mark.parametrize(("layers", "hidden", "ffn", "tera", "size", "score", "used"), GOLDEN)
def test_the_authors_ten_rows_digit_for_digit(layers, hidden, ffn, tera, size, score, used):
    model = backbone(layers, hidden, ffn)
    without_norms = model.llm_params - (2 * layers + 1) * hidden
    assert f"{without_norms / 1e9:.2f}" == size
    assert f"{6 * without_norms * tera * 1e12 / BUDGET:.4f}" == used
    assert f"{quality(model, tera * 1e12).mmlu:.2f}" == score


def test_deeper_is_better_until_it_is_unstable():
    scores = [quality(backbone(layers, 4096, 8192), 5e12).mmlu for layers in range(16, 127, 10)]
    best = scores.index(max(scores))
    assert 0 < best < len(scores) - 1
    assert scores[: best + 1] == sorted(scores[: best + 1]) and scores[best:] == sorted(scores[best:], reverse=True)


def test_chance_ceiling_and_tokens_that_no_longer_count():
    assert mmlu(16, 1024, 4096, 0.001, 0.9) == CHANCE
    assert 90 < mmlu(10**6, 10**6, 10**6, 1e3, 1.0) <= 100
    small = Model.load("longvila-1.5b")
    some, more = quality(small, 2e12), quality(small, 9e12)
    assert some.mmlu == more.mmlu and some.saturated and more.saturated
    assert not quality(small, 1e12).saturated
    assert some.low < some.mmlu < some.high


@pytest.mark.parametrize(
    ("model", "tokens", "named"),
    [
        (backbone(15, 4096, 8192), 1e12, "layers=15"),
        (backbone(20, 4096, 4096), 1e12, "ffn=4096"),
        (backbone(20, 17408, 20480), 1e12, "hidden=17408"),
        (backbone(20, 4096, 8192), 1e10, "tokens=0.01 trillion"),
        (Model.load("mixtral-8x7b"), 1e12, "experts"),
    ],
)
def test_outside_the_domain_is_refused_by_name(model, tokens, named):
    with pytest.raises(InputError, match=named):
        quality(model, tokens)
