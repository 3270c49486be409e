"""What was found behind rows that are off: an inferred configuration, a library's age, a missing word of the model.

Notes explain; they change no number and take no row out of the score.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Note:
    file: str
    text: str


NOTES = (
    Note(
        file="op_magi_cp_scaling_digitized",
        text="degrees and baselines are read from the benchmark's code. Full masks run 9 to 15% later than the curve "
        "of unmasked attention has them, in every method; the ring of the causal mask ends 17 to 22% early in forward: "
        "its index gathers and scatters do not reach the rate of memory that their bytes are counted at",
    ),
    Note(
        file="op_usp_ulysses_ring",
        text="rows up to 32K tokens were not run at the transcribed head dim of 32: 32K takes 1/5.7 of 128K's time, "
        "its work is 1/16, and a quarter of what the table's rows of 8 x 128 at 128K take. The versions read of the "
        "benchmark's script agree without settling it: it lists 512, 1024, 4096 and 16384 tokens a GPU (8K, 32K and "
        "128K over 8) and HEAD_SIZE=128 commented out above HEAD_SIZE=32 (scripts/run_qkvpack_compare.sh, 07cf570d); "
        "128 is the default of the argument and, before there was one, fixed. The version of the table's commit is not "
        "at hand. Scored as transcribed; see the inferred readings",
    ),
    Note(
        file="op_usp_ulysses_ring",
        text="512 and 8K tokens wait for the host: calls are counted from the code of April 2024, one time for each "
        "kind of call, of which a message's comes from another source (host.py). 1.8, 4.0 and 5.3 ms are printed for "
        "three runs of the same calls (packed, ulysses 8, 512 tokens), and packed ulysses 8 takes 4.2 ms at 8K where "
        "unpacked, with twice the calls, takes 3.2: other work on the hosts, which decides the worst regret. Later "
        "versions of the unpacked script, of later dates, synchronise after each pass, the packed one does not: "
        "unpacked rows may wait for host and device one after the other",
    ),
    Note(
        file="op_usp_ulysses_ring",
        text="packed plain rings: rows 157 and 163 (8 x 128) take as long as rows 67 and 74 (32 x 32), and row 73 ran "
        "out of memory; nothing in the code differs from zigzag and striped, which take the packed tensor the same "
        "way and lose nothing, so these rows look like runs of the sweep before",
    ),
    Note(
        file="op_usp_ulysses_ring",
        text="few heads on a GPU end early without a ring too (8 x 128 over ulysses 8): FlashAttention-2 starts tiles "
        "with the most keys last, and half of the longest, at 2 x 1,024 tiles on 108 SMs, is 5% of the whole",
    ),
    Note(
        file="op_usp_ulysses_ring",
        text="ring 8 ends 8 to 16% early where a hop carries 134 MB (32 x 32 and 8 x 128), 10% at 33 MB and little "
        "blocks, 2 to 5% at 33 MB and blocks of 15 ms (64 heads on 8 of keys): a hop shows for longer than all of it "
        "takes alone. Rings of the same sweep ran out of memory at 1% of it, so other work may have been on the GPUs",
    ),
    Note(
        file="op_ring_flash_attention",
        text="striped rings end 6 to 9% early: a block shifted by one token has odd lengths, for which flash-attn's "
        "kernels check their bounds; not modelled. Rings of both passes end 2 to 6% early",
    ),
    Note(
        file="train_llm_foundry_mpt",
        text="small models on many H100 are up to 8% early: their step grows by more from 128 to 512 GPUs than "
        "latencies and bytes give",
    ),
    Note(
        file="train_llm_foundry_mpt",
        text="the same model takes 9 to 14% longer per token on the 40 GB cards than on the 80 GB ones, of which "
        "memory bandwidth explains a third: other software or clocks, not stated",
    ),
    Note(
        file="train_llm_foundry_mpt",
        text="rows whose states fill the GPU (13B on 8 × 40 GB, 30B on 8 × 80 GB) are about 20% slower than the "
        "same model on more GPUs, as when the allocator frees and asks again; not modelled",
    ),
    Note(
        file="train_internevo",
        text="over 1,024 GPUs rows without recompute end 6 to 22% early, with it they are met: an all-reduce beside a "
        "backward pass of 0.65 s then shows, one beside a second does not. 1.2 s for it would explain both; the cards' "
        "rates give 0.65. Rows of 4, 2 and 1 microbatches disagree by 0.3 s about what one takes. Owners over 256 and "
        "more ranks send a tensor each, in 8 us a rank where NCCL counts 4",
    ),
    Note(
        file="train_megatron_sc21_table2",
        text="ZeRO-3 rows: half of the time is DeepSpeed's list-form collectives of 2021, two eager operators of 10 "
        "us for each rank, gather and matrix; that host time is not measured for this code, and the 384-GPU pair, 6% "
        "apart, comes out as a tie",
    ),
    Note(
        file="train_simumax_b200",
        text="dense rows: the time is of two iterations, the second and third of a run of three, and scatters: "
        "tensor 8 takes 69 ms for each of microbatches 5 to 8 and 63 for 9 to 32, tensor 1 158 and 165. So 8 "
        "microbatches at tensor 8 are early and 32 are met, tensor 4 is 2 to 5% late and tensor 1 at 32 microbatches "
        "3% early. One gap of 30 us beside each operator stands for a host that is ahead at tensor 1 and close behind "
        "at 8",
    ),
    Note(
        file="train_simumax_b200",
        text="experts: grouped products and attention with keys of 192 and values of 128 are fitted to the tables of "
        "the same board. 32 microbatches are within 2%, 4 up to 5% early: what a step of DeepSeek takes beside its "
        "microbatches (optimizer, sums over replicas and their waits) is up to 30 ms longer than counted. That "
        "attention's forward is 1.0 to 1.7 of the curve by its length, and one ratio stands for it",
    ),
    Note(
        file="train_simumax_b200",
        text="the allocator held 3 to 7% more than was allocated at the peak; a flat slack of 3% of what comes and "
        "goes gives less than 1%, so reserved memory is predicted 3 to 6% low in every row: how blocks fragment over "
        "microbatches and stages is not modelled",
    ),
    Note(
        file="train_megatron_bridge",
        text="the LoRA row adapts the joined query, key and value product alone, as its recipe says; the rank is the "
        "70B recipe's 16, which moves the time by less than 1%",
    ),
    Note(
        file="train_fpdt_ulysses_offload",
        text="utilisation is read as the code counts it, recomputation as a fourth pass, but with causal attention. As "
        "PaLM counts (whole attention, three passes) the times would be 1.4 to 1.5 times as long and every row 35 to "
        "70% early: attention at 110 to 130 TFLOP/s, 60% of what FlashAttention-2 does on this GPU, with and without "
        "chunks alike. As read, ulysses at 512K and chunks at 4M are met within 4 to 8%; tensor parallelism over two "
        "nodes stays 25 to 49% early, as if its all-reduces went by rings and not by trees or the card, which is not "
        "stated, had half the rate; and steps of 10 to 16 s at 64K miss 4 to 8 s: not found",
    ),
    Note(
        file="train_fpdt_ulysses_offload",
        text="network and vocabulary of the runs are not printed; the launch script beside the code takes GPT-2's, and "
        "with it and 14 B per logit the rows with recompute are met within 6% of their memory, but tensor parallelism "
        "with offload, which is 14% low: its loss is the peak, and one more fp32 copy of the logits would close all "
        "three tensor-parallel rows, but the code (tensor_parallel/cross_entropy.py) makes none: cause not found",
    ),
    Note(
        file="train_fpdt_ulysses_offload",
        text="at 64K tokens without recompute ZeRO-1 and -2 print less memory than weights, states and what 32 layers "
        "keep add up to, more so with keys and values repeated to all heads, as the code does (over by a quarter); "
        "they used 15% of the peak, a quarter of what the kernels take: not found. Between ZeRO-1 and -3 7 GiB are "
        "printed where resident weights alone differ by 12. If the MLP was GELU of the same width, which is all that "
        "the public code of the last row runs, the three rows at 64K are met within 7%, and those of tensor "
        "parallelism come out 10 to 18% low: either reading leaves a third of the table out",
    ),
    Note(
        file="train_fpdt_ulysses_offload",
        text="the 4M row: chunk, slices of the MLP (half a chunk's tokens) and of the loss (1/32) are those of the "
        "script and code. Copies to and from the host hide behind the blocks whole, so its time is as early as "
        "that of 512K without chunks. Of the 68.0 GiB printed 47 are found: states, seven tensors of a rank's 512K "
        "tokens by 4,096 (4 GiB each), the rotary tables of the row, buffers of chunks; 21 GiB, five more such "
        "tensors, are in no line of the code that was read: not found. The public code's MLP is GELU with biases, so "
        "a Llama of SwiGLU ran on another version",
    ),
    Note(
        file="train_deepspeed_figures_digitized",
        text="out-of-memory labels: GPT shapes are those of the launch script beside the code. Four Ulysses curves ran "
        "out where each GPU has 64K tokens and 25 to 30 GiB of states (6.7B and Llama3-8B on 4, 13B on 8, 30B on 16), "
        "predicted at 88 to 93% of 80 GiB. The table of the same runs prints 60.1 for 64K tokens and 15 GiB of states "
        "(59.1 predicted), so what is allocated fits in all four, with 13 GiB in one fp32 copy of the logits: what ran "
        "out is the allocator's room between blocks of that size, which a flat slack of 3% does not see",
    ),
    Note(
        file="train_deepspeed_figures_digitized",
        text="of the last points that ran, Llama3-70B over tensor 32 at 512K is predicted 16% and GPT-13B over tensor "
        "8 2% over 80 GiB: the figure calls them Megatron-SP, and the reading has no sequence parallelism, as the "
        "table of the same authors must be read. Eight key heads cannot be cut in 32 by that code, so that the 70B "
        "curve was not run as the row says",
    ),
    Note(
        file="train_dgxc_nemo",
        text="collected after the model was built; first prediction 15.8% median, all late (8-bit rows 5.8%): the "
        "bf16 rows were read as a launcher without overlap, and the recipes overlap; on GB200 a stage's 32 GPUs "
        "were laid over the border of the 72 that NVLink joins, where launchers take 64 of each. Left: 8% early, "
        "evenly from 16 to 2,048 GPUs and on both cards (under load a card may clock lower than in the curve's "
        "runs); LoRA 9 to 14% late, in 8 bits 16 to 31%. MaxText's policy of recomputation is not printed, "
        "Grok-1's experts are no preset",
    ),
    Note(
        file="train_torchtitan",
        text="collected after the model was built; first prediction 23.2% median (8-bit rows 14.0%): no preset of "
        "Meta's 500 W, 2.4 TB/s cards, `selective op` and `eager` without words, a network nobody named read as "
        "four 100 Gbit/s cards. `selective op` computes three of seven products again (37% of the work); the "
        "nearest policy here, `mlp`, two of them (54%), and keeps less: memory is 11 to 19% low on H100, and 17 "
        "to 19% high for the same configuration half a year later on H200. Left: 64 A100 6 to 12% early; Meta's "
        "cards 18 to 20% when compiled, 25 to 27% when not (the source does not know their peak either); "
        "DTensor's eager tensor parallelism 36 to 38%; context parallel 4 and 8 in 8 bits 44 to 47%, which leaves half "
        "of FlashAttention-2's rate: cause not found",
    ),
    Note(
        file="train_modalities",
        text="collected after the model was built; first prediction 21.5% median: neither machine had a preset, and "
        "the A100 of 124 multiprocessors and the H100 of 64 GB were read as standard cards. Heads, vocabulary "
        "and width of the MLP are inferred (the printed utilisation gives layers and hidden exactly), and so is "
        "the bandwidth of the 64 GB H100. Left: on up to 64 GPUs Leonardo is 10% late in the mean, below 512 "
        "MareNostrum 11% early; from 128 GPUs of Leonardo on 18% and up to 53%, from 512 of MareNostrum on 21% and up "
        "to 67%: shared networks of many racks lose far more than latencies and an oversubscription of 1; neighbouring "
        "rows differ by up to 20% there",
    ),
    Note(
        file="train_modalities",
        text="what hidden collectives take was once counted as NCCL's multiprocessors and memory alone, 0.1 to 0.4 s "
        "of computation for each of their seconds between nodes; that left this file 21%, fms-fsdp's 17% and "
        "torchtitan's A100 12% early. What was measured inside a node (0.61 s) leaves 9, 6 and 9%, close to the 7% of "
        "dgxc's rows, which hide little, and 10% late on up to 64 GPUs of Leonardo",
    ),
    Note(
        file="train_fms_fsdp",
        text="collected after the model was built; first prediction 18.7% median, all late: read as this project's "
        "eager layers. Left: models that shard inside a node 5 to 21% early, over all nodes from 6% early to 14% late. "
        "The readme prints no network and is priced on DGX's, 1,600 Gbit/s a node; the blog's A100 have 400, and may "
        "be the same machine",
    ),
    Note(
        file="train_paddle",
        text="collected after the model was built; first prediction 2.9% median, memory 14.6%: its sequence_parallel "
        "is off, so that norms are kept whole. Left: 13B with ALiBi 20% and tensor 2 on 40 GB cards 15 to 21% "
        "early",
    ),
    Note(
        file="train_flagperf",
        text="collected after the model was built; first prediction 12.2% median (8-bit rows 23.9%: a launcher "
        "without the recipes' overlap). Left: Baichuan2-13B 38 to 51% early, whose attention with ALiBi is "
        "written out in eager operators with more copies than scores, softmax and product; Llama3-8B over tensor "
        "2 is 11 to 13% early",
    ),
    Note(
        file="train_vectorlm",
        text="collected after the model was built; first prediction 2.3% median. One GPU alone is 7 to 14% late: "
        "there FSDP shards nothing and its update is priced in fp32 for 8B weights, which one card cannot hold; "
        "the code's dtype on one GPU is not printed",
    ),
    Note(
        file="train_trl_context_parallel",
        text="collected after the model was built; at first all were refused: `offload` had words for nothing that "
        "their hosts keep. Context parallelism is 17 to 21% early. 500 TFLOP/s are reached through all of 364 s "
        "(8B, 1M tokens), more than FlashAttention-2 gives on Hopper, so SDPA took a newer kernel; keys and "
        "values are gathered whole, which a ring is priced for, and which takes memory that is not counted "
        "(0.6B: 13 GiB for 28). The experts' eager loop frees what `full` here keeps",
    ),
    Note(
        file="train_trl_context_parallel",
        text="ulysses with the optimizer on the host (DeepSpeed): 28, 33 and 39 s for steps of 8 microbatches of 8K, "
        "32K and 64K tokens leave 27 s that no token takes, 3.4 s a microbatch: ZeRO-3 may bring every "
        "microbatch's gradients to the host and add them there, which is priced once a step and not for each. "
        "Memory is 30 to 66% low: not found",
    ),
)
