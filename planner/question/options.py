"""What the user typed -> cluster, workload, pins: the options that `plan` and its subcommands share.

Every fault is one line that names the flag, the value and the legal values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from cost_models import strict
from cost_models.errors import InputError
from cost_models.framework import OURS, Framework
from cost_models.hardware.cluster import MAX_GPUS, Cluster
from cost_models.models.model import Model
from cost_models.profile import Profile
from cost_models.room import LEAST, MOST, Room
from cost_models.strategy import Strategy
from cost_models.units import parse_bytes, parse_tokens, show_bytes
from cost_models.workload import LORA_TARGETS, Kernel, Part, Precision, Workload
from planner.targets.target import MMSP, Target

if TYPE_CHECKING:
    from planner.plan_file import Plan
    from planner.search.objective import Objective

F = TypeVar("F", bound=Callable[..., Any])

MOST_WHOLE = 2**31
ANY_TOKENS = 1024
"""Stands in where the length itself is asked for."""

_OPTIONS = {
    "gpus": click.option("--gpus", metavar="N", help="GPUs to plan for; the last node may be used in part."),
    "ctx": click.option("--ctx", metavar="TOKENS", help="Context length: 8192, 128K, 2M (K = 1024, M = 1048576)."),
    "model": click.option("--model", "model", default="longvila-8b", show_default=True, metavar="NAME|PATH",
        help="A preset, or a Hugging Face config.json or its folder."),
    "cluster": click.option("--cluster", "cluster", default="dgx-h100", show_default=True, metavar="NAME|FILE",
        help="A preset, a cluster file (YAML), `local` for this machine, or what machines print: "
             "nvidia-smi topo -m, NCCL's XML, Slurm's topology.conf, a hostfile, … (docs/cluster.md)."),
    "fabric": click.option("--fabric", "fabric", multiple=True, metavar="FILE",
        help="What joins the hosts, where --cluster is about one: topology.conf, ibnetdiscover, …"),
    "hosts": click.option("--hosts", "hosts", default=None, metavar="LIST",
        help="The hosts to use, such as gpu[001-004],gpu007: of those that the network's files name, else in "
             "slot order; the plan has them, and launch binds them."),
    "device": click.option("--device", "device", default=None, metavar="NAME",
        help="The GPUs of a printed host that does not name them (`plan devices`)."),
    "mode": click.option("--mode", default="train", show_default=True, metavar="train|prefill|decode",
        help="What a step does."),
    "batch": click.option("--batch", default="1", show_default=True, metavar="N", help="Rows of one optimizer step."),
    "frames": click.option("--frames", default="0", metavar="N",
        help="Video frames of a row; the rest of --ctx is text."),
    "documents": click.option("--documents", default=None, metavar="FILE.csv",
        help="Rows are packed with documents of these lengths (tokens,count), which do not see each other."),
    "frame_pixels": click.option("--frame-pixels", default=None, metavar="HxW",
        help="Size of a frame where the tower takes any (Qwen-VL, GLM-V, Mistral 3); 448x448 if left out."),
    "trained": click.option("--train", "trained", default=",".join(get_args(Part)), show_default=True, metavar="PARTS",
        help="Parts of the model that are trained; the others are frozen."),
    "lora_rank": click.option("--lora-rank", default="0", metavar="R",
        help="Train adapters of rank R on the language model, its weights frozen."),
    "lora_targets": click.option("--lora-targets", default=",".join(LORA_TARGETS), show_default=True, metavar="MAPS",
        help="Where the adapters are."),
    "lora_beside": click.option("--lora-beside", default="", metavar="PARTS",
        help="Also trained, in full: embeddings,norms (LongVILA's context extension has both)."),
    "precision": click.option("--precision", default=None, metavar="bf16|fp16|fp32",
        help="Weights and activations (default bf16 over fp32 masters; fp16 before Ampere, fp32 on a CPU)."),
    "kernel": click.option("--kernel", "kernel", default=None, metavar="fa2|newest|sdpa",
        help="Attention's kernel [default: what the framework runs; this executor's is FlashAttention-2]."),
    "confidence": click.option("--confidence", default=None, metavar="P",
        help="A layout fits if its memory does with this probability, 0.5 to 0.999 [default: 0.95]."),
    "headroom": click.option("--headroom", default=None, metavar="BYTES",
        help="In place of --confidence: it fits if so much of the memory stays free, such as 2GiB."),
    "profile": click.option("--profile", "profile", default=None, metavar="FILE",
        help="profile.json that `executor profile` measured; replaces the built-in curves."),
}  # fmt: skip


NAMES = tuple(_OPTIONS)
"""What `question` reads."""


def target(command: F) -> F:
    """Adds --for."""
    told = (
        "The program that is to run the plan: mmsp (this project's executor), megatron, torchtitan, deepspeed, "
        "accelerate, trl, ms-swift, vllm, or any: the best of all."
    )
    return click.option("--for", "target", default="mmsp", show_default=True, metavar="NAME", help=told)(command)


def report(command: F) -> F:
    """Adds --report."""
    told = "Write a page with pictures that opens in any browser, without a network."
    return click.option("--report", "page", metavar="FILE", help=told)(command)


def adding(*several: Callable[[F], F]) -> Callable[[F], F]:
    """Adds these options, in this order."""

    def add(command: F) -> F:
        for option in reversed(several):
            command = option(command)
        return command

    return add


def shared_but(*left_out: str) -> Callable[[F], F]:
    """As `shared`, without some of NAMES, which the command declares itself."""
    return adding(*(option for name, option in _OPTIONS.items() if name not in left_out))


shared = shared_but()
"""Adds the options that describe cluster and workload."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be planned."""

    cluster: Cluster
    workload: Workload
    profile: Profile | None
    room: Room


