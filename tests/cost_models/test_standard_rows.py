"""Rows of a file without a reader: the standard columns say the same as the reader that somebody wrote."""

import csv
from pathlib import Path

import pytest

from cost_models.errors import InputError
from cost_models.validation.cases import Case, Refused, case_of
from cost_models.validation.judge import judge
from cost_models.validation.rows import Row, read
from cost_models.validation.standard import device_of, standard_case

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
    assert isinstance(standard_case(own_row(offload="optimizer CPU")), Refused)


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
    from cost_models.validation.peers import beside

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
