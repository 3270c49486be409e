"""Bands and odds follow from the certificate's errors, and what two layouts share cancels."""

import json
import math
from dataclasses import replace

import pytest

from cost_models import Cluster, Model, Strategy, Workload, price
from cost_models import certificate as certificates
from cost_models.bands import band_of, difference_sigma, memory_at, memory_band, odds, sigma_of, step_band
from cost_models.basis import SOURCES, Basis
from cost_models.batch import price_batch
from cost_models.certificate import PATH, certificate, digest_of, load
from cost_models.errors import InputError

WORK = Workload(Model.load("longvila-8b"), context_tokens=2**18)
CLUSTER = Cluster.load("dgx-h100", nodes=2)
RING, HYBRID = Strategy(ring=16, shard=16), Strategy(ring=2, ulysses=8, shard=16)


@pytest.fixture(scope="module")
def costs():
    return price(CLUSTER, WORK, RING), price(CLUSTER, WORK, HYBRID)


def test_the_seconds_of_a_basis_are_the_steps(costs):
    for cost in costs:
        assert math.isclose(sum(cost.basis.seconds.values()), cost.step_s, rel_tol=1e-12)
        assert set(cost.basis.seconds) <= set(SOURCES)
        assert cost.basis.place == "across"
    assert price(Cluster.load("dgx-h100", nodes=1), WORK, Strategy(ulysses=8, shard=8)).basis.place == "inside"


def test_a_band_widens_with_its_level_and_holds_the_price(costs):
    widths = [step_band(costs[0], level).half_width for level in (0.5, 0.8, 0.9)]
    assert widths == sorted(widths) and widths[0] > 0
    band = memory_band(costs[0])
    assert band.low < band.middle == costs[0].memory_bytes < band.high


def test_memory_at_a_confidence_is_of_one_cost_or_of_many(costs):
    assert memory_at(costs[0], 0.95) > memory_at(costs[0], 0.5)
    batch = price_batch(CLUSTER, WORK, [RING, HYBRID])
    assert memory_at(batch).tolist() == pytest.approx([memory_at(one) for one in costs])
    with pytest.raises(InputError, match="confidence=1"):
        memory_at(costs[0], 1)


def test_odds_are_those_of_the_other_order(costs):
    ring, hybrid = costs
    assert odds(ring, hybrid) == pytest.approx(1 - odds(hybrid, ring))
    assert odds(ring, ring) == pytest.approx(0.5)
    slower = replace(ring, seconds={**ring.seconds, "ring": ring.seconds["ring"] + ring.step_s})
    assert odds(ring, slower) > 0.9


def test_what_two_layouts_share_cancels():
    known = certificate()
    many = Basis(board="measured", seconds={"products": 9.0, "across": 1.0})
    more = Basis(board="measured", seconds={"products": 9.0, "across": 4.0})
    alone = difference_sigma(many, many, known)
    assert alone == pytest.approx(math.sqrt(2) * known.pairs.residual)
    assert difference_sigma(many, more, known) > alone
    assert sigma_of(more, known) > sigma_of(many, known)


def _written(path, data):
    path.write_text(json.dumps(data))
    return path


def test_an_edited_certificate_is_refused(tmp_path):
    data = json.loads(PATH.read_text())
    data["residual"] += 0.01
    with pytest.raises(InputError, match="it was edited; run `make certificate`"):
        load(_written(tmp_path / "edited.json", data))


def test_a_certificate_of_other_code_is_refused(tmp_path):
    data = json.loads(PATH.read_text())
    del data["digest"]
    data["code"] = "0" * 64
    with pytest.raises(InputError, match="is of other code"):
        load(_written(tmp_path / "other.json", data | {"digest": digest_of(data)}))


def test_a_certificate_of_other_keys_or_quantiles_is_refused(tmp_path):
    data = json.loads(PATH.read_text())
    data["mode"] = 1
    with pytest.raises(InputError, match="mode is unknown"):
        load(_written(tmp_path / "keys.json", data))
    del data["mode"], data["digest"]
    name = next(iter(data["domains"]))
    data["domains"][name]["quantiles"].reverse()
    with pytest.raises(InputError, match="rising"):
        load(_written(tmp_path / "order.json", data | {"digest": digest_of(data)}))


@pytest.mark.parametrize(("part", "key", "value", "said"), [
    ("attention, measured", "spread", 1e300, "spread: 1e\\+300 is above its maximum of 10"),
    ("attention, measured", "quantiles", [], "quantiles must be 11 rising numbers"),
    ("step, measured, inside a node", "normal", [], "inside a node'].normal is missing"),
    ("step, measured, inside a node", "quantiles", [0.0] * 10 + [1e300], "quantiles"),
])  # fmt: skip
def test_a_certificate_with_a_digest_of_its_own_but_no_errors_is_refused(tmp_path, part, key, value, said):
    data = json.loads(PATH.read_text())
    data["domains"][part][key] = value
    del data["digest"]
    with pytest.raises(InputError, match=said):
        load(_written(tmp_path / "c.json", data | {"digest": digest_of(data)}))


def test_an_unknown_domain_names_the_nearest():
    with pytest.raises(InputError, match="did you mean attention, measured"):
        certificate().domain("attention, measurd")
    assert certificates.certificate() is certificate()


def test_an_error_of_the_update_in_host_memory_moves_its_own_seconds_alone():
    known = certificate()
    name = "step, measured, inside a node"
    sure = replace(known.domain(name), normal=(0.0,) * 11)
    tenfold = replace(known.domain("offload"), quantiles=tuple(math.log(10) * (place - 5) / 2 for place in range(11)))
    known = replace(known, domains={**known.domains, name: sure, "offload": tenfold})
    many = Basis(board="measured", seconds={"products": 9.0, "update": 1.0})
    band = band_of(many, 10.0, known)  # the tenth and ninetieth percentile are two places off the middle
    assert band.low == pytest.approx(9.0 + 1.0 / 10) and band.high == pytest.approx(9.0 + 1.0 * 10)
    assert band_of(replace(many, seconds={"products": 10.0}), 10.0, known).ends == (10.0, 10.0)
