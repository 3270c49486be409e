"""What moves bytes: collective tables by link, and memory-bound kernels.

Links: seconds by (ranks, buffer bytes), measured where NCCL was timed, closed form for PCIe.
    NVLink  median over NCCL versions of the half-precision rows, made rising in bytes; NVLink 5 beyond 512 MiB as
            B200, GB200, B300 and GB300 of one domain in kernels_comm_multinode.csv
    PCIe    t = steps · latency + wire bytes / (rate · efficiency), SimuMax's fitted values for 2, 4 and 8 A100 PCIe;
            small messages as L40S take them
    send_recv over NVLink is the all-to-all of 2 ranks, each sending half of its buffer to the other
Left out: Vidur's sends, one way at a time (up to 0.77 of NVLink's rate on A100 and H100 nodes; 1.01 over an A100
bridge, which the reader refuses): the ranks of a ring send and receive at once.

Memory-bound kernels:
    t = launch + ideal / share,   ideal = bytes / data-sheet bandwidth of the device that was timed
Rows: residual additions (A100, H100: Vidur; read two tensors, write one) of at least 80 MB, since smaller ones live in
the L2 cache that a training step's tensors do not fit in, and RMSNorm forward (reads one, writes one): cuDNN's on H200
and GB200, and torch's compiled one on GB200, where it is a fifth slower than cuDNN's (0.66 of the bandwidth) and most
of a step's kernels are like it. SimuMax's fit of elementwise kernels on B200, 0.666 of 8,000 GiB/s, is 0.72 of the
data sheet. Left out: what the L2 saves when a tensor is fresh.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from cost_models.curves.grid import Floats, LogGrid
from cost_models.curves.samples import COLLECTIVES
from cost_models.errors import InputError
from cost_models.hardware.device import Device
from cost_models.timing.collectives import wire_bytes
from validation.fit.networks import BLACKWELL, multinode
from validation.fit.rows import collectives, read_rows, rising

RANKS = np.array([2.0, 4.0, 8.0])
BUFFER_BYTES: Floats = np.array([2.0**i for i in range(9, 34)])
SMALLER = 21
"""Of these knots, those up to 512 MiB, where AIConfigurator timed; beyond: `larger_messages`."""
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
    assert not np.isnan(cells[:, :SMALLER]).any(), f"{device} {op}: holes in the measured sizes"
    cells[:, SMALLER:] = cells[:, SMALLER - 1 : SMALLER] + np.log(BUFFER_BYTES[SMALLER:] / BUFFER_BYTES[SMALLER - 1])
    return cells


def larger_messages(folder: Path, op: str, cells: Floats) -> Floats:
    """The same with what NVLink 5 reaches beyond 512 MiB, where rates still rise by a fifth; in one domain, by op.

    Where only other numbers of ranks were timed, the rate rises as theirs.
    """
    found: dict[int, list[tuple[float, float]]] = {}
    for cell in multinode(folder):
        blackwell, name = cell.machine.startswith(BLACKWELL), NCCL_NAMES.get(op, op)
        if blackwell and cell.op == name and not cell.across and cell.ranks in RANKS:
            found.setdefault(int(cell.ranks), []).append((np.log(cell.buffer_bytes), np.log(cell.seconds)))
    timed = {ranks: np.array(sorted(rows)) for ranks, rows in found.items()}
    grown = cells.copy()
    knots = np.log(BUFFER_BYTES)
    for row, ranks in enumerate(RANKS.tolist()):
        nearest = min(timed, key=lambda known: abs(np.log(known / ranks)))
        own, rows = cells[int(np.searchsorted(RANKS, nearest))], timed[nearest]
        rises = rows[:, 1] - np.interp(rows[:, 0], knots, own)
        at = np.append(knots[SMALLER - 1], rows[:, 0])
        grown[row] += np.where(knots > at[0], np.interp(knots, at, np.append(0.0, rises)), 0.0)
    return grown


def send_recv(all_to_all: Floats) -> Floats:
    """From the 2-rank all-to-all, whose message to the other rank is half of the buffer."""
    seconds = LogGrid([BUFFER_BYTES / 2], all_to_all[0])
    read, (clamped,) = seconds.read_many(BUFFER_BYTES)
    return np.asarray(np.tile(np.log(read * np.maximum(BUFFER_BYTES / clamped, 1.0)), (len(RANKS), 1)))


def pcie_table(folder: Path, op: str) -> Floats:
    """The closed form of SimuMax's A100 PCIe file on the same knots, and AIConfigurator's L40S below it.

    SimuMax's rates are in GiB/s and its latency is that of one of a ring's steps: ranks - 1, twice as many for an
    all-reduce (SimuMax, simu_tools/efficency_test/nccl_fit.py). It was fitted to large messages, whose protocols wait
    longer (`timing/protocols.py`): the smallest ones take what L40S show.
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
        like = network["op"]["all_gather"] if op == "reduce_scatter" else fitted  # as L40S: 131 us over 2 is refuted
        large_s = like.get("latency_us", defaults["latency_us"]) * 1e-6 * steps
        sent_s = wire_bytes(op, int(ranks), BUFFER_BYTES) / (defaults["gbps"] * GIB * share)
        small_s = smallest(folder, op, int(ranks))
        rises = np.sqrt(sent_s / (sent_s + 4 * small_s))
        rows.append(np.log(small_s + sent_s + max(large_s - small_s, 0.0) * rises))
    return np.array(rows)


