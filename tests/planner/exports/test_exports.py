"""Exports are read by the released packages that they are for, say the plan's degrees, or are refused by name."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml

from cost_models import Cluster, InputError, LayerRange, Placement, Strategy
from cost_models.workload import Precision
from planner.exports.export import LAUNCHERS, TARGETS, Export, export
from planner.exports.megatron import files as megatron_files
from planner.plan_file import Plan
from planner.targets.target import Target
from tests.executor.planned import make_plan

BF16 = Precision()
BOTH = Strategy(data=2, ring=4, ulysses=8, shard=64, zero=3)
"""On 8 nodes of 8: two rows at once, each over 32 ranks."""


def plan_of(strategy: Strategy, *, nodes: int = 8, mode: str = "train", **given) -> Plan:
    cluster = Cluster.load("dgx-h100", nodes=nodes)
    plan = make_plan(
        strategy, **{"cluster": cluster, "model": "longvila-8b", "tokens": 2**15, "precision": BF16} | given
    )
    return replace(plan, workload=replace(plan.workload, mode=mode))


def recomputing(strategy: Strategy, **layers: int) -> Strategy:
    return replace(strategy, layers=tuple(LayerRange(recompute=name, count=many) for name, many in layers.items()))


def flags(made: Export, name: str) -> dict[str, str]:
    lines = [line for line in made.files[name].splitlines() if line.startswith("--")]
    return {line.partition(" ")[0].removeprefix("--"): line.partition(" ")[2] for line in lines}


def test_megatron_core_takes_its_flags() -> None:
    transformer = pytest.importorskip("megatron.core.transformer.transformer_config")
    said = flags(megatron_files(plan_of(recomputing(BOTH, full=16, none=16)), ""), "megatron.args")
    names = {
        "tensor_model_parallel_size": int, "pipeline_model_parallel_size": int, "context_parallel_size": int,
        "hierarchical_context_parallel_sizes": lambda text: [int(size) for size in text.split()],
        "cp_comm_type": str, "num_layers": int, "hidden_size": int, "ffn_hidden_size": int, "kv_channels": int,
        "num_attention_heads": int, "num_query_groups": int, "recompute_granularity": str, "recompute_method": str,
        "recompute_num_layers": int,
    }  # fmt: skip
    read = {name: kind(said[name.replace("_", "-")]) for name, kind in names.items()}
    found = transformer.TransformerConfig(**read, params_dtype=None, bf16=True)
    assert (found.recompute_method, found.recompute_num_layers) == ("block", 16)
    assert (found.context_parallel_size, found.hierarchical_context_parallel_sizes) == (32, [8, 4])
    assert (found.cp_comm_type, found.num_query_groups) == ("a2a+p2p", 8)
    assert {"use-megatron-fsdp", "group-query-attention", "bf16"} <= set(said)


def test_megatron_core_takes_tensor_and_pipeline_degrees_of_a_plan_made_for_it() -> None:
    """What the price assumes is switched on, and 20 of 32 layers are 5 of each of 4 chunks."""
    transformer = pytest.importorskip("megatron.core.transformer.transformer_config")
    strategy = Strategy(
        data=8, tensor=4, pipeline=2, virtual=2, schedule="interleaved", microbatches=2, shard=8, zero=1,
        loss_chunk_tokens=None,
    )  # fmt: skip
    plan = replace(plan_of(recomputing(strategy, full=20, none=12), batch=16), target=Target.load("megatron"))
    made = export(plan, "megatron")
    said = flags(made, "megatron.args")
    names = {
        "tensor_model_parallel_size": int, "pipeline_model_parallel_size": int, "num_layers": int, "hidden_size": int,
        "num_attention_heads": int, "num_query_groups": int, "recompute_granularity": str, "recompute_method": str,
        "recompute_num_layers": int,
    }  # fmt: skip
    read = {name: kind(said[name.replace("_", "-")]) for name, kind in names.items()}
    chunks = int(said["num-virtual-stages-per-pipeline-rank"])
    found = transformer.TransformerConfig(
        **read, virtual_pipeline_model_parallel_size=chunks, sequence_parallel="sequence-parallel" in said, bf16=True,
        pipeline_dtype="bf16", params_dtype=None, tp_comm_overlap="tp-comm-overlap" in said,
    )  # fmt: skip
    assert (found.tensor_model_parallel_size, found.pipeline_model_parallel_size, chunks) == (4, 2, 2)
    assert found.recompute_num_layers == 5 and found.tp_comm_overlap
    assert {"overlap-grad-reduce", "overlap-param-gather", "grad-reduce-in-bf16"} <= set(said)
    assert (said["micro-batch-size"], said["global-batch-size"]) == ("1", "16") and not made.notes


def test_a_plan_for_another_program_starts_no_executor() -> None:
    plan = replace(plan_of(BOTH), target=Target.load("megatron"))
    with pytest.raises(
        InputError, match="--to slurm starts this executor, and the plan is for megatron; legal: megatron"
    ):
        export(plan, "slurm")
    assert any("priced for mmsp, not for megatron" in note for note in export(plan_of(BOTH), "megatron").notes)


def test_heads_that_a_target_cannot_share_are_refused_and_what_has_no_export_is_not_called_legal() -> None:
    """Of 8 KV heads Megatron's exchange gives 16 ranks none; DeepSpeed copies them."""
    wide = plan_of(Strategy(data=4, ulysses=16, shard=64, zero=2))
    with pytest.raises(InputError, match=r"ulysses=16 of 32 query and 8 KV heads; legal: 1, 2, 4, 8 \(plan with --fix"):
        export(wide, "megatron")
    assert export(wide, "deepspeed").files
    for name in ("alst", "fpdt", "untied-ulysses"):
        with pytest.raises(InputError, match=f"the plan is for {name}; legal: plan with --for mmsp"):
            export(replace(wide, target=Target.load(name)), "slurm")


