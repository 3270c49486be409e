"""Hugging Face's own `generate` over ranks: the tokens of one process, drawn or likeliest, also with windows."""

import copy

import pytest
import torch
from torch.distributed import get_rank

from cost_models.errors import InputError
from executor.generation import generates
from executor.mmsp.attention import NAME
from longvila import hybrid
from tests.executor.sharded_step import Case, make_sharding
from tests.executor.test_every_model import tiny
from tests.ranks import run_ranks

KINDS = ("llama", "mistral", "gemma3_text", "gpt_oss")
PROMPTS = ((7, 23, 3, 17), (19,), (4, 9, 30, 12, 11, 5, 41, 22, 8, 33, 21, 6, 50, 13, 44, 10, 9))
TOKENS = 12
LIKELIEST = {"do_sample": False}
DRAWN = {"do_sample": True, "temperature": 1.5, "top_k": 30, "top_p": 0.9}


def _padded():
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in PROMPTS])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def _answers(model, how, seed):
    torch.manual_seed(seed)
    return model.generate(**_padded(), **how, max_new_tokens=TOKENS, pad_token_id=0).tolist()


def _compare(case):
    sharding = make_sharding(case)
    for kind in (*KINDS, "ssd"):
        alone = tiny("llama" if kind == "ssd" else kind)
        if kind == "ssd":
            hybrid.convert(alone, {1}, copied=False)
        config = copy.deepcopy(alone.config)
        config._attn_implementation = NAME
        model = type(alone)(config).eval()
        if kind == "ssd":
            hybrid.convert(model, {1})
        model.load_state_dict(alone.state_dict())
        model = sharding.wrap(model)
        generates(model, sharding)
        if get_rank():  # in a step the first rank's logits count
            model.lm_head.register_forward_hook(lambda _, __, logits: logits if len(logits) == 1 else logits.flip(-1))
        for how in (LIKELIEST, DRAWN):
            want = _answers(alone, how, seed=5)
            assert _answers(model, how, seed=5 + get_rank()) == want, (kind, how)  # the first rank's state counts
        assert len({token for row in want for token in row[-TOKENS:]}) > 5, f"{kind}: a constant answer proves little"
    calls = iter(range(99))
    for slow in (0, 1):  # a criterion that one rank alone meets, after three tokens
        criterion = [lambda ids, *_, slow=slow, **__: torch.full((len(ids),), get_rank() == slow and next(calls) > 1)]
        got = model.generate(**_padded(), **LIKELIEST, stopping_criteria=criterion, max_new_tokens=6, pad_token_id=0)
        assert got.shape[1] - _padded()["input_ids"].shape[1] == (6 if slow else 3)
    with pytest.raises(InputError, match="ranks were given different prompts"):
        model.generate(_padded()["input_ids"] + 1 + get_rank(), max_new_tokens=3, pad_token_id=0)
    with pytest.raises(InputError, match="is wrapped already; give `wrap` the plain model, once"):
        sharding.wrap(model)
    with pytest.raises(InputError, match="ranks chose different tokens: logits processors and random numbers must not"):
        processors = [lambda ids, scores: scores.roll(get_rank(), -1)]
        model.generate(**_padded(), **LIKELIEST, logits_processor=processors, max_new_tokens=3, pad_token_id=0)
    for wrong, message in (
        ({"num_beams": 2}, "beams are not searched"),
        ({"use_cache": False}, "and a cache"),
        ({"cache_implementation": "static"}, "in a cache of its own, not in a StaticCache: leave it out"),
        ({"output_hidden_states": True}, "no rank has those of all tokens"),
        ({"attention_mask": torch.ones(3, 17).index_fill(1, torch.tensor([16]), 0)}, "padded on the left"),
    ):
        with pytest.raises(InputError, match=message):
            model.generate(**{**_padded(), **wrong}, max_new_tokens=3, pad_token_id=0)
    with pytest.raises(InputError, match="one token at a time: no assistant, no prompt_lookup_num_tokens"):
        model.generate(torch.tensor([[7, 9, 7, 9, 7]]), prompt_lookup_num_tokens=3, max_new_tokens=3, pad_token_id=0)
    with pytest.raises(InputError, match="was given to `generates`: call model"):
        model(input_ids=_padded()["input_ids"])


def test_generate_gives_the_tokens_of_one_process():
    """Windows of 11 keys and prompts of 1, 4 and 17 tokens: some ranks hold nothing that is seen."""
    run_ranks(_compare, 4, Case(ulysses=2, ring=2))
