"""What an implementation does beyond the mathematics of a layer: fused kernels, copies, who waits for whom.

`OURS` is the executor of this project: Hugging Face layers run eagerly (unfused RMSNorm and SwiGLU), launched by a
host that takes its time, flash attention, sequence-parallel tensor exchange, FSDP2 that gathers and scatters beside
the computation. Other frameworks are other values of the same physical facts (`validation/frameworks.py`), so that
published measurements can be predicted without a fitted factor. Reading a framework's code can settle every field.

Units: bytes per value or per parameter, seconds. Left out: what one call of a kernel costs (that is the device's).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from cost_models.errors import InputError
from cost_models.step.frames import FrameSharding
from cost_models.timing.host import PYTORCH_2024, Host

Fusion = Literal["unfused", "fused", "none"]
AttentionKernel = Literal["newest", "fa2", "fa1", "unfused"]
Reduction = Literal["overlapped", "exposed"]

FA1_SLOWDOWN = 2.0
"""FlashAttention and its Triton version against FlashAttention-2: "around 2x" (arXiv 2307.08691, abstract)."""

OVERLAP_COST = 0.61
"""Seconds by which a second of NCCL's collectives, hidden behind computation, lengthens that computation: they take
multiprocessors and memory bandwidth from it. FSDP on 4 A100, H100, MI250 or MI210 (arXiv 2507.03114, abstract):
overlapped computation is 18.9% slower, and one after the other 10.2% slower than overlapped, so that 1.189 x 1.102 - 1
= 0.31 of communication costs 0.189. Between nodes it is taken as the same: a smaller cost there (NCCL's share of the
SMs and three passes of memory: 0.1 to 0.4) left FSDP on 16 to 512 GPUs of five sources 6 to 11 points further off."""


@dataclass(frozen=True, kw_only=True)
class Habits:
    """
    >>> OURS.norm, OURS.attention
    ('unfused', 'newest')
    """

    norm: Fusion = "unfused"  # fused: one kernel, one read and one write; unfused: Hugging Face's RMSNorm
    norm_casts: bool = False  # a fused norm is handed a copy of its input in fp32, and its gradient is cast back
    norms_again: bool = False  # kept layers: norms, and the sum before the second one, run again in backward
    rotary: Fusion = "unfused"  # none: learned or ALiBi positions
    activation: Fusion = "unfused"  # fused: gate, activation and product (or bias and GELU) in one kernel
    product_dtype: Literal["fp8"] | None = None  # of the layers' products; none: as the parameters
    quantise_bytes: int = 0  # per value that enters an 8-bit product: read, written and written transposed
    joined_products: bool = False  # one product for Q, K, V and one for gate and up
    biases: bool = False  # linear layers have them: their gradients read each product's output gradient again
    attention: AttentionKernel = "newest"  # fa1: FlashAttention before 2; unfused: scores in memory
    merge_bytes: int = 18  # per output value and ring hop: cast the block (r2 w4), one blend in fp32 (r4 r4 w4)
    merge_gradient_bytes: int = 10  # per value of dQ, dK, dV and hop: a bf16 block added to an fp32 sum (r2 r4 w4)
    slice_bytes: int = 0  # per output value and striped hop, where the merged slice is copied back
    widen_bytes: int = 12  # per value of a ring's result, once: the first block to fp32 (r2 w4), the sum back (r4 w2)
    exchange_copies: int = 2  # kernels that each tensor passes through around an exchange of heads (read and write)
    exchange_alone: bool = False  # an exchange over one rank still runs, and copies
    widen_alone: bool = False  # the result is widened also where the ring is one block
    gathered_bytes: int = 0  # per gathered key and value (all_gather): put in order, packed for the kernel
    gathered_gradient_bytes: int = 0  # the same in backward, with clearing, unpacking and adding their gradients
    late_hops: bool = False  # a hop inside a domain starts with the block's last ones; the simulator does not play it
    gap_s: float = 0.0  # beside each eager operator that is not a product: what it takes with nothing to do
    dropout: bool = False  # on attention's scores (if unfused) and on both residual branches, masks kept
    sequence_parallel: bool = True  # tensor parallel: reduce-scatter and all-gather, norms on a share of the tokens
    tensor_beside: bool = False  # tensor parallel, backward: column-parallel products run beside their exchanges
    tensor_chunks: bool = False  # tensor exchanges cut in `tensor` chunks beside their product: one chunk is exposed
    gathered_fp32: bool = False  # sharded weights travel as fp32 and are cast where they are used
    cast_bytes: int = 0  # per weight and use: autocast copies of fp32 weights to the parameter dtype
    accumulate_bytes: int = 0  # per weight and microbatch: adding the gradient to a resident buffer, by other kernels
    accumulator: Literal["bf16", "fp32"] | None = None  # buffer to which a weight gradient's own product adds it
    overlap_cost: float = 0.0  # seconds that a second of hidden gathers and reductions adds to the computation
    reduction: Reduction = "overlapped"  # gradient reduction and weight gathers beside the computation, or after it
    blocking_collectives: int = 0  # ZeRO-3: a layer's weights one by one, in each of so many, with nothing beside them
    list_operators: int = 0  # eager operators for each rank's piece, where a collective takes a list of tensors
    repeats_kv: bool = False  # keys and values are repeated to all query heads before they are exchanged and kept
    whole_rotary: bool = False  # every rank has cosines and sines of the whole row, not of its own tokens
    reentrant: bool = False  # full recompute runs a layer to its end and holds its result while gradients are made
    bucket_values: int = 0  # of a buffer in which gradients wait: always there with ZeRO-3, in backward with 1 and 2
    dummy_gradient_bytes: int = 0  # per weight of each distinct shape: placeholders that autograd is handed
    loss_bytes: int | None = None  # traffic per logit of a whole loss; none: autograd's cross entropy in fp32
    drops_gradients: bool = False  # below ZeRO-3: gradients are dropped after a step and come as activations go
    logit_bytes: int | None = None  # held per logit at the loss; none: b for logits and gradient, twice fp32
    zero_1_as_2: bool = False  # gradients are sharded as they are reduced, so that ZeRO-1 runs as ZeRO-2 (FSDP)
    owned_tensors: int = 0  # ZeRO-1: a layer's tensors, dealt out whole to owners, who broadcast them one by one
    reduced_whole: bool = False  # below ZeRO-2: gradients all-reduced over all data ranks, not scattered to owners
    reduce_copy_bytes: int = 0  # per weight and step: gradients into a flat bucket, divided, and copied back
    optimizer_bytes: int | None = None  # traffic per weight of the update; none: a fused fp32 update
    frame_sharding: FrameSharding = "exchanged"  # how frames and their embeddings reach their ranks: frames.py
    host: Host | None = None  # what calls cost the host (`launches.py`); none: always ahead of the device

    @property
    def measured_attention(self) -> Literal["newest", "fa2"]:
        """The measured kernel that its attention is, or is slower than by a factor."""
        return "fa2" if self.attention in ("fa2", "fa1") else "newest"

    def __post_init__(self) -> None:
        for name, legal in (
            ("norm", Fusion),
            ("rotary", Fusion),
            ("activation", Fusion),
            ("attention", AttentionKernel),
            ("reduction", Reduction),
            ("frame_sharding", FrameSharding),
        ):
            if getattr(self, name) not in get_args(legal):
                raise InputError(f"{name}={getattr(self, name)!r} is unknown; legal: {', '.join(get_args(legal))}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not value >= 0:
                raise InputError(f"{field.name}={value} must be at least 0")


OURS = Habits(overlap_cost=OVERLAP_COST, host=PYTORCH_2024, zero_1_as_2=True)
