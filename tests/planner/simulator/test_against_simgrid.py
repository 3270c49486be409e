"""Flows end when SimGrid says: its stored end times of fixed cases, and itself where it is installed."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.against_simgrid import FIXED, has_simgrid, random_case, simgrid, worst_error

GOLDEN = json.loads(Path(__file__).with_name("simgrid_ends.json").read_text(encoding="utf-8"))
"""Written by `benchmarks/against_simgrid.py --golden`, SimGrid 3.32."""


@pytest.mark.parametrize("seed", FIXED)
def test_every_flow_ends_when_simgrid_ends_it(seed: int) -> None:
    case = random_case(seed)
    assert worst_error(case, np.array(GOLDEN[case.name])) < 1e-13


@pytest.mark.skipif(not has_simgrid(), reason="python3-simgrid is not installed")
def test_simgrid_says_the_same_as_what_is_stored() -> None:
    cases = [random_case(seed) for seed in FIXED[:3]]
    for case, (ends, _) in zip(cases, simgrid(cases), strict=True):
        assert ends.tolist() == pytest.approx(GOLDEN[case.name], rel=1e-13)
