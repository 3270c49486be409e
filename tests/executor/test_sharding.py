"""A sharded step over real gloo ranks is one process's step: loss and every gradient of tower, projector and LLM."""

import re
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from cost_models.errors import InputError
from executor.sharding import ContextSharding
from longvila.sharding import IGNORE, Batch
from longvila.ssd import DiscreteMamba2
from tests.executor.sharded_step import Case, assert_same_step, make_model, make_rows, make_sharding, step
from tests.ranks import run_ranks

EXACT, SINGLE = 1e-9, 1e-5
HALF = 0.05  # bfloat16 rounds to 2^-9 = 0.002; a few dozen roundings lie between a parameter and the loss

HYBRID = ("ssd", "full_attention", "ssd")

FOUR_RANKS = [
    Case(ulysses=4),
    Case(ring=4),
    Case(ulysses=2, ring=2, reverse=True),
    Case(ulysses=2, ring=2, kind="contiguous"),
    Case(ulysses=2, ring=2, kind="balanced"),
    Case(ring=4, kind="balanced", frames=((0,), (1,))),
    Case(ulysses=2, ring=2, dtype="float32", param="bfloat16", recompute=(("all_but_attention", 2),)),
    Case(ulysses=4, llm="qwen2", attention_chunk_tokens=9, mlp_chunk_tokens=3),
    Case(data=2, ulysses=2, attention_chunk_tokens=8, recompute=(("full", 1, "activations"), ("mlp", 1))),
    Case(
        ulysses=4, dtype="float32", param="bfloat16", attention_chunk_tokens=12, states_on_host=True, frozen=("tower",)
    ),
    Case(ulysses=2, ring=2, frames=((1,),), shares=(3, 1)),
    Case(ring=4, shares=(5, 1, 2, 3), mlp_chunk_tokens=3, frames=((5,), (2, 0, 1)), shard=2),
    Case(ulysses=2, ring=2, frames=((0,), (0, 0))),
    Case(data=2, ulysses=2, frames=((5,), (0, 3))),
    Case(data=2, ring=2, shard=2, zero=2),
    Case(data=2, ring=2, shard=1, zero=0, dtype="float32"),
    Case(data=4, shard=2, frames=((1,), (2,), (0,), (1, 1))),
    Case(ulysses=2, ring=2, recompute=(("all_but_attention", 1), ("mlp", 1))),
    Case(data=2, ulysses=2, recompute=(("none", 1), ("all_but_attention", 1)), dtype="float32"),
    Case(ulysses=2, ring=2, head_chunks=2, mlp_chunk_tokens=5, recompute=(("full", 1, "activations"), ("mlp", 1))),
    Case(ulysses=4, head_chunks=2, recompute=(("all_but_attention", 2, "activations"),), states_on_host=True),
    Case(data=2, ring=2, shard=2, mlp_chunk_tokens=4, states_on_host=True, frozen=("tower",), llm="qwen2"),
    Case(ulysses=2, ring=2, dtype="float32", param="bfloat16", mlp_chunk_tokens=4, head_chunks=4, states_on_host=True),
    Case(data=2, ring=2, shard=2, zero=2, llm="qwen2", tied=True),
    Case(data=2, ring=2, shard=2, frames_per_chunk=3, pool=2, frames=((5,), (0, 1), (0,), (9,))),
    Case(ulysses=2, ring=2, frozen=("tower",), frames_per_chunk=1),
    Case(ulysses=2, ring=2, frozen=("projector", "tower"), recompute=(("full", 1), ("all_but_attention", 1))),
    Case(ulysses=2, ring=2, frozen=("llm",), recompute=(("full", 1), ("all_but_attention", 1)), frames=((0,), (1,))),
    Case(ulysses=2, ring=2, layer_types=HYBRID, recompute=(("all_but_attention", 2), ("mlp", 1)), head_chunks=2),
    Case(ring=4, layer_types=HYBRID, kind="balanced", ssd=("states", "tree"), recompute=(("full", 3),), llm="qwen2"),
    Case(ulysses=2, ring=2, layer_types=HYBRID, kind="contiguous", ssd=("mixed", "chain"), states_on_host=True),
    Case(data=2, ulysses=2, layer_types=HYBRID, ssd=("heads", "gather"), shard=2, mlp_chunk_tokens=4),
    Case(ulysses=2, ring=2, layer_types=("ssd", "ssd"), dtype="float32", param="bfloat16"),
]


