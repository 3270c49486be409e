"""MM-SP attention of many ranks (threads of one process) equals dense attention, forward and gradients, in float64."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from cost_models.errors import InputError
from cost_models.layer.heads import HeadSplit
from cost_models.tiles import Span, Tile
from cost_models.token_layout import RING_LAYOUTS, Layout, Travel, document_starts
from executor.mmsp import kernel
from executor.mmsp.attention import Kept, MmSp, _sum_heads, attention, register
from executor.mmsp.exchange import Alone
from executor.mmsp.guard import guard
from executor.mmsp.ring import RingWork, ring_backward, ring_forward
from tests.executor.threads import LocalExchange, local_exchanges

DIM = 4


def dense(q, k, v, document_L, scale, window=0, sinks=None):
    """Reference: causal inside each document, all scores at once; (B, H, L, D) -> (B, L, H, D)."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    allowed = (document_L[:, None] == document_L[None]).tril()
    if window:
        allowed &= allowed.new_ones(allowed.shape).triu(1 - window)
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~allowed, -torch.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks[None, :, None, None].expand(*scores.shape[:3], 1)), dim=-1)
    return (scores.softmax(-1)[..., : k.shape[2]] @ v).transpose(1, 2)


def row(tokens, heads, kv_heads, dtype=torch.float64, batch=1):
    generator = torch.Generator().manual_seed(tokens * 100 + heads)
    shapes = [(batch, heads, tokens, DIM), *[(batch, kv_heads, tokens, DIM)] * 2, (batch, tokens, heads, DIM)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def on_threads(layout, work):
    """work(ulysses exchange, ring exchange) on ulysses x ring threads; results by (ring, ulysses)."""
    ulysses = [local_exchanges(layout.ulysses) for _ in range(layout.ring)]
    rings = [local_exchanges(layout.ring) for _ in range(layout.ulysses)]
    places = [(r, u) for r in range(layout.ring) for u in range(layout.ulysses)]
    with ThreadPoolExecutor(len(places)) as pool:
        futures = {(r, u): pool.submit(work, ulysses[r][u], rings[u][r]) for r, u in places}
        return {place: future.result(60) for place, future in futures.items()}


def sharded(layout, q, k, v, dout, document_L, kept=False, recompute=False, window=0, head_chunks=1):
    """Forward and gradients of all ranks, put back into row order; padding holds noise that must not matter."""
    layout = replace(layout, documents=document_starts(document_L.numpy()))

    def cut(x_L, index_S, axis):
        noise = torch.full((1,), 7.0, dtype=x_L.dtype).expand(*x_L.shape[:axis], 1, *x_L.shape[axis + 1 :])
        padded = torch.cat([x_L, *[noise] * (layout.padded_tokens - layout.tokens)], axis)
        return padded.index_select(axis, index_S)

    def work(ulysses, ring):
        index_S = torch.from_numpy(layout.index(ring.index, ulysses.index))
        call = MmSp(layout=layout, ulysses=ulysses, ring=ring, head_chunks=head_chunks)
        leaves = [cut(x, index_S, 2).requires_grad_() for x in (q, k, v)]
        out_S = call.attend(*leaves, 0.3, window=window)
        real = (index_S < layout.tokens)[None, :, None, None]
        grads = torch.autograd.grad((out_S * cut(dout, index_S, 1) * real).sum(), leaves)
        return index_S, [out_S.detach().transpose(1, 2), *grads]

    results = list(on_threads(layout, work).values())
    order = torch.cat([index_S for index_S, _ in results]).argsort()[: layout.tokens]
    return [torch.cat(parts, 2)[:, :, order] for parts in zip(*(values for _, values in results), strict=True)]


CASES = [
    # tokens, query heads, KV heads, ulysses, ring, kind, documents' lengths
    (16, 4, 2, 1, 1, "zigzag", [16]),
    (32, 4, 4, 2, 1, "zigzag", [32]),
    (32, 4, 2, 1, 2, "zigzag", [32]),
    (48, 4, 2, 2, 3, "zigzag", [48]),
    (64, 8, 2, 4, 2, "zigzag", [64]),
    (64, 8, 8, 2, 4, "zigzag", [64]),
    (40, 4, 1, 4, 1, "zigzag", [40]),  # one KV head for four ranks
    (37, 7, 7, 2, 2, "zigzag", [37]),  # heads and tokens that do not divide
    (37, 7, 1, 4, 2, "zigzag", [37]),
    (50, 28, 4, 8, 1, "zigzag", [50]),  # Qwen2-7B
    (50, 12, 2, 8, 1, "zigzag", [50]),  # Qwen2-1.5B
    (50, 28, 4, 6, 1, "zigzag", [50]),  # a rank reads two KV heads unevenly
    (29, 6, 3, 3, 3, "zigzag", [29]),
    (45, 4, 2, 2, 3, "zigzag", [5, 1, 17, 20, 2]),
    (45, 4, 2, 1, 5, "zigzag", [30, 15]),
    (45, 5, 5, 3, 2, "zigzag", [11, 12, 13, 9]),
    (3, 4, 2, 2, 3, "zigzag", [2, 1]),  # more padding than tokens
    (1, 2, 1, 2, 4, "zigzag", [1]),
    (48, 4, 2, 2, 3, "contiguous", [48]),
    (45, 4, 2, 2, 4, "contiguous", [5, 1, 17, 20, 2]),
    (37, 7, 7, 4, 2, "contiguous", [37]),
    (48, 4, 2, 2, 3, "balanced", [48]),
    (45, 4, 2, 2, 3, "balanced", [5, 1, 17, 20, 2]),
    (45, 4, 2, 1, 8, "balanced", [30, 1, 1, 1, 12]),
    (64, 8, 2, 4, 2, "balanced", [8] * 8),  # nothing travels
    (61, 4, 4, 1, 5, "balanced", [1] * 20 + [41]),
    (40, 4, 2, 1, 4, "balanced", [11, 9, 11, 9]),  # documents without room are cut
    (64, 4, 2, 2, 2, (3, 1), [64]),  # shares of a zigzag
    (61, 4, 2, 1, 4, (5, 2, 2, 1), [61]),
    (90, 6, 3, 3, 3, (1, 4, 2), [40, 3, 47]),
    (7, 4, 2, 2, 3, (1, 97, 1), [7]),  # a block of one unit at least
]


@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "ulysses", "ring", "kind", "documents"), CASES)
def test_equals_dense_attention(tokens, heads, kv_heads, ulysses, ring, kind, documents):
    document_L = torch.repeat_interleave(torch.arange(len(documents)), torch.tensor(documents))
    q, k, v, dout = row(tokens, heads, kv_heads)
    dealt = {"kind": kind} if isinstance(kind, str) else {"shares": kind}
    layout = Layout(tokens=tokens, ulysses=ulysses, ring=ring, **dealt)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    expected_out = dense(*leaves, document_L, 0.3)
    expected = [expected_out.detach().transpose(1, 2), *torch.autograd.grad((expected_out * dout).sum(), leaves)]
    for name, got, want in zip(
        ("out", "dq", "dk", "dv"), sharded(layout, q, k, v, dout, document_L), expected, strict=True
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_batch_of_rows_with_the_same_documents():
    document_L = torch.zeros(24, dtype=torch.int64)
    q, k, v, dout = row(24, 4, 2, batch=3)
    got = sharded(Layout(tokens=24, ulysses=2, ring=2), q, k, v, dout, document_L)
    torch.testing.assert_close(got[0].transpose(1, 2), dense(q, k, v, document_L, 0.3), rtol=0, atol=1e-10)


def test_ring_error_in_bfloat16_does_not_grow_with_the_ring():
    """The kernel rounds each block's result once more; merging and gradient sums are in float32.

    Two independent roundings of one size are sqrt(2) of one; partial results kept in bfloat16 would be far above.
    """
    document_L = torch.zeros(128, dtype=torch.int64)
    inputs = [x.to(torch.bfloat16) for x in row(128, 4, 2)]
    exact = sharded(Layout(tokens=128), *(x.double() for x in inputs), document_L)
    errors = {}
    for ring in (1, 4, 16):
        got = sharded(Layout(tokens=128, ring=ring), *inputs, document_L)
        assert all(x.dtype == torch.bfloat16 for x in got)
        errors[ring] = [((x.double() - y).norm() / y.norm()).item() for x, y in zip(got, exact, strict=True)]
    for ring in (4, 16):
        assert all(many < 2**0.5 * one for one, many in zip(errors[1], errors[ring], strict=True)), errors


def ring_sends(layout, heads, kv_heads):
    """Bytes that ranks send, forward and backward, in float64: by position in the ring, and in the ulysses group."""
    lock, sent = threading.Lock(), {"ring": [0] * layout.ring, "ulysses": [0] * layout.ulysses}

    class Counting:
        def __init__(self, name, inner):
            self.name, self.inner, self.size, self.index = name, inner, inner.size, inner.index

        def count(self, numbers):
            with lock:
                sent[self.name][self.index] += numbers * 8

        def start_transfer(self, send, receive):
            self.count(sum(buffer.numel() for _, buffer in send))
            return self.inner.start_transfer(send, receive)

        def all_to_all(self, rows, send, receive):
            self.count((sum(send) - send[self.index]) * rows[0].numel())
            return self.inner.all_to_all(rows, send, receive)

    q, k, v, _ = row(layout.padded_tokens, heads, kv_heads)

    def work(u, r):
        call = MmSp(layout=layout, ulysses=Counting("ulysses", u), ring=Counting("ring", r))
        index_S = torch.from_numpy(layout.index(r.index, u.index))
        leaves = [x[:, :, index_S].requires_grad_() for x in (q, k, v)]
        torch.autograd.grad(call.attend(*leaves, 0.3).sum(), leaves)

    on_threads(layout, work)
    return sent


@pytest.mark.parametrize(
    ("ulysses", "ring", "kind", "share"),
    [(1, 4, "zigzag", 1), (4, 2, "zigzag", 1), (2, 3, "contiguous", 0.5), (2, 3, "balanced", 1)],
)  # in a contiguous ring block j goes to the R - 1 - j ranks behind it alone
def test_bytes_on_the_wire_are_the_formulas(ulysses, ring, kind, share):
    tokens, heads, kv_heads, number = 48, 8, 2, 8
    layout = Layout(tokens=tokens, ulysses=ulysses, ring=ring, kind=kind)
    sent = ring_sends(layout, heads, kv_heads)
    s, sent_kv = layout.rank_tokens, max(kv_heads, ulysses)  # K' after the repetition
    per_rank_ring = (ring - 1) * 2 * s * sent_kv * DIM * number * 3  # forward, backward kv, backward dkv
    per_rank_ulysses = s * DIM * number * (2 * heads + 2 * sent_kv) * (ulysses - 1) / ulysses * 2
    assert share < 1 or sent["ring"] == [per_rank_ring * ulysses] * ring
    assert sum(sent["ring"]) == share * per_rank_ring * ulysses * ring
    assert sum(sent["ulysses"]) == per_rank_ulysses * ulysses * ring


@pytest.mark.parametrize("seed", range(6))
def test_bytes_of_packed_rows_are_those_of_the_table_and_the_most_of_a_rank_is_priced(seed):
    random = np.random.default_rng(seed)
    lengths, ring = random.integers(1, 30, int(random.integers(2, 9))), int(random.integers(3, 9))
    starts = (0, *np.cumsum(lengths)[:-1].tolist())
    layout = Layout(tokens=int(lengths.sum()), ring=ring, kind=RING_LAYOUTS[seed % 3], documents=starts)
    sent, travels, token = ring_sends(layout, 2, 1)["ring"], layout.travels, 2 * DIM * 8
    forth = [sum(travels[(rank - hop) % ring].tokens(hop + 1) for hop in range(ring)) for rank in range(ring)]
    home = [sum(travels[(rank - hop) % ring].tokens(hop) for hop in range(1, ring)) for rank in range(ring)]
    assert sent == [token * (2 * kv + gradient) for kv, gradient in zip(forth, home, strict=True)]
    work = layout.ring_work()
    assert work.sent * work.hops == pytest.approx(max(forth)) == pytest.approx(max(home))


@pytest.mark.parametrize("seed", range(36))
def test_random_packed_rows_equal_dense_attention(seed):
    """Blocks travel different distances, in parts, or not at all; so do their gradients."""
    window = (0, 0, 1, 3, 16, 40)[seed % 6]
    random = np.random.default_rng(seed)
    ring, ulysses, kind = int(random.integers(2, 9)), int(random.integers(1, 3)), RING_LAYOUTS[seed % 3]
    documents = [int(length) for length in random.integers(1, 40, int(random.integers(1, 9)))]
    document_L = torch.repeat_interleave(torch.arange(len(documents)), torch.tensor(documents))
    q, k, v, dout = row(sum(documents), 4, 2)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    expected_out = dense(*leaves, document_L, 0.3, window)
    expected = [expected_out.detach().transpose(1, 2), *torch.autograd.grad((expected_out * dout).sum(), leaves)]
    shares = tuple(random.integers(1, 6, ring).tolist()) if kind == "zigzag" and seed % 2 else ()
    layout = Layout(tokens=sum(documents), ulysses=ulysses, ring=ring, kind=kind, shares=shares)
    for got, want in zip(sharded(layout, q, k, v, dout, document_L, window=window), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("window", [0, 5])
def test_sinks_take_their_share_and_have_gradients(window):
    """One more score for each head, of no key; each ulysses rank has the sinks of its heads."""
    document_L = torch.repeat_interleave(torch.arange(2), torch.tensor([13, 11]))
    q, k, v, dout = row(24, 4, 2)
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    expected_out = dense(*leaves, document_L, 0.3, window, sinks)
    *expected, expected_sinks = torch.autograd.grad((expected_out * dout).sum(), (*leaves, sinks))
    layout = Layout(tokens=24, ulysses=2, ring=2, documents=(0, 13))

    def work(ulysses, ring):
        index_S = torch.from_numpy(layout.index(ring.index, ulysses.index))
        call = MmSp(layout=layout, ulysses=ulysses, ring=ring)
        mine = [x[:, :, index_S].requires_grad_() for x in (q, k, v)]
        own = sinks.detach().requires_grad_()
        out_S = call.attend(*mine, 0.3, window=window, sinks=own)
        return index_S, out_S.detach(), torch.autograd.grad((out_S * dout[:, index_S]).sum(), (*mine, own))

    got = on_threads(layout, work).values()
    for index_S, out_S, (*grads, _) in got:
        torch.testing.assert_close(out_S, expected_out.detach()[:, index_S], rtol=0, atol=1e-10)
        for grad, want in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad, want[:, :, index_S], rtol=0, atol=1e-10)
    summed = sum(grads[-1] for _, _, grads in got)
    torch.testing.assert_close(summed, expected_sinks, rtol=0, atol=1e-10)


def test_a_window_sends_the_halo_alone():
    """64 tokens over a ring of 4: a window of 5 sends 4 keys in front of each chunk that another rank goes on from, to
    that rank alone, and as many gradients home."""
    layout, lock, sent = replace(Layout(tokens=64, ring=4), window=5), threading.Lock(), []

    class Watching(LocalExchange):
        def start_transfer(self, send, receive):
            with lock:
                sent.extend((self.index, to, buffer.shape[3]) for to, buffer in send)
            return super().start_transfer(send, receive)

    q, k, v, _ = row(64, 4, 2)

    def work(u, r):
        call = MmSp(layout=layout, ulysses=u, ring=Watching(boxes=r.boxes, index=r.index))
        leaves = [x[:, :, torch.from_numpy(layout.index(r.index, 0))].requires_grad_() for x in (q, k, v)]
        torch.autograd.grad(call.attend(*leaves, 0.3, window=5).sum(), leaves)

    on_threads(layout, work)
    halos = [(0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 2, 4), (2, 1, 4), (1, 0, 4)]
    home = [(to, by, tokens) for by, to, tokens in halos]
    assert sorted(sent) == sorted([*halos, *halos, *home])


@pytest.mark.parametrize(
    ("inputs", "asked", "on_the_way"),
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.float32),  # never narrower than the inputs
    ],
)
def test_gradients_travel_the_ring_in_the_dtype_asked_for(inputs, asked, on_the_way):
    lock, seen = threading.Lock(), []

    class Watching(LocalExchange):
        def start_transfer(self, send, receive):
            with lock:
                seen.extend(buffer.dtype for _, buffer in send)
            return super().start_transfer(send, receive)

    layout = Layout(tokens=12, ring=3)
    q, k, v, _ = row(12, 4, 2, dtype=inputs)

    def work(u, r):
        ring = Watching(boxes=r.boxes, index=r.index)
        call = MmSp(layout=layout, ulysses=u, ring=ring, grad_ring_dtype=asked)
        leaves = [x[:, :, torch.from_numpy(layout.index(r.index, 0))].requires_grad_() for x in (q, k, v)]
        torch.autograd.grad(call.attend(*leaves, 0.3).float().sum(), leaves)

    on_threads(layout, work)
    keys_twice, gradients = 2 * 2 * 3, 2 * 3  # hops x ranks
    assert sorted(map(str, seen)) == sorted(map(str, [inputs] * keys_twice + [on_the_way] * gradients))


