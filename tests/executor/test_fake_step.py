"""The real sharded step runs on fake tensors over a fake process group: memory can be counted without the ranks."""

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.executor.sharded_step import Case, make_model, make_rows, make_sharding, with_own_frames

CASE = Case(
    ring=4,
    ulysses=2,
    recompute=(("all_but_attention", 1), ("none", 1)),
    frames=((40, 60),),
    dtype="float32",
    param="bfloat16",
)


@pytest.fixture
def rank_3_of_8():
    dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=8)
    yield
    dist.destroy_process_group()


def test_one_rank_of_eight_without_the_others(rank_3_of_8):
    batch, pixels = make_rows(CASE)[0]
    sharding = make_sharding(CASE)
    with torch.device("meta"):
        model = sharding.wrap(make_model(CASE, sharding.attention))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model = model.to_empty(device="cpu").train()
        own = with_own_frames(batch, mode.from_tensor(pixels), sharding)
        sharding.token_mean(model(own, sharding), 100).backward()
    grads = {name: parameter.grad.to_local() for name, parameter in model.named_parameters()}
    assert {type(grad).__name__ for grad in grads.values()} == {"FakeTensor"}
    assert grads["llm.lm_head.weight"].shape == (64 // 8, 32)
    assert grads["llm.model.layers.0.mlp.up_proj.weight"].shape == (40 // 8, 32)
