"""Attention by chunks of the row: exact against one process, projections and all, with the bytes that are counted."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import MistralConfig, MistralForCausalLM

from cost_models import Model, Strategy, Workload
from cost_models.errors import InputError
from cost_models.layer.decoder import operators
from cost_models.layer.sizes import RankSizes
from cost_models.token_layout import Layout, document_starts
from cost_models.workload import Precision
from executor.mmsp.attention import MmSp, register, row_by_chunks
from executor.mmsp.exchange import Alone
from executor.mmsp.recompute import apply_recompute
from executor.mmsp.row_chunks import run_in_row_chunks
from tests.executor.test_attention import on_threads

DIM = 4


def model(heads, kv_heads, window=0, policy="none"):
    register()
    torch.manual_seed(heads)
    config = MistralConfig(
        vocab_size=16, hidden_size=2 * heads, intermediate_size=8, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=DIM, sliding_window=window or None,
    )  # fmt: skip
    built = MistralForCausalLM._from_config(config, attn_implementation="mm_sp").double().train()
    apply_recompute(built.model.layers, [policy] * 2)
    return built


def gradients(layout, heads, kv_heads, window=0, policy="none"):
    """The sum over ranks of every gradient, and the logits in the row's order."""
    generator = torch.Generator().manual_seed(0)
    ids_L = torch.randint(0, 16, (layout.tokens,), generator=generator)
    starts = torch.tensor(layout.documents)
    places_L = (
        torch.arange(layout.tokens) - starts[torch.searchsorted(starts, torch.arange(layout.tokens), right=True) - 1]
    )
    weight_LV = torch.randn(layout.tokens, 16, generator=generator, dtype=torch.float64)

    whole = model(heads, kv_heads, window, policy)

    def work(ulysses, ring):
        built = deepcopy(whole)
        for layer in built.model.layers:
            run_in_row_chunks(layer.self_attn, row_by_chunks)
        index_S = torch.from_numpy(layout.index(ring.index, ulysses.index))
        real_S, take_S = index_S < layout.tokens, index_S.clamp(max=layout.tokens - 1)
        call = MmSp(layout=layout, ulysses=ulysses, ring=ring)
        given = {"input_ids": ids_L[take_S][None], "position_ids": places_L[take_S][None]}
        out_SV = built(**given, use_cache=False, mm_sp=call).logits[0]
        (out_SV * weight_LV[take_S] * real_S[:, None]).sum().backward()
        return index_S[real_S], out_SV.detach()[real_S], [one.grad for one in built.parameters()]

    results = list(on_threads(layout, work).values())
    order = torch.cat([index_S for index_S, *_ in results]).argsort()
    logits = torch.cat([out_SV for _, out_SV, _ in results])[order]
    return [logits, *(torch.stack(several).sum(0) for several in zip(*(grads for *_, grads in results), strict=True))]


CASES = [
    # tokens, query heads, KV heads, ulysses, chunk, documents' lengths, window, recompute
    (32, 4, 2, 1, 8, [32], 0, "none"),
    (29, 4, 4, 2, 7, [29], 0, "full"),
    (40, 8, 2, 2, 12, [17, 1, 22], 0, "none"),
    (37, 7, 7, 3, 10, [30, 7], 0, "mlp"),  # heads and tokens that do not divide
    (45, 8, 1, 4, 9, [5, 1, 17, 20, 2], 0, "full"),  # one KV head for four ranks
    (50, 6, 2, 4, 50, [50], 0, "none"),  # one chunk
    (41, 4, 2, 2, 8, [41], 5, "none"),
    (41, 4, 2, 4, 6, [20, 21], 13, "full"),
    (5, 4, 2, 2, 1, [3, 2], 0, "none"),  # more padding than tokens
]


