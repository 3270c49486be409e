"""Rows in the standard columns: what each column and word means, and which words are refused by name."""

import csv
import re
from pathlib import Path

import pytest

from cost_models.errors import InputError
from cost_models.hardware.device_names import device_of
from validation.cases import Case, Refused, price_of
from validation.certificate import HELD_OUT
from validation.rows import FOLDER, Row, files, read
from validation.score import score
from validation.standard import case_of, model_of

CELLS = {
    "source_repo": "pytorch/torchtitan", "source_id": "own", "row": "1", "model": "mine", "layers": "32",
    "hidden": "4096", "ffn": "14336", "heads": "32", "kv_heads": "8", "vocab": "128256", "gpu": "H100-SXM",
    "gpu_mem_gb": "80", "gpus_per_node": "8", "n_gpus": "64", "inter_bw": "8x400 Gb/s", "precision": "bf16",
    "seq_len": "8192", "micro_batch": "1", "global_batch": "64", "tp": "1", "pp": "1", "cp_ring": "1", "ulysses": "1",
    "zero_stage": "3", "sharding": "FSDP2", "recompute": "none", "tokens_s_gpu": "6000", "peak_mem_gb": "70",
    "score": "yes",
}  # fmt: skip


def own_row(**changes: str) -> Row:
    return Row(file="train_own", number="1", score="yes", cells={**CELLS, **changes})


def test_a_name_of_one_of_ours_changes_nothing(tmp_path: Path) -> None:
    """A file named like one of the published ones is read by its columns alone."""
    found = {}
    for name in ("train_own", "train_llm_foundry_mpt", "train_simumax_b200", "train_fpdt_ulysses_offload"):
        with (tmp_path / f"{name}.csv").open("w", newline="") as lines:
            writer = csv.DictWriter(lines, list(CELLS))
            writer.writeheader()
            writer.writerow(CELLS)
        (report,) = score([name], tmp_path)
        (verdict,) = report.verdicts
        found[name] = (verdict.predicted_s, str(verdict.peaks), verdict.framework, verdict.label)
    assert len(set(found.values())) == 1


def test_derived_seconds_of_sc21_follow_the_paper_s_flops() -> None:
    """96 B s l h^2 (1 + s / 6h + V / 16 l h), recompute counted: arXiv 2104.04473, section 3."""
    for row in read("train_megatron_sc21_table2"):
        batch, s, layers, h, vocab = (
            row.count(name) for name in ("global_batch", "seq_len", "layers", "hidden", "vocab")
        )
        flops = 96 * batch * s * layers * h**2 * (1 + s / (6 * h) + vocab / (16 * layers * h))
        rate = row.positive("tflops_gpu") * 1e12 * row.count("n_gpus")
        assert row.positive("iter_s") == pytest.approx(flops / rate, rel=1e-12)
        assert "iter_s" in row.text("inferred")


def test_derived_seconds_of_ulysses_offload_follow_its_code_s_flops() -> None:
    """Four passes with recompute, three without; grouped keys and values not counted; attention causal."""
    for row in read("train_fpdt_ulysses_offload"):
        tokens, layers, h, ffn = (row.count(name) for name in ("seq_len", "layers", "hidden", "ffn"))
        weights = layers * (2 * h**2 + 3 * ffn * h) + row.count("vocab") * h
        forward = 2.0 * tokens * weights + 2.0 * layers * h * tokens**2
        flops = forward * (4 if row.text("recompute") == "full" else 3)
        rate = row.positive("mfu_pct") / 100 * row.count("n_gpus") * 312e12
        assert row.positive("iter_s") == pytest.approx(flops / rate, rel=1e-12)


def test_a_file_of_one_s_own_is_judged(tmp_path: Path) -> None:
    with (tmp_path / "train_own.csv").open("w", newline="") as lines:
        writer = csv.DictWriter(lines, list(CELLS))
        writer.writeheader()
        writer.writerow(CELLS)
    (report,) = score(["train_own"], tmp_path)
    (verdict,) = report.verdicts
    assert verdict.framework.startswith("torchtitan")
    assert verdict.measured_s == 8192 / 6000
    assert 0.3 < verdict.predicted_s / verdict.measured_s < 3


