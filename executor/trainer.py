"""Hugging Face's `Trainer`, or trl's `SFTTrainer`, over a plan's ranks: ulysses x ring, parameters sharded by FSDP2.

    class Training(OverRanks, SFTTrainer): ...                model built with attn_implementation="mm_sp"
    every rank: the same batch -> packed into one row -> this rank's tokens -> loss sum / labels of the step

The trainer sees one process: `hide_ranks` takes the launch's variables away before `TrainingArguments` are made, or
accelerate would wrap the model a second time and deal the rows out. So every rank reads every row (token ids only) and
the sharding does the rest; the losses are one process's, in training and evaluation. Of several replicas each computes
its rows of the batch. Padded batches and padding-free ones (with positions) are taken; ranks that read different
batches stop. `torch_compile=True` compiles decoder layers. Refused: saving and resuming by the trainer (every rank
would write its shard to one place; use `longvila.checkpoint`), losses of a function's own, noise on embeddings, metrics
of outputs, router losses, pictures, optimizers made before or not of `OPTIMIZERS`.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from cost_models.errors import InputError
from executor import alike
from executor.groups import digest
from executor.mmsp.compiled import Compiler
from executor.sharding import ContextSharding
from longvila.sharding import IGNORE, Batch


def hide_ranks() -> None:
    """Take away what tells accelerate of other processes; torch.distributed is set up already."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK"):
        os.environ.pop(name, None)


OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adagrad", "rmsprop", "sgd")
"""Of `TrainingArguments.optim`: those that go number by number, as shards need; Adafactor factors whole matrices."""
_OF_A_RANK = (
    "output_dir",
    "run_name",
    "report_to",
    "disable_tqdm",
    "local_rank",
    "log",
    "hub_",
    "dataloader_",
    "project",
)
"""Of `TrainingArguments`, beginnings of names: what may be another on each rank."""
_TAKEN = ("input_ids", "labels", "attention_mask", "position_ids")
_SAID_BY_POSITIONS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")


class OverRanks:
    """To be inherited from before a trainer: `Training(sharding=…, model=…, args=…, …)`."""

    def __init__(self, *, sharding: ContextSharding, **given: Any) -> None:
        if (args := given.get("args")) is not None:
            take_compile(args, sharding)
        super().__init__(**given)
        here: Any = self
        if here.accelerator.num_processes != 1:
            raise InputError("call executor.trainer.hide_ranks() before TrainingArguments are made")
        refuse_arguments(here.args, given)
        if here.accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
            raise InputError("ACCELERATE_DYNAMO_BACKEND would compile collectives; unset it, pass torch_compile=True")
        ours = sharding.compile or any(policy != "none" for policy, *_ in sharding.recompute)
        if ours and here.args.activation_checkpointing:
            raise InputError("gradient_checkpointing=True would replace what the plan does with layers; legal: False")
        self._sharding = sharding
        alike.check(sharding.groups, arguments(here.args, given), sharding.device, "give every rank the same arguments")
        sharding.wrap(here.model)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The batch's loss as one process has it; its gradient is this rank's part."""
        here: Any = self
        sharding = self._sharding
        if return_outputs:
            raise InputError("the outputs of one rank are of its tokens alone; legal: return_outputs=False")
        self._compare(inputs)
        row = packed(inputs, sharding.data_index, sharding.data_count)
        local = sharding.shard_batch(row)
        sharding.before_microbatch(model, last=here.accelerator.sync_gradients)
        output = model(
            input_ids=local.input_ids_S[None], position_ids=local.positions_S[None], use_cache=False, **local.attention
        )
        logits_SV = output.logits[0]
        wide = torch.promote_types(logits_SV.dtype, torch.float32)
        loss_sum = F.cross_entropy(
            logits_SV.to(wide), local.labels_S, ignore_index=IGNORE, reduction="sum",
            label_smoothing=here.args.label_smoothing_factor,
        )  # fmt: skip
        labels = sharding.total(float((local.labels_S != IGNORE).sum()))
        count = float(labels if num_items_in_batch is None else num_items_in_batch)
        loss = sharding.token_mean(loss_sum, max(count, 1.0))  # without labels the loss is 0
        return loss + (sharding.total(float(loss.detach())) - loss).detach()

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """Evaluation: the loss alone."""
        here: Any = self
        with torch.no_grad():
            return here.compute_loss(model, here._prepare_inputs(inputs)).detach(), None, None

    def train(self, resume_from_checkpoint: Any = None, **given: Any) -> Any:
        if resume_from_checkpoint:
            raise InputError("resume_from_checkpoint: the trainer does not save over ranks, so it resumes nothing")
        return super().train(**given)  # type: ignore[misc]

    def save_model(self, *args: Any, **given: Any) -> None:
        raise InputError("the trainer does not save: every rank would write its shard; use longvila.checkpoint.save")

    def _compare(self, inputs: dict[str, Tensor]) -> None:
        """Collective: every rank has read the same batch, or all stop."""
        batch = digest(*(inputs.get(name) for name in _TAKEN))
        groups, device = self._sharding.groups, self._sharding.device
        here = groups.context.alike(batch, device)
        if not groups.data.alike(batch if here else -1, device) or not here:
            raise InputError("ranks read different batches: give every rank the same data, seed and data_seed")

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        norm: Tensor = super()._clip_grad_norm(model)  # type: ignore[misc]
        return norm.full_tensor() if isinstance(norm, DTensor) else norm


def take_compile(args: Any, sharding: ContextSharding) -> None:
    """`torch_compile=True` means decoder layers here: accelerate would compile the model with its collectives."""
    if not args.torch_compile:
        return
    if args.torch_compile_mode is not None:
        raise InputError(f"torch_compile_mode={args.torch_compile_mode!r} is not done over ranks; legal: None")
    sharding.compile = Compiler(args.torch_compile_backend).backend
    args.torch_compile, args.torch_compile_backend = False, None


def arguments(args: Any, given: dict[str, Any]) -> dict[str, object]:
    """What of a trainer's arguments must be the same on every rank: all but how a rank reads, writes and reports."""
    _, optimizer = given.get("optimizer_cls_and_kwargs") or (None, {})
    plain = {name: value for name, value in optimizer.items() if isinstance(value, bool | int | float | tuple)}
    kept = {name: value for name, value in args.to_dict().items() if not name.startswith(_OF_A_RANK)}
    return {f"{name} of the arguments": value for name, value in (kept | plain).items()}


