"""Reinforcement over ranks is one process's: log-probabilities, gradients, and whole runs with their answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from longvila import reinforce
from longvila.job import Job
from longvila.model import Encode
from longvila.reinforce.policy import PolicyLoss
from longvila.sharding import IGNORE, OneProcess
from tests.executor.sharded_step import Case, make_model, make_rows, make_sharding, whole_grads, with_own_frames
from tests.longvila.reinforced import metrics, rewarding_high_bytes, settings
from tests.ranks import run_ranks

PASSES = {
    2: [Case(ulysses=2, frozen=("tower", "projector")), Case(ring=2, frozen=("tower", "projector"))],
    4: [Case(ulysses=2, ring=2, kind="balanced", frozen=("tower", "projector"), frames=((3,),))],
}
RUNS = {2: [Case(ring=2)], 4: [Case(data=2, ulysses=2)]}


def _pass(model, batch, pixels, sharding, olds, references):
    """Gradients of one row whose frames were encoded before; the loss, and what the pass saw."""
    given = with_own_frames(batch, pixels, sharding)
    with torch.no_grad():
        made_ND = model(Encode(batch=given), sharding)
    given = type(given)(**{**vars(given), "encoded_ND": made_ND, "pixels_FCHW": given.pixels_FCHW[:0]})
    one = PolicyLoss(advantage=0.7, share=0.1, kl=0.3, old_S=olds, reference_S=references)
    loss = model(given, sharding, token_loss=one, temperature=0.8)
    sharding.token_mean(loss, 1).backward()
    return sharding.total(loss.item()), one


def _check_passes(cases):
    for case in cases:
        batch, pixels = make_rows(case)[0]
        tokens = len(batch.input_ids_L)
        random = torch.Generator().manual_seed(1)
        alone = make_model(case, "sdpa")
        # an earlier policy and a reference near the model's own, so that some ratios are cut and some are not
        own = PolicyLoss()
        with torch.no_grad():
            alone(with_own_frames(batch, pixels, OneProcess()), token_loss=own, temperature=0.8)
        olds_L, references_L = (own.log_S + 0.3 * torch.randn(tokens, generator=random).double() for _ in range(2))
        want, seen = _pass(alone, batch, pixels, OneProcess(), olds_L, references_L)
        assert 0 < int(seen.clipped) < int((batch.labels_L != IGNORE).sum())

        sharding = make_sharding(case)
        model = sharding.wrap(make_model(case, sharding.attention))
        index_S = sharding.layout(batch).index(*sharding.groups.places[sharding.groups.context.index])
        here_S = np.minimum(index_S, tokens - 1)
        got, ours = _pass(model, batch, pixels, sharding, olds_L[here_S], references_L[here_S])
        assert got == pytest.approx(want, rel=1e-10), case
        real = (index_S < tokens) & (batch.labels_L.numpy()[here_S] != IGNORE)
        torch.testing.assert_close(ours.log_S[real], seen.log_S[here_S[real]], rtol=1e-10, atol=1e-10)
        assert sharding.total(float(ours.clipped)) == int(seen.clipped)
        grads = whole_grads(model)
        for name, grad in whole_grads(alone).items():
            torch.testing.assert_close(grads[name], grad, rtol=1e-8, atol=1e-10, msg=f"{case}: {name}")


def _run(cases, folder):
    """What a run has measured under each sharding."""
    _check_passes(PASSES[dist.get_world_size()])
    with rewarding_high_bytes():
        for number, case in enumerate(cases):
            run = Path(folder) / f"{dist.get_world_size()}-{number}"
            reinforce.main(Job(config=settings(run, precision="fp64"), sharding=make_sharding(case)))
            dist.barrier()


@pytest.mark.parametrize("ranks", RUNS)
def test_ranks_learn_from_the_same_answers_as_one_process(tmp_path, ranks):
    """Losses, rewards, tokens drawn and norms of every step, with a reference model and two updates on each answer."""
    with rewarding_high_bytes():
        reinforce.main(Job(config=settings(tmp_path / "one", precision="fp64")))
    run_ranks(_run, ranks, RUNS[ranks], str(tmp_path))
    wanted = metrics(tmp_path / "one")
    assert len({line["reward"] for line in wanted}) > 1 and all(line["divergence"] > 0 for line in wanted[1:])
    names = ("loss", "reward", "rules", "tokens", "answer_tokens", "divergence", "clipped", "grad_norm")
    for number in range(len(RUNS[ranks])):
        for got, want in zip(metrics(tmp_path / f"{ranks}-{number}"), wanted, strict=True):
            for name in names:
                assert got[name] == pytest.approx(want[name], rel=1e-7, abs=1e-12), (number, want["step"], name)
