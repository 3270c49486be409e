"""Greedy decoding with the cache spread over ranks gives one process's tokens; the cache stays balanced."""

import pytest
import torch
import torch.distributed as dist

from cost_models.errors import InputError
from executor.mmsp.decode import DecodeStep, ShardedCache, ShardedLayer
from longvila.model import NextToken
from longvila.sharding import OneProcess
from tests.executor.sharded_step import Case, make_model, make_rows, make_sharding, with_own_frames
from tests.executor.test_attention import dense
from tests.ranks import run_ranks

STEPS = 9

CASES = [
    Case(ulysses=4, frames=((3,),)),
    Case(ulysses=2, ring=2, frames=((0,),)),
    Case(ring=4, kind="contiguous", llm="qwen2", frames=((1,),)),
    Case(ring=2, ulysses=2, kind="balanced", frames=((1,),)),
    Case(data=2, ulysses=2, reverse=True, frames=((2,),)),
    Case(data=4, frames=((2,),)),
]


def _greedy(model, row, sharding):
    """Tokens and logits, and the cache."""
    batch, pixels = row
    cache, tokens, history = sharding.cache(), [], []
    model.eval()
    with torch.no_grad():
        logits = model(with_own_frames(batch, pixels, sharding), sharding, cache=cache)
        for position in range(len(batch.input_ids_L), len(batch.input_ids_L) + STEPS):
            tokens.append(sharding.agree(int(logits.argmax())))
            history.append(logits)
            logits = model(NextToken(token=tokens[-1], position=position), sharding, cache=cache)
    return tokens, torch.stack(history), cache


def _check(cases):
    """Token for token, logit for logit; the number of tokens that this rank's cache holds."""
    held = []
    for case in cases:
        row = make_rows(case)[0]
        expected_tokens, expected_logits, _ = _greedy(make_model(case, "sdpa"), row, OneProcess())
        sharding = make_sharding(case)
        tokens, logits, cache = _greedy(sharding.wrap(make_model(case, sharding.attention)), row, sharding)
        assert tokens == expected_tokens, case
        torch.testing.assert_close(logits, expected_logits, rtol=1e-9, atol=1e-9)
        assert len(set(tokens)) > 1, "a constant answer proves little"
        assert cache.get_seq_length() == len(row[0].input_ids_L) + STEPS
        held.append(cache.layers[0].keys.shape[2])
    return held


def _gathers_of_a_token(case):
    """How often the parameters' groups gather for one more token, kept gathered or not; and the logits of both."""
    batch, pixels = make_rows(case)[0]
    counts, logits = [], []
    for kept in (False, True):
        sharding = make_sharding(case)
        shard, count = sharding.groups.shard.group, []

        def counting(*args, group=None, call=dist.all_gather_single, count=count, shard=shard, **kwargs):
            count += [1] if group is shard else []
            return call(*args, group=group, **kwargs)

        model = sharding.wrap(make_model(case, sharding.attention)).eval()
        if kept:
            sharding.before_answers(model)
        cache, position = sharding.cache(), len(batch.input_ids_L)
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            model(with_own_frames(batch, pixels, sharding), sharding, cache=cache)
            patch.setattr(dist, "all_gather_single", counting)
            logits.append(model(NextToken(token=1, position=position), sharding, cache=cache))
        counts.append(len(count))
    torch.testing.assert_close(*logits, rtol=0, atol=0)
    return counts


def test_weights_of_zero_3_are_gathered_for_the_prefill_only():
    """Without being told: each of the two decoder layers, for each token."""
    assert run_ranks(_gathers_of_a_token, 2, Case(ulysses=2, frames=((1,),))) == [[2, 0], [2, 0]]


def test_four_ranks_answer_as_one():
    held_by_rank = run_ranks(_check, 4, CASES)
    for case, held in zip(CASES, zip(*held_by_rank, strict=True), strict=True):
        tokens = len(make_rows(case)[0][0].input_ids_L) + STEPS
        context = case.ring * case.ulysses
        assert sum(held) == tokens * case.data
        assert max(held) - min(held) <= 1, f"{case}: {held}"
        assert max(held) <= -(-tokens // context)


def test_merged_parts_are_dense_attention_and_an_empty_shard_counts_nothing():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 10, 4, generator=generator, dtype=torch.float64) for heads in (6, 2, 2))
    want = dense(q, k, v, torch.zeros(10, dtype=torch.int64), 0.5)[:, -1:]

    class Gathered:
        """Hands every caller the parts of all three, computed one after the other."""

        def __init__(self):
            self.parts = []

        def all_gather(self, part):
            self.parts.append(part)
            return torch.stack(self.parts)

    context = Gathered()
    for start, stop in ((0, 7), (7, 7), (7, 10)):
        got = DecodeStep(context=context).attend(q[:, :, -1:], k[:, :, start:stop], v[:, :, start:stop], 0.5)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_the_emptiest_rank_stores_and_spare_room_is_not_seen():
    layers = [ShardedLayer(lambda: (4, 2), member) for member in (0, 1)]
    for layer in layers:
        layer.update(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2))
    new = [torch.full((1, 1, 1, 2), float(step)) for step in range(1, 4)]
    for token in new:
        shards = [layer.update(token, -token) for layer in layers]
    assert [keys.shape[2] for keys, _ in shards] == [5, 4]
    assert shards[0][0][0, 0, :, 0].tolist() == [0, 0, 0, 0, 3]
    assert shards[1][0][0, 0, :, 0].tolist() == [0, 0, 1, 2]
    assert shards[1][1][0, 0, :, 0].tolist() == [0, 0, -1, -2]
    assert [layer.get_seq_length() for layer in layers] == [9, 9]


def test_wrong_use_is_named():
    cache = ShardedCache(lambda: (3,), 0)
    cache.update(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), 0)
    with pytest.raises(InputError, match="one token at a time, not 2"):
        cache.update(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), 0)
