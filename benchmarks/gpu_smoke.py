"""The first look at a machine with GPUs: operator exactness, a profile, and training steps against their prices.

    1 operator   MM-SP attention of ulysses x ring ranks (threads of one process) against dense attention in float32,
                 forward, backward and one step of decoding; which kernel runs
    2 profile    `executor profile --quick`
    3 steps      `executor launch` of each layout that this machine has ranks for: measured seconds and peak memory,
                 next to the price from the profile and the price from the built-in curves

Run as `python -m benchmarks.gpu_smoke FOLDER` (or scripts/gpu_smoke.sh). On GPUs in bf16 with LongVILA-1.5B and random
weights; without a GPU the same path runs on CPU processes in fp32 with the tiny model. Exits with 1 if the operator is
off. Left out: several nodes, and flash-attn unless it is installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.local_prediction import measure
from cost_models import Model, Profile, Strategy, price
from cost_models.strategy import LayerRange
from cost_models.token_layout import Layout
from cost_models.units import show_bytes, show_seconds
from cost_models.workload import Precision
from executor.mmsp import kernel
from executor.mmsp.attention import MmSp
from executor.mmsp.decode import DecodeStep, ShardedCache, row_shards
from executor.mmsp.exchange import Exchange
from tests.executor.planned import FP32, make_plan
from tests.executor.threads import local_exchanges

HEADS, KV_HEADS, DIM, TOKENS = 8, 2, 128, 1536
DOCUMENTS = (1000, 36, 500)
DEGREES = ((1, 1), (2, 1), (1, 2), (2, 2), (4, 2), (1, 4))


def dense(q: Tensor, k: Tensor, v: Tensor, document_L: Tensor, scale: float) -> Tensor:
    """Causal inside each document, all scores at once, in float32: (B, H, L, D) -> (B, L, H, D)."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    allowed = (document_L[:, None] == document_L[None]).tril()
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~allowed, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def operator_errors(device: str) -> list[tuple[str, float]]:
    """(degrees, largest relative error in the root mean square of out, dq, dk, dv)."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    shapes = ((1, HEADS, TOKENS, DIM), *[(1, KV_HEADS, TOKENS, DIM)] * 2, (1, TOKENS, HEADS, DIM))
    q, k, v, dout = (torch.randn(shape, device=device).to(dtype) for shape in shapes)
    document_L = torch.repeat_interleave(torch.arange(len(DOCUMENTS)), torch.tensor(DOCUMENTS)).to(device)
    leaves = [x.float().requires_grad_() for x in (q, k, v)]
    expected = dense(*leaves, document_L, DIM**-0.5)
    wanted = [expected.detach(), *torch.autograd.grad((expected * dout.float()).sum(), leaves)]
    found = []
    for ulysses, ring in DEGREES:
        layout = Layout(tokens=TOKENS, ulysses=ulysses, ring=ring, documents=(0, *accumulate(DOCUMENTS[:-1])))
        got = sharded(layout, q, k, v, dout)
        error = max(float((one.float() - want).norm() / want.norm()) for one, want in zip(got, wanted, strict=True))
        found.append((f"ulysses {ulysses} × ring {ring}", error))
    return found


def sharded(layout: Layout, q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> list[Tensor]:
    """Out (B, L, H, D) and gradients (B, H, L, D) of all ranks, put back into the order of the row."""
    ulysses = [local_exchanges(layout.ulysses) for _ in range(layout.ring)]
    rings = [local_exchanges(layout.ring) for _ in range(layout.ulysses)]

    def work(ring: int, u: int) -> tuple[Tensor, list[Tensor]]:
        index_S = torch.from_numpy(layout.index(ring, u)).to(q.device)
        call = MmSp(layout=layout, ulysses=ulysses[ring][u], ring=rings[u][ring])
        leaves = [x.index_select(2, index_S).requires_grad_() for x in (q, k, v)]
        out_S = call.attend(*leaves, DIM**-0.5)
        grads = torch.autograd.grad((out_S * dout.index_select(1, index_S)).sum(), leaves)
        return index_S, [out_S.detach().transpose(1, 2), *grads]

    places = [(ring, u) for ring in range(layout.ring) for u in range(layout.ulysses)]
    with ThreadPoolExecutor(len(places)) as pool:
        results = list(pool.map(lambda place: work(*place), places))
    order = torch.cat([index_S for index_S, _ in results]).argsort()
    joined = [torch.cat(parts, 2)[:, :, order] for parts in zip(*(values for _, values in results), strict=True)]
    return [joined[0].transpose(1, 2), *joined[1:]]


def decode_error(device: str) -> float:
    """Relative error of one new token's attention over a row that lies on three ranks, against dense attention."""
    torch.manual_seed(1)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    layout, places = Layout(tokens=99, ring=3), [(0, 0), (1, 0), (2, 0)]
    q, k, v = (torch.randn(1, heads, 100, DIM, device=device).to(dtype) for heads in (HEADS, KV_HEADS, KV_HEADS))
    document_L = torch.zeros(100, dtype=torch.int64, device=device)
    want = dense(*(x.float() for x in (q, k, v)), document_L, DIM**-0.5)[:, -1:]

    def work(exchange: Exchange) -> Tensor:
        cache = ShardedCache(lambda: row_shards(layout, places, exchange.index))
        index_S = torch.from_numpy(layout.index(*places[exchange.index])).clamp(max=98).to(device)
        cache.update(k[:, :, index_S], v[:, :, index_S], 0)
        step = DecodeStep(exchange, cache.shards)
        step.update(k[:, :, 99:], v[:, :, 99:], 0)
        return step.attend(q[:, :, 99:], k, v, DIM**-0.5).float()

    with ThreadPoolExecutor(3) as pool:
        return max(float((got - want).norm() / want.norm()) for got in pool.map(work, local_exchanges(3)))


