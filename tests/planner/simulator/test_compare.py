"""Measured traces next to a simulated step: seconds by class of kernel, one line for what is no trace of the plan."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cost_models import Cluster, Model, Workload
from cost_models.errors import InputError
from cost_models.strategy import Strategy
from planner.command import cli
from planner.simulator.compare import compare, largest, read_trace, simulated_s
from planner.simulator.simulation import simulate

LAYOUT = Strategy(ring=2, ulysses=8, shard=16)
FOUND = simulate(
    Cluster.load("dgx-h100", nodes=2), Workload(Model.load("longvila-8b"), context_tokens=2**17), LAYOUT, trace=True
)
KERNELS = {
    "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128>>": "attention",
    "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT": "products",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n": "products",
    "void at::native::vectorized_elementwise_kernel<4>": "element-wise",
    "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "all_gather",
    "ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL": "reduce_scatter",
    "ncclDevKernel_AllReduce_Sum_f32_RING_LL": "all_reduce",
    "ncclDevKernel_SendRecv": "all_to_all and hops",
    "Memcpy DtoH (Device -> Pinned)": "copies",
}


def event(name: str, kind: str, start: float, us: float, **arguments: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": kind, "name": name, "pid": 0, "tid": 7, "ts": start, "dur": us, "args": arguments}


def trace(path: Path, *, ranks: int = 16, group: int = 16, steps: int = 2, more: tuple[Any, ...] = ()) -> str:
    """Two steps of 1 s; each kernel runs once in each, 10 ms, 20 ms, …; one before the first step does not count."""
    events: list[Any] = [event("flash_fwd", "kernel", 5, 1e6), {"ph": "M", "name": "process_name", "pid": 0}]
    for step in range(steps):
        events.append(event(f"ProfilerStep#{step}", "user_annotation", (step + 1) * 1e6, 1e6))
        for i, name in enumerate(KERNELS, 1):
            kind = "gpu_memcpy" if name.startswith("Memcpy") else "kernel"
            of_group = {"Group size": group} if "nccl" in name else {}
            events.append(event(name, kind, (step + 1) * 1e6 + i * 1e4, i * 1e4, **of_group))
    data = {"schemaVersion": 1, "traceEvents": [*events, *more], "distributedInfo": {"world_size": ranks, "rank": 0}}
    text = json.dumps(data).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


@pytest.mark.parametrize("name", ["rank0.pt.trace.json", "rank0.pt.trace.json.gz"])
def test_seconds_of_a_step_by_class(tmp_path: Path, name: str) -> None:
    found = read_trace(trace(tmp_path / name))
    expected: dict[str, float] = {}
    for i, kernels in enumerate(KERNELS.values(), 1):
        expected[kernels] = expected.get(kernels, 0.0) + i * 1e-2
    assert dict(found.seconds) == pytest.approx(expected)
    assert (found.step_s, found.ranks, found.groups) == (pytest.approx(1.0), 16, {16})


def test_the_simulated_side_is_the_slowest_ranks_step() -> None:
    seconds = simulated_s(FOUND)
    parts = FOUND.spent_s
    computed = sum(parts[part] for part in ("attention", "matmul", "loss", "vision", "memory_bound", "optimizer"))
    assert sum(seconds[name] for name in ("attention", "products", "element-wise")) == pytest.approx(
        computed + parts.get("recompute", 0.0)
    )
    assert seconds["all_gather"] + seconds["reduce_scatter"] > parts["sharding"] > 0  # some of it is hidden
    assert seconds["all_to_all and hops"] > parts["all_to_all"] > 0


def test_rows_and_the_largest_differences(tmp_path: Path) -> None:
    paths = [trace(tmp_path / f"{rank}.json") for rank in (0, 1)]
    rows = compare(FOUND, LAYOUT, paths)
    assert rows[-1].kernels == "step" and rows[-1].measured_s == pytest.approx(1.0)
    worst = largest(rows)
    gaps = [abs(row.measured_s - row.simulated_s) for row in worst]
    assert gaps == sorted(gaps, reverse=True) and len(worst) == 3
    assert all(abs(r.measured_s - r.simulated_s) <= gaps[-1] for r in rows[:-1] if r not in worst)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ranks": 8}, "a trace of 8 ranks; the plan has 16: another plan's"),
        ({"group": 4}, "collectives over 4 ranks; the plan's groups have 2, 8, 16: another plan's"),
        ({"steps": 0}, "no ProfilerStep# annotations"),
        ({"more": (event("k", "kernel", 1, -1),)}, "not a trace's"),
        ({"more": ({**event("k", "kernel", 1, 1), "ts": "now"},)}, "not a trace's"),
    ],
)
def test_what_is_no_trace_of_the_plan_is_one_line(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare(FOUND, LAYOUT, [trace(tmp_path / "t.json", **given)])


@pytest.mark.parametrize(
    "content",
    [b"\x1f\x8b broken", gzip.compress(b"{"), gzip.compress(b"[]"), b"", b"{}"],
    ids=["broken", "packed brace", "packed list", "empty", "object"],  # gzip's bytes hold the second it was called in
)
def test_odd_files_are_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / ("t.json" if content in (b"", b"{}") else "t.json.gz")
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"t\.json"):
        read_trace(str(path))


def test_a_bomb_is_refused_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.simulator.compare.MAX_TRACE_BYTES", 1000)
    (tmp_path / "t.json.gz").write_bytes(gzip.compress(b" " * 10**6))
    with pytest.raises(InputError, match="more than 1,000 bytes"):
        read_trace(str(tmp_path / "t.json.gz"))


def test_the_commands(tmp_path: Path) -> None:
    """From a plan to its trace, its schedule, its band, and a measured trace next to it."""
    plan, run = str(tmp_path / "plan.json"), CliRunner()
    options = ["--gpus", "16", "--ctx", "128K", "--fix", "ring=2,ulysses=8", "-o", plan]
    assert run.invoke(cli, options, catch_exceptions=False).exit_code == 0
    files = ["--trace", str(tmp_path / "trace.json"), "--goal", str(tmp_path / "out.goal")]
    told = run.invoke(cli, ["simulate", plan, *files, "--jitter", "0.05", "--seeds", "3"], catch_exceptions=False)
    assert "in the median of 3 draws" in told.output
    assert (tmp_path / "out.goal").read_text(encoding="utf-8").startswith("num_ranks 16\n")
    assert json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    drawn = run.invoke(cli, ["simulate", plan, "--json", "--jitter", "0.05", "--seeds", "3"], catch_exceptions=False)
    steps = json.loads(drawn.output)["jitter"]["step_s"]
    assert len(set(steps)) == 3
    compared = run.invoke(cli, ["compare", plan, trace(tmp_path / "rank0.json")], catch_exceptions=False)
    assert "Largest differences: " in compared.output
    for wrong in (["--jitter", "much"], ["--jitter", "2"], ["--seeds", "3"], ["--jitter", "0.1", "--seeds", "5000"]):
        with pytest.raises(InputError, match=wrong[-2]):
            run.invoke(cli, ["simulate", plan, *wrong], catch_exceptions=False)
