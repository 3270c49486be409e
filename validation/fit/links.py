"""Collective tables by link: seconds by (ranks, buffer bytes), measured where NCCL was timed, closed form for PCIe.

    NVLink  median over NCCL versions of the half-precision rows, made rising in bytes
    PCIe    t = steps · latency + wire bytes / (rate · efficiency), SimuMax's fitted values for 2, 4 and 8 A100 PCIe
    send_recv over NVLink is the all-to-all of 2 ranks, each sending half of its buffer to the other
Left out: Vidur's send/recv rows (up to 670 GB/s over a 300 GB/s link: they time the launch, not the arrival).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cost_models.curves.grid import Floats, LogGrid
from cost_models.errors import InputError
from cost_models.timing.collectives import OPS, wire_bytes
from validation.fit.monotone import rising
from validation.fit.rows import collectives

RANKS = np.array([2.0, 4.0, 8.0])
BUFFER_BYTES: Floats = np.array([2.0**i for i in range(9, 30)])
MEASURED = {"nvlink3": "NVIDIA A100-SXM4-80GB", "nvlink4": "NVIDIA H100 80GB HBM3", "nvlink5": "NVIDIA B200"}
NCCL_NAMES = {"all_to_all": "alltoall"}
GIB = 2**30
SIMUMAX_NAMES = {"all_to_all": "all2all", "send_recv": "p2p"}


def measured_table(folder: Path, device: str, op: str) -> Floats:
    """log seconds by (ranks, buffer bytes) of one op."""
    rows = collectives(folder, device, NCCL_NAMES.get(op, op))
    cells = np.full((len(RANKS), len(BUFFER_BYTES)), np.nan)
    for ranks, wire, seconds in rows:
        buffer_bytes = wire / wire_bytes(op, int(ranks), 1.0)
        cells[np.searchsorted(RANKS, ranks), round(float(np.log2(buffer_bytes))) - 9] = np.log(seconds)
    assert not np.isnan(cells).any(), f"{device} {op}: holes in the measured sizes"
    return cells


def send_recv(all_to_all: Floats) -> Floats:
    """From the 2-rank all-to-all, whose message to the other rank is half of the buffer."""
    seconds = LogGrid([BUFFER_BYTES / 2], all_to_all[0])
    read, (clamped,) = seconds.read_many(BUFFER_BYTES)
    return np.asarray(np.tile(np.log(read * np.maximum(BUFFER_BYTES / clamped, 1.0)), (len(RANKS), 1)))


def pcie_table(folder: Path, op: str) -> Floats:
    """The closed form of SimuMax's A100 PCIe file on the same knots.

    Its rates are in GiB/s and its latency is that of one of a ring's steps: ranks - 1, twice as many for an all-reduce
    (SimuMax, simu_tools/efficency_test/nccl_fit.py).
    """
    path = folder / "kernels_simumax_network_fit.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file; --measurements must name the folder that holds it")
    files = json.loads(path.read_text())
    networks = json.loads(next(f for f in files if f["source"].endswith("a100_pcie.json"))["networks"])
    rows = []
    for ranks in RANKS:
        network = networks[f"intra_node_pcie_{int(ranks)}x"]
        defaults, fitted = network["bandwidth"], network["op"].get(SIMUMAX_NAMES.get(op, op), {})
        share = fitted.get("efficient_factor", defaults["efficient_factor"])
        steps = 1 if op == "send_recv" else (int(ranks) - 1) * fitted["scale"]
        latency_s = fitted.get("latency_us", defaults["latency_us"]) * 1e-6 * steps
        wire = wire_bytes(op, int(ranks), BUFFER_BYTES)
        rows.append(np.log(latency_s + wire / (defaults["gbps"] * GIB * share)))
    return np.array(rows)


def tables(folder: Path) -> dict[str, Floats]:
    """Every packed array of `links.npz`."""
    packed: dict[str, Floats] = {"ranks": RANKS, "buffer_bytes": BUFFER_BYTES}
    for link, device in MEASURED.items():
        for op in OPS[:4]:
            packed[f"{link}_{op}"] = rising(measured_table(folder, device, op), [1])
        packed[f"{link}_send_recv"] = send_recv(packed[f"{link}_all_to_all"])
    for op in OPS:
        packed[f"pcie4_{op}"] = rising(pcie_table(folder, op), [1])
    return packed


def left_out(folder: Path, link: str) -> dict[str, Floats]:
    """Signed relative errors with every other size left out, and with all rows of 4 ranks left out."""
    errors: dict[str, list[Floats]] = {"sizes": [], "ranks": []}
    for op in OPS[:4]:
        cells = measured_table(folder, MEASURED[link], op)
        without = LogGrid([RANKS, BUFFER_BYTES[::2]], rising(cells[:, ::2], [1]))
        predicted = without.read_many(RANKS[:, None], BUFFER_BYTES[None, 1::2])[0]
        errors["sizes"].append((predicted / np.exp(cells[:, 1::2]) - 1).ravel())
        without = LogGrid([RANKS[::2], BUFFER_BYTES], rising(cells[::2], [1]))
        errors["ranks"].append(without.read_many(4.0, BUFFER_BYTES)[0] / np.exp(cells[1]) - 1)
    return {family: np.concatenate(found) for family, found in errors.items()}
