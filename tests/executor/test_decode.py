"""Answers with the caches spread over ranks are one process's, several at a time; caches stay balanced."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist

from cost_models.errors import InputError
from cost_models.token_layout import Layout
from executor.mmsp.decode import DecodeStep, Shard, ShardedCache, row_shards
from executor.mmsp.exchange import Alone
from longvila.answering import Answering, Sampler, choose
from longvila.model import NextTokens
from longvila.sharding import OneProcess
from tests.executor.sharded_step import Case, make_model, make_rows, make_sharding, with_own_frames
from tests.ranks import run_ranks

STEPS = 9

CASES = [
    Case(ulysses=4, frames=((3,), (0,))),
    Case(ulysses=2, ring=2, frames=((0,), (1,), (2,))),
    Case(ring=4, kind="contiguous", llm="qwen2", frames=((1,),)),
    Case(ring=2, ulysses=2, kind="balanced", frames=((1,),)),
    Case(data=2, ulysses=2, reverse=True, frames=((2,),)),
    Case(data=4, frames=((2,),)),
    Case(ulysses=2, ring=2, layer_types=("ssd", "full_attention"), frames=((0,), (1,))),
    Case(ring=4, kind="contiguous", layer_types=("ssd", "full_attention"), ssd=("states", "chain"), frames=((1,),)),
    Case(ulysses=2, ring=2, layer_types=("full_attention", "ssd"), ssd=("mixed", "tree"), llm="qwen2", frames=((1,),)),
    Case(data=2, ulysses=2, layer_types=("ssd", "full_attention"), ssd=("heads", "gather"), frames=((0,), (2,))),
]


def _answered(model, rows, sharding, sampler, most):
    """Tokens of each row, answered together: row i joins after i steps."""
    answering, tokens = Answering(model.eval(), sharding, stop_id=-1), [[] for _ in rows]
    begun = 0
    while begun < len(rows) or len(answering):
        if begun < len(rows):
            batch, pixels = rows[begun]
            answering.begin(begun, with_own_frames(batch, pixels, sharding), sampler, most)
            begun += 1
        for event in answering.step():
            tokens[event.key].append(event.token)
    return tokens


def _logits(model, rows, tokens, sharding):
    """Of every step of answers that are given, all rows at the same time."""
    caches, history = [sharding.cache() for _ in rows], []
    with torch.no_grad():
        pairs = zip(rows, caches, strict=True)
        history.append([model(with_own_frames(*row, sharding), sharding, cache=cache) for row, cache in pairs])
        for step in range(STEPS - 1):
            given = NextTokens(
                tokens=tuple(answer[step] for answer in tokens),
                positions=tuple(len(batch.input_ids_L) + step for batch, _ in rows),
            )
            history.append(list(model(given, sharding, cache=caches)))
    return torch.stack([torch.stack(step) for step in history]), caches


def _check(cases):
    """Rows of unequal lengths answered together, against each alone in one process; the tokens of this rank's cache."""
    held = []
    for number, case in enumerate(cases):
        rows, alone = make_rows(case), make_model(case, "sdpa").eval()
        sampler = Sampler(temperature=0.7, top_k=40, top_p=0.95, seed=3) if number % 2 else Sampler()
        expected = [_answered(alone, [row], OneProcess(), sampler, STEPS)[0] for row in rows]
        sharding = make_sharding(case)
        model = sharding.wrap(make_model(case, sharding.attention))
        assert _answered(model, rows, sharding, sampler, STEPS) == expected, case
        assert all(len(set(tokens)) > 1 for tokens in expected), "a constant answer proves little"
        context = sharding.groups.context
        assert sharding.agree([context.ranks[context.index], 7]) == [context.ranks[0], 7]
        want, _ = _logits(alone, rows, expected, OneProcess())
        got, caches = _logits(model, rows, expected, sharding)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
        held.append([len(cache.shards[0].places) for cache in caches])
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
            logits.append(model(NextTokens(tokens=(1,), positions=(position,)), sharding, cache=[cache]))
        counts.append(len(count))
    torch.testing.assert_close(*logits, rtol=0, atol=0)
    return counts


def test_weights_of_zero_3_are_gathered_for_the_prefill_only():
    """Without being told: each of the two decoder layers, for each token."""
    assert run_ranks(_gathers_of_a_token, 2, Case(ulysses=2, frames=((1,),))) == [[2, 0], [2, 0]]