class Recorded:
    """A ring of three from which nothing comes, and that writes down when a transfer starts and when it is awaited."""

    size, index = 3, 1

    def __init__(self):
        self.log = []

    def start_transfer(self, send, receive):
        what = "keys" if (send or receive)[0][1].dtype == torch.bfloat16 else "gradients"
        self.log.append(f"start {what}")
        return SimpleNamespace(
            wait=lambda: self.log.append(f"wait {what}") or [buffer.zero_() for _, buffer in receive]
        )


def test_the_next_block_is_in_flight_while_a_tile_computes(monkeypatch):
    ring = Recorded()
    for name in ("forward", "backward"):
        whole = getattr(kernel, name)
        monkeypatch.setattr(kernel, name, lambda *a, whole=whole, **k: ring.log.append("compute") or whole(*a, **k))
    tile = Tile(Span(0, 4), Span(0, 4), True)
    work = RingWork(
        exchange=ring,
        tiles=((tile,),) * 3,
        travels=(Travel((Span(0, 4),), (2,)),) * 3,
        runs=HeadSplit(q_heads=2, kv_heads=1, ulysses=1).runs(0),
        scale=1,
    )
    q, k, v, _ = row(4, 2, 1, dtype=torch.bfloat16)
    out, lse = ring_forward(q, torch.stack((k, v)), work)
    step = ["start keys", "compute", "wait keys"]
    assert ring.log == [*step, *step, "compute"]
    ring.log.clear()
    ring_backward(torch.ones_like(q), q, torch.stack((k, v)), out, lse, work)
    last = ["compute", "wait gradients", "start gradients", "wait gradients"]
    assert ring.log == [*step, "start keys", "compute", "start gradients", "wait keys", *last]


