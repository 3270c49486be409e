"""Whose code runs a step: its kernels, copies, losses, optimizer and overlaps, as a data file with its reasons.

    frameworks/torchtitan.yaml     title, like (another file: what is not said is as there), scope, facts
    a fact                         why, in words and with its source, and the fields that it settles

A field is a fact of the code that ran, never a number fitted to a row or a file; reading a framework's code can settle
all of them. The defaults are eager Hugging Face layers with flash attention under FSDP. A framework of scope "operator"
says how an attention operator alone was run. Units: bytes per value or per parameter, seconds. Left out: what one call
of a kernel costs (that is the device's).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from cost_models import strict
from cost_models.errors import InputError
from cost_models.hardware.device import Device
from cost_models.layer.frames import FrameSharding
from cost_models.timing.host import HOSTS, Host
from cost_models.workload import LORA_TARGETS, LoraTarget, Precision, Workload

FOLDER = Path(__file__).parent / "frameworks"
Fusion = Literal["unfused", "fused", "none"]
NormKernel = Literal["library", "pytorch", "compiled"]
AttentionKernel = Literal["newest", "fa2", "sdpa", "cudnn", "fa1", "unfused"]
Reduction = Literal["overlapped", "exposed"]
Scope = Literal["step", "operator"]
BackwardBuffers = Literal["fa2", "fa3", "none"]
Copies = Literal["never", "several rows", "always"]
TensorOverlap = Literal["none", "products", "chunks"]

FA1_SLOWDOWN = 2.0
"""FlashAttention and its Triton version against FlashAttention-2: "around 2x" (arXiv 2307.08691, abstract)."""

OVERLAP_COST = 0.61
"""Seconds by which a second of NCCL's collectives, hidden behind computation, lengthens that computation: they take
multiprocessors and memory bandwidth from it. FSDP on 4 A100, H100, MI250 or MI210 (arXiv 2507.03114, abstract):
overlapped computation is 18.9% slower, and one after the other 10.2% slower than overlapped, so that 1.189 x 1.102 - 1
= 0.31 of communication costs 0.189. Between nodes and over PCIe NCCL has as many channels as the links keep busy
(`paths.py`, `taken_s`), and takes as much less."""

_OF_OPERATORS = (
    "attention", "merge_bytes", "merge_gradient_bytes", "slice_bytes", "widen_bytes", "hop_wait_s", "late_hops",
    "window_halo", "document_ring", "gathered_bytes", "gathered_gradient_bytes", "host",
)  # fmt: skip
_OF_OPERATORS_ALONE = ("exchange_alone", "widen_alone")


@dataclass(frozen=True, kw_only=True)
class Framework:
    """
    >>> framework = Framework.load("torchtitan")
    >>> framework.norm, framework.reasons["norm"]
    ('fused', 'Inductor fuses norms, rotary embedding and SwiGLU')
    """

    name: str = "custom"
    title: str = "a framework that no file describes"
    scope: Scope = "step"
    precision: Precision = field(default_factory=Precision)  # of its workloads; `price` takes the workload's
    lora_targets: tuple[LoraTarget, ...] = LORA_TARGETS  # that its recipes adapt; `price` takes the workload's
    reasons: dict[str, str] = field(default_factory=dict, compare=False)  # why, by field
    norm: Fusion = "unfused"  # fused: one kernel, one read and one write; unfused: Hugging Face's RMSNorm
    norm_kernel: NormKernel = "library"  # whose a fused norm is: apex's or Transformer Engine's, PyTorch's, Inductor's
    checkpoint_ends_early: bool = False  # PyTorch's, not reentrant: a layer runs again until what it kept is back
    norm_copies: bool = False  # fused norms get a copy in fp32; kept layers run them, and a sum, again in backward
    rotary: Fusion = "unfused"  # "none" means learned or ALiBi positions
    activation: Fusion = "unfused"  # fused: gate, activation and product (or bias and GELU) in one kernel
    product_dtype: Literal["fp8", "fp4"] | None = None  # of the layers' products; `None`: as the parameters
    joined_products: bool = False  # one product for Q, K, V and one for gate and up
    adapters_drop: bool = False  # dropout of an adapter's input
    adapters_apart: bool = False  # q, k, v, gate and up have adapters of their own beside joined products
    biases: bool = False  # linear layers have them: their gradients read each product's output gradient again
    attention: AttentionKernel = "newest"  # sdpa: fa2, on Blackwell cuDNN; fa1: before fa2; unfused: scores in memory
    score_bytes: int | None = None  # unfused: per score and pass, beside products; None: one kernel, r2 w2
    score_gradient_bytes: int | None = None  # the same backward; None: one kernel, r2 r2 w2
    merge_bytes: int = 18  # per output value and ring hop: cast the block (r2 w4), one blend in fp32 (r4 r4 w4)
    merge_gradient_bytes: int = 10  # per value of dQ, dK, dV and hop: a bf16 block added to an fp32 sum (r2 r4 w4)
    slice_bytes: int = 0  # per output value and striped hop, where the merged slice is copied back
    widen_bytes: int = 12  # per value of a ring's result, once: the first block to fp32 (r2 w4), the sum back (r4 w2)
    exchange_alone: bool = False  # an exchange over one rank still runs, and copies
    widen_alone: bool = False  # the result is widened also where the ring is one block
    gathered_bytes: int = 0  # per gathered key and value (all_gather): put in order, packed for the kernel
    gathered_gradient_bytes: int = 0  # the same in backward, with clearing, unpacking and adding their gradients
    gathers_ring: bool = False  # a ring's blocks of keys come in one gather, and stay for the call: of memory alone
    hop_wait_s: float = 0.0  # computation stands still for so long in each hop of a ring, whatever it sends
    window_halo: bool = False  # of a layer with a window a ring sends the keys in front of other ranks' queries alone
    document_ring: bool = False  # of packed documents a ring sends those that other ranks need, as far as one does
    late_hops: bool = False  # a hop inside a domain starts with the block's last ones; the simulator does not play it
    gap_s: float = 0.0  # what each eager operator that is not a product takes with nothing to do
    dropout: bool = False  # on attention's scores (if unfused) and on both residual branches, masks kept
    sequence_parallel: bool = True  # tensor parallel: reduce-scatter and all-gather, norms on a share of the tokens
    sums_apart: bool = False  # without sequence parallelism an all-reduce sums gate's input gradient, and one up's
    copies_exchanged: bool = False  # tensor exchanges copy: tokens are not the first dimension of what is gathered
    narrow_gathers: bool = False  # what 8- and 4-bit products take is cast, then gathered: over tensor ranks and shards
    keeps_gathered: bool = False  # sequence parallel: products keep their input gathered, and never gather it again
    tensor_overlap: TensorOverlap = "none"  # what hides tensor exchanges: products of backward, or chunks of a product
    autocast_bytes: int = 0  # weights travel as fp32, and every use casts them: bytes moved per weight
    accumulate_bytes: int = 0  # per weight and microbatch: adding the gradient to a resident buffer, by other kernels
    accumulator: Literal["bf16", "fp32"] | None = None  # buffer to which a weight gradient's product adds it
    gather_copy_bytes: int = 0  # per weight and gather over several ranks: from the flat buffer to the weights
    reduce_copy_bytes: int = 0  # per weight and reduction over several ranks: gradients into a flat buffer, divided
    experts_once: bool = False  # tokens go once to a domain and once to a rank, however many experts they chose there
    consecutive_experts: bool = False  # a token's experts are numbered in a row, so that few ranks have them
    sends_whole: bool = False  # without sequence parallelism each tensor rank sends all of a boundary to the next stage
    blocking_sends: bool = False  # between two others a stage waits for what it gets as well as for what it sends
    cuts_ends: int = 0  # modules beside the layers that equal stages are cut of: embedding, head, or last norm too (3)
    recomputes_ends: bool = False  # full recompute of all layers runs the head again, too
    overlapped_sends: bool = False  # interleaved pipelines send to the next stage while the next chunk computes
    overlap_cost: float = 0.0  # seconds that a second of hidden gathers and reductions adds to the computation
    reduction: Reduction = "overlapped"  # of ZeRO-0 to -2, gathers too: concurrent with the computation, or after it
    blocking_tensors: int = 0  # ZeRO-3: a layer's weights, each in one collective that nothing hides
    repeats_kv: bool = False  # keys and values are repeated to all query heads before they are exchanged and kept
    whole_rotary: bool = False  # every rank has cosines and sines of all the row, not of its tokens alone
    reentrant: bool = False  # full recompute runs a layer to its end and holds its result while gradients are made
    bucket_values: int = 0  # of a buffer in which gradients wait: always there with ZeRO-3, in backward with 1 and 2
    dummy_gradient_bytes: int = 0  # per weight of each distinct shape: placeholders that autograd is handed
    whole_loss: bool = False  # logits of all of a rank's tokens at once, whatever the strategy's chunk
    loss_bytes: int | None = None  # traffic per logit of a loss without chunks; `None`: autograd's in fp32
    defers_reductions: bool = False  # ZeRO-2, -3: microbatches add up whole gradients, reduced once (FSDP's no_sync)
    drops_gradients_to: int | None = None  # ZeRO stage up to which a step drops gradients: they come as activations go
    logit_bytes: int | None = None  # held per logit at the loss; `None`: b for logits and gradient, twice fp32
    tensor_logit_bytes: int | None = None  # the same where tensor parallelism shares the vocabulary; `None`: as without
    keeps_outputs: bool = False  # a stage's result stays until the pipeline's next use of its buffer, also the logits
    extra_groups: bool = False  # communicators of all ranks, of a pipeline, and of each pair of stages that sends
    gathers_logits: bool = False  # over tensor ranks, each of which then has the loss of all the vocabulary
    cuts_logits: bool = False  # so gathered, a rank's own are gone when softmax's gradients are made
    keeps_unread: bool = False  # selective recompute keeps results of its list also where backward does not read them
    early_states: bool = False  # optimizer states are made before the first step
    gathers_units: bool = False  # weights are gathered unit by unit, into copies, at every ZeRO stage (`states.py`)
    experts_apart: bool = False  # spread experts that no two ranks share are out of FSDP: neither copied nor reduced
    stream_pools: bool = False  # gathers and reductions have streams, and so pools, of their own
    expandable_segments: bool = False  # the allocator's segments grow: freed memory joins, whatever its sizes were
    copies_result: Copies = "never"  # attention's result, for the product behind it, where no heads are exchanged
    rotary_by_layer: bool = False  # each layer gathers cosines and sines of its queries and of its keys, and keeps them
    keeps_joined: bool = False  # values are a view of the joined product of Q, K and V, which stays whole
    exchange_freed: bool = False  # what was exchanged is gone before attention's backward pass (`attention.py`)
    attention_backward: BackwardBuffers = "fa2"  # whose buffers attention's backward kernel takes (`attention.py`)
    projects_by_heads: bool = False  # with chunks of heads: each projects its own q, k, v, and again in backward
    chunks_on_card: bool = False  # of the row: keys stay on the GPU, and backward projects each again (`chunked.py`)
    slices_norms: bool = False  # with slices of the MLP a layer's norms run in them too, and keep their input alone
    wide_slice_sums: bool = False  # weight gradients of slices are summed in fp32
    fetches_master: bool = False  # states on the host: the master is fetched and cast, no narrower copy exists (FSDP2)
    copy_streams: int = 0  # streams that copies of chunks take in turn, each with a pool of its own
    zero_1_as_2: bool = False  # gradients are sharded as they are reduced, so that ZeRO-1 runs as ZeRO-2 (FSDP)
    sums_whole: bool = False  # ZeRO-1: gradients are all-reduced, and each rank takes its own part of them
    owned_tensors: int = 0  # ZeRO-1: a layer's tensors, dealt out to owners, who update and broadcast them one by one
    update_calls: int = 1  # of the host for each tensor: 1 is PyTorch's foreach AdamW, which goes through lists of them
    optimizer_bytes: int | None = None  # traffic per weight of the update; `None`: a fused fp32 update
    frame_sharding: FrameSharding = "exchanged"  # how frames and their embeddings reach their ranks: frames.py
    frames_per_chunk: int | None = None  # more of a rank run again in backward, a quarter of so many at a time
    host: Host | None = None  # what calls cost the host (`launches.py`); `None`: always ahead of the device

    @classmethod
    def load(cls, name: str) -> Framework:
        """A framework by its file's name."""
        return _load(name)

    @staticmethod
    def names(scope: Scope | None = None) -> list[str]:
        """Of all files, or of those of a scope."""
        names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
        return names if scope is None else [name for name in names if _read(name).scope == scope]

    def on(self, device: Device) -> Framework:
        """The same on a device: a CPU's attention kernel has no buffers that count."""
        return _without_buffers(self) if device.architecture == "cpu" else self

    def measured_attention(self, workload: Workload) -> Literal["newest", "fa2", "sdpa", "cudnn"]:
        """The measured kernel that its attention is, or is slower than by a factor; the workload may name another."""
        if workload.kernel:
            if self.attention in ("fa1", "unfused"):
                raise InputError(f"kernel={workload.kernel} with framework {self.name}, whose attention is its own")
            return workload.kernel
        if self.attention in ("newest", "sdpa", "cudnn"):
            return self.attention
        return "newest" if self.attention == "unfused" else "fa2"

    def __post_init__(self) -> None:
        for name, legal in (
            ("norm", Fusion),
            ("norm_kernel", NormKernel),
            ("rotary", Fusion),
            ("activation", Fusion),
            ("attention", AttentionKernel),
            ("attention_backward", BackwardBuffers),
            ("copies_result", Copies),
            ("reduction", Reduction),
            ("tensor_overlap", TensorOverlap),
            ("frame_sharding", FrameSharding),
            ("scope", Scope),
        ):
            if getattr(self, name) not in get_args(legal):
                raise InputError(f"{name}={getattr(self, name)!r} is unknown; legal: {', '.join(get_args(legal))}")
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, int | float) and not value >= 0:
                raise InputError(f"{one.name}={value} must be at least 0")
        self._check_used()

    def check_scope(self, scope: Scope) -> None:
        """Refuses to answer for a step what is known of an operator alone, and the other way round."""
        if self.scope != scope:
            what = {"step": "a step", "operator": "an attention operator alone"}[self.scope]
            raise InputError(f"framework {self.name} is of {what}; legal: {', '.join(Framework.names(scope))}")

    def _check_used(self) -> None:
        """Refuses fields that no price reads."""
        for one in _SETTLED:
            if getattr(self, one) == _DEFAULTS[one]:
                continue
            if self.scope == "operator" and one not in (*_OF_OPERATORS, *_OF_OPERATORS_ALONE):
                raise InputError(f"{one} is not read for scope=operator; legal: {', '.join(_OF_OPERATORS)}")
            if self.scope == "step" and one in _OF_OPERATORS_ALONE:
                raise InputError(f"{one} is read for scope=operator alone, not for scope=step")
        for one in ("norm_copies", "norm_kernel"):
            if getattr(self, one) != _DEFAULTS[one] and self.norm != "fused":
                raise InputError(f"{one} counts only for a fused norm, not for norm={self.norm}")