@pytest.mark.parametrize(
    ("text", "memory", "name"),
    [
        ("A100-SXM4-80GB", None, "a100-sxm-80gb"),
        ("A100-40GB", None, "a100-sxm-40gb"),
        ("A100-PCIe", 80.0, "a100-pcie-80gb"),
        ("H200", None, "h200-sxm-141gb"),
        ("NVIDIA L40S", None, "l40s"),
        ("A800-80GB", 80.0, "a800"),
        ("RTX A6000", 48.0, "rtxa6000"),
        ("GeForce RTX 4090", None, "rtx4090"),
        ("RTX PRO 6000", 96.0, "rtx6000-pro"),
        ("RTX 6000 Ada", None, "rtx6000-ada"),
        ("V100-SXM2-16GB", 16.0, "v100-sxm2-16gb"),
        ("A100 SXM 64GB", 64.0, "a100-sxm-64gb"),
        ("H100 SXM", 96.0, "h100-sxm-96gb"),
    ],
)
def test_gpu_names(text: str, memory: float | None, name: str) -> None:
    assert device_of(text, memory).name == name


def test_what_no_column_says_is_refused() -> None:
    with pytest.raises(InputError, match="gpu='Wonder 9' matches no preset; nearest: "):
        case_of(own_row(gpu="Wonder 9"))
    with pytest.raises(InputError, match="layers is blank"):
        case_of(own_row(layers=""))
    with pytest.raises(InputError, match="64 GPUs are no multiple of the 3"):
        case_of(own_row(tp="3"))
    with pytest.raises(InputError, match="no step time"):
        case_of(own_row(tokens_s_gpu=""))
    with pytest.raises(InputError, match="the experts' shape has no standard column"):
        case_of(own_row(ep="8"))
    with pytest.raises(InputError, match="the experts' shape has no standard column"):
        case_of(own_row(n_experts="8", topk="2"))
    with pytest.raises(InputError, match="offload='everything to tape': 'everything' is not understood"):
        case_of(own_row(offload="everything to tape"))
    assert isinstance(case_of(own_row(source_repo="google/maxtext")), Refused)
    with pytest.raises(InputError, match="gated='maybe'; legal: yes, no, or blank"):
        case_of(own_row(gated="maybe"))
    with pytest.raises(InputError, match="recompute='some' is not understood; legal: full, selective"):
        case_of(own_row(recompute="some"))


def case_of_own(**changes: str) -> Case:
    case = case_of(own_row(**changes))
    assert isinstance(case, Case)
    return case


@pytest.mark.parametrize(
    ("gpu", "memory", "per_node", "cluster", "cards"),
    [
        ("H100-SXM", "80", "8", "dgx-h100", 8),
        ("A100-SXM", "80", "8", "dgx-a100", 8),
        ("A100-SXM", "40", "8", "dgx-a100", 8),
        ("A100-SXM", "64", "4", "leonardo", 4),
        ("H100-SXM", "64", "4", "marenostrum5", 4),
        ("H800", "80", "8", "hgx-h800", 8),
        ("GB200", "", "4", "gb200-nvl72", 4),
        ("H100", "", "8", "dgx-h100", 8),
    ],
)
def test_an_unnamed_network_is_the_maker_s(gpu: str, memory: str, per_node: str, cluster: str, cards: int) -> None:
    found = case_of_own(gpu=gpu, gpu_mem_gb=memory, gpus_per_node=per_node, inter_bw="").cluster
    assert (found.name, found.runs[0].node.nics.count) == (cluster, cards)


def test_a_job_of_several_racks_takes_as_much_of_each() -> None:
    # NVIDIA/Megatron-LM's examples for GB200: sbatch --segment=16, of 18 nodes that NVLink joins
    whole = {"gpu": "GB200", "gpu_mem_gb": "", "gpus_per_node": "4", "inter_bw": ""}
    assert case_of_own(**whole, n_gpus="128", global_batch="128").cluster.nodes_per_domain == 16
    assert case_of_own(**whole, n_gpus="64").cluster.nodes_per_domain == 18


