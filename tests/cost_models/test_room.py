"""What fits: one limit on priced bytes, by confidence or by headroom."""

import pytest

from cost_models import Cluster, InputError, Model, Strategy, Workload, price
from cost_models.bands import memory_at
from cost_models.room import AS_PRICED, LEAST, MOST, Room, sureness

CAPACITY = 80 * 2**30
COST = price(
    Cluster.load("dgx-h100", nodes=1),
    Workload(Model.load("longvila-8b"), context_tokens=2**16),
    Strategy(ulysses=8, shard=8, zero=3),
)


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95, 0.99])
def test_the_limit_is_the_certificates_memory_at_that_confidence(confidence: float) -> None:
    limit = Room(confidence=confidence).limit_bytes(COST.capacity_bytes)
    assert memory_at(COST, confidence) * limit == pytest.approx(COST.memory_bytes * COST.capacity_bytes)
    assert Room(confidence=confidence).holds(COST) == (memory_at(COST, confidence) <= COST.capacity_bytes)


def test_the_limit_falls_with_confidence_also_beyond_what_the_certificate_has() -> None:
    limits = [Room(confidence=p).limit_bytes(CAPACITY) for p in (LEAST, 0.9, 0.95, 0.99, 0.995, MOST)]
    assert limits == sorted(limits, reverse=True) and len(set(limits)) == len(limits)
    assert AS_PRICED.limit_bytes(CAPACITY) == CAPACITY


def test_sureness_is_the_inverse_of_the_limit() -> None:
    for confidence in (0.5, 0.75, 0.95, 0.99):
        limit = Room(confidence=confidence).limit_bytes(CAPACITY)
        assert sureness(limit, CAPACITY) == pytest.approx(confidence)
    assert sureness(2 * CAPACITY, CAPACITY) == 0.0


@pytest.mark.parametrize("wrong", [{"confidence": 0.4}, {"confidence": 1.0}, {"headroom_bytes": -1}])
def test_a_wrong_room_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Room(**wrong)
