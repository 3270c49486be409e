"""The job as a plan splits it: `longvila`'s `Sharding` protocol over process groups.

    row of L tokens -> padded -> this rank's S = L' / (ring * ulysses) tokens      (layout)
    frames -> this rank's frames -> tower -> all-to-all-v -> its vision tokens     (embeddings)
    local loss sum / label tokens of the step, gradients SUMMED over data and context = one process's gradients

FSDP2 shards parameters over the plan's (replicate, shard) mesh, one unit per decoder layer, per vision layer and for
the rest. ZeRO 3: parameters are freed after a unit's forward. ZeRO 1 and 2: kept until its backward; FSDP2 shards
gradients as they are reduced, so 1 runs as 2: the same bytes on the wire, no more memory. ZeRO 0, or shard = 1: every
rank holds all. Gradients are summed by all-reduce over the replicate group, in a step's last microbatch only.
Leaves out: tensor, pipeline.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.nn.parallel import DistributedDataParallel
from transformers.modeling_layers import GradientCheckpointingLayer

from cost_models.errors import InputError
from cost_models.layer.heads import HeadSplit
from cost_models.ssd_messages import check_heads
from cost_models.strategy import check_sharded
from cost_models.token_layout import Layout, Places, document_starts
from executor import alike
from executor.groups import Groups, digest
from executor.mmsp import attention, embeddings
from executor.mmsp.attention import MmSp
from executor.mmsp.compiled import Compiler
from executor.mmsp.decode import DecodeStep, Shard, ShardedCache, row_shards
from executor.mmsp.guard import guard, needing_split, refuse_later_weights, refuse_parts
from executor.mmsp.host_memory import HostMemory
from executor.mmsp.recompute import apply_recompute
from executor.mmsp.row_chunks import run_in_row_chunks
from executor.mmsp.slices import run_in_slices, run_last_norm_in_slices
from executor.mmsp.ssd import SsdSplit
from longvila.sharding import IGNORE, Batch, DecodeCall, LocalBatch, places_on
from longvila.ssd import DiscreteMamba2

_MAKE_ALIKE = "load or make the model alike on every rank (one seed, one checkpoint) before wrap"


@dataclass(frozen=True, kw_only=True)
class Precision:
    """FSDP2 gathers and computes in `param` and sums gradients in `reduce`; None means the parameters' dtype."""

    param: torch.dtype | None = None
    reduce: torch.dtype | None = None