def test_gradients_of_a_key_head_that_several_ranks_read_are_summed_in_float32():
    """1 + 2^-8 + 2^-8 is a bfloat16; added one by one in bfloat16, both small ones are lost."""
    split = HeadSplit(q_heads=4, kv_heads=1, ulysses=4)
    parts = torch.tensor([1.0, 2**-8, 2**-8, 0.0])
    rows_HBSD = parts.repeat_interleave(3).reshape(12, 1, 1, 1).to(torch.bfloat16)  # a query, a key, a value head each
    _, dk, dv = _sum_heads(rows_HBSD, split)
    assert dk.dtype == torch.bfloat16
    assert dk.item() == dv.item() == 1 + 2**-7


def test_kept_result_is_taken_once():
    kept = Kept()
    assert kept.take() is None
    kept.put(torch.ones(1), torch.zeros(1))
    assert kept.take() == (torch.ones(1), torch.zeros(1))
    assert kept.take() is None


def _llama(**changes):
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 8,
    }
    config = LlamaConfig(**sizes, num_key_value_heads=1, **changes)
    register()
    return LlamaForCausalLM._from_config(config, attn_implementation="mm_sp")


def test_arguments_that_the_attention_would_never_see_are_refused():
    model = _llama()
    guard(model)
    call = MmSp(layout=Layout(tokens=4), ulysses=Alone(), ring=Alone())
    ids = torch.arange(4)[None]
    right = {"input_ids": ids, "position_ids": ids, "use_cache": False, "mm_sp": call}
    assert model(**right).logits.shape == (1, 4, 8)
    for change, message in (
        ({"attention_mask": torch.tensor([[0, 1, 1, 1]])}, "takes no attention_mask"),
        ({"labels": ids}, "would shift labels"),
        ({"position_ids": None}, "needs position_ids: pass"),
        ({"position_ids": ids[0]}, "position_ids has no dimension of rows"),
        ({"output_attentions": True}, "does not do output_attentions=True: no rank has the weights"),
        ({"output_router_logits": True}, "would be of one rank's tokens"),
        ({"logits_to_keep": 1}, "counts from the end of a rank's tokens"),
        ({"sliding_window": 2}, "takes sliding_window from the model's config and layout"),
        ({"cu_seq_lens_q": ids}, "takes cu_seq_lens_q from the model's config and layout"),
    ):
        with pytest.raises(InputError, match=message):
            model(**{**right, **change})
    earlier = DynamicCache()
    model(**{**right, "use_cache": True, "past_key_values": earlier})
    for keys, change in ((3, {"input_ids": ids[:, :3], "position_ids": ids[:, :3]}), (8, {"past_key_values": earlier})):
        with pytest.raises(InputError, match=f"{min(keys, 4)} queries and {keys} keys where a rank holds 4 tokens"):
            model(**{**right, **change})
    model.set_attn_implementation("sdpa")
    with pytest.raises(InputError, match="attention 'sdpa' of model_type=llama stays inside a rank's tokens"):
        model(**right)


