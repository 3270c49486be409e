"""What hidden collectives take: near what was measured inside a node, little where bytes come slowly."""

from dataclasses import replace

import pytest

from cost_models import Cluster, Model, Strategy, Workload, price
from cost_models.contention import NVLINK_CHANNELS, OVERLAP_COST
from cost_models.kernels import Kernels
from cost_models.setting import setting


@pytest.mark.parametrize("machine", ["dgx-a100", "dgx-h100"])
def test_inside_a_node_as_measured(machine):
    """Not fitted: FSDP on 4 GPUs (arXiv 2507.03114) loses OVERLAP_COST of a second to each that it hides."""
    paths = setting(Cluster.load(machine, nodes=1), None).paths(Strategy(ring=4, shard=4))
    device = Cluster.load(machine, nodes=1).runs[0].node.device
    seconds = paths.exchange_s("shard", "all_gather", 1e9)
    taken = Kernels.of(device).contention().taken_s("all_gather", 4, paths.channels("shard"), 1e9, seconds)
    assert paths.channels("shard") == NVLINK_CHANNELS
    assert taken / seconds == pytest.approx(OVERLAP_COST, rel=0.3)


@pytest.mark.parametrize("cards, least, most", [(8, 0.35, 0.45), (1, 0.04, 0.09)])
def test_between_nodes_as_fast_as_bytes_come(cards, least, most):
    """Two channels for each card of 200 Gbit/s, and three passes of memory over what they bring."""
    here = Cluster.load("dgx-a100", nodes=8)
    run = here.runs[0]
    node = replace(run.node, nics=replace(run.node.nics, count=cards))
    paths = setting(replace(here, runs=(replace(run, node=node),)), None).paths(Strategy(data=64, shard=64))
    seconds = paths.exchange_s("shard", "all_gather", 1e9)
    taken = Kernels.of(node.device).contention().taken_s("all_gather", 64, paths.channels("shard"), 1e9, seconds)
    assert paths.channels("shard") == 2 * cards
    assert least < taken / seconds < most


def test_a_cpu_gives_up_nothing_beyond_its_profile():
    assert Kernels.of("cpu").contention() is None


def test_a_step_pays_for_what_it_hides():
    """The headline's layers hide their gathers, and each second of these costs a half."""
    work = Workload(Model.load("longvila-8b"), context_tokens=2 * 2**20)
    cost = price(Cluster.load("dgx-h100", nodes=32), work, Strategy(ring=32, ulysses=8, shard=256))
    total = cost.hidden_s["sharding"] + cost.seconds["sharding"]
    assert 0.3 * total < cost.seconds["sharding"] < 0.6 * total
