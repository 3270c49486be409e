"""Refuses a measurement that no card can have made: an impossible rate is an error in the data, whoever printed it.

    products, attention   FLOP / seconds            at most the data sheet's peak of the dtype
    memory-bound          bytes / seconds           at most the memory's bandwidth, below BEYOND_CACHES_BYTES a cache's
    collectives           wire bytes / seconds      at most the link's rate; of an all-reduce, which a switch may add
                                                    up, twice that; between nodes all cards of a node together
Each times BOOST, since boards may clock a little above their sheets. A CPU's peaks are unknown: nothing is refused.
"""

from __future__ import annotations

import math

from cost_models.curves.samples import SCANS, SHAPE_LENGTHS, Sample
from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.device import Device
from cost_models.hardware.links import LINKS
from cost_models.hardware.node import Node
from cost_models.timing.shapes import attention_pairs

BOOST = 1.1
BEYOND_CACHES_BYTES = 1e9
OF_CACHES = 10.0
"""Bandwidth of a cache over its memory's, at most: 5 of an L40S or MI300X (from memory), twice that."""
IN_SWITCH = 2.0


def refuse_flops(what: str, flops: float, seconds: float, device: Device, dtype: str) -> None:
    """InputError if so many FLOP in so many seconds are above the peak of `dtype`.

    >>> refuse_flops("gemm 8192 x 8192 x 8192", 2 * 8192**3, 1.5e-3, Device.load("h100-sxm-80gb"), "bf16")
    """
    peak = device.peak_flops.get(dtype, max(device.peak_flops.values()))
    if flops > BOOST * peak * seconds:
        raise InputError(
            f"{what}: {flops / seconds / 1e12:,.0f} TFLOP/s in {seconds:.3g} s, above the {peak / 1e12:,.0f} of"
            f" {device.name} in {dtype}; measure again"
        )


def refuse_bytes(what: str, moved: float, seconds: float, most_bytes_per_s: float, whose: str) -> None:
    """InputError if so many bytes in so many seconds are above a rate.

    >>> refuse_bytes("all_gather of 1 GB", 1e9, 2.5e-3, 450e9, "nvlink4")
    """
    if moved > BOOST * most_bytes_per_s * seconds:
        raise InputError(
            f"{what}: {moved / seconds / 1e9:,.0f} GB/s in {seconds:.3g} s, above the {most_bytes_per_s / 1e9:,.0f} of"
            f" {whose}; measure again"
        )


def refuse_samples(samples: tuple[Sample, ...], cluster: Cluster) -> None:
    """InputError that names the first sample of a profile above what the cluster's cards and links can do."""
    nodes = [run.node for run in cluster.runs if run.node.device.architecture != "cpu"]
    if not nodes:
        return
    fastest = max(nodes, key=lambda node: node.device.peak_16bit)
    for sample in samples:
        what = f"profile sample {sample.op} {list(sample.shape)}"
        if sample.op not in SHAPE_LENGTHS:
            most = max(_link_bytes_per_s(sample, node) for node in nodes)
            over = f"{what} over {sample.path or 'the link'}, {sample.bytes:.3g} B"
            refuse_bytes(over, sample.bytes, sample.median_s, most, "the link")
        elif sample.op == "memory_bound":
            device, cached = fastest.device, sample.bytes < BEYOND_CACHES_BYTES
            most, whose = device.memory_bytes_per_s * (OF_CACHES if cached else 1.0), "a cache of " if cached else ""
            refuse_bytes(f"{what} {sample.bytes:.3g} B", sample.bytes, sample.median_s, most, f"{whose}{device.name}")
        elif sample.shape:
            refuse_flops(what, _flops(sample), sample.median_s, fastest.device, sample.dtype)


def _flops(sample: Sample) -> float:
    if sample.op == "gemm":
        m, n, k = sample.shape
        return 2.0 * m * n * k
    if sample.op in SCANS:  # inside chunks, into their states and out of them
        tokens, heads, size, state, _, chunk = sample.shape
        once = 2.0 * tokens * heads * (chunk * (state + size) + 2 * size * state)
        return once * (2 if sample.op == "scan_backward" else 1)
    batch, queries, keys, heads, _, head_dim, causal = sample.shape
    passes = 2.5 if sample.op == "attention_backward" else 1.0
    return float(4.0 * passes * batch * heads * attention_pairs(queries, keys, bool(causal)) * head_dim)


def _link_bytes_per_s(sample: Sample, node: Node) -> float:
    if sample.path == "network":
        return node.nics.count * node.nics.bytes_per_s
    scale_up = node.scale_up
    rate = scale_up.bytes_per_s
    if sample.path not in ("", scale_up.link):
        rate = LINKS[sample.path].bytes_per_s if sample.path in LINKS else math.inf
    return rate * (IN_SWITCH if sample.op == "all_reduce" else 1.0)
