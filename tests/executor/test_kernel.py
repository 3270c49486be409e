"""One block's kernel: GQA and unequal lengths against plain arithmetic, gradients of blocks add up, fake tensors."""

import sys
from types import ModuleType

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cost_models.errors import InputError
from executor.mmsp import kernel


def _fake_block(dtype, device):
    return [torch.empty(shape, dtype=dtype, device=device) for shape in ((2, 4, 6, 8), (2, 2, 10, 8), (2, 2, 10, 8))]


def _block(queries=6, keys=10):
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 4, queries, 8), (2, 2, keys, 8), (2, 2, keys, 8)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _plain(q, k, v, causal):
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = 0.2 * q @ k.transpose(-1, -2)
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


@pytest.mark.parametrize(("causal", "keys"), [(True, 6), (False, 10), (False, 1)])
def test_forward_and_natural_logarithm(causal, keys):
    q, k, v = _block(keys=keys)
    got, want = kernel.forward(q, k, v, block=kernel.Block(causal), scale=0.2), _plain(q, k, v, causal)
    torch.testing.assert_close(got.out, want[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(got.lse, want[1], rtol=0, atol=1e-12)


def test_gradients_of_two_blocks_add_up_to_those_of_the_row():
    q, k, v = (x.requires_grad_() for x in _block())
    out, lse = _plain(q, k, v, False)
    dout = torch.randn_like(out)
    want = torch.autograd.grad((out * dout).sum(), (q, k, v))
    parts = [
        kernel.backward(dout, q, k[:, :, cut], v[:, :, cut], out, lse, block=kernel.Block(False), scale=0.2)
        for cut in (slice(0, 3), slice(3, 10))
    ]
    torch.testing.assert_close(parts[0].dq + parts[1].dq, want[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.cat([part.dk for part in parts], 2), want[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.cat([part.dv for part in parts], 2), want[2], rtol=0, atol=1e-12)


@pytest.fixture
def eight_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


def test_fewer_key_heads_than_threads_give_the_same_gradients(eight_threads):
    q, k, v = (x.requires_grad_() for x in _block())
    out, lse = _plain(q, k, v, False)
    dout = torch.randn_like(out)
    got = kernel.backward(dout, q, k, v, out, lse, block=kernel.Block(False), scale=0.2)
    for grad, want in zip(got, torch.autograd.grad((out * dout).sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(grad, want, rtol=0, atol=1e-12)


def _with_window(queries, keys, causal, left, right):
    """flash-attn: query i sees keys i + Sk - Sq - left to i + Sk - Sq + right; -1 is no end; causal is right 0."""
    right = 0 if causal else right
    last = torch.arange(queries)[:, None] + keys - queries
    seen = torch.ones(queries, keys, dtype=torch.bool)
    seen &= (torch.arange(keys) >= last - left) | (left < 0)
    seen &= (torch.arange(keys) <= last + right) | (right < 0)
    return torch.zeros(queries, keys, dtype=torch.float64).masked_fill(~seen, -torch.inf)


@pytest.fixture
def flash_attn(monkeypatch):
    """The two functions of flash-attn 2.7 as it declares them, on torch's CPU kernel; the tensors it was given."""
    given = []
    of_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    back_of_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    def swap(*tensors):
        return [x.transpose(1, 2) for x in tensors]

    def _flash_attn_forward(
        q,
        k,
        v,
        dropout_p,
        softmax_scale,
        causal,
        window_size_left,
        window_size_right,
        softcap,
        alibi_slopes,
        return_softmax,
    ):
        given.extend((q, k, v))
        mask = _with_window(q.shape[1], k.shape[1], causal, window_size_left, window_size_right)
        out, lse = of_cpu(*swap(q, k, v), dropout_p, False, attn_mask=mask, scale=softmax_scale)
        return out.transpose(1, 2), lse, None, None

    def _flash_attn_backward(
        dout,
        q,
        k,
        v,
        out,
        softmax_lse,
        dq,
        dk,
        dv,
        dropout_p,
        softmax_scale,
        causal,
        window_size_left,
        window_size_right,
        softcap,
        alibi_slopes,
        deterministic,
        rng_state=None,
    ):
        assert all(x.stride(-1) == 1 for x in (dq, dk, dv)) and softmax_lse.is_contiguous()
        assert deterministic == torch.are_deterministic_algorithms_enabled()
        given.extend((dout, q, k, v, out))
        mask = _with_window(q.shape[1], k.shape[1], causal, window_size_left, window_size_right)
        tensors = swap(dout, q, k, v, out)
        grads = back_of_cpu(*tensors, softmax_lse, dropout_p, False, attn_mask=mask, scale=softmax_scale)
        for target, grad in zip((dq, dk, dv), grads, strict=True):
            target.copy_(grad.transpose(1, 2))

    def forward_of_3(q, k, v, softmax_scale=None, causal=False, window_size_left=-1, window_size_right=-1):
        """As FlashAttention-3 declares it, but for what is not used here."""
        return _flash_attn_forward(
            q, k, v, 0.0, softmax_scale, causal, window_size_left, window_size_right, 0.0, None, False
        )

    def backward_of_3(
        dout, q, k, v, out, softmax_lse, dq=None, dk=None, dv=None, softmax_scale=None, is_causal=False,
        window_size_left=-1, window_size_right=-1, deterministic=False,
    ):  # fmt: skip
        rest = (0.0, softmax_scale, is_causal, window_size_left, window_size_right, 0.0, None, deterministic)
        _flash_attn_backward(dout, q, k, v, out, softmax_lse, dq, dk, dv, *rest)

    module = ModuleType("flash_attn.flash_attn_interface")
    module._flash_attn_forward, module._flash_attn_backward = _flash_attn_forward, _flash_attn_backward
    third = ModuleType("flash_attn_interface")
    third._flash_attn_forward, third._flash_attn_backward = forward_of_3, backward_of_3
    monkeypatch.setitem(sys.modules, "flash_attn_interface", third)
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", module)
    return given


@pytest.mark.parametrize(
    ("block", "queries"),
    [
        (kernel.Block(True), 7),
        (kernel.Block(False), 7),
        (kernel.Block(True, 2, 3), 5),  # keys from two before the first query on
        (kernel.Block(False, 8, 12), 7),
        (kernel.Block(False, 4, 8), 10),
    ],
)
@pytest.mark.parametrize(
    ("forth", "back"),
    [
        (kernel._flash_attn_forward, kernel._flash_attn_backward),
        (kernel._flash_attn_3_forward, kernel._flash_attn_3_backward),
    ],
)
def test_flash_attn_is_handed_views_and_gives_the_same(flash_attn, block, queries, forth, back):
    """Arguments, layouts and copies only: flash-attn's own arithmetic is not run here."""
    q, k, v = (x[:, :, 1:] for x in _block(queries + 1, 8))
    want = kernel.forward(q, k, v, block=block, scale=0.2)
    got = forth(q, k, v, block, 0.2)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    dout = torch.randn(8, 2, 4, queries, dtype=q.dtype).permute(1, 2, 3, 0).contiguous()
    grads = back(dout, q, k, v, want.out, want.lse, block, 0.2)
    expected = kernel.backward(dout, q, k, v, *want, block=block, scale=0.2)
    torch.testing.assert_close(grads, expected, rtol=0, atol=1e-12)
    sources = (q, k, v, dout, q, k, v, want.out)
    assert [x.data_ptr() for x in flash_attn] == [x.data_ptr() for x in sources], "no copies on the way"


def test_gradients_are_the_same_in_every_run_where_torch_is_told_so(flash_attn):
    q, k, v = _block(7, 8)
    block = kernel.Block(False)
    out, lse = kernel.forward(q, k, v, block=block, scale=0.2)
    torch.use_deterministic_algorithms(True)
    try:
        for back in (kernel._flash_attn_backward, kernel._flash_attn_3_backward):
            back(torch.ones_like(q), q, k, v, out, lse, block, 0.2)  # the stand-in compares
    finally:
        torch.use_deterministic_algorithms(False)
    assert flash_attn


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_shapes_and_dtypes_on_fake_tensors(device):
    """Also the arguments of the CUDA op that torch ships, without a GPU; its arithmetic is not run here."""
    with FakeTensorMode():
        q, k, v = _fake_block(torch.bfloat16, device)
        block = kernel.forward(q, k, v, block=kernel.Block(False), scale=0.2)
        grads = kernel.backward(
            torch.empty_like(q), q, k, v, block.out, block.lse, block=kernel.Block(False), scale=0.2
        )
    assert block.out.shape == q.shape and block.out.dtype == torch.bfloat16
    assert block.lse.shape == q.shape[:3] and block.lse.dtype == torch.float32
    assert [grad.shape for grad in grads] == [q.shape, k.shape, v.shape]
    assert {grad.device.type for grad in grads} == {device}


def test_no_kernel_for_an_odd_head_dim_on_cuda_is_said():
    with FakeTensorMode(), pytest.raises(InputError, match="head dim of 12 has no kernel on CUDA; legal: multiples"):
        q = torch.empty(1, 2, 7, 12, dtype=torch.bfloat16, device="cuda")
        kernel.forward(q, q, q, block=kernel.Block(False), scale=0.2)


def test_no_kernel_for_single_precision_on_cuda_is_said():
    with FakeTensorMode(), pytest.raises(InputError, match=r"torch\.float32 has no kernel on CUDA; use bfloat16"):
        kernel.forward(*_fake_block(torch.float32, "cuda"), block=kernel.Block(False), scale=0.2)


def test_flash_attention_3_runs_on_hopper_alone_and_is_named(monkeypatch):
    """Where its package is and the card has compute capability 9; nothing of it runs here."""
    monkeypatch.setattr(kernel.importlib.util, "find_spec", lambda name: name == "flash_attn_interface" or None)
    found = {}
    for major in (8, 9, 10):
        kernel._has_flash_attn.cache_clear()
        kernel._has_flash_attn_3.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, major=major: (major, 0))
        found[major] = kernel.words(torch.device("cuda"))
    kernel._has_flash_attn.cache_clear()
    kernel._has_flash_attn_3.cache_clear()
    assert found == {
        8: "FlashAttention-2 (torch's)", 9: "FlashAttention-3 (flash_attn_interface)", 10: "FlashAttention-2 (torch's)",
    }  # fmt: skip