def test_words_of_recomputation() -> None:
    kept = {
        text: [(part.recompute, part.count) for part in case_of_own(recompute=text).strategy.layers]
        for text in ("full", "selective", "selective op", "selective layer 1", "selective layer 2", "none")
    }
    assert kept["full"] == kept["selective layer 1"] == [("full", 32)]
    assert (kept["selective"], kept["selective op"]) == ([("core_attention", 32)], [("other_products", 32)])
    assert kept["selective layer 2"] == [("none", 1), ("full", 1)] * 16 and kept["none"] == [("none", 32)]
    thirds = case_of_own(recompute="selective layer 3").strategy.layers
    assert sum(part.count for part in thirds) == 32 and sum(part.recompute == "full" for part in thirds) == 10
    (moved,) = case_of_own(recompute="full", offload="activations to CPU").strategy.layers
    assert (moved.recompute, moved.offload) == ("full", "activations")
    states = [
        case_of_own(offload=text).strategy.offload_states for text in ("optimizer CPU", "optimizer+param CPU", "")
    ]
    assert states == ["optimizer", "all", "none"]


def test_another_card_in_a_named_machine_has_its_own_links() -> None:
    """An H800's NVLink has 200 GB/s one way, also in a row that names the machine of an H100."""
    node = case_of_own(cluster="dgx-h100", device="h800").cluster.runs[0].node
    assert (node.device.name, node.scale_up.link, node.scale_up.bytes_per_s) == ("h800", "nvlink4-h800", 200e9)


def test_words_of_the_remarks_change_the_framework() -> None:
    compiled, eager = case_of_own(), case_of_own(other="eager")
    assert (compiled.framework.activation, eager.framework.activation) == ("fused", "unfused")
    written = case_of_own(source_repo="a/b", other="Hugging Face layers, attention unfused (ALiBi)").framework
    assert (written.attention, written.score_bytes, written.rotary) == ("unfused", 20, "none")
    assert case_of_own(other="attention unfused").framework.score_bytes is None
    assert case_of_own(other="parameters in bf16").workload.precision.master == "bf16"
    assert case_of_own(precision="fp16").workload.precision.param == "fp16"
    assert case_of_own().strategy.loss_chunk_tokens is None
    assert case_of_own(other="chunked loss 8", cp_ring="4").strategy.loss_chunk_tokens == 8192 // 4 // 8


@pytest.mark.parametrize(
    ("repo", "other", "name"),
    [
        ("NVIDIA/Megatron-LM", "", "Megatron-Core + Transformer Engine (2026), products in fp8"),
        ("NVIDIA-NeMo/Megatron-Bridge", "", "Megatron-Bridge recipes, products in fp8"),
        ("pytorch/torchtitan", "float8", "torchtitan: FSDP2 under torch.compile, products in fp8"),
        ("mosaicml/llm-foundry", "", "Composer 0.16 + FSDP1, products in fp8 by Transformer Engine"),
    ],
)
def test_eight_bits_leave_the_rest_of_a_framework_as_it_is(repo: str, other: str, name: str) -> None:
    case = case_of_own(source_repo=repo, other=other, precision="fp8")
    assert case.framework.title == name and case.framework.product_dtype == "fp8"


def test_columns_of_a_shape_that_follow_no_rule() -> None:
    model = case_of_own(head_dim="64", gated="no", tied="no").workload.model
    assert (model.head_dim, model.gated, model.tied_embeddings) == (64, False, False)
    plain = case_of_own(ffn="16384").workload.model
    assert (plain.gated, plain.tied_embeddings, plain.head_dim) == (False, True, 128)
    assert case_of_own(qk_norm="yes").workload.model.qk_norm and not plain.qk_norm


def test_rows_of_qwen3_have_its_norms_of_queries_and_keys() -> None:
    """Whatever shape they print: no column of it says so."""
    rows = [row for name in files(HELD_OUT) for row in read(name, HELD_OUT)]
    named = [row for row in rows if row.cell("model").lower().startswith("qwen3-")]
    assert len(named) > 100 and all(model_of(row).qk_norm for row in named)


def test_presets_stand_in_for_a_blank_shape() -> None:
    case = case_of(own_row(layers="", model="llama-3-8b"))
    assert isinstance(case, Case)
    assert case.workload.model.layers == 32


def test_a_mixture_is_known_by_its_name() -> None:
    row = own_row(model="Qwen3_30B_a3B", layers="", hidden="", ffn="", heads="", kv_heads="", ep="8", zero_stage="1",
                  source_repo="NVIDIA/Megatron-LM")  # fmt: skip
    case = case_of(row)
    assert isinstance(case, Case)
    assert (case.workload.model.name, case.strategy.expert) == ("qwen3-30b-a3b", 8)
    with pytest.raises(InputError, match="the model's name is no preset's"):
        case_of(own_row(model="nobody-8x7b", ep="8"))