EIGHT_RANKS = [
    Case(ulysses=2, ring=4, dtype="float32", frames=((5, 4), (3,)), shares=(2, 1, 1, 2)),
    Case(ulysses=4, ring=2, llm="qwen2", frames=((7,),)),
    Case(data=2, ulysses=2, ring=2, shard=4, reverse=True),
]


def _check(cases: list[Case]) -> None:
    for case in cases:
        assert_same_step(case, HALF if case.param else EXACT if case.dtype == "float64" else SINGLE)


def test_four_ranks_equal_one():
    run_ranks(_check, 4, FOUR_RANKS)


def test_eight_ranks_equal_one():
    run_ranks(_check, 8, EIGHT_RANKS)


def _check_counts(case: Case) -> None:
    counted: Counter[str] = Counter()

    def counting(name, call, *args, **kwargs):
        counted[name] += 1
        return call(*args, **kwargs)

    for name in ("all_reduce", "reduce_scatter_single", "all_gather_single"):
        setattr(dist, name, partial(counting, name, getattr(dist, name)))
    counts = []
    for rows in (make_rows(case)[:2], make_rows(case)):  # one row and two for each replica
        sharding = make_sharding(case)
        model = sharding.wrap(make_model(case, sharding.attention))
        counted.clear()
        step(model, rows, sharding)
        gathers = counted.pop("all_gather_single")
        counts.append(dict(counted))
    units = sum(isinstance(module, FSDPModule) for module in model.modules())
    sums = 5  # of the loss, over context and data; one compares the first row, two the first call
    assert counts[0] == {"all_reduce": units + sums, "reduce_scatter_single": units}, (units, counts)
    assert counts[1] == {"all_reduce": units + sums, "reduce_scatter_single": 2 * units}, (units, counts)
    # Of each row: ZeRO 3 gathers a layer for its forward and again for its backward, ZeRO 2 once; the rest once.
    assert gathers == 2 * (2 * units - 1 if case.zero == 3 else units), (units, gathers)


def test_replicas_sum_gradients_once_a_step_and_layers_are_gathered_as_often_as_zero_says():
    run_ranks(_check_both_counts, 4, Case(data=2, ring=2, shard=2, frames=((1,), (2,), (0,), (1, 1))))


def _check_both_counts(case: Case) -> None:
    for zero in (2, 3):
        _check_counts(replace(case, zero=zero))
    _check_weights_that_changed(case)
    _check_two_models(case)
    _check_parts(case)
    _check_rows(case)
    _check_weights(case)
    _check_models(case)


def _check_parts(case: Case) -> None:
    """Called alone, parts of a wrapped model would meet shards; a layer first would pass for the whole with FSDP2."""
    sharding = make_sharding(case)
    model, rows = sharding.wrap(make_model(case, sharding.attention)), make_rows(case)
    base, ids = model.llm.model, torch.zeros(1, 4, dtype=torch.int64)
    hidden = torch.zeros(1, 4, 32, dtype=torch.float64)
    wrong = {
        "llm.model.embed_tokens": lambda: base.embed_tokens(ids),
        "llm.model.norm": lambda: base.norm(hidden),
        "llm.lm_head": lambda: model.llm.lm_head(hidden),
    }
    first = {"llm.model.layers.0": lambda: base.layers[0](hidden)}
    for calls in (wrong | first, wrong):
        for name, call in calls.items():
            with pytest.raises(InputError, match=f"^{name} is called outside of the wrapped model's forward"):
                call()
        with pytest.raises(InputError, match=r"^llm.model.embed_tokens is called outside"):
            base(input_ids=ids, position_ids=ids, **sharding.shard_batch(rows[0][0]).attention)
        step(model, rows, sharding)


