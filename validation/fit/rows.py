"""The measured rows that curves are fitted to, as arrays in SI units.

    GEMM         m, n, k, seconds
    prefill      batch, tokens, heads, kv heads, head dim, seconds
    training     batch, tokens, heads, kv heads, head dim, causal (0 or 1), seconds
    unequal      batch, tokens, heads, kv heads, key dim, value dim, causal (0 or 1), seconds
    collectives  ranks, wire bytes per rank, seconds

Files are those of the top-level `measurements/` folder. Rows that failed, other dtypes and sliding windows are dropped.
A row above its card's peak is an error in the data: it is refused by its file, shape and rate, and nothing is fitted.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cost_models.curves.grid import Floats
from cost_models.errors import InputError
from cost_models.hardware.device import Device
from cost_models.hardware.device_names import device_of
from cost_models.hardware.links import LINKS
from cost_models.timing.impossible import IN_SWITCH, refuse_bytes, refuse_flops

DEFAULT_FOLDER = Path(__file__).parents[2] / "measurements"


def read_rows(folder: Path, file: str) -> Iterator[dict[str, str]]:
    """The rows of one CSV file as dictionaries of text."""
    path = folder / file
    if not path.is_file():
        raise InputError(f"{path}: no such file; --measurements must name the folder that holds {file}")
    with path.open(newline="") as handle:
        yield from csv.DictReader(handle)


def gemm(folder: Path, file: str) -> Floats:
    """bf16 matrix products: m, n, k, seconds."""
    found = []
    for row in read_rows(folder, file):
        m, n, k = (float(row[c]) for c in ("m", "n", "k"))
        seconds = float(row["latency_ms"]) * 1e-3
        _possible(f"{file}: {m:.0f} x {n:.0f} x {k:.0f}", 2 * m * n * k, seconds, row["device"])
        found.append([m, n, k, seconds])
    return np.array(found)


def attention_forward(folder: Path, file: str) -> Floats:
    """Causal prefill: batch, tokens, heads, kv heads, head dim, seconds; equal shapes averaged (median)."""
    columns = ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim")
    timed = []
    for row in read_rows(folder, file):
        shape, seconds = [float(row[c]) for c in columns], float(row["latency_ms"]) * 1e-3
        batch, tokens, heads, _, dim = shape
        _possible(f"{file}: {shape}", 2 * batch * heads * tokens * (tokens + 1) * dim, seconds, row["device"])
        timed.append([*shape, seconds])
    rows = np.array(timed)
    shapes, inverse = np.unique(rows[:, :5], axis=0, return_inverse=True)
    medians = np.array([np.median(rows[inverse == i, 5]) for i in range(len(shapes))])
    return np.column_stack([shapes, medians])


def cudnn_attention(folder: Path, gpu: str, part: str) -> Floats:
    """cuDNN bf16 rows with equal qk and v head dims, no window, not deterministic: …, causal, seconds."""
    return _equal(_cudnn(folder, gpu, part))


def simumax_attention(folder: Path, gpu: str, part: str) -> Floats:
    """SimuMax's causal rows (`part` fwd or bwd): batch, tokens, heads, kv heads, head dim, causal, seconds."""
    return _equal(_simumax(folder, gpu, part))


def unequal_attention(folder: Path, gpu: str, part: str) -> Floats:
    """Rows of keys wider than values, of cuDNN or of SimuMax, whichever timed `gpu`."""
    found = np.vstack([_cudnn(folder, gpu, part), _simumax(folder, gpu, part)])
    return np.asarray(found[found[:, 4] != found[:, 5]])


def _attention_possible(file: str, row: Sequence[float], part: str, gpu: str) -> None:
    batch, tokens, heads, _, keys, values, causal, seconds = row
    flops = (2 if part == "fwd" else 5) * batch * heads * tokens**2 * (keys + values) / (1 + causal)
    _possible(f"{file}: {part}, {list(row[:7])}", flops, seconds, gpu)


def _possible(what: str, flops: float, seconds: float, gpu: str) -> None:
    refuse_flops(what, flops, seconds, _device(gpu), "bf16")


@cache
def _device(gpu: str) -> Device:
    return device_of(gpu)


def _equal(found: Floats) -> Floats:
    return np.asarray(np.delete(found[found[:, 4] == found[:, 5]], 5, axis=1))


def _cudnn(folder: Path, gpu: str, part: str) -> Floats:
    rows = []
    for row in read_rows(folder, "kernels_sdpa_fwdbwd_cudnn.csv"):
        wanted = row["gpu_name"] == gpu and row["profile_pass"] == part and row["data_type"] == "bfloat16"
        plain = row["success"] == "True" and not row["sliding_window_size"] and row["deterministic_bwd"] == "False"
        if wanted and plain:
            columns = ("batch_size", "q_seqlen", "num_q_heads", "num_kv_heads", "head_dim_qk", "head_dim_vo", "time_ms")
            *shape, ms = [float(row[c]) for c in columns]
            rows.append([*shape, float(row["attn_mask"] == "top_left"), ms * 1e-3])
            _attention_possible("kernels_sdpa_fwdbwd_cudnn.csv", rows[-1], part, gpu)
    return np.array(rows).reshape(-1, 8)


