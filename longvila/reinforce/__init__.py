"""The reinforcing job: a model learns from rewards on its own answers, long videos encoded once a step (MR-SP).

    python -m longvila.reinforce settings.yaml [key=value …]     in one process
    executor launch plan.json --job longvila.reinforce --config settings.yaml

    prompts --encode, once--> embeddings of each rank's frames
            --prefill, once a prompt; draw `group` answers--> rewards --> advantages      (rollouts.py, rewards.py)
            --prompt + answer through the sharded model--> log-probabilities --> loss      (policy.py)

LongVILA-R1's method (arXiv 2507.07966): the frames' embeddings that the first step makes serve the rollouts, the
reference model and every update, each rank keeping those of its own frames. So tower and projector stay as they are.
Data are those of `longvila.train`; a sample's last answer is what the rules compare with. Settings are
`ReinforceSettings`. Metrics besides those of training: reward, what each rule says, tokens of an answer, divergence
from the reference, share of clipped tokens, seconds of the rollouts. Leaves out: a critic, rewards by another model,
and sharing the prompt between the training rows of a group (each is computed whole).
"""

from __future__ import annotations

from longvila.job import Job
from longvila.reinforce.run import ReinforceRun
from longvila.reinforce.settings import ReinforceSettings
from longvila.settings import read_settings
from longvila.train import run_job


def main(job: Job) -> None:
    """Train by rewards on the model's own answers; collective."""
    run_job(job, read_settings(ReinforceSettings, job.config, "settings"), ReinforceRun)
