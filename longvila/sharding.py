"""How one job is split over processes: the protocol that `longvila` asks for, and its one-process default.

    every rank knows the token ids (8 bytes a token), but decodes, encodes and attends only to its share

    frames --own_frames--> tower, projector --exchange_embeddings--> tokens of this rank --> LLM --> token_mean

A batch is one packed row: documents one after another, told apart by `document_L`; labels are already shifted, so
that cutting the row anywhere loses no target. Shape legend: L tokens of the row, S tokens of this rank,
V vision tokens, N embeddings encoded here, F frames, D model width, C H W a picture.
The executor brings the implementation for many ranks; nothing here knows of plans or process groups.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

IGNORE = -100
"""The label of a token that no loss is taken from (the convention of torch's cross entropy)."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One packed row as every rank of a context group knows it; only `pixels_FCHW` differs by rank.

    What the layout follows from stays on the CPU, so that no rank waits for its accelerator to cut a row.
    """

    input_ids_L: Tensor  # int64; a vision token holds any valid id, its embedding is replaced
    labels_L: Tensor  # int64, shifted: labels_L[i] is the target of position i, or IGNORE
    positions_L: Tensor  # int64, restarts at 0 in every document (rotary positions)
    document_L: Tensor  # int64, on the CPU: which document a token is of; attention never crosses it
    vision_at_V: Tensor  # int64, on the CPU, ascending: where the vision tokens stand, frame by frame
    frames: int  # F of the row, means of several counted once; V = F x tokens per frame
    pixels_FCHW: Tensor  # only the frames that `own_frames(frames)` gives to this rank, possibly none; where frames
    # are pooled, `video_pool` pictures for each
    most_frames: int = (
        0  # of the rows that all replicas compute at this time; 0 means that no row has more than this one
    )
    encoded_ND: Tensor | None = None  # embeddings of those frames, where they were made before; no pixels then


@dataclass(frozen=True, kw_only=True)
class LocalBatch:
    """What one rank keeps of a batch. A padded place has label IGNORE."""

    input_ids_S: Tensor
    labels_S: Tensor
    positions_S: Tensor
    vision_at_V: Tensor  # int64, ascending: which of the S tokens take their embedding from the tower
    attention: dict[str, Any] = field(default_factory=dict)  # keyword arguments for the attention function


@dataclass(frozen=True, kw_only=True)
class DecodeCall:
    """One call of the language model for the next tokens of some prompts, a slice of those that are answered."""

    prompts: slice
    cache: Any  # `past_key_values`
    attention: dict[str, Any] = field(default_factory=dict)  # keyword arguments for the attention function


def places_on(places: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device; from pinned memory, so that the host does not wait for what runs there."""
    if device.type == "cuda" and places.device.type == "cpu":
        return places.pin_memory().to(device, non_blocking=True)
    return places.to(device)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor in full, gathered on the devices of its mesh, also where its shards lie in host memory."""
    if not isinstance(tensor, DTensor):
        return tensor
    mesh = tensor.device_mesh.device_type
    there: Any = tensor if tensor.device.type == mesh else tensor.to(mesh)
    full: Tensor = there.full_tensor()
    return full


class Sharding(Protocol):
    """How a job is split. Every method is collective: all ranks call the same ones. The bodies are for one process."""

    @property
    def attention(self) -> str:
        """Value for `attn_implementation` of the language model."""

    @property
    def data_index(self) -> int:
        """Which data replica this process is part of; it reads samples data_index, data_index + data_count, …"""

    @property
    def data_count(self) -> int: ...

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def own_frames(self, frames: int) -> range:
        """The frames of a row of `frames` frames that this process decodes and encodes (may be empty)."""
        return range(frames)

    def shard_batch(self, batch: Batch) -> LocalBatch:
        """The tokens that this process computes on."""
        return LocalBatch(
            input_ids_S=batch.input_ids_L,
            labels_S=batch.labels_L,
            positions_S=batch.positions_L,
            vision_at_V=places_on(batch.vision_at_V, batch.input_ids_L.device),
        )

    def exchange_embeddings(self, made_ND: Tensor, batch: Batch) -> Tensor:
        """This rank's embeddings -> those of the vision tokens of this rank, in local order, differentiable."""
        return made_ND

    def token_mean(self, loss_sum: Tensor, step_label_tokens: float) -> Tensor:
        """Local sum of token losses -> a scalar whose gradients, after `wrap`'s reduction, are those of the mean."""
        return loss_sum / step_label_tokens

    def total(self, value: float) -> float:
        """The sum of a number over the data replicas and token shards (a loss sum, a count), same on every rank."""
        return value

    def most_own_frames(self, frames: int) -> int:
        """The most frames that any process gets by `own_frames`, from integers alone: nothing is sent."""
        return frames

    def wrap(self, model: nn.Module) -> nn.Module:
        """Shard parameters, gradients and optimizer state as the plan says; gradients are summed, not averaged."""
        return model

    @property
    def states_device(self) -> torch.device | None:
        """Where weights, gradients and optimizer live, if not on the device that computes."""
        return None

    @property
    def optimizer_device(self) -> torch.device | None:
        """Where masters, gradients and optimizer live, if not where the weights are."""
        return None

    def before_microbatch(self, model: nn.Module, *, last: bool) -> None:
        """Called before every row of a step: gradients may be summed over replicas after the `last` row only."""
        return

    def before_answers(self, model: nn.Module) -> None:
        """Called before a wrapped model decodes: without it, sharded weights would be gathered for each token."""
        return

    def after_answers(self, model: nn.Module) -> None:
        """Called before the model trains on: gathered weights go, so that the next ones are those of the update."""
        return

    def cache(self) -> Any:
        """An empty key-value cache for generation, as `past_key_values` of a Hugging Face model."""
        from transformers import DynamicCache

        return DynamicCache()

    def forked(self, cache: Any, copies: int) -> list[Any]:
        """As many caches, the given one not among them, that go on apart from the same prefill."""
        return [copy.deepcopy(cache) for _ in range(copies)]

    def from_last_token(self, hidden_SD: Tensor, batch: Batch) -> Tensor:
        """The row's last token's vector [D], the same on every rank, from the rank that computed it (no gradient)."""
        return hidden_SD[-1]

    def decode_calls(self, caches: Sequence[Any]) -> list[DecodeCall]:
        """How one more token of each of the prompts that filled `caches` is computed; in one process one by one."""
        return [DecodeCall(prompts=slice(i, i + 1), cache=cache) for i, cache in enumerate(caches)]

    def agree(self, tokens: Sequence[int]) -> list[int]:
        """The tokens that the first rank of the context group chose, the same on every rank."""
        return list(tokens)


@dataclass(frozen=True, kw_only=True)
class OneProcess(Sharding):
    """The job in one process."""

    attention: str = "sdpa"
    data_index: int = 0
    data_count: int = 1
    rank: int = 0
    world: int = 1
