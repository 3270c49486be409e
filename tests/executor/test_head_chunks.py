"""Attention by chunks of heads: exact against dense attention and bit by bit what one chunk gives, with fewer bytes
alive at a time and the exchanges that its docstring counts."""

import pytest
import torch

from cost_models.errors import InputError
from cost_models.layer.heads import HeadSplit
from cost_models.token_layout import Layout
from executor.mmsp.attention import Kept, MmSp
from executor.mmsp.exchange import Alone
from tests.executor.test_attention import dense, on_threads, row, sharded

CASES = [
    # tokens, query heads, KV heads, ulysses, ring, chunks, documents' lengths
    (32, 8, 8, 2, 1, 4, [32]),  # keys of its own for each chunk
    (40, 8, 2, 2, 2, 2, [17, 23]),  # both chunks of a rank read the same keys
    (29, 8, 4, 2, 1, 2, [29]),
    (37, 7, 7, 2, 2, 3, [37]),  # 4 and 3 heads in three pieces
    (50, 28, 4, 6, 1, 3, [50]),  # a rank reads two KV heads unevenly
    (24, 4, 2, 1, 2, 4, [20, 4]),
]


@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "ulysses", "ring", "chunks", "documents"), CASES)
def test_equals_dense_attention(tokens, heads, kv_heads, ulysses, ring, chunks, documents):
    document_L = torch.repeat_interleave(torch.arange(len(documents)), torch.tensor(documents))
    q, k, v, dout = row(tokens, heads, kv_heads)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = dense(*leaves, document_L, 0.3)
    expected = [out.detach().transpose(1, 2), *torch.autograd.grad((out * dout).sum(), leaves)]
    layout = Layout(tokens=tokens, ulysses=ulysses, ring=ring)
    for got, want in zip(sharded(layout, q, k, v, dout, document_L, head_chunks=chunks), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_sinks_and_a_kept_result():
    q, k, v, dout = row(20, 4, 2)
    sinks, layout = torch.randn(4, dtype=q.dtype), Layout(tokens=20)
    found = []
    for chunks, kept in ((1, None), (2, None), (4, Kept())):
        leaves = [x.clone().requires_grad_() for x in (q, k, v, sinks)]
        call = MmSp(layout=layout, ulysses=Alone(), ring=Alone(), head_chunks=chunks, kept=kept)
        for _ in range(2 if kept else 1):  # the second time takes what the first one kept
            out = call.attend(*leaves[:3], 0.3, sinks=leaves[3])
        found.append([out, *torch.autograd.grad((out * dout).sum(), leaves)])
    for other in found[1:]:
        for got, want in zip(other, found[0], strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


class _Counted:
    """An exchange that counts the numbers that it is given."""

    def __init__(self, inner, sent):
        self.inner, self.sent, self.size, self.index = inner, sent, inner.size, inner.index

    def all_to_all(self, rows, send, receive):
        self.sent.append(rows.numel())
        return self.inner.all_to_all(rows, send, receive)


def test_what_is_exchanged_forward_and_backward():
    """Forward q, k, v and the result once; backward q, k, v, the result and its gradient, then dq, dk, dv. In whole
    numbers of a rank: 8 query and 2 x 2 key heads of 8 tokens."""
    q, k, v, _ = row(16, 8, 2)
    layout, counts = Layout(tokens=16, ulysses=2), {}

    def work(ulysses, ring):
        sent = []
        leaves = [x[:, :, ulysses.index * 8 :][:, :, :8].clone().requires_grad_() for x in (q, k, v)]
        call = MmSp(layout=layout, ulysses=_Counted(ulysses, sent), ring=ring, head_chunks=4)
        out = call.attend(*leaves, 0.3)
        forward, calls = sum(sent), len(sent)
        torch.autograd.grad(out.sum(), leaves)
        counts[ulysses.index] = forward, calls, sum(sent) - forward

    on_threads(layout, work)
    head = 8 * 4
    assert counts[0] == counts[1] == ((8 + 4 + 8) * head, 8, (8 + 4 + 8 + 8 + 8 + 4) * head)


def test_more_chunks_than_a_rank_has_heads():
    with pytest.raises(InputError, match="attention_head_chunks=3 of the 2 query heads of a rank; at most 2"):
        HeadSplit(q_heads=8, kv_heads=2, ulysses=4).parts(3)
    pieces = HeadSplit(q_heads=7, kv_heads=7, ulysses=2).parts(3)
    assert [[tuple(share)[:2] for share in piece.shares] for piece in pieces] == [
        [(0, 1), (4, 5)], [(1, 2), (5, 6)], [(2, 4), (6, 7)],
    ]  # fmt: skip
