"""`executor check`: the memory of a plan, counted on its real step, without a GPU and without allocating it.

    model of the plan on fake tensors -> the executor's sharding on a fake process group -> forward, backward, optimizer
    every storage is counted by what made it (`footprint`), and compared with the plan, component by component

One rank of any plan runs at full shape in this process: same groups, FSDP2 units, recompute policies and attention as
a launch; collectives copy nothing, and attention goes through the CPU kernel's shapes. Two microbatches at most: the
second only finds the gradients of the first. Bytes. Leaves out what the plan names as estimates (process groups'
buffers and the attention kernel's own, CUDA context, allocator slack) and the optimizer's transients.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from cost_models.errors import InputError
from cost_models.framework import OURS
from cost_models.units import show_bytes
from executor.check.described import TextOnly, config_of
from executor.check.footprint import Footprint
from executor.launch.requirements import planned_memory
from executor.launch.settings import stored_dtype, trained_parts
from executor.launch.worker import make_sharding
from longvila.assemble import PRECISIONS, train_only
from longvila.config import LongVilaConfig
from longvila.lora import Adapters, adapt
from longvila.optimizer import Optimizer
from longvila.sharding import Batch, Sharding
from longvila.weights import empty_model, materialise, plain_parameters
from planner.plan_file import Plan
from planner.targets.executed import unsupported

TRANSIENT = ("gathered", "working", "logits")
PHASES = ("model", "forward", "backward", "optimizer")
HOST = "host"
KEPT = ("parameters", "gradients", "optimizer", "activations", "vision")


@dataclass(frozen=True, kw_only=True)
class Component:
    """Bytes of a part of memory, as planned and as counted."""

    name: str
    planned_bytes: int
    counted_bytes: int

    @property
    def difference(self) -> float:
        """(planned - counted) / counted; 0 where both are 0."""
        if self.counted_bytes == 0:
            return 0.0 if self.planned_bytes == 0 else float("inf")
        return self.planned_bytes / self.counted_bytes - 1.0


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A plan's memory beside what its real step allocates."""

    rank: int
    components: tuple[Component, ...]
    not_counted: tuple[tuple[str, int], ...]  # planned parts that no tensor shows
    played_bytes: int = 0  # that PyTorch's allocator holds after forward and backward, played


def check(plan: Plan, rank: int, tell: Callable[[str], None] = lambda _: None) -> Checked:
    """Count one rank of a training plan; `tell` hears what is being done. Needs no process group to exist yet."""
    problems = unsupported(plan)
    if plan.workload.mode != "train":
        problems.append(f"mode={plan.workload.mode} is not checked; legal: train")
    if not 0 <= rank < plan.strategy.ranks:
        problems.append(f"--rank {rank}: the plan has ranks 0 to {plan.strategy.ranks - 1}")
    if plan.workload.global_batch < plan.strategy.data:
        problems.append(f"a global batch of {plan.workload.global_batch} leaves replicas idle")
    if problems:
        raise InputError("this plan cannot be checked: " + "; ".join(problems))
    config = config_of(plan.workload.model)
    # The fake process group replaces gloo or NCCL: same calls, no peers, no bytes.
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=plan.strategy.ranks)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more of them the CPU kernel's gradient gives every query head keys of its own
    try:
        return _count(plan, rank, config, tell)
    finally:
        torch.set_num_threads(threads)
        dist.destroy_process_group()


