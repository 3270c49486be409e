"""Rows of a file without a reader: the standard columns say the same as the reader that somebody wrote."""

import csv
from pathlib import Path

import pytest

from cost_models.errors import InputError
from validation.cases import Case, Refused, case_of
from validation.judge import judge
from validation.machines import device_of
from validation.rows import Row, read
from validation.standard import standard_case

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


@pytest.mark.parametrize("file", ["train_llm_foundry_mpt", "train_internevo", "train_megatron_recompute_2205.05198"])
def test_standard_columns_agree_with_the_file_s_reader(file: str) -> None:
    checked = 0
    for row in read(file):
        known = case_of(row)
        if isinstance(known, Refused) or row.score != "yes":
            continue
        found = standard_case(row)
        assert isinstance(found, Case)
        assert found.strategy.ranks == known.strategy.ranks
        for name in ("data", "tensor", "pipeline", "virtual", "zero", "shard", "microbatches", "layers"):
            assert getattr(found.strategy, name) == getattr(known.strategy, name), name
        assert found.workload.model.layer_params == known.workload.model.layer_params
        assert found.measured_s == pytest.approx(known.measured_s, rel=1e-3)
        assert found.cluster.runs[0].node.device.name == known.cluster.runs[0].node.device.name
        checked += 1
    assert checked > 5


def test_a_file_of_one_s_own_is_judged(tmp_path: Path) -> None:
    with (tmp_path / "train_own.csv").open("w", newline="") as lines:
        writer = csv.DictWriter(lines, list(CELLS))
        writer.writeheader()
        writer.writerow(CELLS)
    (report,) = judge(["train_own"], tmp_path)
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
    with pytest.raises(InputError, match="gpu='Wonder 9' is no preset; legal: "):
        standard_case(own_row(gpu="Wonder 9"))
    with pytest.raises(InputError, match="layers is blank"):
        standard_case(own_row(layers=""))
    with pytest.raises(InputError, match="64 GPUs are no multiple of the 3"):
        standard_case(own_row(tp="3"))
    with pytest.raises(InputError, match="no step time"):
        standard_case(own_row(tokens_s_gpu=""))
    assert isinstance(standard_case(own_row(ep="8")), Refused)
    assert isinstance(standard_case(own_row(offload="everything to tape")), Refused)
    assert isinstance(standard_case(own_row(source_repo="google/maxtext")), Refused)
    with pytest.raises(InputError, match="gated='maybe'; legal: yes, no, or blank"):
        standard_case(own_row(gated="maybe"))
    with pytest.raises(InputError, match="recompute='some' has no words; legal: full, selective"):
        standard_case(own_row(recompute="some"))


def case_of_own(**changes: str) -> Case:
    case = standard_case(own_row(**changes))
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
    assert (kept["selective"], kept["selective op"]) == ([("core_attention", 32)], [("mlp", 32)])
    assert kept["selective layer 2"] == [("none", 1), ("full", 1)] * 16 and kept["none"] == [("none", 32)]
    thirds = case_of_own(recompute="selective layer 3").strategy.layers
    assert sum(part.count for part in thirds) == 32 and sum(part.recompute == "full" for part in thirds) == 10
    (moved,) = case_of_own(recompute="full", offload="activations to CPU").strategy.layers
    assert (moved.recompute, moved.offload) == ("full", "activations")
    states = [
        case_of_own(offload=text).strategy.offload_states for text in ("optimizer CPU", "optimizer+param CPU", "")
    ]
    assert states == ["optimizer", "all", "none"]


def test_words_of_the_remarks_change_the_framework() -> None:
    compiled, eager = case_of_own(), case_of_own(other="eager")
    assert (compiled.framework.habits.activation, eager.framework.habits.activation) == ("fused", "unfused")
    assert case_of_own(other="attention unfused").framework.habits.attention == "unfused"
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
    assert case.framework.name == name and case.framework.habits.product_dtype == "fp8"


def test_columns_of_a_shape_that_follow_no_rule() -> None:
    model = case_of_own(head_dim="64", gated="no", tied="no").workload.model
    assert (model.head_dim, model.gated, model.tied_embeddings) == (64, False, False)
    plain = case_of_own(ffn="16384").workload.model
    assert (plain.gated, plain.tied_embeddings, plain.head_dim) == (False, True, 128)


def test_presets_stand_in_for_a_blank_shape() -> None:
    case = standard_case(own_row(layers="", model="llama-3-8b"))
    assert isinstance(case, Case)
    assert case.workload.model.layers == 32


def test_a_mixture_is_known_by_its_name() -> None:
    row = own_row(model="Qwen3_30B_a3B", layers="", hidden="", ffn="", heads="", kv_heads="", ep="8", zero_stage="1",
                  source_repo="NVIDIA/Megatron-LM")  # fmt: skip
    case = standard_case(row)
    assert isinstance(case, Case)
    assert (case.workload.model.name, case.strategy.expert) == ("qwen3-30b-a3b", 8)
    unknown = standard_case(own_row(model="nobody-8x7b", ep="8"))
    assert isinstance(unknown, Refused) and "is no preset's" in unknown.reason


def test_a_peer_stands_beside_the_rows_that_carry_it() -> None:
    from validation.peers import beside

    (report,) = judge(["train_simumax_b200"], Path("measurements"))
    (time, ours, theirs), (memory, held, _) = beside(report.scored())
    assert (time, memory, ours.rows, held.rows) == ("step time", "peak memory", 24, 24)
    assert theirs.median == pytest.approx(0.0526, abs=0.01)  # the file's own simumax_pred_ms against iter_s
    assert held.median < 0.01


def test_adapters_are_known_by_the_row_s_remarks() -> None:
    whole, adapted = standard_case(own_row()), standard_case(own_row(other="LoRA, rank 64"))
    assert isinstance(whole, Case) and isinstance(adapted, Case)
    assert (whole.workload.lora_rank, adapted.workload.lora_rank) == (0, 64)
    unsaid = standard_case(own_row(other="task=LoRA"))
    assert isinstance(unsaid, Case) and unsaid.workload.lora_rank == 16