def test_four_ranks_answer_as_one():
    held_by_rank = run_ranks(_check, 4, CASES)
    for case, held in zip(CASES, zip(*held_by_rank, strict=True), strict=True):
        context = case.ring * case.ulysses
        for (batch, _), one in zip(make_rows(case), zip(*held, strict=True), strict=True):
            tokens = len(batch.input_ids_L) + STEPS - 1
            assert sum(one) == tokens * case.data
            assert max(one) - min(one) <= 1, f"{case}: {one}"
            assert max(one) <= -(-tokens // context)


class _InTurn:
    """Members that compute one after the other; the last is given the parts of all."""

    def __init__(self, index, parts):
        self.index, self._parts = index, parts

    def all_gather(self, part):
        self._parts.append(part)
        return torch.stack(self._parts)


@pytest.mark.parametrize("window", [0, 3, 5, 50])
def test_sharded_steps_are_dense_attention_of_each_document(window):
    """Two documents of 7 and 2 tokens on three ranks, three more tokens each; some shards see nothing."""
    layout, places = Layout(tokens=9, ring=3, documents=(0, 7)), [(0, 0), (1, 0), (2, 0)]
    generator = torch.Generator().manual_seed(0)
    rows = [
        tuple(torch.randn(1, h, n, 4, generator=generator, dtype=torch.float64) for h in (6, 2, 2)) for n in (10, 5)
    ]
    sinks = torch.randn(6, generator=generator, dtype=torch.float64)
    caches = [ShardedCache(partial(row_shards, layout, places, member)) for member in range(3)]
    whole = [torch.cat((rows[0][i][:, :, :7], rows[1][i][:, :, :2]), dim=2) for i in (1, 2)]
    for place, cache in zip(places, caches, strict=True):
        index = layout.index(*place)
        cache.update(*(x[:, :, np.minimum(index, 8)] for x in whole), 0)
    for step in range(3):
        at, parts = (7 + step, 2 + step), []
        q, k, v = (torch.cat([row[i][:, :, n : n + 1] for row, n in zip(rows, at, strict=True)]) for i in range(3))
        for index, cache in enumerate(caches):
            decode = DecodeStep(_InTurn(index, parts), cache.shards)
            decode.update(k, v, 0)
            got = decode.attend(q, k, v, 0.5, window=window, sinks=sinks)
        for document, n in enumerate(at):
            q, k, v = (x[:, :, : n + 1] for x in rows[document])
            scores = 0.5 * torch.einsum("hd,hnd->hn", q[0, :, -1], k[0].repeat_interleave(3, 0))
            if window:
                scores[:, : max(0, n + 1 - window)] = -torch.inf
            shares = torch.cat((scores, sinks[:, None]), dim=1).softmax(1)[:, :-1]
            want = torch.einsum("hn,hnd->hd", shares, v[0].repeat_interleave(3, 0))
            torch.testing.assert_close(got[document, 0], want, rtol=0, atol=1e-12)
    for cache in caches:
        assert all(max(shard.counts) - min(shard.counts) <= 1 for shard in cache.shards)


def test_the_emptiest_rank_stores_and_spare_room_is_not_seen():
    shards = [Shard(counts=[4, 2], places=list(range(4))), Shard(counts=[4, 2], places=[4, 5])]
    for shard in shards:
        shard.fill(0, torch.zeros(2, 1, len(shard.places), 2))
    for step in range(1, 4):
        for member, shard in enumerate(shards):
            if shard.grow(member):
                shard.append(0, torch.tensor([[[float(step)] * 2], [[-float(step)] * 2]]))
    seen = [shard.seen(0, 0) for shard in shards]
    assert [keys[0, 0, :, 0].tolist() for keys, _ in seen] == [[0, 0, 0, 0, 3], [0, 0, 1, 2]]
    assert seen[1][1][0, 0, :, 0].tolist() == [0, 0, -1, -2]
    assert [shard.places for shard in shards] == [[0, 1, 2, 3, 8], [4, 5, 6, 7]]
    assert shards[0].seen(0, 3)[0].shape[2] == 1
    assert shards[1].seen(0, 3)[0].shape[2] == 2


def test_wrong_use_is_named():
    cache = ShardedCache(lambda: row_shards(Layout(tokens=3), [(0, 0)], 0))
    cache.update(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), 0)
    with pytest.raises(InputError, match="one token at a time, not 2"):
        DecodeStep(Alone(), cache.shards).update(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), 0)
    with pytest.raises(InputError, match="beams"):
        cache.reorder_cache(torch.zeros(1))


def test_a_token_is_drawn_from_the_fewest_that_hold_top_p_of_the_top_k():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()

    def drawn(**given):
        sampler, state = Sampler(**{"temperature": 1.0, **given}), torch.Generator().manual_seed(0)
        return [choose(logits, sampler, state) for _ in range(2000)]

    assert set(drawn(temperature=0.0)) == {0}
    assert set(drawn(temperature=1e-320)) == {0}  # also where a score over it is beyond a float
    assert set(drawn(top_p=0.69)) == {0, 1}
    assert set(drawn(top_p=0.71)) == {0, 1, 2}
    assert set(drawn(top_k=2)) == {0, 1}
    assert set(drawn(top_k=2, top_p=0.5)) == {0}  # 0.4 of 0.7
    assert set(drawn()) == {0, 1, 2, 3}
    shares = [drawn(temperature=0.5).count(token) / 2000 for token in range(4)]
    assert shares == pytest.approx([16 / 30, 9 / 30, 4 / 30, 1 / 30], abs=0.04)