def test_a_peer_stands_beside_the_rows_that_carry_it() -> None:
    from validation.score import against_peer

    (report,) = score(["train_simumax_b200"], Path("measurements"))
    (time, ours, theirs), (memory, held, _) = against_peer(report.scored())
    assert (time, memory, ours.rows, held.rows) == ("step time", "peak memory", 24, 24)
    assert theirs.median == pytest.approx(0.0526, abs=0.01)  # the file's own simumax_pred_ms against iter_s
    assert held.median < 0.01


def test_adapters_are_known_by_the_row_s_remarks() -> None:
    whole, adapted = case_of(own_row()), case_of(own_row(other="LoRA, rank 64"))
    assert isinstance(whole, Case) and isinstance(adapted, Case)
    assert (whole.workload.lora_rank, adapted.workload.lora_rank) == (0, 64)
    unsaid = case_of(own_row(other="task=LoRA"))
    assert isinstance(unsaid, Case) and unsaid.workload.lora_rank == 16


@pytest.mark.parametrize(
    ("column", "text", "word"),
    [
        ("inter_bw", "NDR400", "names no rate"),
        ("inter_bw", "InfiniBand 400 Gb/s", "does not say of how many cards"),
        ("inter_bw", "8x400 Gb/s TCPX", "'tcpx' is not understood"),
        ("inter_bw", "8x200 Gb/s, 2:1 oversubscribed", "'2:1' is not understood"),
        ("inter_bw", "Intel OPA (bench 44-90 Gb/s seen)", "is not understood"),
        ("inter_bw", "3.2 Tb/s torus per node", "'torus' is not understood"),
        ("intra_bw", "150 GB/s a pair", "'pair' is not understood"),
        ("intra_bw", "NVLink bridge 600GB/s", "'bridge' is not understood"),
        ("intra_bw", "PCIe 64 GB/s", "this GPU's preset has nvlink4"),
        ("intra_bw", "50 GB/s per port", "the rate of a port"),
        ("precision", "NF4", "'NF4'"),
        ("precision", "int8", "'int8'"),
        ("precision", "tf32", "'tf32' is not understood"),
        ("other", "QLoRA r=16", "'QLoRA'"),
        ("other", "8-bit Adam", "'8-bit'"),
        ("sharding", "HSDP", "does not say over how many ranks"),
        ("sharding", "FSDP over the rest", "'over' is not understood"),
        ("sharding", "MiCS", "'mics' is not understood"),
        ("sharding", "ZeRO-2, ZeRO-3", "names two stages: 2, 3"),
        ("recompute", "full every 2", "is not understood"),
        ("recompute", "selective layer n", "is not understood"),
        ("offload", "NVMe optimizer", "'nvme' is not understood"),
        ("offload", "CPU", "does not say what"),
        ("offload", "activations CPU + chunked KV", "attention_chunk_tokens"),
        ("model", "nobody-8x7b", "the experts' shape has no standard column"),
        ("model", "some-30b-a3b", "the experts' shape has no standard column"),
        ("framework", "nobody-s", "framework 'nobody-s' is unknown"),
    ],
)
def test_a_word_that_is_not_understood_is_named(column: str, text: str, word: str) -> None:
    with pytest.raises(InputError, match=re.escape(word)):
        case_of(own_row(**{column: text}))


def test_a_pipeline_without_a_batch_is_refused_and_its_microbatches_stand_for_it() -> None:
    blank = {"pp": "4", "global_batch": ""}
    with pytest.raises(InputError, match="global_batch is blank: a pipeline's time"):
        case_of(own_row(**blank))
    assert case_of_own(**blank, grad_accum="16").strategy.microbatches == 16
    assert case_of_own(global_batch="").strategy.microbatches == 1