@dataclass(kw_only=True)
class ContextSharding:
    """One rank's view of a plan.

    `recompute` is (policy, number of layers) per range, or (policy, number, offload); empty means no recompute.
    """

    groups: Groups
    device: torch.device
    ring_layout: str = "zigzag"
    token_shares: tuple[int, ...] = ()  # of the ring's positions; () is equal ones
    zero: int = 3
    recompute: tuple[tuple[str, int] | tuple[str, int, str], ...] = ()
    precision: Precision = field(default_factory=Precision)
    grad_ring_dtype: torch.dtype = torch.float32
    loss_chunk_tokens: int | None = None  # None means the model's
    head_chunks: int = 1  # pieces in which a rank's heads are exchanged and attended, or scanned
    attention_chunk_tokens: int | None = None  # of a row, that attention takes at a time; None means all
    mlp_chunk_tokens: int | None = None  # of a rank, that MLPs and norms take at a time; None means all
    states_on_host: bool = False  # weights, gradients and optimizer live in host memory, gathered from there
    ssd: str = "states"  # how state-space layers are split, where the model has some
    ssd_pass: str = "gather"  # how their states are passed on
    optimizer_on_host: bool = False  # masters, gradients and optimizer do; weights stay on the device
    frozen_in_param: bool = False  # weights that are not trained are stored in `precision.param`
    compile: str | None = None  # backend of torch.compile for decoder layers in training; None means eager
    host: HostMemory = field(default_factory=HostMemory)  # inputs of layers that wait there
    attention: str = attention.NAME
    planned_layers: tuple[int, ...] = ()  # weights of each decoder layer that the plan is of; () is not known
    _wrapped: bool = field(default=False, init=False)
    _has_ssd: bool = field(default=False, init=False)
    _compared: bool = field(default=False, init=False)  # whether ranks of a row have the same one
    _row: Layout | None = field(default=None, init=False)  # that was cut last: the cache asks at its prefill

    def __post_init__(self) -> None:
        if self.zero not in (0, 1, 2, 3):
            raise InputError(f"zero={self.zero} is not one of 0, 1, 2, 3")
        check_sharded(self.zero, self.groups.shard.size)
        attention.register()

    @property
    def states_device(self) -> torch.device | None:
        return torch.device("cpu") if self.states_on_host else None

    @property
    def optimizer_device(self) -> torch.device | None:
        return torch.device("cpu") if self.optimizer_on_host else None

    @property
    def data_index(self) -> int:
        return self.groups.data.index

    @property
    def data_count(self) -> int:
        return self.groups.data.size

    @property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def world(self) -> int:
        return dist.get_world_size()

    def layout(self, batch: Batch) -> Layout:
        """How a row is split over this rank's context group."""
        tokens, documents = batch.document_L.shape[0], document_starts(_places(batch.document_L))
        if self._row is None or (self._row.tokens, self._row.documents) != (tokens, documents):
            self._row = Layout(
                tokens=tokens,
                ulysses=self.groups.ulysses.size,
                ring=self.groups.ring.size,
                kind=self.ring_layout,
                documents=documents,
                chunk_tokens=self.attention_chunk_tokens,
                shares=self.token_shares,
            )
        return self._row

    def own_frames(self, frames: int) -> range:
        return embeddings.own_frames(frames, self.groups.context.size, self.groups.context.index)

    def shard_batch(self, batch: Batch) -> LocalBatch:
        if torch.is_grad_enabled() and not self._wrapped:
            raise InputError("call sharding.wrap(model) first: without it gradients would be of a rank's tokens alone")
        self._compare(batch)
        layout = self.layout(batch)
        index_S = layout.index(*self._place)
        device = batch.input_ids_L.device
        take_S = places_on(torch.from_numpy(np.minimum(index_S, layout.tokens - 1)), device)
        pad_S = places_on(torch.from_numpy(index_S >= layout.tokens), device)
        vision_S, _ = embeddings.vision_of(index_S, _places(batch.vision_at_V))
        call = MmSp(
            layout=layout,
            ulysses=self.groups.ulysses.exchange(),
            ring=self.groups.ring.exchange(),
            grad_ring_dtype=self.grad_ring_dtype,
            head_chunks=self.head_chunks,
        )
        return LocalBatch(
            input_ids_S=batch.input_ids_L[take_S].masked_fill(pad_S, 0),
            labels_S=batch.labels_L[take_S].masked_fill(pad_S, IGNORE),
            positions_S=batch.positions_L[take_S].masked_fill(pad_S, 0),
            vision_at_V=places_on(torch.from_numpy(np.flatnonzero(vision_S)), device),
            attention={"mm_sp": call, "ssd": self._ssd_split(layout)} if self._has_ssd else {"mm_sp": call},
        )

    def _compare(self, batch: Batch) -> None:
        """Collective, for the first row alone: later ones follow from the same data, order and seed."""
        if self._compared:
            return
        with unset_fake_temporarily():
            row = digest(
                batch.input_ids_L, batch.labels_L, batch.positions_L, batch.document_L, batch.vision_at_V,
            )  # fmt: skip
            if not self.groups.context.alike(row, self.device):
                raise InputError(
                    "ranks of one row were given different ones, as a DistributedSampler deals them: every rank of a "
                    "context group reads the same row"
                )
            odd = batch.labels_L[(batch.labels_L < 0) & (batch.labels_L != IGNORE)]
            if len(odd):  # the loss would raise on the ranks that hold one, and leave the others waiting
                raise InputError(f"label {int(odd[0])}; legal: numbers of tokens, and {IGNORE} where there is none")
        self._compared = True

    def _ssd_split(self, layout: Layout) -> SsdSplit:
        groups = self.groups
        return SsdSplit(
            layout=layout,
            context=groups.context.exchange(),
            ulysses=groups.ulysses.exchange(),
            ring=groups.ring.exchange(),
            places=groups.places,
            split=self.ssd,
            way=self.ssd_pass,
            pieces=self.head_chunks,
        )

    def exchange_embeddings(self, made_ND: Tensor, batch: Batch) -> Tensor:
        way = embeddings.route(
            vision_at=_places(batch.vision_at_V),
            frames=batch.frames,
            layout=self.layout(batch),
            places=self.groups.places,
            index=self.groups.context.index,
        )
        return embeddings.exchange_embeddings(made_ND, way, self.groups.context.exchange())

    def token_mean(self, loss_sum: Tensor, step_label_tokens: float) -> Tensor:
        return loss_sum / step_label_tokens

    def total(self, value: float) -> float:
        result = torch.tensor(value, dtype=torch.float64, device=self.device)
        self.groups.context.reduce(result, dist.ReduceOp.SUM)
        return self.groups.data.reduce(result, dist.ReduceOp.SUM).item()

    def most_own_frames(self, frames: int) -> int:
        return -(-frames // self.groups.context.size)

    def wrap(self, model: nn.Module) -> nn.Module:
        _refuse_wrapped(model)
        config: Any = getattr(model, "config", None)
        if self.loss_chunk_tokens is not None and hasattr(config, "loss_chunk_tokens"):
            model.config = replace(config, loss_chunk_tokens=self.loss_chunk_tokens)
        blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        decoders = [block for block in blocks if _is_decoder(block)]
        for decoder in decoders:
            _check_heads(decoder, self.groups.ulysses.size)
        mixers = [module for module in model.modules() if isinstance(module, DiscreteMamba2)]
        for mixer in mixers:
            check_heads(mixer.heads, self.ssd, context=self.groups.context.size, ulysses=self.groups.ulysses.size)
        self._has_ssd = self._has_ssd or bool(mixers)  # of any model that is wrapped
        if mixers and self.token_shares:
            raise InputError("token_shares with state-space layers, whose stretches are equal; legal: none")
        self._say_if_unplanned(decoders)
        guard(model)
        if self.frozen_in_param and self.precision.param is not None:
            for parameter in model.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(self.precision.param)
        ranges = [(policy, rest[0] if rest else "none", count) for policy, count, *rest in self.recompute]
        kept = [(policy, offload) for policy, offload, count in ranges for _ in range(count)]
        policies, offloads = [one for one, _ in kept], [one for _, one in kept]
        compiler = Compiler(self.compile)
        if self.compile and not decoders:
            raise InputError(f"compile: {type(model).__name__} has no layers with a causal self_attn; legal: None")
        for mixer in mixers:
            alone = self.groups.context.size == 1
            mixer.forward = compiler.apart(mixer.forward if alone else needing_split(mixer.forward))  # type: ignore[method-assign]
        if self.attention_chunk_tokens is not None:
            if mixers:
                raise InputError(
                    "attention_chunk_tokens with state-space layers, whose tokens lie otherwise; legal: none"
                )
            for decoder in decoders:
                run_in_row_chunks(decoder.get_submodule("self_attn"), attention.row_by_chunks, compiler)
        if self.mlp_chunk_tokens is not None:
            for decoder in decoders:
                run_in_slices(decoder, self.mlp_chunk_tokens, compiler)
            run_last_norm_in_slices(model, decoders, self.mlp_chunk_tokens)
        apply_recompute(
            decoders,
            policies or ["none"] * len(decoders),
            offloads,
            host=self.host,
            sliced=self.mlp_chunk_tokens is not None,
            compiler=compiler,
        )
        # Inputs follow the parameters' dtype from the embeddings on. The casting of FSDP2 would walk, and copy, every
        # dataclass that is handed to a layer.
        precision = MixedPrecisionPolicy(
            param_dtype=self.precision.param, reduce_dtype=self.precision.reduce, cast_forward_inputs=False
        )
        alike.check(self.groups, alike.of_model(model) | alike.of_settings(self), self.device, _MAKE_ALIKE)
        mesh = self.groups.mesh(self.device.type)
        offload = CPUOffloadPolicy(pin_memory=self.device.type == "cuda") if self.states_on_host else OffloadPolicy()
        shard = functools.partial(fully_shard, mesh=mesh, mp_policy=precision, offload_policy=offload)
        for block in blocks:
            shard(block, reshard_after_forward=self.zero == 3)
        # The rest is needed again as soon as the backward pass starts.
        shard(model, reshard_after_forward=False)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                # As a plain sum: gloo has no scaled one, and a sum needs no scale.
                module.set_force_sum_reduction_for_comms(True)
        refuse_later_weights(model)
        refuse_parts(model)
        alike.check_first_call(self.groups, model, self.device)
        self._wrapped = True
        return model

    def _say_if_unplanned(self, decoders: Sequence[nn.Module]) -> None:
        """On rank 0, that the model is another one than the plan's: its results are right, its prediction is not."""
        found = Counter(
            sum(weight.numel() for name, weight in decoder.named_parameters() if "lora_" not in name)
            for decoder in decoders
        )
        planned = Counter(self.planned_layers)
        if planned and found != planned and self.rank == 0:
            print(
                f"the plan is of another model: its decoder layers have {_words(planned)} weights, this one's "
                f"{_words(found)}. Seconds and memory of the plan are not of this run; plan with this --model",
                file=sys.stderr, flush=True,
            )  # fmt: skip

    def before_microbatch(self, model: nn.Module, *, last: bool) -> None:
        """Shards of gradients are summed over the replicas once a step; reduce-scatters run for every row."""
        if isinstance(model, FSDPModule):
            model.set_requires_all_reduce(last)

    def before_answers(self, model: nn.Module) -> None:
        """Gathered weights stay from the prefill on, under ZeRO 3 too: they do not change; every token needs all."""
        if isinstance(model, FSDPModule):
            model.set_reshard_after_forward(False)

    def after_answers(self, model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_reshard_after_forward(self.zero == 3 and module is not model, recurse=False)
                module.reshard()

    def cache(self) -> ShardedCache:
        return ShardedCache(self._row_shards)

    def forked(self, cache: ShardedCache, copies: int) -> list[ShardedCache]:
        return [cache.copy() for _ in range(copies)]

    def from_last_token(self, hidden_SD: Tensor, batch: Batch) -> Tensor:
        layout = self.layout(batch)
        owner = int(layout.owner(np.array([layout.tokens - 1]))[0])
        place = divmod(owner, layout.ulysses)
        last_D = hidden_SD[layout.real_tokens(*place) - 1].detach().clone()
        return self.groups.context.broadcast(last_D, self.groups.places.index(place))

    def decode_calls(self, caches: Sequence[ShardedCache]) -> list[DecodeCall]:
        shards = [shard for cache in caches for shard in cache.shards]
        step = DecodeStep(self.groups.context.exchange(), shards)
        return [DecodeCall(prompts=slice(None), cache=step, attention=step.attention)]

    def agree(self, tokens: Sequence[int]) -> list[int]:
        return self.groups.context.broadcast(torch.tensor(tokens, device=self.device)).tolist()

    @property
    def _place(self) -> tuple[int, int]:
        return self.groups.places[self.groups.context.index]

    def _row_shards(self) -> list[tuple[slice, Shard]]:
        if self._row is None:
            raise InputError("the cache is filled by a row that shard_batch cut; cut one first")
        return row_shards(self._row, self.groups.places, self.groups.context.index)


def _words(layers: Counter[int]) -> str:
    """
    >>> _words(Counter([500, 500, 7]))
    '2 × 500 + 1 × 7'
    """
    return " + ".join(f"{count} × {weights:,}" for weights, count in layers.items()) or "none"


def _places(tensor: Tensor) -> Places:
    """The numbers of an integer tensor, also while a step runs on fake tensors: places of tokens stay real."""
    with unset_fake_temporarily():
        return tensor.cpu().numpy()


def _refuse_wrapped(model: nn.Module) -> None:
    """Another wrapper would reduce gradients a second time, or average where they are summed here."""
    for module in model.modules():
        if isinstance(module, FSDPModule | DistributedDataParallel | FullyShardedDataParallel):
            raise InputError(f"{type(module).__name__} is wrapped already; give `wrap` the plain model, once")


def _is_decoder(block: nn.Module) -> bool:
    return bool(getattr(getattr(block, "self_attn", None), "is_causal", False))


def _check_heads(decoder: nn.Module, ulysses: int) -> None:
    """Refuse degrees that the model's heads do not allow, before anything is loaded or sent."""
    config = getattr(decoder.self_attn, "config", None)
    if config is not None:
        heads = config.num_attention_heads
        HeadSplit(q_heads=heads, kv_heads=getattr(config, "num_key_value_heads", heads) or heads, ulysses=ulysses)