def question(given: Mapping[str, Any], any_length: bool = False) -> Question:
    """Reads the shared options; `any_length`: the context may be left out, and is then ANY_TOKENS (or the frames')."""
    frames = whole(given["frames"], "--frames", least=0)
    batch = whole(given["batch"], "--batch")
    gpus = whole(given["gpus"], "--gpus", most=MAX_GPUS) if given["gpus"] is not None else None
    if given["ctx"] is None and not frames and not any_length:
        raise InputError("--ctx is missing: give the context length, such as 128K or 2M (or --frames N)")
    tokens = parse_tokens(given["ctx"]) if given["ctx"] is not None else 0 if frames else ANY_TOKENS
    model = Model.load(given["model"])
    if given.get("frame_pixels") is not None:
        model = of_frame_pixels(model, given["frame_pixels"])
    cluster = load_cluster(given["cluster"], gpus, given.get("fabric", ()), given.get("device"), given.get("hosts"))
    mode = given["mode"]
    if mode not in ("train", "prefill", "decode"):
        raise InputError(f"--mode {mode!r} is unknown; {strict.nearest(mode, ('train', 'prefill', 'decode'))}")
    _check_mode(given, mode)
    packed = documents(given.get("documents"))
    longest = max((size for size, _ in packed), default=0)
    if given["ctx"] is not None and longest > tokens:
        raise InputError(
            f"--documents: one of {longest:,} tokens is longer than a row; legal: up to {tokens:,} (--ctx)"
        )
    workload = Workload(
        model,
        context_tokens=tokens,
        frames=frames,
        lengths=packed,
        global_batch=batch,
        mode=mode,
        precision=precision(given["precision"], cluster),
        trainable=trained(given["trained"]),
        kernel=kernel(given.get("kernel")),
        lora_rank=whole(given["lora_rank"], "--lora-rank", least=0),
        lora_targets=names(given["lora_targets"]),  # type: ignore[arg-type]
        lora_beside=names(given["lora_beside"]),  # type: ignore[arg-type]
    )
    return Question(
        cluster=cluster,
        workload=workload,
        profile=Profile.load(given["profile"]) if given["profile"] else None,
        room=room(given.get("confidence"), given.get("headroom")),
    )


def _check_mode(given: Mapping[str, Any], mode: str) -> None:
    """InputError for what only training reads."""
    if mode == "train":
        return
    if given.get("kernel") is not None:
        raise InputError(f"--kernel {given['kernel']} with --mode {mode}, which has its own; leave one out")
    if trained(given["trained"]) != get_args(Part):
        raise InputError(f"--train {given['trained']} with --mode {mode}, which trains nothing; leave one out")


