"""Of one card at many clocks only the lowest one is asked: no kernel is faster at a lower clock."""

import random

import pytest

from cost_models.hardware.device import Device
from cost_models.number import larger, smaller
from cost_models.timing.kernels import Kernels
from cost_models.timing.slowest import KernelsInUse

CLOCKS = (0.4, 0.6, 0.8, 0.9, 0.97, 1.0)


@pytest.mark.parametrize("name", ["h100-sxm-80gb", "a100-sxm-80gb"])
def test_one_card_at_many_clocks_is_its_slowest(name: str) -> None:
    card, rng = Device.load(name), random.Random(1)
    assert card.clock_hz is not None
    devices = [card.at_clock(card.clock_hz * share) for share in CLOCKS]
    every = [Kernels.of(device) for device in devices]
    slowest, fastest = (KernelsInUse.of_devices(devices, choose=choose) for choose in (larger, smaller))
    assert (len(slowest.each), len(fastest.each)) == (1, 1)
    assert slowest.device == fastest.device == devices[0]
    for _ in range(100):
        m, n, k = (int(2 ** rng.uniform(4, 16)) for _ in range(3))
        times = [float(one.gemm_s(m, n, k)) for one in every]
        assert (float(slowest.gemm_s(m, n, k)), float(fastest.gemm_s(m, n, k))) == (max(times), min(times))
        tokens, backward = int(2 ** rng.uniform(6, 17)), rng.random() < 0.5
        asked = (tokens, tokens, 8, 2, 128, True, backward)
        times = [float(one.attention_s(*asked)) for one in every]
        assert (float(slowest.attention_s(*asked)), float(fastest.attention_s(*asked))) == (max(times), min(times))


def test_different_cards_are_all_asked() -> None:
    cards = [Device.load("h100-sxm-80gb"), Device.load("a100-sxm-80gb")]
    assert len(KernelsInUse.of_devices([*cards, *cards]).each) == 2
