"""Two choices that exclude each other, and what a model or a mode does not read, are refused by name."""

import pytest

from cost_models import Model
from cost_models.errors import InputError
from planner.question.pins import read_pins
from planner.search.together import check_together

SMALL = ("--gpus", "8", "--ctx", "32K")


@pytest.mark.parametrize(
    ("pins", "words"),
    [
        ("zero=0,shard=8", "zero=0 shards nothing, but shard=8; legal: shard=1, or zero 1, 2, 3"),
        (
            "offload_states=all,zero=2",
            "offload_states=all with zero=2; legal: zero=3, or offload_states none, optimizer",
        ),
        ("attention_chunk_tokens=4096,ring=2", "attention_chunk_tokens with ring=2; legal: ring=1"),
        (
            "schedule=interleaved",
            "schedule=interleaved with pipeline=1; legal: pipeline of at least 2, or schedule=1f1b",
        ),
        ("ssd=heads", "ssd=heads, but longvila-8b has no state-space layers; legal: leave it out"),
    ],
)
def test_pins_that_exclude_each_other(pins: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        check_together(read_pins(pins), Model.load("longvila-8b"))
    assert str(caught.value) == words


def test_they_are_refused_by_plan_and_by_price(typed) -> None:
    for words in (("--fix",), ("--strategy",)):
        first = ("price",) if words == ("--strategy",) else ()
        code, _, err = typed(*first, *SMALL, *words, "zero=0,shard=8")
        assert code == 2 and err == "plan: zero=0 shards nothing, but shard=8; legal: shard=1, or zero 1, 2, 3\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--mode", "decode", "--train", "llm"), "--train llm with --mode decode, which trains nothing; leave one out"),
        (
            ("--mode", "prefill", "--kernel", "fa2"),
            "--kernel fa2 with --mode prefill, which has its own; leave one out",
        ),
        (("--objective", "memory", "--trust-model"), "--trust-model with --objective memory, which has no ties"),
    ],
)
def test_options_that_a_mode_or_an_objective_would_ignore(typed, words: tuple[str, ...], told: str) -> None:
    code, _, err = typed(*SMALL, *words)
    assert code == 2 and told in err and err.count("\n") == 1


def test_a_document_longer_than_a_row_is_named(typed, tmp_path) -> None:
    (tmp_path / "long.csv").write_text("tokens,count\n65536,2\n")
    code, _, err = typed(*SMALL, "--documents", "long.csv")
    assert code == 2 and "--documents: one of 65,536 tokens is longer than a row; legal: up to 32,768 (--ctx)" in err


def test_a_price_names_its_recompute(typed) -> None:
    _, out, _ = typed("price", *SMALL, "--strategy", "ulysses=8,recompute=full")
    assert "recompute by layer: 32 × full" in out
