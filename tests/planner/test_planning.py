"""The last step of a plan: the best few are simulated, near ties go to less memory, every loser has a reason."""

import pytest

from cost_models import Cluster, Model, Workload
from planner import plan
from planner.solve import TIE


def test_headline_fits_without_recompute_and_keeps_room():
    """LongVILA, abstract: 8B, 2M tokens, 256 GPUs of 80 GB, no recompute."""
    work = Workload(Model.load("longvila-8b"), context_tokens=2 * 2**20)
    found = plan(Cluster.load("dgx-h100", gpus=256), work)
    assert found.cost.fits
    assert [part.recompute for part in found.strategy.layer_ranges(32)] == ["none"]
    assert found.strategy.zero == 3  # whole weights on every GPU would save less than TIE of the time
    assert found.gap < TIE + 1e-3
    assert found.simulated.step_s == pytest.approx(found.cost.step_s, rel=0.02)
    assert all(other.reason for other in found.alternatives)


def test_a_pinned_zero_stage_stays():
    work = Workload(Model.load("longvila-8b"), context_tokens=2 * 2**20)
    found = plan(Cluster.load("dgx-h100", gpus=256), work, fixed={"zero": 2})
    assert found.strategy.zero == 2


def test_time_that_is_worth_the_memory_is_taken():
    """A short context on few tokens a GPU: gathering weights again is exposed, so they stay whole."""
    work = Workload(Model.load("longvila-8b"), context_tokens=8192)
    found = plan(Cluster.load("dgx-h100", gpus=64), work)
    assert found.strategy.zero < 3