def _check_weights_that_changed(case: Case) -> None:
    """After a step, so that sharding has made its own tensors, which it would put back."""
    layer, head = "llm.model.layers.0.self_attn", "llm.lm_head.weight"
    changes = {
        head: lambda model: setattr(model.llm.lm_head, "weight", model.llm.model.embed_tokens.weight),
        f"{layer}.q_proj.weight": lambda model: setattr(model.get_submodule(layer), "q_proj", nn.Linear(32, 32)),
        f"{layer}.adapter.weight": lambda model: model.get_submodule(layer).add_module("adapter", nn.Linear(1, 1)),
    }
    for name, change in changes.items():
        sharding = make_sharding(case)
        model = sharding.wrap(make_model(case, sharding.attention))
        step(model, make_rows(case), sharding)
        change(model)
        with pytest.raises(InputError, match=f"{name} has changed since sharding.wrap: add, replace and tie weights b"):
            step(model, make_rows(case), sharding)
    wrong = {
        "generate_batch: its paged": lambda: model.llm.generate_batch([[1, 2]], max_new_tokens=1),
        "save_pretrained: each rank has shards": lambda: model.llm.save_pretrained("nowhere"),
        "resize_token_embeddings: the weights are sharded": lambda: model.llm.resize_token_embeddings(99),
        "load_state_dict: .* is given whole": lambda: model.load_state_dict(make_model(case, "sdpa").state_dict()),
        "is torch.bfloat16, in the first call it was torch.float64": lambda: step(fresh.bfloat16(), rows, sharding),
    }
    sharding, rows = make_sharding(case), make_rows(case)
    fresh = (
        sharding.wrap(make_model(case, sharding.attention)).float().double()
    )  # before the first call any type is taken
    step(fresh, rows, sharding)
    fresh.load_state_dict(fresh.state_dict())
    for message, do in wrong.items():
        with pytest.raises(InputError, match=message):
            do()


def _check_two_models(case: Case) -> None:
    """A hybrid stays one when a plain model is wrapped after it, and is not run on a rank's tokens alone."""
    sharding = make_sharding(case)
    hybrid = sharding.wrap(make_model(replace(case, layer_types=HYBRID), sharding.attention))
    sharding.wrap(make_model(case, sharding.attention))
    local = sharding.shard_batch(make_rows(case)[0][0])
    assert "ssd" in local.attention
    mixer = next(module for module in hybrid.modules() if isinstance(module, DiscreteMamba2))
    with pytest.raises(InputError, match=r"needs the keyword argument ssd: pass \*\*local.attention"):
        mixer(torch.zeros(1, 4, 32, dtype=torch.float64), mm_sp=local.attention["mm_sp"])


def _check_rows(case: Case) -> None:
    """Ranks that were given different rows stop; other documents in the same tensor are another row."""
    sharding = make_sharding(case)
    sharding.wrap(make_model(case, sharding.attention))
    batch = make_rows(case)[0][0]
    other = replace(batch, input_ids_L=batch.input_ids_L + sharding.groups.context.index)
    for _ in range(2):
        with pytest.raises(InputError, match="ranks of one row were given different ones, as a Distributed"):
            sharding.shard_batch(other)
    padded = replace(batch, labels_L=batch.labels_L.masked_fill(batch.labels_L == batch.labels_L[-1], -1))
    with pytest.raises(InputError, match="label -1; legal: numbers of tokens, and -100"):
        sharding.shard_batch(padded)
    before = sharding.shard_batch(batch).attention["mm_sp"].layout
    batch.document_L[3:] += 1
    assert before.documents == (0,)
    assert sharding.shard_batch(batch).attention["mm_sp"].layout.documents == (0, 3)


def _check_weights(case: Case) -> None:
    """One weight that differs on one rank by its last bit is named by all of them; equal ones pass."""
    sharding = make_sharding(case)
    model = make_model(case, sharding.attention)
    name, weight = list(model.named_parameters())[-1]
    if dist.get_rank() == dist.get_world_size() - 1:
        value = weight.data.view(-1)[-1:]
        value.copy_(torch.nextafter(value, value + 1))
    with pytest.raises(InputError, match=f"ranks have other values of {re.escape(name)}: load or make the model alike"):
        sharding.wrap(model)