@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "ulysses", "chunk", "documents", "window", "policy"), CASES)
def test_equals_one_process(tokens, heads, kv_heads, ulysses, chunk, documents, window, policy):
    starts = document_starts(torch.repeat_interleave(torch.arange(len(documents)), torch.tensor(documents)).numpy())
    layout = Layout(tokens=tokens, ulysses=ulysses, documents=starts, chunk_tokens=chunk)
    want = gradients(replace(layout, ulysses=1, chunk_tokens=None), heads, kv_heads, window)
    for got, expected in zip(gradients(layout, heads, kv_heads, window, policy), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


class _Heads(nn.Module):
    """Queries, keys and values are given; sinks are weights. Called as Hugging Face calls its attention."""

    def __init__(self, heads, kv_heads, sinks=None):
        super().__init__()
        self.split = (heads, kv_heads, kv_heads)
        self.sinks = sinks if sinks is None else nn.Parameter(sinks)

    def forward(self, hidden_states, mm_sp=None, past_key_values=None):
        q, k, v = hidden_states.unflatten(-1, (-1, DIM)).transpose(1, 2).split(self.split, dim=1)
        return mm_sp.attend(q, k, v, 0.3, sinks=self.sinks).flatten(2), None


def test_sinks_and_a_prefill():
    """A prefill has no gradients, and fills a cache with all tokens at once."""
    generator, found = torch.Generator().manual_seed(1), []
    x = torch.randn((2, 24, 8 * DIM), generator=generator, dtype=torch.float64)
    dout = torch.randn((2, 24, 4 * DIM), generator=generator, dtype=torch.float64)
    for chunk in (None, 7):
        layer, leaf = _Heads(4, 2, torch.linspace(-1, 1, 4).double()), x.clone().requires_grad_()
        run_in_row_chunks(layer, row_by_chunks)
        call = MmSp(layout=Layout(tokens=24, documents=(0, 9), chunk_tokens=chunk), ulysses=Alone(), ring=Alone())
        out, _ = layer(hidden_states=leaf, mm_sp=call)
        with torch.no_grad():
            prefilled, _ = layer(hidden_states=x, mm_sp=call, past_key_values=())
        torch.testing.assert_close(prefilled, out)
        found.append([out, *torch.autograd.grad((out * dout).sum(), [leaf, layer.sinks])])
    for got, want in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    with pytest.raises(InputError, match="needs attention modules"):
        call.attend(*leaf.detach().unflatten(-1, (-1, DIM)).transpose(1, 2).requires_grad_().split((4, 2, 2), 1), 0.3)
    with pytest.raises(InputError, match="attention_chunk_tokens with ring=2; legal here: ring=1"):
        Layout(tokens=24, ring=2, chunk_tokens=8)


def test_gradients_of_keys_that_many_chunks_read_are_summed_in_float32():
    """In bfloat16 a sum over 128 chunks would lose what each of them adds."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn((1, 256, 3 * DIM), generator=generator).bfloat16()
    dout = torch.randn((1, 256, DIM), generator=generator).bfloat16()

    def keys_gradient(dtype, chunk):
        layer, leaf = _Heads(1, 1), x.to(dtype).requires_grad_()
        run_in_row_chunks(layer, row_by_chunks)
        call = MmSp(layout=Layout(tokens=256, chunk_tokens=chunk), ulysses=Alone(), ring=Alone())
        (grad,) = torch.autograd.grad((layer(hidden_states=leaf, mm_sp=call)[0] * dout.to(dtype)).sum(), leaf)
        return grad[..., DIM:].double()

    exact = keys_gradient(torch.float64, None)
    whole, chunked = ((keys_gradient(torch.bfloat16, chunk) - exact).norm() for chunk in (None, 2))
    assert chunked < 1.3 * whole


class _Counted:
    """An exchange that counts the bytes that go to other members."""

    def __init__(self, inner, sent):
        self.inner, self.sent, self.size, self.index = inner, sent, inner.size, inner.index

    def all_to_all(self, rows, send, receive):
        self.sent.append((sum(send) - send[self.index]) * rows[0].numel() * rows.element_size())
        return self.inner.all_to_all(rows, send, receive)


@pytest.mark.parametrize(("ulysses", "kv_heads", "tokens", "chunk"), [(2, 4, 64, 16), (4, 2, 61, 20)])
def test_bytes_that_each_rank_sends_are_the_cost_models(ulysses, kv_heads, tokens, chunk):
    heads = 8
    config = Model(name="m", layers=1, hidden=16, ffn=8, heads=heads, kv_heads=kv_heads, head_dim=DIM, vocab=16)
    work = Workload(config, context_tokens=tokens, precision=Precision(param="fp32"))
    shape = RankSizes(work, Strategy(ulysses=ulysses, shard=ulysses, attention_chunk_tokens=chunk))
    layout, counted = Layout(tokens=tokens, ulysses=ulysses, chunk_tokens=chunk), {}
    assert shape.tokens == layout.rank_tokens and shape.row_chunks == layout.chunks

    def work_of(exchange, ring):
        sent, layer = [], _Heads(heads, kv_heads)
        run_in_row_chunks(layer, row_by_chunks)
        x = torch.randn((1, layout.rank_tokens, (heads + 2 * kv_heads) * DIM), requires_grad=True)
        out, _ = layer(hidden_states=x, mm_sp=MmSp(layout=layout, ulysses=_Counted(exchange, sent), ring=ring))
        forward = sum(sent)
        torch.autograd.grad(out.sum(), x)
        counted[exchange.index] = [forward, sum(sent) - forward]

    on_threads(layout, work_of)
    priced = [
        (ulysses - 1) / ulysses * sum(part.bytes for one in operators(shape) for part in one.exchanges[grad])
        for grad in (False, True)
    ]
    mean = [sum(one[grad] for one in counted.values()) / ulysses for grad in (False, True)]
    assert mean == priced