def documents(path: str | None) -> tuple[tuple[int, int], ...]:
    """(tokens, count) of the documents that rows are packed with; () of none."""
    if path is None:
        return ()
    from planner.lengths.histogram import Histogram

    found = Histogram.load(path, "--documents")
    if (found.high != found.low + 1).any() or (found.weight != found.weight.round()).any():
        raise InputError(f"--documents {path!r}: its columns must be tokens,count, with whole counts")
    each = zip(found.low.tolist(), found.weight.tolist(), strict=True)
    return tuple((tokens, int(count)) for tokens, count in each if count)


def names(text: str) -> tuple[str, ...]:
    """
    >>> names("qkv, out"), names("")
    (('qkv', 'out'), ())
    """
    return tuple(filter(None, (name.strip() for name in text.split(","))))


def trained(text: str) -> tuple[Part, ...]:
    """
    >>> trained("llm, projector")
    ('llm', 'projector')
    """
    parts = names(text)
    if not parts or not set(parts) <= set(get_args(Part)) or len(set(parts)) < len(parts):
        raise InputError(f"--train {text!r}; legal: some of {', '.join(get_args(Part))}, each once")
    return tuple(part for part in get_args(Part) if part in parts)


def kernel(name: str | None) -> Kernel:
    """Attention's kernel in training; none given means the framework's own."""
    if name is not None and (name not in get_args(Kernel) or not name):
        raise InputError(f"--kernel {name!r} is unknown; legal: {', '.join(filter(None, get_args(Kernel)))}")
    return name or ""  # type: ignore[return-value]


def room(confidence: str | None, headroom: str | None) -> Room:
    """What counts as fitting.

    >>> room("0.99", None).confidence, room(None, "2GiB").headroom_bytes
    (0.99, 2147483648)
    """
    if headroom is not None:
        if confidence is not None:
            raise InputError(f"--headroom {headroom!r} with --confidence {confidence!r}: give one of them")
        return Room(headroom_bytes=parse_bytes(headroom, "--headroom"))
    if confidence is None:
        return Room()
    try:
        value = float(confidence)
    except ValueError:
        value = math.nan
    if not LEAST <= value <= MOST:
        raise InputError(f"--confidence {confidence!r}; legal: {LEAST} to {MOST}")
    return Room(confidence=value)


def of_frame_pixels(model: Model, text: str) -> Model:
    """The model for frames of `text` pixels, height x width.

    >>> of_frame_pixels(Model.load("longvila-8b"), "378x378").vision.patches
    729
    """
    sides = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if sides is None:
        raise InputError(f"--frame-pixels {text!r}; legal: HEIGHTxWIDTH in pixels, such as 448x448")
    if model.vision is None:
        raise InputError(f"--frame-pixels {text}, but {model.name} has no vision tower; legal: leave it out")
    return replace(model, vision=model.vision.of_pixels(int(sides[1]), int(sides[2])))


def targets(name: str, precision: str | None) -> list[Target]:
    """Of `--for`: one, or all.

    >>> [target.name for target in targets("vllm", None)]
    ['vllm']
    """
    every = [one for one in map(Target.load, Target.names()) if one.name not in ("mmsp", "trl")]
    found = [MMSP, *every] if name == "any" else [Target.load(name)]  # trl has accelerate's layouts
    if precision is not None and found != [MMSP]:
        raise InputError(f"--precision {precision!r} with --for {name}, which has its own; leave one out")
    return found


def framework_of(name: str, asked: Question, given: Mapping[str, Any]) -> tuple[Framework, Question]:
    """(the framework of `--for`, the question with its precision)."""
    legal = Framework.names("step")
    if name not in legal and name in Target.names():
        name = Target.load(name).framework
    if name not in legal:
        raise InputError(f"--for {name!r} is unknown; {strict.nearest(name, [*legal, *Target.names()])}")
    framework = Framework.load(name)
    if framework == OURS:
        return framework, asked
    if given["precision"] is not None:
        raise InputError(f"--precision {given['precision']!r} with --for {name}, which has its own; leave one out")
    return framework, replace(asked, workload=replace(asked.workload, precision=framework.precision))