def test_a_head_that_gives_one_answer_for_a_row_is_refused():
    config = _llama().config
    config.pad_token_id = 0
    with pytest.raises(InputError, match="what a model gives for each token; legal: LlamaModel, LlamaForCausalLM, Ll"):
        guard(LlamaForSequenceClassification(config))
    guard(LlamaForTokenClassification(config))


def test_a_model_with_another_attention_is_refused():
    model = _llama()
    model.set_attn_implementation("sdpa")
    with pytest.raises(InputError, match='build the model with attn_implementation="mm_sp"'):
        guard(model)


def test_labels_of_a_model_around_the_language_model_are_refused():
    text = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": 32,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}  # fmt: skip
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": 16}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    register()
    implementations = {"text_config": "mm_sp", "vision_config": "sdpa"}
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation=implementations)
    guard(model)
    call = MmSp(layout=Layout(tokens=4), ulysses=Alone(), ring=Alone())
    ids = torch.arange(4)[None]
    with pytest.raises(InputError, match="would shift labels"):
        model(input_ids=ids, position_ids=ids, labels=ids, use_cache=False, mm_sp=call)


def test_models_whose_layers_depend_on_the_tokens_of_one_rank_are_refused():
    model = _llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    model.model.layers[0].own_rotary = model.model.rotary_emb.__class__(model.config)
    with pytest.raises(InputError, match="rope_type of LlamaRotaryEmbedding follows from the tokens of one rank"):
        guard(model)
    with pytest.raises(InputError, match="does not do attention_chunk_size"):
        guard(_llama(attention_chunk_size=8))


def test_what_cannot_be_done_is_refused():
    q, k, v, _ = row(4, 2, 1)
    call = MmSp(layout=Layout(tokens=4), ulysses=Alone(), ring=Alone())
    module = torch.nn.Module()
    with pytest.raises(InputError, match="needs the keyword argument mm_sp"):
        attention(module, q, k, v, None)
    with pytest.raises(InputError, match="does not do softcap"):
        attention(module, q, k, v, None, mm_sp=call, softcap=50.0)
    with pytest.raises(InputError, match=r"does not do dropout=0\.1"):
        attention(module, q, k, v, None, mm_sp=call, dropout=0.1)
    module.is_causal = False
    with pytest.raises(InputError, match="does not do attention to later tokens"):
        attention(module, q, k, v, None, mm_sp=call)
    with pytest.raises(InputError, match="ulysses=4 exceeds the model's 2 query heads; at most 2"):
        MmSp(layout=Layout(tokens=4), ulysses=local_exchanges(4)[0], ring=Alone()).attend(q, k, v, 1.0)
