"""A small LongVILA, rows for it, and one step of it in one process and over groups: what the sharding tests compare."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from executor.groups import Groups, make_groups
from executor.sharding import ContextSharding, Precision
from longvila.config import LongVilaConfig
from longvila.model import LongVilaForConditionalGeneration
from longvila.sharding import IGNORE, Batch, OneProcess

TOKENS_PER_FRAME = 4
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
LLM = {
    "llama": {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 32},
    "qwen2": {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 24},  # 6 heads: uneven on 4 ranks
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """`frames` holds, for each row of the step, the frames of each of its documents."""

    data: int = 1
    ring: int = 1
    ulysses: int = 1
    shard: int = 0  # 0: all ranks
    zero: int = 3
    kind: str = "zigzag"
    shares: tuple[int, ...] = ()
    recompute: tuple[tuple[str, int] | tuple[str, int, str], ...] = ()
    head_chunks: int = 1
    attention_chunk_tokens: int | None = None
    mlp_chunk_tokens: int | None = None
    states_on_host: bool = False
    dtype: str = "float64"
    param: str | None = None  # what parameters are computed in, if not in `dtype`
    llm: str = "llama"
    frames: tuple[tuple[int, ...], ...] = ((5,), (2, 0, 1))
    reverse: bool = False  # lists in another order than the ranks'
    tied: bool = False  # one tensor is embedding and head
    frames_per_chunk: int | None = None
    pool: int = 1  # pictures that are one of `frames`
    frozen: tuple[str, ...] = ()  # parts of the model
    layer_types: tuple[str, ...] = ()
    ssd: tuple[str, str] = ("states", "gather")
    compile: str | None = None


def rank_lists(case: Case) -> dict[str, list[list[int]]]:
    """Groups as a plan lists them, from the grid (data, ring, ulysses)."""
    ranks = np.arange(case.data * case.ring * case.ulysses)
    grid = (ranks[::-1] if case.reverse else ranks).reshape(case.data, case.ring, case.ulysses)
    shard = case.shard or ranks.size
    over = grid.reshape(-1, shard)
    return {
        "ulysses": grid.reshape(-1, case.ulysses).tolist(),
        "ring": grid.transpose(0, 2, 1).reshape(-1, case.ring).tolist(),
        "context": grid.reshape(case.data, -1).tolist(),
        "data": grid.reshape(case.data, -1).T.tolist(),
        "shard": over.tolist(),
        "replicate": over.T.tolist(),
    }


@cache
def _groups(layout: Case) -> Groups:
    """Made once for all cases of a layout: every group of gloo keeps threads awake until its process ends."""
    return make_groups(rank_lists(layout), dist.get_rank())


def make_sharding(case: Case) -> ContextSharding:
    layout = Case(data=case.data, ring=case.ring, ulysses=case.ulysses, shard=case.shard, reverse=case.reverse)
    return ContextSharding(
        groups=_groups(layout),
        device=torch.device("cpu"),
        ring_layout=case.kind,
        token_shares=case.shares,
        zero=case.zero,
        recompute=case.recompute,
        head_chunks=case.head_chunks,
        attention_chunk_tokens=case.attention_chunk_tokens,
        mlp_chunk_tokens=case.mlp_chunk_tokens,
        states_on_host=case.states_on_host,
        compile=case.compile,
        ssd=case.ssd[0],
        ssd_pass=case.ssd[1],
        precision=Precision(param=getattr(torch, case.param), reduce=torch.float32) if case.param else Precision(),
    )


def make_model(case: Case, attention: str) -> LongVilaForConditionalGeneration:
    llm = {"model_type": case.llm, "vocab_size": 64, "intermediate_size": 40, "num_hidden_layers": 2, **LLM[case.llm]}
    if case.layer_types:
        llm |= {"layer_types": case.layer_types, "ssd": {"heads": 4, "head_size": 6, "state": 5, "chunk": 8}}
        llm["num_hidden_layers"] = len(case.layer_types)
    config = LongVilaConfig(
        llm={**llm, "tie_word_embeddings": case.tied},
        vision=VISION,
        vision_select_layer=-1,
        tokenizer="byte",
        loss_chunk_tokens=7,
        frames_per_chunk=case.frames_per_chunk,
        video_pool=case.pool,
    )
    torch.manual_seed(0)
    model = LongVilaForConditionalGeneration(config, attention=attention).to(getattr(torch, case.dtype))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15)
    for part in case.frozen:
        getattr(model, part).requires_grad_(False)
    return model


def make_rows(case: Case) -> list[tuple[Batch, Tensor]]:
    """(batch without pixels, pixels of all its frames) for every row of the step; rows differ in length."""
    rows = []
    for number, frames in enumerate(case.frames):
        generator = torch.Generator().manual_seed(number)
        vision, document, positions = [], [], []
        for which, count in enumerate(frames):
            text = 6 + 3 * which + number
            vision += [*[False] * 2, *[True] * (count * TOKENS_PER_FRAME), *[False] * text]
            length = len(vision) - len(document)
            document += [which] * length
            positions += range(length)
        ids = torch.randint(0, 64, (len(vision),), generator=generator)
        labels = ids.roll(-1)
        ends = torch.tensor([*np.diff(document).astype(bool), True])
        labels[ends | torch.tensor(vision)] = IGNORE
        pictures = (sum(frames) * case.pool, 3, 16, 16)
        pixels = torch.randn(pictures, generator=generator, dtype=getattr(torch, case.dtype))
        batch = Batch(
            input_ids_L=ids,
            labels_L=labels,
            positions_L=torch.tensor(positions),
            document_L=torch.tensor(document),
            vision_at_V=torch.tensor(vision).nonzero().flatten(),
            frames=sum(frames),
            pixels_FCHW=pixels[:0],
        )
        rows.append((batch, pixels))
    return rows


def with_own_frames(batch: Batch, pixels: Tensor, sharding: OneProcess | ContextSharding) -> Batch:
    own, pool = sharding.own_frames(batch.frames), len(pixels) // max(batch.frames, 1)
    fields = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    return Batch(**(fields | {"pixels_FCHW": pixels[own.start * pool : own.stop * pool]}))


def step(model: nn.Module, rows: list[tuple[Batch, Tensor]], sharding: OneProcess | ContextSharding) -> float:
    """Backward of all rows of this replica; the mean loss of the step."""
    labels = sum(int((batch.labels_L != IGNORE).sum()) for batch, _ in rows)
    loss = 0.0
    model.train()
    own = rows[sharding.data_index :: sharding.data_count]
    for number, (batch, pixels) in enumerate(own, start=1):
        beside = rows[(number - 1) * sharding.data_count : number * sharding.data_count]
        batch = replace(batch, most_frames=max(other.frames for other, _ in beside))
        sharding.before_microbatch(model, last=number == len(own))
        loss_sum = model(with_own_frames(batch, pixels, sharding), sharding)
        sharding.token_mean(loss_sum, labels).backward()
        loss += loss_sum.item()
    return sharding.total(loss) / labels


def whole_grads(model: nn.Module) -> dict[str, Tensor]:
    """Every gradient in full, collected over the ranks if it is sharded; frozen parameters have none."""
    grads = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, f"a gradient: {name}"
            continue
        assert parameter.grad is not None, f"no gradient: {name}"
        grad = parameter.grad
        grads[name] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    return grads


def assert_same_step(case: Case, tolerance: float) -> None:
    """Loss and every gradient of the sharded step equal one process's, relative to their norm."""
    rows = make_rows(case)
    alone = make_model(case, "sdpa")
    expected_loss = step(alone, rows, OneProcess())
    expected = whole_grads(alone)
    sharding = make_sharding(case)
    model = sharding.wrap(make_model(case, sharding.attention))
    loss = step(model, rows, sharding)
    assert abs(loss - expected_loss) <= tolerance * abs(expected_loss), f"{case}: loss {loss} for {expected_loss}"
    got = whole_grads(model)
    assert got.keys() == expected.keys()
    # A gradient that is zero in exact arithmetic (a key's bias) is compared with the largest of its kind.
    largest = max(grad.norm().item() for grad in expected.values())
    for name, want in expected.items():
        error = (got[name] - want).norm().item()
        assert error <= tolerance * max(want.norm().item(), 1e-3 * largest), f"{case}: {name} off by {error}"