def _check_models(case: Case) -> None:
    """What differs on one rank alone is named by all of them: of weights, of buffers, of the sharding, of the call."""
    head = "llm.lm_head.weight"
    of_model = {
        f"type of {head}": lambda model: model.llm.lm_head.to(torch.float32),
        f"tying of {head}": lambda model: setattr(model.llm.lm_head, "weight", model.llm.model.embed_tokens.weight),
        f"requires_grad of {head}": lambda model: model.llm.lm_head.requires_grad_(False),
        "values of llm.model.rotary_emb.inv_freq": lambda model: model.llm.model.rotary_emb.inv_freq.mul_(2),
        "type of more": lambda model: model.register_parameter("more", nn.Parameter(torch.zeros(3))),
        "mode (train or eval) of llm": lambda model: model.llm.train(not model.llm.training),
        "order of the weights": lambda model: model._modules.update(llm=model._modules.pop("llm")),
    }
    odd = dist.get_rank() == dist.get_world_size() - 1
    for name, change in of_model.items():
        sharding = make_sharding(case)
        model = make_model(case, sharding.attention)
        if odd:
            change(model)
        with pytest.raises(InputError, match=re.escape(f"ranks have other {name}: load or make")):
            sharding.wrap(model)
    sharding = replace(make_sharding(case), zero=1 if odd else 2)
    with pytest.raises(InputError, match="ranks have other zero of the sharding"):
        sharding.wrap(make_model(case, sharding.attention))
    sharding, rows = make_sharding(case), make_rows(case)
    model = sharding.wrap(make_model(case, sharding.attention))
    with torch.autocast("cpu", enabled=odd), pytest.raises(InputError, match="ranks have other autocast of the model"):
        step(model, rows, sharding)


def test_padding_has_no_label_and_no_picture():
    """A row of 5 on ring 2 x ulysses 2 is padded to 8; the last token's label is a real one here."""
    batch = Batch(
        input_ids_L=torch.arange(10, 15),
        labels_L=torch.arange(20, 25),
        positions_L=torch.arange(5),
        document_L=torch.zeros(5, dtype=torch.int64),
        vision_at_V=torch.tensor([3, 4]),
        frames=1,
        pixels_FCHW=torch.zeros(1, 3, 2, 2),
    )
    want = {  # (ring, ulysses): tokens of the row, 5 and above being padding
        (0, 0): [0, 1],
        (0, 1): [6, 7],
        (1, 0): [2, 3],
        (1, 1): [4, 5],
    }
    for member, (place, tokens) in enumerate(want.items()):
        exchange = SimpleNamespace(size=2, exchange=lambda place=place: SimpleNamespace(size=2, index=place[0]))
        groups = SimpleNamespace(
            shard=exchange,
            ulysses=exchange,
            ring=exchange,
            places=tuple(want),
            context=SimpleNamespace(index=member, alike=lambda *_: True),
        )
        sharding = ContextSharding(groups=groups, device=torch.device("cpu"))
        with pytest.raises(InputError, match=r"call sharding.wrap\(model\) first: without it gradients would be of"):
            sharding.shard_batch(batch)
        with torch.no_grad():
            local = sharding.shard_batch(batch)
        assert local.input_ids_S.tolist() == [10 + token if token < 5 else 0 for token in tokens]
        assert local.labels_S.tolist() == [20 + token if token < 5 else IGNORE for token in tokens]
        assert local.positions_S.tolist() == [token if token < 5 else 0 for token in tokens]
        assert local.vision_at_V.tolist() == [at for at, token in enumerate(tokens) if token in (3, 4)]


def test_wrong_settings_are_named():
    groups = SimpleNamespace(shard=SimpleNamespace(size=4))
    with pytest.raises(InputError, match="zero=5 is not one of 0, 1, 2, 3"):
        ContextSharding(groups=groups, device=torch.device("cpu"), zero=5)
    with pytest.raises(InputError, match="zero=0 shards nothing, but shard=4; legal: shard=1, or zero 1, 2, 3"):
        ContextSharding(groups=groups, device=torch.device("cpu"), zero=0)


def test_more_ulysses_ranks_than_heads_are_refused_before_anything_is_sent():
    groups = SimpleNamespace(shard=SimpleNamespace(size=1), ulysses=SimpleNamespace(size=16))
    sharding = ContextSharding(groups=groups, device=torch.device("cpu"))
    with pytest.raises(InputError, match="ulysses=16 exceeds the model's 8 query heads; at most 8"):
        sharding.wrap(make_model(Case(), "mm_sp"))
