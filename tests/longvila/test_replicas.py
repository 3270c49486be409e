"""Two replicas with sharded parameters against one process: losses, checkpoints across both, weights and export."""

from importlib import resources

import pytest
import torch
import yaml
from safetensors.torch import load_file

from longvila.sharding import OneProcess
from longvila.weights import save_weights
from tests.longvila.replicas import train_replicas, train_spoilt
from tests.longvila.test_train import losses, metrics, run_job, settings
from tests.longvila.test_weights import fresh
from tests.ranks import run_ranks


def test_two_replicas_train_as_one_process(tmp_path):
    """Three rows a step leave one replica idle in turn; frames in chunks make the replicas' tower calls differ."""
    model = yaml.safe_load((resources.files("longvila") / "presets/tiny.yaml").read_text())
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({**model, "frames_per_chunk": 3}))
    save_weights(fresh(seed=5), tmp_path / "weights", OneProcess())
    base = {"precision": "fp64", "rows_per_step": 3, "steps": 3, "checkpoint_every": 2, "lr": 3e-3}
    chunked = {**base, "model": str(tmp_path / "model.yaml")}
    adapted = {"trained": ["lora", "embeddings", "norms"], "lora_rank": 4}
    started = {**base, "steps": 2, "weights": str(tmp_path / "weights"), **adapted}

    run_job(tmp_path / "one", **chunked)
    run_job(tmp_path / "one-started", **started, export=str(tmp_path / "one-weights"))
    # a one-process checkpoint of step 2, to be gone on from by two ranks
    run_job(tmp_path / "handed", **{**chunked, "steps": 2})
    names = run_ranks(
        train_replicas,
        2,
        [
            settings(tmp_path / "two", **chunked),
            settings(tmp_path / "two-started", **started, export=str(tmp_path / "two-weights")),
            settings(tmp_path / "handed", **chunked, resume="latest"),
            settings(tmp_path / "back", **{**chunked, "steps": 2}),
        ],
    )
    assert names[0] == ["step-000002", "step-000003"]
    run_job(tmp_path / "back", **chunked, resume="latest")

    wanted = losses(tmp_path / "one")
    for run in ("two", "handed", "back"):
        assert losses(tmp_path / run) == pytest.approx(wanted, rel=1e-13), run
    norms = [[line["grad_norm"] for line in metrics(tmp_path / run)] for run in ("one", "two")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-12)
    assert losses(tmp_path / "two-started") == pytest.approx(losses(tmp_path / "one-started"), rel=1e-13)
    for part in ("llm", "vision_tower", "mm_projector"):
        one, two = (load_file(tmp_path / f"{who}-weights" / part / "model.safetensors") for who in ("one", "two"))
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=1e-6, atol=1e-9, msg=name)


def test_a_loss_that_is_no_number_names_its_rank_and_row_on_every_rank(tmp_path):
    told = run_ranks(train_spoilt, 2, settings(tmp_path, pack=False, rows_per_step=4, steps=1))
    assert told[0] == told[1]
    assert told[0].startswith("step 1: the loss is nan on rank 1, in row 3 of the step's 4 (samples ")
