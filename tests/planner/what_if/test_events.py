"""Named links and places of `--lose`, `--degrade` and `--slow`, and scenarios that leave nothing."""

import pytest

from cost_models import Cluster, Strategy
from cost_models.errors import InputError
from cost_models.timing.cluster_costs import ClusterCosts
from planner.what_if.events import event
from tests.planner.clusters import GB, PAIRS, cluster, node

DGX = Cluster.load("dgx-h100", gpus=512)  # two leaves of 32 nodes


def after(flag: str, text: str, where: Cluster = DGX, seed: int = 0) -> Cluster:
    axis = event(flag, text)
    assert axis.change is not None
    return axis.change(where, axis.values[0], seed)


def test_one_card_dies_by_name() -> None:
    lost = after("lose", "link:slot3.nic2")
    assert [slot for slot in range(lost.slots) if lost.node(slot).missing_nics] == [3]
    assert lost.node(3).missing_nics == (2,)
    two = after("lose", "link:slot3.nic2+slot3.nic4+slot5.nic0")
    assert (two.node(3).missing_nics, two.node(5).missing_nics) == ((2, 4), (0,))


def test_one_uplink_dies_by_name_or_by_lot() -> None:
    """A leaf of 32 nodes with 8 cards has 256 uplinks; without one, 255 cards' rate is left."""
    lost = after("lose", "link:leaf1")
    assert lost.fabric.missing_uplinks == (1,)
    assert ClusterCosts(lost).wiring.line.of_leaf.tolist() == [256 * 50 * GB, 255 * 50 * GB]
    some = after("lose", "uplink:0.25").fabric.missing_uplinks
    assert len(some) == 128 and set(some) == {0, 1}
    with pytest.raises(InputError, match="under one leaf, which has no uplinks"):
        after("lose", "uplink:1", Cluster.load("dgx-h100", gpus=64))


def test_a_bridge_a_mesh_link_and_a_link_to_the_switches() -> None:
    pairs = after("lose", "link:slot0.gpu2-3", cluster(node(4, 2, scale_up=PAIRS)))
    assert pairs.node(0).missing_bridges == (1,)
    path = ClusterCosts(pairs).paths(Strategy(data=2, ulysses=2)).axes["ulysses"]
    assert float(path.bus_all_to_all_s_per_byte) > 0  # the pair that lost its bridge goes over PCIe
    mesh = Cluster.load("leonardo", nodes=1)
    rate = after("lose", "link:slot0.gpu0-3", mesh).node(0).scale_up.bytes_per_s
    assert rate == pytest.approx(mesh.node(0).scale_up.bytes_per_s * 2 / 3)
    switched = after("lose", "link:slot0.gpu5").node(0).scale_up.bytes_per_s
    assert switched == pytest.approx(450e9 * 17 / 18)


def test_one_card_or_node_is_degraded_or_slow_by_name() -> None:
    assert after("degrade", "link:0.5@slot3.nic2").node(3).nic_shares == (1, 1, 0.5, 1, 1, 1, 1, 1)
    assert after("degrade", "link:0.5@slot3").node(3).nics.bytes_per_s == 25e9
    assert after("degrade", "nvlink:0.5@slot3+slot4").node(4).scale_up.bytes_per_s == 225e9
    slow = after("slow", "node:0.3@slot7")
    assert [slot for slot in range(slow.slots) if slow.node(slot) != DGX.node(slot)] == [7]


@pytest.mark.parametrize(
    ("flag", "text", "message"),
    [
        ("lose", "link:3", "no place; legal: slot3"),
        ("lose", "link:slot3", "a node, no link"),
        ("lose", "link:slot64.nic0", "slots are 0 to 63"),
        ("lose", "link:slot3.nic8", "slot 3 has nic 0 to 7"),
        ("lose", "link:slot3.gpu0-1", "one GPU: switches join its GPUs"),
        ("lose", "link:leaf2", "there is no leaf 2; legal: 0 to 1"),
        ("lose", "leaf:2", "none of the 512 GPUs would be left"),
        ("lose", "node:64", "none of the 512 GPUs would be left"),
        ("lose", "gpu:512", "none of the 512 GPUs would be left"),
        ("lose", "nic:512", "none of the 512 GPUs would be left"),
        ("degrade", "link:0.5@slot3.gpu1", "legal: a factor above 0"),
        ("degrade", "nvlink:0.5@slot3.nic1", "legal: a factor above 0"),
        ("slow", "node:0.3@leaf1", "legal: a factor above 0"),
        ("degrade", "link:0.5@x", "no place"),
    ],
)
def test_what_is_not_there_is_refused_in_a_line(flag: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        after(flag, text)
    assert "\n" not in str(error.value)


def test_the_only_leaf_cannot_be_lost() -> None:
    with pytest.raises(InputError, match="all nodes are under one leaf, nothing would be left; --vary nodes_per_leaf"):
        after("lose", "leaf:1", Cluster.load("dgx-h100", gpus=64))
