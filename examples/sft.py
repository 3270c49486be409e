"""trl's `SFTTrainer` over a plan's ranks, ulysses x ring under FSDP2: a job of `executor launch` on CPU ranks.

    plan --cluster local --gpus 4 --model longvila-tiny --ctx 256 --batch 1 --fix ulysses=2,ring=2 -o plan.json
    executor launch plan.json --job examples.sft

A small Llama of its own, with the planned model's layers, whose recomputation the plan names, learns a few sentences;
the plan gives the ranks and their groups. The losses are those of `losses(None)`, the same trainer in one process
without this repository (`tests/executor/test_trainer.py`).
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from executor.mmsp.attention import NAME, register
from executor.sharding import ContextSharding
from executor.trainer import OverRanks, hide_ranks
from longvila.job import Job

LAYERS = 4  # as longvila-tiny
SENTENCES = ("the rabbit wakes and looks around", "a bird sings", "the bear eats honey under a tree", "it rains")


class Training(OverRanks, SFTTrainer):
    """trl's trainer over ranks."""


def tokenizer() -> PreTrainedTokenizerFast:
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(["<pad>", "<end>", *words])}))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")


def losses(sharding: ContextSharding | None, steps: int = 6, **changes: Any) -> list[float]:
    """Of each step, and of evaluations between them; without a sharding, in one process and with attention of torch."""
    text = tokenizer()
    config = LlamaConfig(
        vocab_size=len(text), hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    register()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=NAME if sharding else "sdpa").float()
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "output_dir": folder, "max_steps": steps, "per_device_train_batch_size": 2, "learning_rate": 1e-2,
            "gradient_accumulation_steps": 2, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
            "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False,
            "disable_tqdm": True, "seed": 1,
        }  # fmt: skip
        args = SFTConfig(**settings | changes)
        data = Dataset.from_dict({"text": list(SENTENCES)})
        given: dict[str, Any] = {"model": model, "args": args, "processing_class": text, "train_dataset": data,
                                 "eval_dataset": data}  # fmt: skip
        trainer = SFTTrainer(**given) if sharding is None else Training(sharding=sharding, **given)
        trainer.train()
    logged = [entry.get("loss", entry.get("eval_loss")) for entry in trainer.state.log_history]
    return [loss for loss in logged if loss is not None]


def main(job: Job) -> None:
    hide_ranks()
    assert isinstance(job.sharding, ContextSharding), "a job of a launch"
    found = losses(job.sharding)
    if job.sharding.rank == 0:
        print("losses", " ".join(f"{loss:.4f}" for loss in found), file=sys.stdout, flush=True)
