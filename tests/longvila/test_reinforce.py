"""Reinforcement in one process: a reward that rises, a run that goes on, frames encoded once, rules, refusals."""

from unittest import mock

import pytest
import torch

from longvila import reinforce
from longvila.job import Job, JobError
from longvila.model import LongVilaForConditionalGeneration
from longvila.reinforce.policy import PolicyLoss
from longvila.reinforce.rewards import judge
from tests.longvila.reinforced import metrics, rewarding_high_bytes, settings


def run_job(run, **changes):
    reinforce.main(Job(config=settings(run, **changes)))
    return metrics(run)


def test_a_reward_rises_and_a_resumed_run_goes_on_as_an_unbroken_one(tmp_path):
    asked = {"steps": 12, "rows_per_step": 24, "group": 12, "updates": 1, "kl": 0.0, "checkpoint_every": 10, "lr": 3e-2}
    with rewarding_high_bytes():
        whole = run_job(tmp_path / "whole", **asked)
        broken = run_job(tmp_path / "broken", **{**asked, "steps": 10})
        broken = run_job(tmp_path / "broken", **asked, resume="latest")
    rewards = [line["reward"] for line in whole]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.15, rewards
    for got, want in zip(broken, whole, strict=True):
        for name in ("loss", "reward", "grad_norm", "tokens"):
            assert got[name] == pytest.approx(want[name], rel=1e-5), (want["step"], name)


def test_frames_are_encoded_once_for_all_that_is_done_with_them(tmp_path):
    """Two prompts a step: rollouts, a reference pass and two updates on six answers read the same embeddings."""
    with mock.patch.object(
        LongVilaForConditionalGeneration, "encode_frames", autospec=True,
        side_effect=LongVilaForConditionalGeneration.encode_frames,
    ) as encode:  # fmt: skip
        run_job(tmp_path / "run", steps=1)
    assert encode.call_count == 2


@pytest.mark.parametrize("advantage", [1.5, -0.5])
def test_the_slope_of_the_objective_is_its_derivative(advantage):
    random = torch.Generator().manual_seed(0)
    log, old, reference = (-3 * torch.rand(40, generator=random, dtype=torch.float64) for _ in range(3))
    log.requires_grad_()
    one = PolicyLoss(advantage=advantage, share=0.1, kl=0.2, old_S=old, reference_S=reference)
    loss, slope = one(log, torch.ones(40, dtype=torch.bool))
    (grad,) = torch.autograd.grad(loss.sum(), log)
    torch.testing.assert_close(slope, grad)
    assert 0 < int(one.clipped) < 40 and one.divergence > 0


@pytest.mark.parametrize(("answer", "wanted", "said"), [
    ("B", "B", {"exact": 1.0, "letter": 1.0, "words": 1.0, "format": 0.0}),
    ("(B) a dog", "B. a cat", {"exact": 0.0, "letter": 1.0, "words": 2 / 3, "format": 0.0}),
    ("<think>A?</think> <answer>B</answer>\n", "B", {"exact": 1.0, "letter": 1.0, "words": 1.0, "format": 1.0}),
    ("<answer>B</answer>", "B", {"exact": 1.0, "letter": 1.0, "words": 1.0, "format": 0.0}),
    ("", "B", {"exact": 0.0, "letter": 0.0, "words": 0.0, "format": 0.0}),
])  # fmt: skip
def test_rules(answer, wanted, said):
    assert judge(answer, wanted, dict.fromkeys(said, 1.0)) == pytest.approx(said)


@pytest.mark.parametrize(("changes", "told"), [
    ({"trained": ["llm", "tower"]}, "trained ['llm', 'tower'] must be some of embeddings, llm, lora, norms: "),
    ({"rows_per_step": 7}, "settings: rows_per_step 7 must be a multiple of group 3"),
    ({"group": 1}, "settings: group 1 must be at least 2"),
    ({"rewards": {"exakt": 1}}, "settings: rewards {'exakt': 1.0} must be weights of some of exact, letter, words, f"),
    ({"temperature": 0}, "settings: temperature 0.0 must be above 0"),
    ({"max_new_tokens": 250}, "with an answer of 250 more than max_tokens 256: raise it or take fewer frames"),
])  # fmt: skip
def test_what_cannot_be_run_is_one_line(tmp_path, changes, told):
    with pytest.raises(JobError) as fault:
        run_job(tmp_path / "run", **changes)
    assert told in str(fault.value) and "\n" not in str(fault.value)
