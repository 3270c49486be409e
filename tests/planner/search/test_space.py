"""Which layouts exist: degrees, rings and ways of sharding."""

import numpy as np
import pytest

from cost_models import Cluster, InputError, Model, Workload
from planner.search.space import Space, divisors
from tests.planner.clusters import cluster, node


def space(nodes: int = 4, batch: int = 1, tokens: int = 2**20, mode: str = "train", **pins: object) -> Space:
    work = Workload(Model.load("longvila-8b"), context_tokens=tokens, global_batch=batch, mode=mode)
    return Space(cluster=Cluster.load("dgx-h100", nodes=nodes), workload=work, pins=pins)


def test_ulysses_is_any_integer_in_a_node_and_a_divisor_of_the_heads_beyond() -> None:
    found = {family.ulysses for family in space().families}
    assert found == {1, 2, 3, 4, 5, 6, 7, 8, 16, 32}


def test_context_and_data_stay_within_the_gpus() -> None:
    for family in space(nodes=2, batch=6).families:
        assert family.data * family.ulysses * family.most_ring <= 16
        assert family.data * family.ulysses * (family.most_ring + 1) > 16
        assert 6 % (family.data * family.microbatches) == 0


def test_every_factoring_of_the_batch_is_there() -> None:
    found = {(family.data, family.microbatches) for family in space(batch=4).families}
    assert found == {(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1)}
    assert {family.microbatches for family in space(batch=4, mode="prefill").families} == {1}


def test_ranks_have_two_tokens_at_least() -> None:
    for family in space(nodes=2048, tokens=512).families:
        assert family.most_ring * family.ulysses <= 256


def test_shards_divide_the_ranks_and_are_listed_once() -> None:
    here = space(batch=4)
    shard, zero, legal = here.shards(np.array([4, 1, 1]), np.array([6, 32, 1]))
    assert shard[0].tolist() == [24, 24, 8, 8, 6, 6, 1]
    assert zero[0].tolist() == [3, 2, 3, 2, 3, 2, 0]
    assert legal[0].all()
    assert legal[1].tolist() == [True, True, True, True, False, False, True], "context is all ranks"
    assert legal[2].tolist() == [False] * 6 + [True], "one rank shards nothing"
    assert len(here.shardings) == 7


def test_pinned_shard_and_stage() -> None:
    shard, zero, legal = space(shard=4, zero=2).shards(np.array([1, 1]), np.array([8, 6]))
    assert shard[legal].tolist() == [4] and zero[legal].tolist() == [2]
    shard, zero, legal = space(zero=0).shards(np.array([1]), np.array([8]))
    assert shard[legal].tolist() == [1] and zero[legal].tolist() == [0]


def test_lopsided_domains_count_the_largest() -> None:
    work = Workload(Model.load("longvila-8b"), context_tokens=4096)
    assert Space(cluster=cluster(node(3), node(2)), workload=work, pins={}).domain_gpus == 3


@pytest.mark.parametrize(
    ("pins", "words"), [({"shard": 64}, "1 to 32"), ({"ulysses": 0}, "legal: 1, 2"), ({"ring": 0}, "1 to 32")]
)
def test_pins_outside_the_space(pins: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        assert space(**pins).families


def test_divisors_of_a_square() -> None:
    assert divisors(36) == [1, 2, 3, 4, 6, 9, 12, 18, 36]


def test_a_pinned_schedule_is_searched_with_any_number_of_microbatches() -> None:
    pins = {"pipeline": 2, "virtual": 2, "schedule": "interleaved", "microbatches": 4}
    assert {family.microbatches for family in space(batch=8, **pins).families} == {4}
    with pytest.raises(InputError, match="virtual=2 needs schedule=interleaved"):
        space(batch=8, pipeline=2, virtual=2)
