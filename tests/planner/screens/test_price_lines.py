"""What is said beside a price: why its band is wide or one-sided, and why the simulation lies outside it."""

from dataclasses import replace

from cost_models import Cluster, Model, Strategy, Workload, price
from cost_models.bands import OFFLOADED, domain_of, step_band
from cost_models.certificate import certificate
from planner.plan_file import Simulated
from planner.screens.price_lines import cost_lines

WORK = Workload(Model.load("llama-3-8b"), context_tokens=16384)


def said(cost, *, times=1.0, part="sharding"):
    seconds = {**cost.seconds, part: cost.seconds[part] + cost.step_s * (times - 1)}
    return "\n".join(cost_lines(cost, Simulated(step_s=cost.step_s * times, seconds=seconds, busiest_links=())))


def test_a_simulation_outside_the_band_is_explained_by_the_part_that_differs_most():
    cost = price(Cluster.load("rtx4090-pcie", nodes=1), WORK, Strategy(ulysses=4, shard=4))
    assert "outside the band" not in said(cost)
    beyond = 1.01 * step_band(cost).high / cost.step_s
    assert "simulated outside the band: exposed sharding" in said(cost, times=beyond)
    assert "simulated outside the band: exposed all-to-all" in said(cost, times=beyond, part="all_to_all")


def test_an_update_on_the_cpu_is_called_an_estimate_where_it_weighs():
    there = Strategy(ulysses=4, shard=4, offload_states="all")
    cost = price(Cluster.load("rtx4090-pcie", nodes=1), WORK, there)
    assert domain_of(cost.basis) == OFFLOADED and "the CPU's update is an estimate" in said(cost)
    here = price(Cluster.load("rtx4090-pcie", nodes=1), WORK, replace(there, offload_states="none"))
    assert "the CPU's update" not in said(here)


def test_a_band_on_one_side_of_its_price_says_so():
    cost = price(Cluster.load("dgx-h100", nodes=2), WORK, Strategy(ulysses=8, ring=2, shard=16))
    known = certificate()
    name = domain_of(cost.basis)
    late = replace(known.domain(name), normal=tuple(0.1 * (place + 1) for place in range(11)))
    sided = replace(known, domains={**known.domains, name: late})
    assert "few published steps of this kind took less" in "\n".join(cost_lines(cost, None, known=sided))
    even = replace(late, normal=tuple(place - 5.0 for place in range(11)))
    both = replace(known, domains={**known.domains, name: even})
    assert "few published steps" not in "\n".join(cost_lines(cost, None, known=both))
