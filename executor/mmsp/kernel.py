"""Attention of one block of queries with one block of keys, and its gradient from the result over the row.

    out = softmax(scale * q k^T) v        lse = log sum exp(scale * q k^T), natural log, per query

`backward` takes the *global* out and lse, so that gradients of blocks add up to those of the row. Kernels on CUDA:
FlashAttention-3 (`flash_attn_interface`) on Hopper if installed, else flash-attn if installed, else torch's flash
kernel; on a CPU torch's flash kernel for it (also under fake tensors). Tensors are BHSD with D the head dim; K divides
H (grouped queries, head h reads h * K // H). A block's shape is its `Block`: causal ones without a window are square. A
window is a mask for torch's CPU kernel, a pair of numbers for flash-attn; torch's CUDA kernel takes none and is
refused. `torch.use_deterministic_algorithms` makes flash-attn's gradients the same in every run. Leaves out: dropout,
soft caps, and one call for many documents: flash-attn has kernels that take lengths, a CPU has none.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cost_models.errors import InputError

_FLASH_ATTN: dict[str, Any] = {"dropout_p": 0.0, "softcap": 0.0, "alibi_slopes": None}
"""What flash-attn's raw operators want to be told of features that are not used here."""


HOPPER = 9
"""Its compute capability."""


class Block(NamedTuple):
    """Which keys of a block its queries see: query i is `lead` + i - j before key j."""

    causal: bool
    lead: int = 0
    window: int = 0  # keys less than so many before a query; 0: all

    def mask(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """(Sq, Skv) of what is seen."""
        behind = self.lead + torch.arange(queries, device=device)[:, None] - torch.arange(keys, device=device)
        return (behind < self.window) & (behind >= 0) if self.causal else behind < self.window

    def of_flash_attn(self, queries: int, keys: int) -> dict[str, int]:
        """The window by flash-attn, which counts from the last query and the last key; -1 is none."""
        if not self.window:
            return {"window_size_left": -1, "window_size_right": -1}
        shift = keys - queries - self.lead
        return {"window_size_left": self.window - 1 + shift, "window_size_right": -shift if self.causal else -1}


class BlockOut(NamedTuple):
    """Attention's result of a block, (batch, heads, tokens, head dim), and its log-sum-exp."""

    out: Tensor  # (B, H, Sq, D), dtype of q
    lse: Tensor  # (B, H, Sq), float32, or float64 for float64 inputs


class BlockGrad(NamedTuple):
    """Gradients of a block's queries, keys and values, shaped as these."""

    dq: Tensor
    dk: Tensor
    dv: Tensor


def forward(q: Tensor, k: Tensor, v: Tensor, *, block: Block, scale: float) -> BlockOut:
    """Attention of q (B, H, Sq, D) with k, v (B, K, Skv, D); no row of queries or keys may be empty."""
    assert block.window or not block.causal or q.shape[2] == k.shape[2]
    if q.device.type != "cuda":
        op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return BlockOut(*op(q, k, v, 0.0, **_seen_by_cpu(q, k, block), scale=scale))
    _check_cuda(q, block)
    if _has_flash_attn_3(q.device):
        return _flash_attn_3_forward(q, k, v, block, scale)
    if _has_flash_attn():
        return _flash_attn_forward(q, k, v, block, scale)
    result = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, block.causal, False, scale=scale)
    return BlockOut(result[0], result[1])


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *, block: Block, scale: float
) -> BlockGrad:
    """This block's part of the gradients of q, k, v; `out` and `lse` are those over all keys of the row."""
    if q.device.type == "cuda":
        _check_cuda(q, block)
        if _has_flash_attn_3(q.device):
            return _flash_attn_3_backward(dout, q, k, v, out, lse, block, scale)
        if _has_flash_attn():
            return _flash_attn_backward(dout, q, k, v, out, lse, block, scale)
        return _aten_cuda_backward(dout, q, k, v, out, lse, block.causal, scale)
    return _cpu_backward(dout, q, k, v, out, lse, block, scale)


def _seen_by_cpu(q: Tensor, k: Tensor, block: Block) -> dict[str, Any]:
    """What a block's queries see, as torch's CPU kernel is told."""
    if not block.window:
        return {"is_causal": block.causal, "attn_mask": None}
    seen = block.mask(q.shape[2], k.shape[2], q.device)
    return {"is_causal": False, "attn_mask": torch.zeros_like(seen, dtype=q.dtype).masked_fill(~seen, -torch.inf)}


def _cpu_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, block: Block, scale: float
) -> BlockGrad:
    """Torch's kernel splits its work over KV heads; with fewer heads than threads it is 20 times slower.

    Then every query head gets a view of its KV head, and the gradients are summed. With one thread nothing changes.
    """
    op, seen = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward, _seen_by_cpu(q, k, block)
    batch, kv_heads = k.shape[:2]
    group = q.shape[1] // kv_heads
    if group == 1 or batch * kv_heads >= torch.get_num_threads():
        return BlockGrad(*op(dout, q, k, v, out, lse, 0.0, **seen, scale=scale))
    k, v = (x.unsqueeze(2).expand(-1, -1, group, -1, -1).flatten(1, 2) for x in (k, v))
    dq, dk, dv = op(dout, q, k, v, out, lse, 0.0, **seen, scale=scale)
    return BlockGrad(dq, *(x.unflatten(1, (kv_heads, group)).sum(2) for x in (dk, dv)))