def longest_row(asked: Question, strategy: Strategy, framework: Framework = OURS) -> int:
    """Tokens of the longest row that the layout holds, a multiple of 2 x context; none is an InputError."""
    from cost_models.longest import longest_tokens, shortest_tokens
    from cost_models.pricing import price

    most = longest_tokens(asked.cluster, asked.workload, strategy, framework, asked.room)
    if not most:
        least = shortest_tokens(asked.workload, strategy)
        cost = price(asked.cluster, of_length(asked, least).workload, strategy, framework=framework)
        need = f"{show_bytes(cost.memory_bytes)} of {show_bytes(cost.capacity_bytes)}; give more GPUs, a larger shard, "
        if not cost.fits_host:
            need = (
                f"{show_bytes(cost.host_bytes)} of {show_bytes(cost.host_capacity_bytes)} of a host; give more nodes, "
            )
        raise InputError(f"--longest: no row fits: {least} tokens already need {need}or recompute=full")
    return most


def of_length(asked: Question, tokens: int) -> Question:
    """The same question about rows of so many tokens; frames stay, text fills the row."""
    return replace(asked, workload=replace(asked.workload, context_tokens=tokens, text_tokens=None))


def profile_of(plan: Plan, path: str | None) -> Profile | None:
    """The profile that a plan was made with, checked by its digest; a plan without one takes none."""
    if plan.profile_digest is None:
        if path is not None:
            raise InputError(f"--profile {path!r}: the plan was made without a profile; leave it out")
        return None
    if path is None:
        raise InputError("--profile is missing: the plan was made with a profile; give that file")
    profile = Profile.load(path)
    if profile.digest != plan.profile_digest:
        raise InputError(f"--profile {path!r} is not the one that the plan was made with; plan again with it")
    return profile


def load_cluster(
    name: str, gpus: int | None, fabrics: Sequence[str] = (), device: str | None = None, hosts: str | None = None
) -> Cluster:
    """The cluster of --cluster with its companions; a preset wants --gpus."""
    named = host_list(hosts) if hosts is not None else ()
    if gpus is None and not named and name in Cluster.presets() and name != "local" and not fabrics:
        raise InputError(f"--gpus is missing: how many GPUs of {name} shall be planned for? (such as 8 or 256)")
    return Cluster.load(name, gpus=gpus, fabrics=fabrics, device=device, hosts=named)


def host_list(text: str) -> tuple[str, ...]:
    """`gpu[001-004],gpu007` -> names."""
    from cost_models.hardware.readers.hostlist import expand

    return expand(text, "--hosts")


def precision(name: str | None, cluster: Cluster) -> Precision:
    """Mixed precision over fp32 masters: bf16, fp16 where a card has no bf16; CPUs compute in fp32."""
    devices = [run.node.device for run in cluster.runs]
    half = "bf16" if all("bf16" in device.peak_flops for device in devices) else "fp16"
    chosen = name or ("fp32" if any(device.architecture == "cpu" for device in devices) else half)
    if chosen not in ("bf16", "fp16", "fp32"):
        raise InputError(f"--precision {chosen!r} is unknown; legal: bf16, fp16, fp32")
    return Precision(param=chosen)  # type: ignore[arg-type]


def whole(text: object, flag: str, least: int = 1, most: int = MOST_WHOLE) -> int:
    """A whole number of `least` to `most`, written in plain digits."""
    written = str(text).strip()
    value = int(written) if re.fullmatch(r"[-+]?[0-9]{1,30}", written) else None
    if value is None or value < least:
        raise InputError(f"{flag} {written[:40]!r} is not a whole number of at least {least}")
    if value > most:
        raise InputError(f"{flag} {written[:40]} is above {most:,}, the most that can be planned")
    return value


def objective(name: str) -> Objective:
    """One of the known ones, checked."""
    from planner.search.objective import OBJECTIVES

    for known in OBJECTIVES:
        if name == known:
            return known
    raise InputError(f"--objective {name!r} is unknown; legal: {', '.join(OBJECTIVES)}")


def positive(text: object, flag: str, what: str = "a number above 0 and below 1e9", most: float = 1e9) -> float:
    """A number above 0 and below `most`."""
    try:
        value = float(str(text))
    except ValueError:
        value = 0.0
    if not 0 < value < most:
        raise InputError(f"{flag} {str(text)!r} is not {what}")
    return value


def seconds(text: str | None, flag: str) -> float | None:
    """A number of seconds above 0, if given."""
    return None if text is None else positive(text, flag, "a number of seconds above 0", math.inf)


def dollars(given: Mapping[str, Any]) -> float | None:
    """What a GPU costs an hour, if given."""
    text = given["dollars"]
    return None if text is None else positive(text, "--price-per-gpu-hour", "a number of dollars above 0", 1e6)
