"""trl's trainer over ulysses x ring ranks under FSDP2 has the losses of trl's trainer in one process."""

import pytest
import torch

from examples.sft import losses
from executor.trainer import hide_ranks, packed
from longvila.sharding import IGNORE
from tests.executor.sharded_step import Case, make_sharding
from tests.ranks import run_ranks


def _both(cases):
    hide_ranks()
    want = losses(None)
    return [(want, losses(make_sharding(case))) for case in cases]


def test_losses_of_sft_are_those_of_one_process():
    for results in run_ranks(_both, 4, [Case(ulysses=2, ring=2, zero=3), Case(data=2, ring=2, shard=2, zero=2)]):
        for want, got in results:
            assert len(want) == 6 and want[-1] < 0.8 * want[0]
            assert got == pytest.approx(want, rel=1e-5)  # float32


def test_padded_and_padding_free_batches_are_the_same_row():
    ids, labels = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[5, 6, 7], [8, 9, IGNORE]])
    padded = packed({"input_ids": ids, "labels": labels, "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])})
    flat = {"input_ids": torch.tensor([[5, 6, 7, 8, 9]]), "labels": torch.tensor([[5, 6, 7, 8, 9]])}
    free = packed({**flat, "position_ids": torch.tensor([[0, 1, 2, 0, 1]])})
    for name in ("input_ids_L", "labels_L", "positions_L", "document_L"):
        assert torch.equal(getattr(padded, name), getattr(free, name)), name
    assert padded.labels_L.tolist() == [6, 7, IGNORE, 9, IGNORE]