_SETTLED = tuple(one.name for one in fields(Framework) if one.name not in ("name", "title", "scope", "reasons"))
_DEFAULTS = {one.name: one.default for one in fields(Framework) if one.name in _SETTLED} | {"precision": Precision()}


@cache
def _without_buffers(framework: Framework) -> Framework:
    return replace(framework, attention_backward="none")


@dataclass(frozen=True, kw_only=True)
class _File:
    title: str
    facts: tuple[Any, ...]
    like: str | None = None
    scope: Scope = "step"


@cache
def _load(name: str) -> Framework:
    settled, reasons = _settled(name, ())
    file, where = _read(name), f"framework {name}"
    host, precision = settled.pop("host", None), strict.read(Precision, settled.pop("precision", {}), where)
    if host is not None and host not in HOSTS:
        raise InputError(f"{where}.host={host!r} is unknown; {strict.nearest(str(host), HOSTS)}")
    found = strict.read(Framework, {"name": name, "title": file.title, "scope": file.scope, **settled}, where)
    return replace(found, precision=precision, host=HOSTS[host] if host else None, reasons=reasons)


def _settled(name: str, above: tuple[str, ...]) -> tuple[dict[str, object], dict[str, str]]:
    """(fields, reasons) of a file and of those that it is like. Refuses what is unknown, or changes nothing."""
    file, where = _read(name), f"framework {name}"
    if name in above:
        raise InputError(f"{where} is like itself, by way of {', '.join(above)}")
    settled, reasons = ({}, {}) if file.like is None else _settled(file.like, (*above, name))
    here: dict[str, object] = {}
    for index, fact in enumerate(file.facts):
        place = f"{where}.facts[{index}]"
        why = fact.get("why") if isinstance(fact, dict) else None
        if not isinstance(why, str) or not why.strip() or len(fact) < 2:
            raise InputError(f"{place} must say why, in words, and settle at least one field")
        for key, value in fact.items():
            if key == "why":
                continue
            if key not in _SETTLED:
                raise InputError(f"{place}.{key} is unknown; {strict.nearest(str(key), _SETTLED)}")
            if key in here:
                raise InputError(f"{place}.{key} is given twice")
            if value == settled.get(key, _DEFAULTS[key]):
                raise InputError(f"{place}.{key}={value} says what holds without it; leave it out")
            here[key], reasons[key] = value, " ".join(why.split())
    return {**settled, **here}, reasons


@cache
def _read(name: str) -> _File:
    if name not in Framework.names():
        raise InputError(f"framework {name!r} is unknown; {strict.nearest(name, Framework.names())}")
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    return strict.read(_File, strict.parse_yaml(text, f"framework {name}"), f"framework {name}")


OURS = Framework.load("ours")
