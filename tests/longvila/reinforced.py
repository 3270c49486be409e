"""Small runs of reinforcement: settings on the example clips, and a reward that an untrained model meets by chance."""

import contextlib
import json

import pytest
import yaml

from longvila.reinforce import rewards
from tests.longvila.clips import EXAMPLES, MEDIA

MODEL = {
    "tokenizer": "byte", "chat": "byte", "frame_separator": "", "vision_select_layer": -1,
    "llm": {"model_type": "llama", "vocab_size": 264, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2},
    "vision": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
               "image_size": 16, "patch_size": 4},
}  # fmt: skip


@contextlib.contextmanager
def rewarding_high_bytes():
    """`exact` becomes the share of an answer's bytes, drawn from 264, that are above 128."""
    with pytest.MonkeyPatch.context() as patch:
        told = {**rewards.RULES, "exact": lambda answer, wanted: sum(ord(c) > 128 for c in answer) / (len(answer) + 1)}
        patch.setattr(rewards, "RULES", told)
        yield


def settings(run, **changes):
    model = run.with_name(f"{run.name}.yaml")
    model.write_text(yaml.safe_dump(MODEL))
    base = {"data": [str(EXAMPLES / "clips.jsonl")], "media": str(MEDIA), "run": str(run), "model": str(model),
            "steps": 2, "frames": 2, "max_tokens": 256, "rows_per_step": 6, "group": 3, "max_new_tokens": 4,
            "updates": 2, "kl": 0.1, "lr": 1e-2}  # fmt: skip
    return {**base, **changes}


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
