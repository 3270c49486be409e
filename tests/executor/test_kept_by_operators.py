"""What other programs' operators keep and hold, counted as they run on small shapes.

Aleph Alpha's attention (rotary tables gathered by positions; FlashAttention's inputs and result are kept as handed) and
its loss. Storages are counted once, so that a view costs nothing. Bytes of bf16.
"""

import weakref

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cost_models import Model, Strategy, Workload
from cost_models.framework import Framework
from cost_models.layer.attention import attention_operators
from cost_models.layer.sizes import RankSizes

TOKENS, HEADS, DIM = 64, 4, 16
HIDDEN = HEADS * DIM
ALEPH = Framework.load("aleph-alpha")


def weights(*shape):
    return torch.nn.Parameter(torch.randn(*shape, dtype=torch.bfloat16))


class Flash(torch.autograd.Function):
    """flash-attn's inputs and outputs."""

    @staticmethod
    def forward(ctx, q, k, v):
        result, lse = torch.empty(q.shape, dtype=q.dtype), torch.empty(q.shape[:2])
        ctx.save_for_backward(q, k, v, result, lse)
        return result


def turned(x_SBND, table, positions_SB):
    """With cosines and sines gathered for these positions; of a table of one row for each."""
    index = positions_SB[:, :, None, None].expand(-1, -1, 1, DIM)
    cos, sin = (torch.gather(one.expand(-1, index.shape[1], 1, DIM), 0, index) for one in table)
    first, second = x_SBND[..., : DIM // 2], x_SBND[..., DIM // 2 :]
    return x_SBND * cos + torch.cat((-second, first), -1) * sin


def attention(x_BSH, qkv, out, table, positions_SB):
    rows = x_BSH.shape[0]
    joined_SBNE = linear(x_BSH, qkv).view(rows, TOKENS, HEADS, 3 * DIM).permute(1, 0, 2, 3)
    q, k, v = torch.split(joined_SBNE, DIM, -1)
    q, k = turned(q, table, positions_SB), turned(k, table, positions_SB)
    result = Flash.apply(*(one.permute(1, 0, 2, 3).reshape(rows * TOKENS, HEADS, DIM) for one in (q, k, v)))
    by_heads = result.view(rows, TOKENS, HEADS, DIM).permute(0, 2, 1, 3).reshape(rows * HEADS, TOKENS, DIM)
    by_tokens = by_heads.view(rows, HEADS, TOKENS, DIM).permute(0, 2, 1, 3).reshape(rows, TOKENS, HIDDEN)
    return linear(by_tokens, out)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_attention_of_aleph_alpha_keeps_what_is_priced(rows):
    seen: dict[int, int] = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    qkv, out = weights(3 * HIDDEN, HIDDEN), weights(HIDDEN, HIDDEN)
    x_BSH = torch.randn(rows, TOKENS, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    table = [torch.randn(TOKENS, 1, 1, DIM).bfloat16() for _ in range(2)]
    positions_SB = torch.arange(TOKENS)[:, None].expand(TOKENS, rows)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        _result = attention(x_BSH, qkv, out, table, positions_SB)
    model = Model(
        name="small", layers=1, hidden=HIDDEN, ffn=HIDDEN, heads=HEADS, kv_heads=HEADS, head_dim=DIM, vocab=100
    )
    sizes = RankSizes(Workload(model, context_tokens=TOKENS, global_batch=rows), Strategy(), ALEPH)
    priced = sum(one.kept for one in attention_operators(sizes) if one.name != "norm")
    assert sum(seen.values()) == priced + x_BSH.nbytes + qkv.nbytes + out.nbytes  # the norm's result, and the weights


class Live(TorchDispatchMode):
    """Bytes that storages take, after each operator."""

    def __init__(self):
        super().__init__()
        self.sizes, self.after = {}, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor) and one.untyped_storage()._cdata not in self.sizes:
                storage = one.untyped_storage()
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage._cdata)
        self.after.append((func.overloadpacket.__name__, sum(self.sizes.values())))
        return result


def test_the_loss_of_aleph_alpha_holds_what_is_priced():
    """At its highest 14 bytes a logit; when the head's gradient is made the kept logits and their gradient."""
    tokens, vocab, hidden = 64, 2048, 8
    head, x = weights(vocab, hidden), torch.randn(tokens, hidden, dtype=torch.bfloat16, requires_grad=True)
    targets, live = torch.randint(0, vocab, (tokens,)), Live()

    def loss(logits):
        wide = logits.float()
        return cross_entropy(wide, targets), (wide.argmax(-1) == targets).float().sum()

    with live:
        logits = linear(x, head)
        loss(logits)[0].backward()
    each = tokens * vocab
    slack = 0.1 * each + 2 * head.nbytes
    assert 0 <= max(size for _, size in live.after) - ALEPH.logit_bytes * each < slack
    products = [size for name, size in live.after if name == "mm"]
    assert len(products) == 3 and max(products[1:]) < 4 * each + slack