def row(plan: Plan, config: LongVilaConfig, sharding: Sharding) -> Batch:
    """One row of the workload: its frames first, then text; the pixels are those of the frames of this rank."""
    work, tokens = plan.workload, plan.workload.context_tokens
    dtype, size = PRECISIONS[work.precision.param], config.image_size
    zeros = torch.zeros(tokens, dtype=torch.int64)
    frames = -(-work.frames // config.video_pool)
    pixels = len(sharding.own_frames(frames)) * config.video_pool
    return Batch(
        input_ids_L=zeros,
        labels_L=zeros,
        positions_L=torch.arange(tokens),
        document_L=zeros,
        vision_at_V=torch.arange(frames * config.tokens_per_frame),
        frames=frames,
        pixels_FCHW=torch.empty(pixels, 3, size, size, dtype=dtype, device="meta"),
    )


def _count(plan: Plan, rank: int, config: LongVilaConfig, tell: Callable[[str], None]) -> Checked:
    sharding = make_sharding(plan, rank, torch.device("cpu"))
    work = plan.workload
    model = empty_model(config, sharding.attention, TextOnly if work.model.vision is None else None)
    if adapters := Adapters.asked(work.lora_rank or None, 1.0, work.lora_targets):
        adapt(model.llm, adapters)
    train_only(model, trained_parts(work))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(PRECISIONS[stored_dtype(plan)])
    wrapped, batch = sharding.wrap(model), row(plan, config, sharding)
    # Of several microbatches the last one's peak has all gradients below it; they are added to the count.
    # What lies in host memory is no part of it.
    footprint = Footprint("gathered", apart=(HOST,) if _drops_gradients(plan) else (HOST, "gradients"))
    sharding.host.on_copy = lambda copy: footprint.mark(copy, HOST)
    on_host = sharding.states_on_host
    updated_there = on_host or sharding.optimizer_on_host
    with FakeTensorMode(allow_non_fake_inputs=True), footprint, footprint.following_resizes():
        materialise(wrapped, torch.device("cpu"))
        for parameter in wrapped.parameters():
            footprint.mark(parameter, HOST if on_host else "parameters")
            if parameter.requires_grad:
                label = HOST if updated_there else "gradients"
                parameter.register_post_accumulate_grad_hook(lambda p, label=label: footprint.mark(p.grad, label))
        _label_phases(wrapped, footprint)
        wrapped.train()
        batch = replace(
            batch, pixels_FCHW=torch.empty(batch.pixels_FCHW.shape, dtype=batch.pixels_FCHW.dtype)
        )  # fake: counts
        footprint.mark(batch.pixels_FCHW, "vision")
        tell("forward")
        footprint.reset_peak()
        footprint.phase = "gathered"
        loss = wrapped(batch, sharding)
        if plan.strategy.zero < 3:  # gathered once, they stay, and the plan calls them parameters
            for parameter in wrapped.parameters():
                if not isinstance(parameter, DTensor):
                    footprint.mark(parameter, "parameters")
        after, highest = Counter(footprint.live), [Counter(footprint.peak)]
        tell("backward")
        footprint.phase = "working"
        footprint.reset_peak()
        sharding.token_mean(loss, float(plan.workload.context_tokens)).backward()
        highest.append(Counter(footprint.peak))
        played = footprint.allocator.reserved
        del loss
        tell("optimizer")
        states = _with_optimizer(wrapped, footprint, sharding.optimizer_device, HOST if updated_there else "optimizer")
    # The step runs by the CPU's shapes, without what a GPU's attention kernel takes for itself in the backward pass.
    unbuffered = replace(plan.target.code, attention_backward="none")
    planned, with_buffers = planned_memory(plan, [rank], unbuffered), planned_memory(plan, [rank])
    components = _components(plan, planned, states, after, highest)
    shown = {*KEPT, *TRANSIENT}
    buffers = sum(with_buffers[name] - planned[name] for name in TRANSIENT)
    unseen = {name: size for name, size in with_buffers.items() if name not in shown}
    estimates = tuple((name, size) for name, size in {"attention kernel's buffers": buffers, **unseen}.items() if size)
    return Checked(rank=rank, components=components, not_counted=estimates, played_bytes=played)


def _label_phases(model: Any, footprint: Footprint) -> None:
    """Label tensors by the module that makes them: the tower, then the decoder layers, then the head."""

    def phase(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if footprint.phase != "working":  # backward recomputes through the same modules
                footprint.phase = name

        return hook

    def pictures(_: Any, __: Any, given: dict[str, Any]) -> None:
        footprint.mark(given["pixel_values"], "vision")  # an empty one, too, of a rank without frames

    layers: Sequence[nn.Module] = model.llm.model.layers
    model.tower.register_forward_pre_hook(phase("vision"))
    model.tower.register_forward_pre_hook(pictures, with_kwargs=True)
    model.llm.get_input_embeddings().register_forward_pre_hook(phase("activations"))
    layers[-1].register_forward_hook(phase("logits"))


def _with_optimizer(model: nn.Module, footprint: Footprint, host: torch.device | None, label: str) -> Counter[str]:
    """Bytes that are alive once the optimizer has its state."""
    optimizer = Optimizer(plain_parameters(model), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, host=host)
    for kind, tensors in optimizer.state().items():
        for tensor in tensors.values():
            if kind != "step":
                footprint.mark(tensor, label)
    return Counter(footprint.live)


def _components(
    plan: Plan, planned: Mapping[str, int], states: Counter[str], after: Counter[str], peaks: Sequence[Counter[str]]
) -> tuple[Component, ...]:
    """Kept components as they are between forward and backward; transient ones at the peak, less what is kept.

    Gradients are resident from the second microbatch on, so all of them count, whatever exists at the peak. A step of
    one microbatch starts without any, and the transient ones are among them.
    """
    counted = {name: states[name] for name in ("gradients", "optimizer")}
    dropped = _drops_gradients(plan)
    counted["gradients"] *= not dropped
    counted |= {name: after[name] for name in ("parameters", "activations", "vision")}
    resident = counted["parameters"] + counted["activations"] + counted["vision"]
    highest = max(sum(peak.values()) - peak[HOST] - peak["gradients"] * (not dropped) for peak in peaks)
    rows = [Component(name=name, planned_bytes=planned.get(name, 0), counted_bytes=counted[name]) for name in KEPT]
    transient = sum(planned.get(name, 0) for name in TRANSIENT)
    rows.append(
        Component(name=" + ".join(TRANSIENT), planned_bytes=transient, counted_bytes=max(0, highest - resident))
    )
    total = sum(part.planned_bytes for part in rows), sum(part.counted_bytes for part in rows)
    return (*rows, Component(name="total of these", planned_bytes=total[0], counted_bytes=total[1]))


def _drops_gradients(plan: Plan) -> bool:
    return plan.strategy.microbatches == 1 and OURS.drops_gradients_to is not None


def report(plan: Plan, rank: int, as_json: bool) -> str:
    """Count one rank with a progress bar; the text of the result."""
    columns = (TextColumn("counting"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(PHASES[0], total=len(PHASES))
        checked = check(plan, rank, lambda phase: progress.update(task, description=phase, advance=1))
        progress.update(task, completed=len(PHASES))
    return to_json(checked) if as_json else table(plan, checked)


def to_json(checked: Checked) -> str:
    """Components with their difference, and the parts that were not counted."""
    shares = [part.difference for part in checked.components]
    known = [round(share, 6) if math.isfinite(share) else None for share in shares]
    rows = [{**asdict(part), "difference": share} for part, share in zip(checked.components, known, strict=True)]
    found = {"rank": checked.rank, "components": rows, "not_counted": dict(checked.not_counted)}
    return json.dumps({**found, "played_bytes": checked.played_bytes}, indent=1)


def table(plan: Plan, checked: Checked) -> str:
    """A line per component: planned, counted, and planned / counted - 1; below it the estimates of the plan."""
    lines = [
        f"{plan.workload.describe()}; {plan.strategy.describe()}",
        f"rank {checked.rank} of {plan.strategy.ranks}: fake tensors, fake process group, shapes of the CPU attention",
        f"{'component':<28}{'planned':>12}{'counted':>12}{'difference':>12}",
    ]
    for part in checked.components:
        share = f"{part.difference:+.1%}" if math.isfinite(part.difference) else "not planned"
        planned, counted = show_bytes(part.planned_bytes), show_bytes(part.counted_bytes)
        lines.append(f"{part.name:<28}{planned:>12}{counted:>12}{share:>12}")
    lines.append(f"PyTorch's allocator, played for one step without optimizer: {show_bytes(checked.played_bytes)} held")
    estimates = ", ".join(f"{name} {show_bytes(size)}" for name, size in checked.not_counted)
    lines.append(f"estimates of the plan that no tensor shows: {estimates}")
    return "\n".join(lines)