def test_a_stage_and_a_group_of_shards_that_a_target_lacks_are_said() -> None:
    ring = plan_of(Strategy(data=2, ring=32, shard=64, zero=1))
    assert "zero=1: it runs as ZeRO-2" in export(ring, "accelerate").notes
    assert not any("zero" in note for note in export(replace(ring, strategy=Strategy(ring=64, zero=0)), "trl").notes)
    ulysses = plan_of(Strategy(data=8, ulysses=8, shard=8, zero=3))
    for name in ("accelerate", "deepspeed", "ms-swift", "trl"):
        assert "shard=8: DeepSpeed shards over all of data x context" in export(ulysses, name).notes


def test_the_hosts_of_the_plan_are_the_exports() -> None:
    named = Cluster.load("dgx-h100", gpus=16, hosts=("gpu007", "gpu008"))
    plan = make_plan(Strategy(ring=16), cluster=named)
    text = export(plan, "torchrun").files["torchrun.txt"]
    assert "--master-addr=gpu007" in text and "--host=gpu008 --hosts=gpu007,gpu008" in text and "HOST0" not in text
    assert "#SBATCH --nodelist=gpu[007-008]\n" in export(plan, "slurm").files["job.sh"]


def test_deepspeed_has_the_keys_that_it_is_given() -> None:
    """Keys of deepspeed.ai/docs/config-json, 0.19, and `sequence_parallel_size` (deepspeed/runtime/config.py)."""
    strategy = Strategy(data=8, ulysses=8, shard=64, zero=3, offload_states="optimizer")
    config = json.loads(export(plan_of(strategy), "deepspeed").files["ds_config.json"])
    assert set(config) == {
        "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "sequence_parallel_size",
        "bf16", "zero_optimization",
    }  # fmt: skip
    assert config["zero_optimization"] == {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": True}}
    assert config["sequence_parallel_size"] * config["train_batch_size"] == 64


def test_deepspeed_takes_its_config(tmp_path) -> None:
    pytest.importorskip("deepspeed")
    made = export(plan_of(Strategy(data=8, ulysses=8, shard=64, zero=3, microbatches=2), batch=32), "deepspeed")
    path = tmp_path / "ds_config.json"
    path.write_text(made.files["ds_config.json"])
    text = (
        "import sys\nfrom deepspeed.runtime.config import DeepSpeedConfig\n"
        "class Mesh:\n    get_sequence_parallel_world_size = staticmethod(lambda: 8)\n"
        "from unittest import mock\nimport deepspeed.comm as dist\n"
        "with mock.patch.object(dist, 'get_rank', return_value=0), "
        "mock.patch.object(dist, 'get_world_size', return_value=64):\n"
        "    c = DeepSpeedConfig(sys.argv[1], Mesh())\n"
        "print(c.zero_optimization_stage, c.train_batch_size, c.train_micro_batch_size_per_gpu, "
        "c.gradient_accumulation_steps)"
    )
    done = subprocess.run(
        [sys.executable, "-c", text, str(path)], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-4:] == ["3", "32", "2", "2"]


@pytest.mark.parametrize(
    ("strategy", "size", "degree"),
    [(Strategy(data=2, ring=32, shard=64, zero=3), "cp_size", 32),
     (Strategy(data=8, ulysses=8, shard=64, zero=3), "sp_size", 8)],
)  # fmt: skip
def test_accelerate_takes_its_config(strategy: Strategy, size: str, degree: int, tmp_path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.parallelism_config import ParallelismConfig

    made = export(plan_of(strategy), "accelerate")
    path = tmp_path / "accelerate.yaml"
    path.write_text(made.files["accelerate.yaml"])
    found = load_config_from_file(str(path))
    assert (found.num_machines, found.num_processes) == (8, 64)
    prefix = "parallelism_config_"
    given = {name.removeprefix(prefix): value for name, value in found.parallelism_config.items()}
    kept = {name: value for name, value in given.items() if "strategy" not in name and "seq" not in name}
    sizes = ParallelismConfig(**kept)
    assert getattr(sizes, size) == degree
    assert sizes.total_size == (64 if size == "cp_size" else degree)
    assert ("ds_config.json" in made.files) == (size == "sp_size")


def test_trl_takes_its_script_settings(tmp_path) -> None:
    trl = pytest.importorskip("trl")
    made = export(plan_of(recomputing(Strategy(data=8, ulysses=8, shard=64, zero=3), full=32)), "trl")
    values = yaml.safe_load(made.files["sft.yaml"])
    found = trl.SFTConfig(output_dir=str(tmp_path), use_cpu=True, **{**values, "bf16": False})
    assert (found.max_length, found.gradient_checkpointing) == (2**15, True)
    assert found.per_device_train_batch_size == 1


def test_kubeflow_takes_its_job() -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models")
    made = export(plan_of(BOTH), "kubeflow", "plan.json")
    job = models.TrainerV1alpha1TrainJob.from_dict(json.loads(made.files["trainjob.json"]))
    assert (job.spec.trainer.num_nodes, job.spec.trainer.num_proc_per_node) == (8, 8)
    assert job.spec.trainer.command[-1] == "plan.json"


TORCHTITAN = {
    "training.seq_len", "training.local_batch_size", "training.global_batch_size",
    "parallelism.data_parallel_replicate_degree", "parallelism.data_parallel_shard_degree",
    "parallelism.fsdp_reshard_after_forward", "parallelism.context_parallel_degree",
    "parallelism.tensor_parallel_degree", "parallelism.pipeline_parallel_degree",
    "parallelism.pipeline_parallel_schedule", "parallelism.pipeline_parallel_microbatch_size",
    "parallelism.pipeline_parallel_layers_per_stage", "parallelism.pipeline_parallel_first_stage_less_layers",
    "parallelism.pipeline_parallel_last_stage_less_layers",
}  # fmt: skip
"""Fields of `TrainingConfig` and `ParallelismConfig` in torchtitan 0.3.0 (torchtitan/config/configs.py); its
package asks for a `datasets` that trl's does not allow, so it is not installed here."""


def test_torchtitan_has_the_flags_that_it_is_given() -> None:
    strategy = Strategy(data=2, ring=4, tensor=4, pipeline=2, microbatches=4, shard=8, zero=3)
    said = flags(export(plan_of(recomputing(strategy, mlp=32), batch=8), "torchtitan"), "torchtitan.args")
    assert set(said) == TORCHTITAN
    degrees = [int(value) for name, value in said.items() if name.endswith("_degree")]
    assert np.prod(degrees) == 64
    assert said["training.local_batch_size"] == "4" and said["parallelism.pipeline_parallel_microbatch_size"] == "1"


def test_ms_swift_splits_the_size_itself() -> None:
    """It makes ulysses = gcd(size, KV heads) (swift/sequence_parallel/sequence_parallel.py of 4.6.0)."""
    made = export(plan_of(BOTH), "ms-swift")
    assert flags(made, "swift.args")["sequence_parallel_size"] == "32"
    with pytest.raises(InputError, match=r"cannot hold ring=8 with ulysses=4: of 32 ranks it makes ulysses=8"):
        export(plan_of(replace(BOTH, ring=8, ulysses=4)), "ms-swift")


def test_vllm_serves_a_decode_plan() -> None:
    """Flags of `vllm serve` (docs.vllm.ai, engine arguments of 0.11 and later)."""
    made = export(plan_of(Strategy(tensor=8), nodes=1, mode="decode"), "vllm")
    assert flags(made, "vllm.args") == {
        "tensor-parallel-size": "8", "pipeline-parallel-size": "1", "data-parallel-size": "1",
        "max-model-len": "32768", "max-num-seqs": "1", "gpu-memory-utilization": "0.9", "dtype": "bfloat16",
    }  # fmt: skip
    cut = flags(export(plan_of(Strategy(tensor=16, cache_context=2), nodes=2, mode="decode"), "vllm"), "vllm.args")
    assert (cut["tensor-parallel-size"], cut["decode-context-parallel-size"]) == ("16", "2")


def test_skypilot_asks_for_the_cards() -> None:
    """Keys of a task's YAML (docs.skypilot.co, 0.14)."""
    task = yaml.safe_load(export(plan_of(BOTH), "skypilot", "a plan's.json").files["sky.yaml"])
    assert set(task) == {"name", "num_nodes", "resources", "workdir", "run"}
    assert (task["num_nodes"], task["resources"]) == (8, {"accelerators": "H100:8"})
    assert """executor launch 'a plan'"'"'s.json'""" in task["run"]


def test_torchrun_starts_what_each_host_has() -> None:
    cluster = Cluster.load("dgx-h100", nodes=2)
    places = Placement(slot_of_rank=np.array([0, 0, 0, 1]), gpu_of_rank=np.array([0, 1, 2, 0]))
    plan = make_plan(Strategy(ring=4), cluster=cluster, placement=places)
    text = export(plan, "torchrun").files["torchrun.txt"]
    assert "--node-rank=0 --nproc-per-node=3" in text and "--node-rank=1 --nproc-per-node=1" in text
    with pytest.raises(InputError, match="as many ranks on every host; this plan has 1, 3: use --to torchrun"):
        export(plan, "kubeflow")


@pytest.mark.parametrize(
    ("target", "strategy", "words"),
    [
        ("torchtitan", BOTH, "--to torchtitan cannot hold ulysses=8; legal: 1"),
        ("deepspeed", BOTH, "--to deepspeed cannot hold ring=4; legal: 1"),
        ("accelerate", BOTH, "--to accelerate cannot hold ring=4 with ulysses=8; legal: one of them 1"),
        ("trl", BOTH, "--to trl cannot hold ring=4 with ulysses=8"),
        ("vllm", BOTH, "takes plans with mode=decode or prefill; this one has mode=train"),
        ("megatron", replace(BOTH, mlp_chunk_tokens=512), "no word for mlp_chunk_tokens=512"),
        ("flexflow", BOTH, "--to 'flexflow' is unknown; legal: torchrun, slurm"),
    ],
)  # fmt: skip
def test_a_plan_that_a_target_cannot_hold_is_refused(target: str, strategy: Strategy, words: str) -> None:
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        export(plan_of(strategy), target)


RING, ULYSSES = Strategy(ring=64, shard=64, zero=3), Strategy(data=8, ulysses=8, shard=64, zero=3)
OF_OTHERS = {"megatron": BOTH, "torchtitan": RING, "deepspeed": ULYSSES, "accelerate": RING, "trl": ULYSSES,
             "ms-swift": BOTH}  # fmt: skip


@pytest.mark.parametrize("target", OF_OTHERS)
def test_other_work_than_the_framework_would_do_is_refused(target: str) -> None:
    """fp32 came out as `bf16: true`, unequal shares as equal ones, a hybrid as if it had attention alone."""
    other = {"precision": Precision(param="fp32")}, {"model": "longvila-8b-ssd"}
    for given, words in zip(
        other, (f"--to {target} says bf16; this plan has precision=fp32", "state-space"), strict=True
    ):
        with pytest.raises(InputError, match=words):
            export(plan_of(OF_OTHERS[target], **given), target)
    unequal = plan_of(RING)
    unequal = replace(unequal, strategy=replace(unequal.strategy, token_shares=(1,) * 63 + (2,)))
    with pytest.raises(
        InputError, match="no word for unequal token_shares, and equal ones may not fit; legal: torchrun"
    ):
        export(unequal, target)
    chunked = plan_of(OF_OTHERS[target])
    chunked = replace(chunked, strategy=replace(chunked.strategy, attention_head_chunks=2))
    with pytest.raises(InputError, match="no word for attention_head_chunks=2"):
        export(chunked, target)


@pytest.mark.parametrize("target", OF_OTHERS)
def test_frozen_parts_packed_rows_and_kernels_are_said(target: str) -> None:
    made = export(plan_of(OF_OTHERS[target], trainable=("projector",), lengths=((4096, 8),), kernel="sdpa"), target)
    said = " ".join(made.notes)
    for words in (
        "--train projector: freeze llm and tower in",
        "documents: rows of one document unless",
        "kernel=sdpa",
    ):
        assert words in said
    plain = " ".join(export(plan_of(OF_OTHERS[target]), target).notes)
    assert "freeze" not in plain and "documents" not in plain and "kernel" not in plain


def test_launchers_start_whatever_this_executor_runs() -> None:
    """Frozen parts, packed rows and precision stand in plan.json, which they start."""
    plan = plan_of(ULYSSES, trainable=("projector",), precision=Precision(param="fp32"))
    assert all(export(plan, target).files for target in LAUNCHERS)


@pytest.mark.parametrize("target", ["megatron", "torchtitan", "deepspeed", "accelerate", "trl", "ms-swift"])
def test_recompute_never_keeps_more_than_planned(target: str) -> None:
    """A mix becomes the nearest policy of the target that recomputes at least as much, and the note says so."""
    layout = {"torchtitan": Strategy(data=2, ring=32, shard=64, zero=3), "megatron": BOTH, "ms-swift": BOTH}
    strategy = layout.get(target, Strategy(data=8, ulysses=8, shard=64, zero=3))
    made = export(plan_of(recomputing(strategy, all_but_attention=20, none=12)), target)
    assert any("becomes full in every layer: slower" in note for note in made.notes)


def test_the_command_prints_or_writes(typed, tmp_path) -> None:
    plan_of(Strategy(data=8, ulysses=8, shard=64, zero=3)).save(tmp_path / "plan.json")
    code, out, err = typed("export", "plan.json", "--to", "accelerate")
    assert code == 0 and out.startswith("# accelerate.yaml\n") and "# ds_config.json" in out
    assert "not said: loss_chunk_tokens=1024" in err
    (tmp_path / "configs").mkdir()
    code, out, _ = typed("export", "plan.json", "--to", "accelerate", "-o", "configs")
    assert code == 0 and sorted(path.name for path in (tmp_path / "configs").iterdir()) == [
        "accelerate.yaml",
        "ds_config.json",
    ]
    code, _, err = typed("export", "plan.json", "--to", "accelerate", "-o", "missing")
    assert code == 2 and "the folder 'missing' is not there" in err
    for target in TARGETS:
        code, _, err = typed("export", "plan.json", "--to", target)
        assert code in (0, 2) and (code == 0 or err.count("\n") == 1), target