def refuse_arguments(args: Any, given: dict[str, Any]) -> None:
    """What of a trainer's arguments would give other numbers than one process, or hang."""
    for name, legal in {
        "save_strategy": "no", "neftune_noise_alpha": None, "loss_type": (None, "nll", "chunked_nll"),
        "load_best_model_at_end": False, "push_to_hub": False,
    }.items():  # fmt: skip
        value = getattr(args, name, None)
        value = getattr(value, "value", value)
        choices = legal if isinstance(legal, tuple) else (None, legal)
        if value not in choices:
            raise InputError(f"{name}={value!r} is not done over ranks; legal: {choices[-1]!r}")
    optimizer = getattr(args.optim, "value", args.optim)
    if optimizer not in OPTIMIZERS:
        raise InputError(f"optim={optimizer!r} is not known for sharded weights; legal: {', '.join(OPTIMIZERS)}")
    if any(made is not None for made in given.get("optimizers") or ()):
        raise InputError(
            "optimizers were made before the weights were sharded, and would train none of them; legal: "
            "optim=…, or optimizer_cls_and_kwargs"
        )
    for name in ("compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"):
        if given.get(name) is not None:
            raise InputError(f"{name} is not called over ranks: no rank has the outputs of a row; legal: None")


def packed(inputs: dict[str, Tensor], index: int = 0, count: int = 1) -> Batch:
    """A batch of a collator as one row: rows `index`, `index` + `count`, … without their padding, labels shifted.

    Rows are padded on the right. A document starts where a row does, and where its positions begin again at 0.
    InputError: other keys than these of a text's batch; padding elsewhere, or with labels; positions that jump.
    """
    if unknown := sorted({*inputs} - {*_TAKEN, *_SAID_BY_POSITIONS}):
        raise InputError(f"a batch's {unknown[0]} is not taken over ranks; legal: {', '.join(_TAKEN)}")
    if "labels" not in inputs or "input_ids" not in inputs:
        raise InputError("a batch over ranks holds input_ids and labels")
    ids_BS, labels_BS, positions_BS = inputs["input_ids"], inputs["labels"], inputs.get("position_ids")
    if len(ids_BS) % count:
        raise InputError(f"a batch of {len(ids_BS)} rows is not dealt evenly to data={count} replicas")
    ids_BS, labels_BS = ids_BS[index::count], labels_BS[index::count]
    seen_BS = torch.ones_like(ids_BS).bool()
    if inputs.get("attention_mask") is not None:
        seen_BS = _seen(inputs["attention_mask"][index::count], labels_BS)
    places_BS = torch.arange(ids_BS.shape[1], device=ids_BS.device).expand_as(ids_BS)
    positions_L = (places_BS if positions_BS is None else positions_BS[index::count])[seen_BS]
    starts_L = (places_BS[seen_BS] == 0) | (positions_L == 0)
    if not bool((starts_L | (positions_L == positions_L.roll(1) + 1)).all()):
        raise InputError("position_ids must grow by 1 inside a document, and begin again at 0 where one starts")
    labels_L = labels_BS[seen_BS].roll(-1)
    labels_L[starts_L.roll(-1)] = IGNORE  # what follows is another document, or nothing
    return Batch(
        input_ids_L=ids_BS[seen_BS],
        labels_L=labels_L,
        positions_L=positions_L,
        document_L=starts_L.cumsum(0).cpu(),
        vision_at_V=torch.zeros(0, dtype=torch.int64),
        frames=0,
        pixels_FCHW=torch.zeros(0, 3, 1, 1),
    )


def _seen(mask_BS: Tensor, labels_BS: Tensor) -> Tensor:
    """Which tokens a mask shows: the beginning of each row."""
    seen_BS = mask_BS.bool()
    if mask_BS.shape != labels_BS.shape or not bool(
        (seen_BS == mask_BS).all() and (seen_BS[:, 1:] <= seen_BS[:, :-1]).all()
    ):
        raise InputError("attention_mask must be 1 … 1 0 … 0 in each row: rows are padded on the right")
    if bool((labels_BS[~seen_BS] != IGNORE).any()):
        raise InputError(f"padding has labels other than {IGNORE}")
    return seen_BS
