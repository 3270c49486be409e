"""trl's trainer over ulysses x ring ranks under FSDP2 has the losses of trl's trainer in one process."""

from unittest.mock import patch

import pytest
import torch
from torch._dynamo.utils import counters
from trl import SFTConfig

from cost_models.errors import InputError
from cost_models.models.model import Model
from examples import sft
from examples.sft import LAYERS, losses
from executor.trainer import hide_ranks, packed, refuse_arguments
from longvila.sharding import IGNORE
from tests.executor.sharded_step import Case, make_sharding
from tests.ranks import run_ranks


def _both(cases):
    hide_ranks()
    how = {"steps": 4, "label_smoothing_factor": 0.3, "eval_strategy": "steps", "eval_steps": 2}
    want = losses(None, **how)
    results = [(want, losses(make_sharding(case), **how)) for case in cases]
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    results.append((want, losses(make_sharding(cases[0]), **how, **compiled)))
    assert counters["stats"]["unique_graphs"], "nothing was compiled"
    with pytest.raises(InputError, match="gradient_checkpointing=True would replace what the plan does with layers"):
        losses(make_sharding(cases[0]), gradient_checkpointing=True, **compiled)
    for case in cases:  # ranks of a row, and replicas, whose ranks of a row agree
        sharding = make_sharding(case)
        other = sharding.data_index if sharding.data_count > 1 else sharding.rank
        with pytest.raises(InputError, match="ranks have other seed of the arguments: give every rank the same"):
            losses(sharding, seed=7 + sharding.rank)
        with (
            patch.object(sft, "SENTENCES", sft.SENTENCES[other:] + sft.SENTENCES[:other]),
            pytest.raises(InputError, match="ranks read different batches: give every rank the same data, seed"),
        ):
            losses(make_sharding(case))
    return results


def test_losses_of_sft_are_those_of_one_process():
    """With label smoothing and evaluations; ranks that deal batches otherwise stop."""
    for results in run_ranks(_both, 4, [Case(ulysses=2, ring=2, zero=3), Case(data=2, ring=2, shard=2, zero=2)]):
        for want, got in results:
            assert len(want) == 6 and want[-1] < want[0]
            assert got == pytest.approx(want, rel=1e-5)  # float32


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        ({"save_strategy": "steps"}, {}, "save_strategy='steps' is not done over ranks; legal: 'no'"),
        ({"loss_type": "dft"}, {}, "loss_type='dft' is not done over ranks; legal: 'chunked_nll'"),
        ({"neftune_noise_alpha": 5.0}, {}, "neftune_noise_alpha=5.0 is not done over ranks; legal: None"),
        ({}, {"compute_loss_func": max}, "compute_loss_func is not called over ranks"),
        ({"optim": "adafactor"}, {}, "optim='adafactor' is not known for sharded weights; legal: adamw_torch, adamw_"),
        ({}, {"optimizers": (max, None)}, "made before the weights were sharded, and would train none of them"),
    ],
)
def test_what_would_not_be_as_in_one_process_is_refused(tmp_path, change, given, message):
    args = SFTConfig(**{"output_dir": str(tmp_path), "save_strategy": "no", "use_cpu": True, "bf16": False, **change})
    with pytest.raises(InputError, match=message):
        refuse_arguments(args, given)


def test_the_example_has_the_layers_of_the_model_that_its_page_plans():
    assert Model.load("longvila-tiny").layers == LAYERS


def test_padded_and_padding_free_batches_are_the_same_row():
    ids, labels = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[5, 6, 7], [8, 9, IGNORE]])
    padded = packed({"input_ids": ids, "labels": labels, "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])})
    flat = {"input_ids": torch.tensor([[5, 6, 7, 8, 9]]), "labels": torch.tensor([[5, 6, 7, 8, 9]])}
    free = packed({**flat, "position_ids": torch.tensor([[0, 1, 2, 0, 1]])})
    for name in ("input_ids_L", "labels_L", "positions_L", "document_L"):
        assert torch.equal(getattr(padded, name), getattr(free, name)), name
    assert padded.labels_L.tolist() == [6, 7, IGNORE, 9, IGNORE]


ROW = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "labels": torch.tensor([[5, 6, 7, 8]])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": torch.tensor([[0, 1, 1, 1]])}, "rows are padded on the right"),
        ({"attention_mask": torch.tensor([[1, 1, 2, 2]])}, "must be 1 … 1 0 … 0"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 0]])}, "padding has labels other than -100"),
        ({"position_ids": torch.tensor([[0, 1, 5, 6]])}, "must grow by 1 inside a document"),
        ({"pixel_values": torch.zeros(1)}, "a batch's pixel_values is not taken over ranks"),
        ({"token_type_ids": torch.zeros(1, 4)}, "a batch's token_type_ids is not taken"),
    ],
)
def test_batches_that_one_row_does_not_hold_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        packed({**ROW, **change})


def test_rows_whose_positions_go_on_are_documents_of_their_own():
    two = {name: part.repeat(2, 1) for name, part in ROW.items()}
    row = packed({**two, "position_ids": torch.tensor([[4, 5, 6, 0], [9, 10, 11, 12]])})
    assert row.document_L.tolist() == [1, 1, 1, 2, 3, 3, 3, 3]
    assert row.labels_L.tolist() == [6, 7, IGNORE, IGNORE, 6, 7, 8, IGNORE]
    assert row.positions_L.tolist() == [4, 5, 6, 0, 9, 10, 11, 12]
