"""What each framework of the published rows does beside the mathematics: one value each, with the reason.

A habit is a fact of the code that ran (which kernels it fuses, which copies it makes, what it waits for), never a
number fitted to a row or a file. `NEUTRAL` is the price as a plan gets it. A framework that changed over the years
appears once per generation, because its code did.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cost_models.step.habits import OURS, OVERLAP_COST, Habits
from cost_models.timing.host import PYTORCH_2024
from cost_models.workload import Precision

NEUTRAL = OURS


@dataclass(frozen=True, kw_only=True)
class Framework:
    name: str
    habits: Habits
    precision: Precision
    reason: str


MPT = Habits(
    norm="fused", rotary="none", joined_products=True, biases=True, attention="fa1", loss_bytes=34, optimizer_bytes=92,
    accumulate_bytes=8, overlap_cost=OVERLAP_COST,
)  # fmt: skip
"""MPT under Composer and FSDP1: the kinds of mixed precision below differ in what travels and is cast."""

COMPOSER_A100 = Framework(
    name="Composer 0.13 + FSDP1, mixed precision DEFAULT",
    habits=replace(MPT, gathered_fp32=True, cast_bytes=6, accumulate_bytes=18),
    precision=Precision(reduce="bf16", grad="fp32"),
    reason="DEFAULT then left param_dtype at fp32 and reduced in bf16; autocast reads fp32 weights and writes bf16 "
    "ones (6 B) at each use; MPT joins Q, K, V, has biases, one-kernel LayerNorm and learned positions; all logits at "
    "once, in a fused cross entropy (6 B) and, for each of two training metrics, in one of PyTorch (14 B); a unit's "
    "gradients are concatenated (8 B in fp32), cast for the reduction (6 B) and divided (4 B); AdamW is a loop of "
    "eight elementwise operators (80 B) after clipping (12 B); collectives take multiprocessors from the products "
    "beside them",
)
COMPOSER_H100 = Framework(
    name="Composer 0.16 + FSDP1, mixed precision DEFAULT",
    habits=replace(MPT, accumulate_bytes=18),
    precision=Precision(reduce="fp32", grad="fp32"),
    reason="DEFAULT had become parameters in bf16 and reduction in fp32: gradients are concatenated (4 B), cast (6 B) "
    "and divided in fp32 (8 B); the sweep's scripts take Triton's attention; the rest as above",
)
COMPOSER_FP8 = Framework(
    name="Composer 0.16 + FSDP1, products in fp8 by Transformer Engine",
    habits=replace(MPT, accumulate_bytes=18, product_dtype="fp8", quantise_bytes=4),
    precision=Precision(reduce="fp32", grad="fp32"),
    reason="as above; each input of an 8-bit product is read (2 B) and written with its transpose (1 B each)",
)
COMPOSER_PURE = Framework(
    name="Composer + FSDP1, mixed precision PURE",
    habits=MPT,
    precision=Precision(reduce="bf16", grad="fp32"),
    reason="parameters, reduction and buffers in bf16; weights are cast once, on the shard; gradients are concatenated "
    "and divided in bf16 (4 B each); the rest as above",
)
INTERNEVO_OPTIMIZER_BYTES = 132
"""Per weight of an owner: sum in fp32 that shows an overflow (10), norm of a copy in fp32 (10), flattened and cast to
fp32 (10), unscaled (8), PyTorch 1.13's AdamW of nine operators (88), copied to bf16 (6)."""
INTERNEVO = Framework(
    name="InternEvo (2023)",
    habits=Habits(
        norm="fused",
        norm_casts=True,
        norms_again=True,
        rotary="fused",
        joined_products=True,
        attention="fa1",
        sequence_parallel=False,
        accumulate_bytes=6,
        reduced_whole=True,
        reduce_copy_bytes=12,
        owned_tensors=9,
        optimizer_bytes=INTERNEVO_OPTIMIZER_BYTES,
        loss_bytes=6,
        overlap_cost=OVERLAP_COST,
    ),
    precision=Precision(reduce="bf16", grad="bf16"),
    reason="InternLM of July 2023, whose repository has both code and figures (fa7337b37b00): apex RMSNorm of a copy "
    "in fp32, run again in backward with the residual sum where layers are not recomputed "
    "(dropout_selective_checkpoint); flash-attn's rotary; SwiGLU in two kernels; tensor parallelism with all-reduce; "
    "bf16 gradients are added up in bf16 (read two, write one), flattened, divided and copied back (12 B) around an "
    "all-reduce over all data ranks, under ZeRO-1 too; flash-attn 1; tensors of a layer (9) are dealt out whole to "
    "owners, whose update is unfused, and who broadcast them one by one after it; flash-attn's cross entropy reads "
    "logits, and writes gradients in their place; collectives take multiprocessors from the products beside them",
)
MEGATRON_2021 = Framework(
    name="Megatron-LM (2021), all-reduce",
    habits=Habits(
        biases=True, loss_bytes=52,
        norm="fused", activation="fused", joined_products=True, rotary="none", attention="unfused", dropout=True,
        sequence_parallel=False, accumulator="fp32",
        reduction="exposed",
    ),
    precision=Precision(param="fp16", reduce="fp32", grad="fp32"),
    reason="before flash attention: scores in memory, a fused scale-mask-softmax, dropout 0.1; gradients are added "
    "into fp32 buffers by the product's own kernel and all-reduced after the last microbatch; cross "
    "entropy over vocabulary shards is eight operators in fp32 (52 B)",
)  # fmt: skip
MEGATRON_2022 = Framework(
    name="Megatron-LM (2022), sequence parallel",
    habits=Habits(
        biases=True, loss_bytes=52,
        norm="fused", activation="fused", joined_products=True, rotary="none", attention="unfused", dropout=True,
        accumulator="fp32", reduction="exposed", tensor_beside=True,
    ),
    precision=Precision(param="fp16", reduce="fp32", grad="fp32"),
    reason="as 2021, with sequence parallelism: norms and dropout on a share of the tokens; backward, the input of a "
    "column-parallel product is gathered again beside its gradient's product, and that is reduced beside the weight's "
    "(arXiv 2205.05198, section 4.2.2; tensor_parallel/layers.py)",
)  # fmt: skip
MEGATRON_2022_ALL_REDUCE = Framework(
    name="Megatron-LM (2022), all-reduce",
    habits=replace(MEGATRON_2022.habits, sequence_parallel=False),
    precision=MEGATRON_2022.precision,
    reason="as 2021, but the all-reduce of a column-parallel product's input gradient runs beside the product of the "
    "weight's (async_tensor_model_parallel_allreduce, the default since late 2021)",
)
TE_GAP_S = 30e-6
"""What an operator of Megatron with Transformer Engine takes at no bytes: the intercept of SimuMax's fit of its eager
operators (`kernels_simumax_network_fit.json`: 30 us on B200, 40 us on A100). Its products were timed back to back,
which hides the call; in a layer every product has it too (inferred)."""
MEGATRON_OPTIMIZER_BYTES = 46
"""Per weight: norm r4, clip r4 w4, Adam r16 w12, copy to the bf16 model r4 w2 (Megatron-LM's distributed optimizer)."""
MEGATRON_TE = Framework(
    name="Megatron-Core + Transformer Engine (2026)",
    habits=Habits(
        norm="fused",
        activation="fused",
        joined_products=True,
        rotary="fused",
        accumulator="fp32",
        reduction="exposed",
        logit_bytes=2,
        loss_bytes=10,
        dummy_gradient_bytes=2,
        tensor_beside=True,
        gap_s=TE_GAP_S,
        optimizer_bytes=MEGATRON_OPTIMIZER_BYTES,
    ),
    precision=Precision(reduce="fp32", grad="fp32"),
    reason="Transformer Engine's norms and cuDNN attention; gradients added into fp32 buffers; distributed optimizer "
    "without overlap, as the launcher sets it; its cross entropy works in place on bf16 logits (r2, r2 w2, and scaled "
    "r2 w2); fused weight gradients leave bf16 placeholders (SimuMax's reproduction guide); an eager operator has a "
    "gap of 30 us beside it; gradients are scaled when clipped, and weights copied to bf16 after the update; in "
    "backward the input of a column-parallel product is gathered again beside the product of its gradient, and that is "
    "reduced beside the weight's (layernorm_linear.py; the launcher's --disable-tp-comm flags turn off chunks alone)",
)
MEGATRON_FP8 = Framework(
    name="Megatron-Bridge recipes, products in fp8",
    habits=Habits(
        norm="fused", activation="fused", joined_products=True, rotary="fused", accumulator="fp32", logit_bytes=2,
        loss_bytes=10, overlap_cost=OVERLAP_COST,
        product_dtype="fp8", tensor_chunks=True, quantise_bytes=4, dummy_gradient_bytes=2,
        optimizer_bytes=MEGATRON_OPTIMIZER_BYTES,
    ),
    precision=Precision(reduce="bf16", grad="fp32"),
    reason="as Transformer Engine above, with what the recipes overlap: gradient reduction, weight gathers, and tensor "
    "exchanges in chunks beside their products (userbuffers); 8-bit inputs as above",
)  # fmt: skip
MEGATRON_RECIPES = Framework(
    name="NeMo and Megatron-Bridge recipes (2024 on)",
    habits=replace(MEGATRON_FP8.habits, product_dtype=None, quantise_bytes=0),
    precision=MEGATRON_FP8.precision,
    reason="as above, in bf16: ub_tp_comm_overlap, overlap_grad_sync, overlap_param_sync, gradient_accumulation_fusion "
    "and a fused cross entropy are on in NeMo-Framework-Launcher's conf/training, grad_sync_dtype is bf16",
)
DEEPSPEED_BUCKET_VALUES = 500_000_000
"""DeepSpeed's default `reduce_bucket_size`; with contiguous gradients (the default) a flat buffer of so many values
(stage3.py: `__ipg_bucket_flat_buffer`, as long as the optimizer lives; stage_1_and_2.py: `ipg_buffer`, in backward).
The launch script beside the code sets nothing but the stage (ds_config_gbs1_mbs1_log1_zero3.json)."""
DEEPSPEED = Framework(
    name="DeepSpeed ZeRO and Ulysses on Megatron-DeepSpeed (2024)",
    habits=Habits(
        norm="fused",
        activation="fused",
        attention="fa2",
        accumulate_bytes=6,
        overlap_cost=OVERLAP_COST,
        logit_bytes=14,
        drops_gradients=True,
        loss_bytes=52,
        repeats_kv=True,
        reentrant=True,
        bucket_values=DEEPSPEED_BUCKET_VALUES,
    ),
    precision=Precision(reduce="bf16", grad="bf16"),
    reason="Llama in Megatron-DeepSpeed: fused norm and SwiGLU, rotary in separate kernels; bf16 gradients, added in "
    "bf16, reduced in bf16 and dropped after each step; the loss holds bf16 logits, their fp32 copy, softmax and "
    "its logarithm (14 B; Megatron-DeepSpeed, sequence_parallel/cross_entropy.py); `repeat_kv` before the exchange "
    "(megatron/model/transformer.py); DeepSpeed's checkpoint runs a layer again to its end (CheckpointFunction)",
)
EASYCONTEXT = Framework(
    name="EasyContext: Hugging Face layers under DeepSpeed ZeRO-3",
    habits=Habits(attention="fa2", merge_bytes=38, late_hops=True, overlap_cost=OVERLAP_COST),
    precision=Precision(reduce="bf16", grad="bf16"),
    reason="eager Hugging Face layers, zigzag ring of ring-flash-attn, as below",
)
DEEPSPEED_HUGGING_FACE = Framework(
    name="DeepSpeed ZeRO under Hugging Face layers",
    habits=Habits(attention="fa2", bucket_values=DEEPSPEED_BUCKET_VALUES, overlap_cost=OVERLAP_COST, host=PYTORCH_2024),
    precision=EASYCONTEXT.precision,
    reason="eager Hugging Face layers with FlashAttention-2; gradients in bf16; its bucket as above",
)
DEEPSPEED_GPT = Framework(
    name="DeepSpeed ZeRO-3 on Megatron's GPT (2021)",
    habits=Habits(
        biases=True,
        loss_bytes=52,
        norm="fused",
        activation="fused",
        joined_products=True,
        rotary="none",
        attention="unfused",
        dropout=True,
        blocking_collectives=4,
        list_operators=2,
    ),
    precision=Precision(param="fp16", reduce="fp16", grad="fp16"),
    reason="Megatron's layers without tensor parallelism; ZeRO-3 gathers and reduces in fp16, each of a layer's four "
    "matrices by a collective of its own, after torch.cuda.synchronize (partition_parameters.py of 2021: "
    "_allgather_param), so beside nothing, and once more for the recomputed pass; collectives take lists: for each "
    "rank a view in Python and a copy between its tensor and the flat buffer that NCCL needs",
)
FPDT = Framework(
    name="DeepSpeed Ulysses-Offload (FPDT) on Megatron-DeepSpeed (2024)",
    habits=replace(
        DEEPSPEED.habits, repeats_kv=False, merge_bytes=34, merge_gradient_bytes=12, widen_bytes=18, whole_rotary=True
    ),
    precision=DEEPSPEED.precision,
    reason="as above, but key heads stay as few as they are; blocks are merged by a cast (6 B), two products (8 B "
    "each) and a sum (12 B), the sum widened once (6 B) and narrowed twice (6 B each); gradients of a block are "
    "cleared (2 B) and added (10 B); every rank has the rotary tables of the row (deepspeed/sequence/fpdt_layer.py)",
)
MEGATRON_DEEPSPEED = Framework(
    name="Megatron-DeepSpeed with tensor parallelism (2024)",
    habits=Habits(
        norm="fused",
        activation="fused",
        attention="fa2",
        accumulate_bytes=8,
        reduction="exposed",
        logit_bytes=14,
        drops_gradients=True,
        sequence_parallel=False,
        loss_bytes=52,
        repeats_kv=True,
        reentrant=True,
    ),
    precision=Precision(reduce="fp32", grad="fp32"),
    reason="Llama in Megatron-DeepSpeed: fused norm and SwiGLU, rotary in separate kernels; the figure says TP, taken "
    "as without sequence parallelism (inferred: 64 GiB at 32K hold every norm whole); the loss holds bf16 logits, "
    "fp32 copies, differences to the maximum and exponentials (14 B; tensor_parallel/cross_entropy.py); keys and "
    "values repeated and checkpoints run to their end as above",
)
FLASH_ATTENTION = Framework(
    name="flash-attn 2 alone",
    habits=Habits(attention="fa2"),
    precision=Precision(),
    reason="one GPU, one kernel",
)
RING_FLASH = Framework(
    name="attention operator alone, ring-flash-attn (2024)",
    habits=Habits(attention="fa2", merge_bytes=38, slice_bytes=8, widen_alone=True, late_hops=True, host=PYTORCH_2024),
    precision=Precision(),
    reason="flash-attn 2; its merge is four kernels: cast (6 B), two differences (12 B each) and a product (8 B) per "
    "value and hop; a slice is written back (8 B); the first block is cast to fp32 and the sum back (12 B), of a "
    "ring of one too; k and v are sent by NCCL on a stream of the usual priority: inside a node its 32 blocks find no "
    "free multiprocessor before the attention kernel's last blocks have started",
)
YUNCHANG = Framework(
    name="attention operator alone, yunchang (2024)",
    habits=Habits(
        attention="fa2", merge_bytes=38, slice_bytes=8, widen_alone=True, late_hops=True, host=PYTORCH_2024,
        exchange_alone=True,
    ),
    precision=Precision(),
    reason="ring-flash-attn's rings, as above; q, k and v in an all-to-all each unless packed, a copy before and one "
    "after it (SeqAllToAll4D and 5D of April 2024: no synchronisation then)",
)  # fmt: skip
MAGI_BASELINES = Framework(
    name="attention operator alone, FlashAttention-3 (MagiAttention's baselines)",
    habits=Habits(
        merge_bytes=16, merge_gradient_bytes=24, widen_bytes=0, late_hops=True, host=PYTORCH_2024,
        gathered_bytes=8, gathered_gradient_bytes=34,
    ),
    precision=Precision(),
    reason="FlashAttention-3 on unpadded tokens: each block gathers its queries (r2 w2), clears and scatters its "
    "output (w2 r2 w2) and corrects the sum (r2 r2 w2); backward gathers q, out and dout (12 B), scatters dq (6 B) and "
    "adds it (6 B); dKV travel in bf16; gathered keys are put in order (4 B) and packed (4 B), their gradients "
    "cleared, unpacked and added over the whole length by both halves (26 B more) (exps/dist_attn/baselines)",
)  # fmt: skip
TORCHTITAN = Framework(
    name="torchtitan: FSDP2 under torch.compile",
    habits=Habits(
        norm="fused", rotary="fused", activation="fused", attention="fa2", loss_bytes=8, overlap_cost=OVERLAP_COST
    ),
    precision=Precision(reduce="fp32", grad="fp32"),
    reason="Inductor fuses norms, rotary and SwiGLU; attention is SDPA's, which is FlashAttention-2; gradients are "
    "reduced in fp32 (its default mixed_precision_reduce); the loss is compiled too: read for its sum, read and "
    "written for its gradient",
)
TORCHTITAN_EAGER = Framework(
    name="torchtitan: FSDP2 without torch.compile",
    habits=Habits(norm="fused", attention="fa2", overlap_cost=OVERLAP_COST, host=PYTORCH_2024),
    precision=TORCHTITAN.precision,
    reason="nn.RMSNorm is one kernel, rotary and SwiGLU are eager operators; the loss is autograd's cross entropy; the "
    "rest as above",
)
FMS_FSDP = Framework(
    name="fms-fsdp: FSDP1 under torch.compile",
    habits=Habits(
        norm="fused", rotary="fused", activation="fused", joined_products=True, attention="fa2",
        overlap_cost=OVERLAP_COST,
    ),
    precision=Precision(reduce="bf16", grad="fp32"),
    reason="Inductor fuses norms, rotary and SwiGLU of IBM's Llama, whose Q, K, V are one product; SDPA's "
    "FlashAttention-2; bfSixteen (policies/mixed_precision.py): parameters and reductions in bf16; the loss is outside "
    "of what is compiled",
)  # fmt: skip
MODALITIES = Framework(
    name="Modalities: FSDP1, eager",
    habits=Habits(norm="fused", biases=True, attention="fa2", overlap_cost=OVERLAP_COST, host=PYTORCH_2024),
    precision=Precision(reduce="bf16", grad="fp32"),
    reason="nn.LayerNorm is one kernel, linear maps have biases, all else eager; mixed precision BF_16 (parameters, "
    "reductions and buffers); FlashAttention-2 through PyTorch (config_files/training)",
)
LIT_GPT = Framework(
    name="lit-gpt's fused kernels under FSDP1 (TinyLlama)",
    habits=Habits(
        norm="fused", rotary="fused", activation="fused", joined_products=True, attention="fa2", loss_bytes=6,
        overlap_cost=OVERLAP_COST,
    ),
    precision=Precision(reduce="bf16", grad="fp32"),
    reason="flash-attn's rotary, layer norm and cross entropy in place, xformers' SwiGLU, FlashAttention-2 "
    "(TinyLlama's README and pretrain/tinyllama.py)",
)  # fmt: skip
PADDLENLP = Framework(
    name="PaddleNLP (2024)",
    habits=Habits(attention="fa2", sequence_parallel=False, overlap_cost=OVERLAP_COST),
    precision=Precision(reduce="bf16", grad="fp32"),
    reason="llm/run_pretrain.py with its defaults: eager layers, flash attention, sequence_parallel off "
    "(all-reduce), parameters and gradients in bf16 with fp32 masters (O2)",
)
PURE_BF16 = Precision(master="bf16", grad="bf16", reduce="bf16", optimizer="bf16")
"""A model loaded in bf16 and given to AdamW as it is: no fp32 copy of anything."""
UNNAMED = Framework(
    name="no framework named: this project's executor",
    habits=OURS,
    precision=Precision(),
    reason="the neutral price: eager Hugging Face layers under FSDP2; hidden collectives take from the computation, as "
    "NCCL's do under any framework; a layer lasts as long as its launches take the host",
)
FRAMEWORKS = (
    COMPOSER_A100,
    COMPOSER_H100,
    COMPOSER_FP8,
    COMPOSER_PURE,
    INTERNEVO,
    MEGATRON_2021,
    MEGATRON_2022,
    MEGATRON_2022_ALL_REDUCE,
    MEGATRON_TE,
    MEGATRON_FP8,
    MEGATRON_RECIPES,
    DEEPSPEED,
    FPDT,
    EASYCONTEXT,
    DEEPSPEED_HUGGING_FACE,
    DEEPSPEED_GPT,
    MEGATRON_DEEPSPEED,
    FLASH_ATTENTION,
    RING_FLASH,
    YUNCHANG,
    MAGI_BASELINES,
    TORCHTITAN,
    TORCHTITAN_EAGER,
    FMS_FSDP,
    MODALITIES,
    LIT_GPT,
    PADDLENLP,
    UNNAMED,
)


def in_eight_bits(framework: Framework) -> Framework:
    """The same code with its layers' products in 8 bits.

    >>> in_eight_bits(TORCHTITAN).habits.product_dtype, in_eight_bits(MEGATRON_RECIPES) is MEGATRON_FP8
    ('fp8', True)
    """
    if framework in (MEGATRON_RECIPES, UNNAMED):
        return MEGATRON_FP8
    if framework is COMPOSER_PURE:
        return COMPOSER_FP8
    habits = replace(framework.habits, product_dtype="fp8", quantise_bytes=COMPOSER_FP8.habits.quantise_bytes)
    return replace(framework, name=f"{framework.name}, products in fp8", habits=habits)