def layouts(ranks: int) -> list[Strategy]:
    """What so many ranks of one node can run."""
    found = [Strategy(), Strategy(layers=(LayerRange(recompute="full", count=1),))]
    if ranks > 1:
        found += [Strategy(ulysses=ranks, shard=ranks), Strategy(ring=ranks, shard=ranks)]
    if ranks > 3:
        found.append(Strategy(ulysses=2, ring=ranks // 2, shard=ranks))
    return found


def timed(what: str, work: Callable[[], Any]) -> Any:
    started = time.monotonic()
    result = work()
    print(f"# {what}: {time.monotonic() - started:.0f} s", flush=True)
    return result


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0] if arguments else "gpu-smoke")
    folder.mkdir(parents=True)
    gpus = torch.cuda.device_count()
    device = "cuda" if gpus else "cpu"
    print(
        f"torch {torch.__version__}, {gpus} × {torch.cuda.get_device_name()}" if gpus else "no GPU: CPU processes, tiny"
    )
    print(f"attention kernel: {kernel.words(torch.device(device))}")
    errors = timed("operator", lambda: operator_errors(device))
    errors.append(("decoding, ring 3", timed("decoding", lambda: decode_error(device))))
    alone = errors[0][1]
    off = [name for name, error in errors if error > 2 * alone + 1e-6]
    for name, error in errors:
        print(f"operator {name}: relative error {error:.2e}{'  OFF' if name in off else ''}", flush=True)
    ranks = gpus or 2
    path = folder / "profile.json"
    profile_command = [sys.executable, "-m", "executor.command", "profile", "--quick", f"--ranks={ranks}", f"-o{path}"]
    timed("profile", lambda: subprocess.run(profile_command, check=True))
    profile = Profile.load(path)
    model, tokens, precision, more = _model(folder, gpus)
    layers = Model.load(model).layers
    for number, strategy in enumerate(layouts(ranks)):
        strategy = replace(strategy, layers=tuple(replace(part, count=layers) for part in strategy.layers))
        plan = make_plan(strategy, model=model, tokens=tokens, precision=precision, profile=profile)
        built_in = price(plan.cluster, plan.workload, plan.strategy)
        took_s, last = timed(strategy.describe(), partial(measure, plan, folder / str(number), **more))
        print(
            f"step {plan.strategy.describe()}, {tokens} tokens: measured {show_seconds(took_s)}, by profile "
            f"{show_seconds(plan.cost.step_s)} ({plan.cost.step_s / took_s - 1:+.0%}), by built-in curves "
            f"{show_seconds(built_in.step_s)} ({built_in.step_s / took_s - 1:+.0%}); memory planned "
            f"{show_bytes(plan.cost.memory_bytes)}; {json.dumps(last)}",
            flush=True,
        )
    return 1 if off else 0


def _model(folder: Path, gpus: int) -> tuple[str, int, Precision, dict[str, Any]]:
    """What is trained: LongVILA-1.5B with bytes for a tokenizer on GPUs, the tiny one on CPUs."""
    if not gpus:
        return "longvila-tiny", 1024, FP32, {}
    from importlib import resources

    text = (resources.files("longvila") / "presets" / "longvila-1.5b.yaml").read_text(encoding="utf-8")
    path = folder / "longvila-1.5b.yaml"
    path.write_text(text.replace("tokenizer: folder", "tokenizer: byte"), encoding="utf-8")
    return "longvila-1.5b", 16384, Precision(), {"model": str(path)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