def _simumax(folder: Path, gpu: str, part: str) -> Floats:
    """It counts a causal kernel's FLOPs as if unmasked (rates up to 1.19 of the peak say so): 2 B H S² (D + D of the
    values), 5 B H S² (…) in backward (SimuMax, simu_tools/efficency_test/test_fa_efficiency.py).
    """
    rows = []
    for row in read_rows(folder, "kernels_simumax_efficiency.csv"):
        if row["gpu"] != gpu or row["op"] != f"sdp_{part}":
            continue
        shape = dict(part.strip().split("=") for part in row["shape"].split(";"))
        batch, tokens, heads, kv, keys, values = (
            float(shape[key]) for key in ("batch", "seq_len", "head_num", "kv_head_num", "qk_head_dim", "v_head_dim")
        )
        flops = (2 if part == "fwd" else 5) * batch * heads * tokens**2 * (keys + values)
        rows.append([batch, tokens, heads, kv, keys, values, 1.0, flops / (float(row["measured_tflops"]) * 1e12)])
        _attention_possible("kernels_simumax_efficiency.csv", rows[-1], part, gpu)
    return np.array(rows).reshape(-1, 8)


def flash_labels(folder: Path, path_part: str, impl: str) -> Floats:
    """FlashAttention's printed bars: batch, tokens, heads, kv heads, head dim, causal, TFLOP/s (last column a rate)."""
    rows = []
    for row in read_rows(folder, "kernels_flash_attention_plots.csv"):
        if path_part in row["source_path"] and row["impl"] == impl and row["outcome"] == "ok" and row["tflops"]:
            heads = float(row["heads"])
            shape = [float(row["batch"]), float(row["seq_len"]), heads, heads, float(row["head_dim"])]
            rows.append([*shape, float(row["causal"]), float(row["tflops"])])
    return np.array(rows)


def magi_attention(folder: Path, gpu: str, impl: str, part: str) -> Floats:
    """MagiAttention's bars, read off plots to 4 TFLOP/s; causal counts half of the pairs. Columns as of training."""
    found = []
    for row in read_rows(folder, "kernels_attn_magi_digitized.csv"):
        if (row["gpu"], row["impl"], row["pass"]) == (gpu, impl, part):
            batch, tokens, heads, kv, dim = (
                float(row[c]) for c in ("batch", "seq_len", "heads", "kv_heads", "head_dim")
            )
            causal = float(row["mask"] == "causal")
            flops = (4 if part == "fwd" else 10) * batch * heads * tokens**2 * dim / (1 + causal)
            found.append([batch, tokens, heads, kv, dim, causal, flops / (float(row["tflops"]) * 1e12)])
    return np.array(found).reshape(-1, 7)


def collectives(folder: Path, device: str, op: str) -> Floats:
    """NCCL half-precision rows in one node: ranks, wire bytes per rank, seconds (median over NCCL versions)."""
    found: dict[tuple[int, float], list[float]] = {}
    for row in read_rows(folder, "kernels_comm_aiconfigurator.csv"):
        if row["device"] == device and row["op"] == op and row["nccl_dtype"] == "half":
            ranks, buffer_bytes = int(row["num_gpus"]), float(row["bytes"])
            wire = buffer_bytes * (ranks - 1) / ranks * (2 if op == "all_reduce" else 1)
            seconds, link = float(row["latency_ms"]) * 1e-3, LINKS[_device(device).link]
            most = link.bytes_per_s * (IN_SWITCH if op == "all_reduce" else 1.0)
            what = f"kernels_comm_aiconfigurator.csv: {op} over {ranks}, {wire:.3g} B"
            refuse_bytes(what, wire, seconds, most, f"the link of {device}")
            found.setdefault((ranks, wire), []).append(seconds)
    return np.array([[ranks, wire, np.median(seconds)] for (ranks, wire), seconds in sorted(found.items())])


def thirds(values: Floats, inner: bool = False) -> Iterator[npt.NDArray[np.bool_]]:
    """Masks of rows that hold every third distinct value (of the inner ones): both neighbours of each stay."""
    distinct = np.unique(values)[1:-1] if inner else np.unique(values)
    for first in range(3):
        yield np.isin(values, distinct[first::3])


def rising(log_s: Floats, axes: Sequence[int]) -> Floats:
    """`log_s` made non-decreasing along `axes`: the mean of the smallest rising table above and the largest one below.

    Where the data already rise nothing changes; a library that picks a slow tile for one shape leaves a dip, and half
    of it is kept.

    >>> rising(np.array([0.0, 2.0, 1.0, 3.0]), [0]).tolist()
    [0.0, 1.5, 1.5, 3.0]
    """
    above, below = log_s, log_s
    for axis in axes:
        above = np.maximum.accumulate(above, axis=axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis=axis), axis)
    return (above + below) / 2