@pytest.mark.parametrize(
    ("text", "cards", "gbit_per_s"),
    [
        ("400 Gb/s per GPU", 8, 400),
        ("400Gbps/GPU", 8, 400),
        ("8x ConnectX-7 NDR 400Gb/s", 8, 400),
        ("4x OPA 100 Gb/s", 4, 100),
        ("8x200 Gb/s HDR IB per node", 8, 200),
        ("2x 200 Gbit/s per GPU", 16, 200),
        ("1600 Gb/s per node RoCE", 8, 200),
        ("3.2 Tb/s EFAv2 per node", 8, 400),
        ("8 × 50 GB/s", 8, 400),
        ("1x100 Gb/s Slingshot", 1, 100),
    ],
)
def test_words_of_a_network(text: str, cards: int, gbit_per_s: float) -> None:
    nics = case_of_own(inter_bw=text).cluster.runs[0].node.nics
    assert (nics.count, nics.bytes_per_s * 8 / 1e9) == (cards, pytest.approx(gbit_per_s))
    kinds = {"OPA": "omni-path", "RoCE": "roce", "Slingshot": "slingshot"}  # a DGX H100's own is InfiniBand
    assert nics.kind == next((kind for word, kind in kinds.items() if word in text), "infiniband")


def test_a_network_has_one_kind() -> None:
    with pytest.raises(InputError, match="names two networks: roce and infiniband; write one"):
        case_of_own(inter_bw="8x200 Gb/s RoCE HDR IB")


@pytest.mark.parametrize(
    ("text", "gbyte_per_s"),
    [("NVLink4 900GB/s", 450), ("NVLink 4 (RECALLED 450 GB/s per direction)", 450), ("600 GB/s bidirectional", 300)],
)
def test_words_of_a_link(text: str, gbyte_per_s: float) -> None:
    assert case_of_own(intra_bw=text).cluster.runs[0].node.scale_up.bytes_per_s == pytest.approx(gbyte_per_s * 1e9)


@pytest.mark.parametrize(
    ("text", "zero", "shard"),
    [("FSDP2", 3, 64), ("HSDP group=8", 3, 8), ("FSDP HYBRID_SHARD", 3, 8), ("FSDP SHARD_GRAD_OP", 2, 64),
     ("distributed optimizer", 1, 64), ("ZeRO-2 over 4", 2, 4), ("zero1 group=-1 (-1 = all dp)", 1, 64),
     ("stage 2", 2, 64), ("DDP", 0, 1), ("none: LoRA, frozen base", 0, 1)],
)  # fmt: skip
def test_words_of_sharding(text: str, zero: int, shard: int) -> None:
    strategy = case_of_own(sharding=text, zero_stage="").strategy
    assert (strategy.zero, strategy.shard) == (zero, shard)


def test_sharding_gradients_of_two_bytes_saves_what_it_printed() -> None:
    """FlagPerf's PaddleNLP, amp_master_grad off: ZeRO-1 shows 58.73 GiB on the device, ZeRO-2 54.01."""
    first, second = read("train_paddle", FOLDER / "later")[12:14]
    one, two = (case_of(row) for row in (first, second))
    assert isinstance(one, Case) and isinstance(two, Case)
    assert one.framework.precision.grad == one.framework.precision.param == "fp16" and not one.row.cell("peak_mem_gb")
    saved = price_of(one).memory["gradients"] - price_of(two).memory["gradients"]
    assert saved / 2**30 == pytest.approx(58.73 - 54.01, abs=0.05)


def test_words_of_precision_and_adapters() -> None:
    assert case_of_own(other="compile, float8").framework.product_dtype == "fp8"
    assert case_of_own(precision="FP8 (MX / subchannel variant)").framework.product_dtype == "fp8"
    assert case_of_own(other="lora_rank=16").workload.lora_rank == 16
    assert case_of_own(other="without LoRA").workload.lora_rank == 0
    named = case_of_own(other="LoRA r=8", lora_targets="qkv out").workload
    assert (named.lora_rank, named.lora_targets) == (8, ("qkv", "out"))
    assert not case_of_own(sharding="FSDP, no sequence parallelism").framework.sequence_parallel
    assert not case_of_own(framework="aleph-alpha").framework.sequence_parallel
    assert case_of_own(framework="aleph-alpha", sharding="sequence parallel").framework.sequence_parallel


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("H100", "h100-sxm-80gb"),
        ("A100", "a100-sxm-80gb"),
        ("H200", "h200-sxm-141gb"),
        ("A100-40GB", "a100-sxm-40gb"),
        ("H100 PCIe", "h100-pcie-80gb"),
    ],
)
def test_a_card_of_no_stated_memory_is_the_reference_node_s(gpu: str, name: str) -> None:
    assert case_of_own(gpu=gpu, gpu_mem_gb="").cluster.runs[0].node.device.name == name
