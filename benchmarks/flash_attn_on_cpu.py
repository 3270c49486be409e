"""The raw operators of flash-attn on this project's CPU kernel, so that peers which import them run on gloo ranks.

    install()     before yunchang or ring_flash_attn is imported

Every side then calls `executor.mmsp.kernel`. Tensors are BSHD, or (tokens, H, D) with lengths; causal blocks of fewer
queries than keys are aligned at their ends, as flash-attn's are. Left out: dropout, windows, soft caps, ALiBi.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from itertools import pairwise

import torch
from torch import Tensor

from executor.mmsp import kernel

FULL, CAUSAL = kernel.Block(causal=False), kernel.Block(causal=True)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """(out, lse) of BHSD blocks; causal queries are the last of the keys."""
    before = k.shape[2] - q.shape[2]
    if not causal or not before:
        return kernel.forward(q, k, v, block=CAUSAL if causal else FULL, scale=scale)
    out, lse = kernel.forward(q, k[:, :, :before], v[:, :, :before], block=FULL, scale=scale)
    last, last_lse = kernel.forward(q, k[:, :, before:], v[:, :, before:], block=CAUSAL, scale=scale)
    share = torch.sigmoid(last_lse - lse).unsqueeze(-1).to(out.dtype)
    return out - share * (out - last), torch.logaddexp(lse, last_lse)


def gradients(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) of BHSD blocks."""
    before, lse = k.shape[2] - q.shape[2], lse.contiguous()
    if not causal or not before:
        return kernel.backward(dout, q, k, v, out, lse, block=CAUSAL if causal else FULL, scale=scale)
    parts = (
        kernel.backward(dout, q, k[:, :, :before], v[:, :, :before], out, lse, block=FULL, scale=scale),
        kernel.backward(dout, q, k[:, :, before:], v[:, :, before:], out, lse, block=CAUSAL, scale=scale),
    )
    return parts[0].dq + parts[1].dq, *(torch.cat((a, b), 2) for a, b in zip(parts[0][1:], parts[1][1:], strict=True))


def _flash_attn_forward(
    q, k, v, dropout_p, softmax_scale, causal, window_size_left=-1, window_size_right=-1, softcap=0.0,
    alibi_slopes=None, return_softmax=False,
):  # fmt: skip
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, lse = attend(q, k, v, softmax_scale, causal)
    return out.transpose(1, 2), lse, None, None


def _flash_attn_backward(
    dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal, window_size_left=-1,
    window_size_right=-1, softcap=0.0, alibi_slopes=None, deterministic=False, rng_state=None,
):  # fmt: skip
    blocks = (x.transpose(1, 2) for x in (dout, q, k, v, out))
    found = gradients(*blocks, softmax_lse, softmax_scale, causal)
    for target, value in zip((dq, dk, dv), found, strict=True):
        target.copy_(value.transpose(1, 2))


def _flash_attn_varlen_forward(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal,
    window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None, return_softmax=False,
):  # fmt: skip
    out, lse = torch.empty_like(q), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
    for mine, keys in _documents(cu_seqlens_q, cu_seqlens_k):
        part = attend(_block(q, mine), _block(k, keys), _block(v, keys), softmax_scale, causal)
        out[mine], lse[:, mine] = part[0][0].transpose(0, 1), part[1][0].to(torch.float32)
    return out, lse, None, None


def _flash_attn_varlen_backward(
    dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p,
    softmax_scale, causal, window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None,
    deterministic=False, rng_state=None,
):  # fmt: skip
    for mine, keys in _documents(cu_seqlens_q, cu_seqlens_k):
        blocks = (_block(dout, mine), _block(q, mine), _block(k, keys), _block(v, keys), _block(out, mine))
        found = gradients(*blocks, softmax_lse[None, :, mine], softmax_scale, causal)
        for target, where, value in zip((dq, dk, dv), (mine, keys, keys), found, strict=True):
            target[where] = value[0].transpose(0, 1)


def _documents(queries: Tensor, keys: Tensor) -> list[tuple[slice, slice]]:
    spans = zip(pairwise(queries.tolist()), pairwise(keys.tolist()), strict=True)
    return [(slice(*mine), slice(*theirs)) for mine, theirs in spans if mine[0] < mine[1]]


def _block(x: Tensor, where: slice) -> Tensor:
    return x[where].transpose(0, 1).unsqueeze(0)


def install() -> None:
    """Make `flash_attn` importable; its parts that no peer calls here raise NotImplementedError."""

    def missing(*_: object, **__: object) -> None:
        raise NotImplementedError("flash-attn itself is not here")

    top, inside = types.ModuleType("flash_attn"), types.ModuleType("flash_attn.flash_attn_interface")
    for module in (top, inside):
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        sys.modules[module.__name__] = module
        for name in ("flash_attn_func", "flash_attn_varlen_func", "flash_attn_qkvpacked_func"):
            setattr(module, name, missing)
    top.__version__, top.__path__, top.flash_attn_interface = "2.8.3", [], inside
    for function in (
        _flash_attn_forward, _flash_attn_backward, _flash_attn_varlen_forward, _flash_attn_varlen_backward,
    ):  # fmt: skip
        setattr(inside, function.__name__, function)
    adapters = types.ModuleType("ring_flash_attn.adapters")  # for Hugging Face, whose older names it wants
    adapters.substitute_hf_flash_attn = adapters.update_ring_flash_attn_params = missing
    sys.modules[adapters.__name__] = adapters
