"""Bytes that an eager decoder layer of Hugging Face reads and writes beside its products, counted operator by operator.

Attention is a stand-in that moves nothing, and what orders its heads is left out of the price. Each tensor of an
operator counts once, whole; a half that is laid into zeros as PyTorch's kernels have it: zeros written, the half read
and written.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from cost_models import Model, Strategy, Workload
from cost_models.layer.decoder import attention_operators, mlp_operators
from cost_models.layer.operators import norm
from cost_models.layer.sizes import RankSizes

TOKENS, HIDDEN, FFN, HEADS, KV_HEADS = 512, 256, 1024, 8, 4
MODEL = Model(
    name="small", layers=1, hidden=HIDDEN, ffn=FFN, vocab=64, heads=HEADS, kv_heads=KV_HEADS, head_dim=HIDDEN // HEADS
)
MADE_NOWHERE = {
    "_unsafe_view", "detach", "expand", "mm", "new_empty", "slice", "t", "transpose", "unsqueeze", "view",
}  # fmt: skip
"""Views, what allocates alone, and products."""


class Bytes(TorchDispatchMode):
    """Adds up what operators read and write."""

    def __init__(self):
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "slice_backward":
            self.moved += made.nbytes + 2 * args[0].nbytes
        elif name not in MADE_NOWHERE and not self.orders(name, args):
            self.moved += sum(held(one) for one in tree_leaves((args, kwargs, made)) if isinstance(one, torch.Tensor))
        return made

    @staticmethod
    def orders(name, args):
        """Whether it lays heads token by token, as the products behind attention's gradients want them."""
        return name == "clone" and args[0].dim() == 4


def held(tensor):
    """Bytes of what is expanded count once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return torch.Size(sizes).numel() * tensor.element_size()


class Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        return q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3])

    @staticmethod
    def backward(ctx, grad):
        return tuple(one.new_empty(one.shape) for one in ctx.saved_tensors)


def counted():
    """(forward, backward) of a layer."""
    ALL_ATTENTION_FUNCTIONS["nothing"] = lambda module, q, k, v, mask, **more: (Nothing.apply(q, k, v), None)
    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=FFN, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
        num_hidden_layers=1, vocab_size=64, attn_implementation="nothing",
    )  # fmt: skip
    layer = LlamaDecoderLayer(config, 0).bfloat16()
    x = torch.randn(1, TOKENS, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    tables = LlamaRotaryEmbedding(config)(x, torch.arange(TOKENS)[None])
    with Bytes() as forward:
        y = layer(x, position_embeddings=tables, attention_mask=None)
    grad = torch.randn_like(y)
    with Bytes() as backward:
        torch.autograd.grad(y, [x, *layer.parameters()], grad)
    return forward.moved, backward.moved


@pytest.mark.parametrize("rank", [0, 8])
def test_a_norm_moves_what_is_priced_and_less_where_its_weight_is_frozen(rank):
    work = Workload(MODEL, context_tokens=TOKENS, global_batch=1, lora_rank=rank)
    priced = [passes.moved for passes in norm(RankSizes(work, Strategy()), "norm").passes]
    layer = LlamaRMSNorm(HIDDEN).bfloat16()
    layer.weight.requires_grad_(work.trains_norms)
    x = torch.randn(1, TOKENS, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    with Bytes() as forward:
        y = layer(x)
    grad = torch.ones_like(y)
    with Bytes() as backward:
        torch.autograd.grad(y, [x, layer.weight] if work.trains_norms else [x], grad)
    assert work.trains_norms == (rank == 0)
    assert (forward.moved, backward.moved) == (pytest.approx(priced[0], rel=0.005), pytest.approx(priced[1], rel=0.005))


def test_an_eager_layer_moves_what_is_priced():
    work = Workload(MODEL, context_tokens=TOKENS, global_batch=1)
    sizes = RankSizes(work, Strategy())
    table = [one for one in (*attention_operators(sizes), *mlp_operators(sizes)) if not one.name.startswith("heads")]
    priced = [sum(one.passes[grad].moved for one in table) for grad in (False, True)]
    assert counted() == (pytest.approx(priced[0], rel=0.01), pytest.approx(priced[1], rel=0.01))