def _aten_cuda_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> BlockGrad:
    """Dense inputs have no cumulative lengths; the random state is only looked at with dropout."""
    seed = torch.zeros(2, dtype=torch.uint64, device=q.device)
    offset = torch.zeros((), dtype=torch.uint64, device=q.device)
    op = torch.ops.aten._scaled_dot_product_flash_attention_backward
    lengths = (None, None, q.shape[2], k.shape[2])
    return BlockGrad(*op(dout, q, k, v, out, lse.contiguous(), *lengths, 0.0, causal, seed, offset, scale=scale))


def _flash_attn_forward(q: Tensor, k: Tensor, v: Tensor, block: Block, scale: float) -> BlockOut:
    from flash_attn.flash_attn_interface import _flash_attn_forward as op

    q_BSHD, k_BSHD, v_BSHD = (x.transpose(1, 2) for x in (q, k, v))
    shape = {"causal": block.causal and not block.window, **block.of_flash_attn(q.shape[2], k.shape[2])}
    out, lse, *_ = op(q_BSHD, k_BSHD, v_BSHD, softmax_scale=scale, return_softmax=False, **shape, **_FLASH_ATTN)
    return BlockOut(out.transpose(1, 2), lse)


def _flash_attn_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, block: Block, scale: float
) -> BlockGrad:
    from flash_attn.flash_attn_interface import _flash_attn_backward as op

    # Any strides will do but the last dim's, which the op looks after; lse it takes as dense.
    dout, q, k, v, out = (x.transpose(1, 2) for x in (dout, q, k, v, out))
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    tensors = (dout, q, k, v, out, lse.contiguous(), dq, dk, dv)
    shape = {"causal": block.causal and not block.window, **block.of_flash_attn(q.shape[1], k.shape[1])}
    same = torch.are_deterministic_algorithms_enabled()
    op(*tensors, softmax_scale=scale, deterministic=same, **shape, **_FLASH_ATTN)
    return BlockGrad(dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2))


def _flash_attn_3_forward(q: Tensor, k: Tensor, v: Tensor, block: Block, scale: float) -> BlockOut:
    from flash_attn_interface import _flash_attn_forward as op

    shape = {"causal": block.causal and not block.window, **block.of_flash_attn(q.shape[2], k.shape[2])}
    out, lse, *_ = op(*(x.transpose(1, 2) for x in (q, k, v)), softmax_scale=scale, **shape)
    return BlockOut(out.transpose(1, 2), lse)


def _flash_attn_3_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, block: Block, scale: float
) -> BlockGrad:
    from flash_attn_interface import _flash_attn_backward as op

    dout, q, k, v, out = (x.transpose(1, 2) for x in (dout, q, k, v, out))
    made = {"dq": torch.empty_like(q), "dk": torch.empty_like(k), "dv": torch.empty_like(v)}
    shape = {"is_causal": block.causal and not block.window, **block.of_flash_attn(q.shape[1], k.shape[1])}
    same = torch.are_deterministic_algorithms_enabled()
    op(dout, q, k, v, out, lse.contiguous(), **made, softmax_scale=scale, deterministic=same, **shape)
    return BlockGrad(**{name: x.transpose(1, 2) for name, x in made.items()})


def words(device: torch.device) -> str:
    """The kernel that runs on a device.

    >>> words(torch.device("cpu"))
    "torch's flash kernel for CPU"
    """
    if device.type != "cuda":
        return "torch's flash kernel for CPU"
    if _has_flash_attn_3(device):
        return "FlashAttention-3 (flash_attn_interface)"
    return "FlashAttention-2 (flash-attn)" if _has_flash_attn() else "FlashAttention-2 (torch's)"


def _check_cuda(q: Tensor, block: Block) -> None:
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise InputError(f"attention in {q.dtype} has no kernel on CUDA; use bfloat16 or float16")
    if q.shape[-1] % 8:
        raise InputError(f"attention with a head dim of {q.shape[-1]} has no kernel on CUDA; legal: multiples of 8")
    if block.window and not (_has_flash_attn_3(q.device) or _has_flash_attn()):
        raise InputError(f"a window of {block.window} keys needs flash-attn on CUDA; install it (extra `gpu`)")


@cache
def _has_flash_attn() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


@cache
def _has_flash_attn_3(device: torch.device) -> bool:
    """Its package is there, and the card is a Hopper: the package is made for compute capability 9."""
    if importlib.util.find_spec("flash_attn_interface") is None:
        return False
    return torch.cuda.get_device_capability(device)[0] == HOPPER
