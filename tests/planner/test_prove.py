"""Proofs: the relaxation is below every price, regions are the space, and what is forged is refused by name."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from cost_models import Cluster, InputError, LayerRange, Model, Placement, Strategy, Workload, price
from cost_models.hardware.device import Device
from cost_models.room import Room
from planner.command import cli
from planner.plan_file import Plan
from planner.planning import plan
from planner.prove.proof import check
from planner.prove.proof import proven as with_proof
from planner.prove.regions import Family
from planner.prove.relaxation import Asked, families, least_s
from planner.search.space import Space
from planner.targets.target import MMSP
from tests.planner.clusters import cluster, node

TINY = Model(name="tiny", layers=2, hidden=1024, ffn=2048, heads=6, kv_heads=2, head_dim=64, vocab=512)


@pytest.mark.parametrize("fixed", [{}, {"ulysses": 4}, {"data": 2}, {"ring": 3}])
@pytest.mark.parametrize("sizes", [(8, 8), (5, 3), (1,)])
def test_the_proof_lists_the_space_that_is_searched(sizes: tuple[int, ...], fixed: dict[str, int]) -> None:
    here = cluster(*(node(gpus) for gpus in sizes))
    work = Workload(TINY, context_tokens=40, global_batch=4)
    try:
        searched = Space(cluster=here, workload=work, pins=fixed).families
    except InputError:
        return
    expected = {Family(one.data, one.microbatches, one.ulysses): (one.first_ring, one.most_ring) for one in searched}
    assert families(here, work, fixed) == expected


@pytest.mark.parametrize("seed", range(3))
def test_no_layout_is_priced_below_its_relaxation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = Cluster.load(["dgx-h100", "a100-pcie-pairs", "dgx-h100"][seed], nodes=2)
    here = base.override({1: replace(base.node(1), gpus=6)}) if seed == 2 else base
    work = Workload(Model.load("longvila-1.5b"), context_tokens=2**15, global_batch=2)
    space = families(here, work, {})
    several = [
        (list(space)[i], int(rng.integers(1, 1 + space[list(space)[i]][1]))) for i in rng.integers(len(space), size=12)
    ]
    least = least_s(Asked(cluster=here, work=work, held=Strategy(ring_kind="balanced")), several)
    free = np.array([(slot, gpu) for slot in range(here.slots) for gpu in range(here.node(slot).gpus)])
    for (family, ring), bound in zip(several, least, strict=True):
        ranks = family.data * family.ulysses * ring
        for shard, zero in ((ranks, 3), (ranks, 2), (family.ulysses * ring, 3), (np.gcd(ranks, 8).item(), 2), (1, 0)):
            layout = Strategy(
                ring=ring, shard=shard, zero=zero if shard > 1 else 0, ring_kind="balanced", **family._asdict()
            )
            places = free[rng.permutation(len(free))[:ranks]]
            placement = Placement(slot_of_rank=places[:, 0], gpu_of_rank=places[:, 1])
            assert bound <= price(here, work, layout, placement).step_s * (1 + 1e-12)


def test_what_fits_under_any_mixture_of_policies_is_not_below_its_relaxation_with_memory() -> None:
    """Rows for which layers must recompute: the bound lies above the one without memory, and below every price."""
    here, policies = Cluster.load("dgx-h100", nodes=1), MMSP.recompute[0]
    work = Workload(Model.load("longvila-8b"), context_tokens=2**17)
    held, rng, fitting = Strategy(ring_kind="balanced", loss_chunk_tokens=1024), np.random.default_rng(0), 0
    several = [(Family(1, 1, ulysses), 8 // ulysses) for ulysses in (8, 2)]
    free = least_s(Asked(cluster=here, work=work, held=held), several)
    among = tuple(LayerRange(recompute=one, count=1) for one in policies)
    bounded = least_s(Asked(cluster=here, work=work, held=held, policies=among, room=Room()), several)
    assert (bounded > 1.01 * free).all()
    for (family, ring), bound in zip(several, bounded, strict=True):
        for shard, zero in ((8, 3), (8, 2)):
            for counts in rng.multinomial(32, (0.3, 0.1, 0.5, 0.1), size=8).tolist():
                layers = tuple(
                    LayerRange(recompute=one, count=count) for one, count in zip(policies, counts, strict=True) if count
                )
                layout = replace(held, ring=ring, shard=shard, zero=zero, layers=layers, **family._asdict())
                cost = price(here, work, layout)
                fitting += Room().holds(cost)
                assert not Room().holds(cost) or bound <= cost.step_s * (1 + 1e-12)
    assert fitting > 5


@pytest.mark.parametrize("seed", range(4))
def test_no_shares_of_unlike_gpus_are_priced_below_the_sum_of_their_speeds(seed: int) -> None:
    """Two or three devices in one ring, in any order, with any shares and either of two contexts."""
    rng = np.random.default_rng(seed)
    base, names = Cluster.load("dgx-h100", nodes=3), ("h100-sxm-80gb", "a100-sxm-80gb", "h200-sxm-141gb")
    kinds = [Device.load(name) for name in (names, names[:2] + names[:1])[seed % 2]]
    here = base.override({slot: replace(base.node(0), gpus=2, device=device) for slot, device in enumerate(kinds)})
    work = Workload(Model.load("longvila-1.5b"), context_tokens=[2**12 + 40, 2**18][seed // 2])
    free = np.array([(slot, gpu) for slot in range(3) for gpu in range(2)])
    several = [(Family(1, 1, ulysses), ring) for ulysses, ring in ((1, 2), (1, 5), (1, 6), (2, 2), (2, 3))]
    least = least_s(Asked(cluster=here, work=work, held=Strategy(loss_chunk_tokens=1024)), several)
    for (family, ring), bound in zip(several, least, strict=True):
        for _ in range(25):
            shares = tuple(rng.integers(1, [4, 100][rng.integers(2)], size=ring).tolist())
            ranks = ring * family.ulysses
            places = free[np.sort(rng.permutation(6)[:ranks])]
            layout = Strategy(
                ring=ring, ulysses=family.ulysses, shard=ranks, zero=3, loss_chunk_tokens=1024, token_shares=shares
            )
            placement = Placement(slot_of_rank=places[:, 0], gpu_of_rank=places[:, 1])
            assert bound <= price(here, work, layout, placement).step_s * (1 + 1e-12)


def test_no_levers_that_fit_are_priced_below_the_bound_that_has_them() -> None:
    """A row that eight GPUs hold with levers alone: no bundle that fits is below the bound that has all of them."""
    here, work = Cluster.load("dgx-h100", nodes=1), Workload(Model.load("llama-3-8b"), context_tokens=3 * 2**20)
    held, family, fitting = Strategy(ring_kind="balanced", loss_chunk_tokens=128), (Family(1, 1, 8), 1), []
    policies = [LayerRange(recompute="full", offload=of, count=1) for of in ("none", "activations")]
    attention = [{"attention_chunk_tokens": 65536}, {"attention_head_chunks": 4}, {}]
    bundles = [
        {**chosen, "offload_states": states, "mlp_chunk_tokens": slices}
        for chosen, states, slices in itertools.product(attention, ("none", "all"), (None, 4096))
    ]
    among = (LayerRange(count=1), *policies)
    asked = Asked(cluster=here, work=work, held=held, levers=bundles, policies=among, room=Room())
    [bound] = least_s(asked, [family])
    [free] = least_s(replace(asked, room=None), [family])
    for fields, many in itertools.product(bundles, (0, 8, 20, 32)):
        layers = tuple(replace(one, count=n) for one, n in zip(policies, (many, 32 - many), strict=True) if n)
        cost = price(here, work, replace(held, ulysses=8, shard=8, zero=3, layers=layers, **fields))
        fitting += [cost.step_s] if Room().holds(cost) else []
    assert 3 < len(fitting) < 30 and 1.1 * free < bound <= min(fitting) < 1.1 * bound


def test_what_a_plan_says_was_searched_is_what_its_proof_covers(tmp_path: Path) -> None:
    """Levers and policies in the words of `searched`: its plan, which fits with them alone, is proven."""
    here, work = Cluster.load("dgx-h100", nodes=1), Workload(Model.load("llama-3-8b"), context_tokens=2**20)
    found = plan(here, work, fixed={"ulysses": 8, "ring": 1}, trust_model=True)
    assert "+ offload" in found.searched.varied["recompute"] and "mlp_chunk_tokens" in found.searched.varied
    proof = with_proof(found).proof
    assert proof is not None and 0.97 * found.cost.step_s < check("it", found, proof) <= found.bound * (1 + 1e-3)


@pytest.fixture(scope="module")
def proven() -> dict[str, Any]:
    work = Workload(Model.load("longvila-1.5b"), context_tokens=2**16, global_batch=2)
    found = plan(Cluster.load("dgx-h100", nodes=2), work)
    data: dict[str, Any] = json.loads(with_proof(found).to_json())
    return data


def moved(name: str, by: float) -> Callable[[dict[str, Any]], None]:
    def move(data: dict[str, Any]) -> None:
        data[name] *= by

    return move


def forged(data: dict[str, Any]) -> None:
    data["proof"]["bound_s"] *= 1.01


def region_forged(data: dict[str, Any]) -> None:
    least = min(data["proof"]["regions"], key=lambda one: one["least_s"])
    least["least_s"] *= 1.01


def region_missing(data: dict[str, Any]) -> None:
    del data["proof"]["regions"][3]


def region_beyond(data: dict[str, Any]) -> None:
    data["proof"]["regions"][0]["rings"] = [1, 10**12]


def step_lowered(data: dict[str, Any]) -> None:
    data["priced"]["step_s"] *= 0.5


def fixed(**pins: str) -> Callable[[dict[str, Any]], None]:
    def fix(data: dict[str, Any]) -> None:
        data["fixed"] = pins

    return fix


def region_twice(data: dict[str, Any]) -> None:
    data["proof"]["regions"].append(data["proof"]["regions"][0])


@pytest.mark.parametrize(
    ("forge", "words"),
    [
        (forged, "proof.bound_s states"),
        (region_forged, "least_s (data "),
        (region_missing, "0 times; legal: once"),
        (region_twice, "2 times; legal: once"),
        (region_beyond, "which is not in the space"),
        (moved("gap", 0.5), "gap states"),
        (moved("bound", 3.0), "above the plan's own price"),
        (step_lowered, "priced.step_s states"),
        (fixed(ulysses="x"), "fixed ulysses="),
        (fixed(ulysses="11"), "fixed.ulysses states 11, the plan's strategy has"),
    ],
)
def test_what_is_forged_is_refused_by_name(
    proven: dict[str, Any], tmp_path: Path, forge: Callable[[dict[str, Any]], None], words: str
) -> None:
    data = json.loads(json.dumps(proven))
    forge(data)
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(data))
    found = CliRunner().invoke(cli, ["prove", str(file)])
    assert isinstance(found.exception, InputError)
    assert words in str(found.exception)


def test_a_proof_that_holds_says_how_far_it_goes(proven: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(proven))
    found = CliRunner().invoke(cli, ["prove", str(file)])
    assert found.exit_code == 0 and "proven." in found.output
    read = Plan.load(file)
    assert read.proof is not None
    assert 0.99 * read.cost.step_s <= read.proof.bound_s <= read.cost.step_s
    file.write_text(json.dumps({**proven, "proof": None}))
    assert "plan again with --proof" in str(CliRunner().invoke(cli, ["prove", str(file)]).exception)