def smallest(folder: Path, op: str, ranks: int) -> float:
    """Seconds of the smallest collective over L40S cards on PCIe."""
    timed = collectives(folder, "NVIDIA L40S", "alltoall" if op == "send_recv" else NCCL_NAMES.get(op, op))
    return float(timed[timed[:, 0] == (2 if op == "send_recv" else ranks)][:, 2].min())


def link_tables(folder: Path) -> dict[str, Floats]:
    """Every packed array of `links.npz`."""
    packed: dict[str, Floats] = {"ranks": RANKS, "buffer_bytes": BUFFER_BYTES}
    for link, device in MEASURED.items():
        for op in COLLECTIVES[:4]:
            cells = measured_table(folder, device, op)
            cells = larger_messages(folder, op, cells) if link == "nvlink5" else cells
            packed[f"{link}_{op}"] = rising(cells, [1])
        packed[f"{link}_send_recv"] = send_recv(packed[f"{link}_all_to_all"])
    for op in COLLECTIVES:
        packed[f"pcie4_{op}"] = rising(pcie_table(folder, op), [1])
    return packed


def links_left_out(folder: Path, link: str) -> dict[str, Floats]:
    """Signed relative errors with every other size left out, and with all rows of 4 ranks left out."""
    errors: dict[str, list[Floats]] = {"sizes": [], "ranks": []}
    for op in COLLECTIVES[:4]:
        cells, sizes = measured_table(folder, MEASURED[link], op)[:, :SMALLER], BUFFER_BYTES[:SMALLER]
        without = LogGrid([RANKS, sizes[::2]], rising(cells[:, ::2], [1]))
        predicted = without.read_many(RANKS[:, None], sizes[None, 1::2])[0]
        errors["sizes"].append((predicted / np.exp(cells[:, 1::2]) - 1).ravel())
        without = LogGrid([RANKS[::2], sizes], rising(cells[::2], [1]))
        errors["ranks"].append(without.read_many(4.0, sizes)[0] / np.exp(cells[1]) - 1)
    return {family: np.concatenate(found) for family, found in errors.items()}


BEYOND_L2_BYTES = 80e6
LAUNCH_PRIOR_S = 2e-6
MOST_SHARE = 0.92
"""What large elementwise kernels reach of an H100's bandwidth at most (0.92 in pytorch/ao issue 4054, 0.91 and 0.87
elsewhere). H100's additions fall with size (0.98 of it at 60 MB, 0.954 from 180 MB on), so a part of what they read
again and again is in its 50 MB of L2, and an unbounded fit gives 1.0. Fits of other cards end below."""


def additions(folder: Path, gpu: str, device: Device) -> Floats:
    """Ideal seconds, seconds of Vidur's residual additions on `gpu`."""
    rows = []
    for row in read_rows(folder, "kernels_layerops_vidur.csv"):
        moved = 3 * 2 * float(row["num_tokens"]) * float(row["hidden"])
        if row["gpu"] == gpu and row["op"] == "add" and moved >= BEYOND_L2_BYTES:
            rows.append([moved / device.memory_bytes_per_s, float(row["median_ms"]) * 1e-3])
    return np.array(rows)


def norms(folder: Path, gpu: str, device: Device, backends: tuple[str, ...] = ("cudnn",)) -> Floats:
    """Ideal seconds, seconds of the RMSNorm forward on `gpu`."""
    rows = []
    for row in read_rows(folder, "kernels_norms_cudnn.csv"):
        wanted = row["gpu_name"] == gpu and row["backend"] in backends and row["norm_type"] == "rms_norm"
        if wanted and row["success"] == "True":
            moved = 2 * 2 * float(row["N"]) * float(row["C"])
            rows.append([moved / device.memory_bytes_per_s, float(row["fwd_time_ms"]) * 1e-3])
    return np.array(rows)


def fit_memory(rows: Floats) -> Floats:
    """launch_s and share by least squares of log time; where all rows are long, LAUNCH_PRIOR_S decides the launch."""
    start = np.log([LAUNCH_PRIOR_S, 0.8])

    def residual(parameters: Floats) -> Floats:
        launch_s, share = np.exp(parameters)
        misfit = np.log((launch_s + rows[:, 0] / share) / rows[:, 1])
        return np.append(misfit, 0.1 * (parameters[0] - start[0]))

    bounds = (np.log([5e-7, 0.2]), np.log([2e-5, MOST_SHARE]))
    found = least_squares(residual, start, bounds=bounds, loss="soft_l1", f_scale=0.1)
    return np.asarray(np.exp(found.x))


def memory_left_out(rows: Floats) -> Floats:
    """Signed relative errors with one size (equal ideal seconds) left out at a time."""
    errors = []
    for size in np.unique(rows[:, 0]):
        out = rows[:, 0] == size
        launch_s, share = fit_memory(rows[~out])
        errors.append((launch_s + rows[out, 0] / share) / rows[out, 1] - 1)
    return np.concatenate(errors)
