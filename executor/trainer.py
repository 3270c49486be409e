"""Hugging Face's `Trainer`, or trl's `SFTTrainer`, over a plan's ranks: ulysses x ring, parameters sharded by FSDP2.

    class Training(OverRanks, SFTTrainer): ...                model built with attn_implementation="mm_sp"
    every rank: the same batch -> packed into one row -> this rank's tokens -> loss sum / labels of the step

The trainer sees one process: `hide_ranks` takes the launch's variables away before `TrainingArguments` are made, or
accelerate would wrap the model a second time and deal the rows out. So every rank reads every row (token ids only) and
the sharding does the rest; the losses are one process's. Of several replicas each computes its rows of the batch.
Padded batches and padding-free ones (with positions) are taken. Leaves out: saving by the trainer (it would write every
rank's shard to one place; use `longvila.checkpoint`), evaluation metrics, router losses, pictures.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from cost_models.errors import InputError
from executor.sharding import ContextSharding
from longvila.sharding import IGNORE, Batch


def hide_ranks() -> None:
    """Take away what tells accelerate of other processes; torch.distributed is set up already."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK"):
        os.environ.pop(name, None)


class OverRanks:
    """To be inherited from before a trainer: `Training(sharding=…, model=…, args=…, …)`."""

    def __init__(self, *, sharding: ContextSharding, **given: Any) -> None:
        super().__init__(**given)
        here: Any = self
        if here.accelerator.num_processes != 1:
            raise InputError("call executor.trainer.hide_ranks() before TrainingArguments are made")
        self._sharding = sharding
        sharding.wrap(here.model)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The batch's loss as one process has it; its gradient is this rank's part."""
        here, sharding = self, self._sharding
        assert not return_outputs, "outputs of one rank are of its tokens alone"
        row = packed(inputs, sharding.data_index, sharding.data_count)
        local = sharding.shard_batch(row)
        sharding.before_microbatch(model, last=here.accelerator.sync_gradients)  # type: ignore[attr-defined]
        output = model(
            input_ids=local.input_ids_S[None], position_ids=local.positions_S[None], use_cache=False, **local.attention
        )
        logits_SV = output.logits[0]
        wide = torch.promote_types(logits_SV.dtype, torch.float32)
        loss_sum = F.cross_entropy(logits_SV.to(wide), local.labels_S, ignore_index=IGNORE, reduction="sum")
        labels = sharding.total(float((local.labels_S != IGNORE).sum()))
        loss = sharding.token_mean(loss_sum, float(labels if num_items_in_batch is None else num_items_in_batch))
        return loss + (sharding.total(float(loss.detach())) - loss).detach()

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        norm: Tensor = super()._clip_grad_norm(model)  # type: ignore[misc]
        return norm.full_tensor() if isinstance(norm, DTensor) else norm


def packed(inputs: dict[str, Tensor], index: int = 0, count: int = 1) -> Batch:
    """A batch of a collator as one row: rows `index`, `index` + `count`, … without their padding, labels shifted."""
    ids_BS, labels_BS, positions_BS = inputs["input_ids"], inputs["labels"], inputs.get("position_ids")
    if len(ids_BS) % count:
        raise InputError(f"a batch of {len(ids_BS)} rows is not dealt evenly to data={count} replicas")
    ids_BS, labels_BS = ids_BS[index::count], labels_BS[index::count]
    seen_BS = torch.ones_like(ids_BS).bool()
    if inputs.get("attention_mask") is not None:
        seen_BS = inputs["attention_mask"][index::count].bool()
    positions_BS = (seen_BS.cumsum(1) - 1).clamp(min=0) if positions_BS is None else positions_BS[index::count]
    positions_L = positions_BS[seen_BS]
    labels_L = labels_BS[seen_BS].roll(-1)
    labels_L[(positions_L == 0).roll(-1)] = IGNORE  # what follows is another document, or nothing
    return Batch(
        input_ids_L=ids_BS[seen_BS],
        labels_L=labels_L,
        positions_L=positions_L,
        document_L=(positions_L == 0).cumsum(0).cpu(),
        vision_at_V=torch.zeros(0, dtype=torch.int64),
        frames=0,
        pixels_FCHW=torch.zeros(0, 3, 1, 1),
    )
