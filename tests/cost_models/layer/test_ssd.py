"""Layers that mix tokens by a state: their weights, their bytes, and what is refused."""

import json
from dataclasses import replace

import pytest

from cost_models import Cluster, Model, Placement, Strategy, Workload, price
from cost_models.errors import InputError
from cost_models.layer.decoder import operators
from cost_models.layer.sizes import RankSizes
from cost_models.pricing import fold
from cost_models.program import Passed, Segment, StepProgram
from cost_models.ssd_messages import SsdLayer, passing_order, rounds
from cost_models.timing.cluster_costs import cluster_costs
from cost_models.token_layout import Layout
from planner.simulator.simulation import play

CONFIG = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "layer_types": ["ssd", "ssd", "ssd", "full_attention"] * 2,
    "ssd": {"heads": 64, "head_size": 64, "state": 128},
}  # fmt: skip


@pytest.fixture
def read(tmp_path):
    def read(**changed):
        path = tmp_path / "config.json"
        path.write_text(json.dumps({key: value for key, value in {**CONFIG, **changed}.items() if value is not None}))
        return Model.load(str(path))

    return read


def exchanges_of(sizes):
    """Forward, states that all ranks get as the gather that it is."""
    sent = [one for row in operators(sizes) for one in row.exchanges[0]]
    ranks = {"context": sizes.degrees.context, "ring": sizes.degrees.ring}
    return [one.gathered(ranks[one.axis]) if isinstance(one, Passed) else one for one in sent]


def sent_bytes(exchange, ranks):
    """By one rank."""
    if exchange.op == "send":
        return exchange.bytes
    return exchange.bytes * (ranks - 1) / ranks


@pytest.mark.parametrize("split", ["states", "mixed", "heads"])
@pytest.mark.parametrize(("ring", "ulysses"), [(1, 4), (4, 1), (2, 2), (4, 4), (2, 8)])
def test_a_rank_sends_what_the_table_of_tokens_says(read, split, ring, ulysses):
    """All rounds but the halo, which is no more than the tokens that some rank sends at one time."""
    model, tokens = read(), 4096
    strategy = Strategy(ring=ring, ulysses=ulysses, ssd=split, ring_kind="balanced")
    sizes = RankSizes(Workload(model, context_tokens=tokens), strategy, kind="ssd")
    axes = {"ring": ring, "ulysses": ulysses, "context": ring * ulysses}
    mine = sum(sent_bytes(one, axes[one.axis]) for one in exchanges_of(sizes) if one.op != "send")
    layout = Layout(tokens=tokens, ring=ring, ulysses=ulysses, kind="zigzag")
    layer = SsdLayer(heads=64, head_size=64, state=128)
    halo = 3 * 64 * 320 * 2
    told = [one for one in rounds(layout, layer, split, "gather") if one.bytes.sum() > 2 * halo * ring * ulysses]
    assert mine == pytest.approx(sum(one.bytes.sum(axis=1).max() for one in told))


@pytest.mark.parametrize("split", ["states", "mixed"])
@pytest.mark.parametrize("kind", ["zigzag", "contiguous"])
def test_stretches_and_rounds_of_a_tree_are_those_of_the_table_of_tokens(read, split, kind):
    model, layer = read(), SsdLayer(heads=64, head_size=64, state=128)
    for ring, ulysses in ((1, 4), (2, 1), (3, 1), (4, 1), (5, 1), (2, 2), (4, 2), (3, 4), (2, 8)):
        strategy = Strategy(ring=ring, ulysses=ulysses, ssd=split, ssd_pass="tree", ring_kind=kind)
        sizes = RankSizes(Workload(model, context_tokens=4096), strategy, kind="ssd")
        (phase,) = [one for row in operators(sizes) for one in row.exchanges[0] if isinstance(one, Passed)]
        order = passing_order(strategy, phase.axis)
        assert phase.stretches == len(order) and phase.slots == 1 + max(slot for _, slot in order)
        layout = Layout(tokens=4096, ring=ring, ulysses=ulysses, kind=kind)
        told = [one.bytes.sum() for one in rounds(layout, layer, split, "tree") if one.op == "send"]
        assert 2 ** len(told) >= phase.reach > 2 ** (len(told) - 1) or ring * ulysses == 1 or not told
        heads = 64 // (ulysses if split == "mixed" else 1)
        assert phase.summary_bytes == pytest.approx(heads * (64 * 128 + 1) * 4)


def test_a_chain_is_least_where_gpus_share_a_slow_card(read):
    """Of a zigzag two messages go from node to node, one after another; a tree sends five there, a gather seven."""
    cluster = Cluster.load("dgx-h100", nodes=2)
    node = cluster.runs[0].node
    slow = replace(node, gpus=4, nics=replace(node.nics, count=1, bytes_per_s=1e9))
    cluster = replace(cluster, runs=(replace(cluster.runs[0], node=slow),))
    work, seconds, costs = Workload(read(), context_tokens=2**16), {}, cluster_costs(cluster, None)
    for way in ("gather", "chain", "tree"):
        one, placement = Strategy(ring=2, ulysses=4, ssd_pass=way), Placement.in_order(cluster, 8)
        table = operators(RankSizes(work, one, kind="ssd"))
        phases = tuple(sent for row in table for sent in row.exchanges[0] if sent.axis == "context")
        program = StepProgram(microbatch=(Segment(name=way, phases=phases),), epilogue=(), microbatches=1)
        seconds[way] = fold(program, costs.paths(one, placement)).seconds["ring"]
        played = play(program, cluster, one, placement, rates=costs.rates)
        assert played.step_s == pytest.approx(seconds[way], rel=0.08)  # many messages at once reach less than one
    assert seconds["chain"] < seconds["tree"] < seconds["gather"]


@pytest.mark.parametrize(("tokens", "ring", "ulysses", "megabytes"), [(2**18, 1, 8, 14.7), (2**21, 32, 8, 535)])
def test_states_of_published_sizes(read, tokens, ring, ulysses, megabytes):
    """64 heads of 64 with a state of 128: what a rank receives of the gathered states."""
    sizes = RankSizes(
        Workload(read(), context_tokens=tokens), Strategy(ring=ring, ulysses=ulysses, ring_kind="balanced"), kind="ssd"
    )
    ranks = ring * ulysses
    (gathered,) = [one for one in exchanges_of(sizes) if one.op == "all_gather"]
    assert gathered.bytes * (ranks - 1) / ranks / 1e6 == pytest.approx(megabytes, rel=0.02)


def test_which_split_sends_for_longer_turns_over_with_the_ranks(read):
    """Few ranks with many tokens pass states; many ranks, each with few, deal heads out inside a node."""

    def sending_s(nodes, split):
        cluster = Cluster.load("dgx-h100", nodes=nodes)
        work = Workload(read(layer_types=["ssd"] * 8), context_tokens=2**18)
        one = Strategy(ring=nodes, ulysses=8, shard=8 * nodes, ssd=split, ring_kind="balanced")
        cost = price(cluster, work, one)
        return cost.seconds["all_to_all"] + cost.seconds["ring"]

    assert sending_s(1, "states") < sending_s(1, "mixed")
    assert sending_s(32, "mixed") < sending_s(32, "states")


def test_adapters_go_on_attention_and_on_all_mlps(read):
    """Rank 8: two layers of attention have Q, K, V and out; all eight an MLP of three maps. Mixers train nothing."""
    model, cluster = read(), Cluster.load("dgx-h100", nodes=1)
    work, one = Workload(model, context_tokens=2**16, lora_rank=8), Strategy(ulysses=8, shard=8)
    qkv, out, mlp = (4096 + 4096) + 2 * (4096 + 1024), 4096 + 4096, 3 * (4096 + 14336)
    adapters = 8 * (2 * (qkv + out) + 8 * mlp)
    assert price(cluster, work, one).memory["optimizer"] == pytest.approx(adapters, abs=1)  # 8 bytes over 8 ranks
    whole = price(cluster, replace(work, lora_rank=0), one)
    assert price(cluster, work, one).seconds["compute"] < whole.seconds["compute"]
    for targets in (("qkv", "out"), ("up", "down")):
        held = price(cluster, replace(work, lora_targets=targets), one).memory["optimizer"]
        assert held == pytest.approx(8 * (2 * (qkv + out) if "qkv" in targets else 8 * mlp), abs=1)


def test_the_group_that_exchanges_states_counts_for_errors_and_memory(read):
    """Ulysses inside each node, no ring: states go between nodes over the context group alone."""
    cluster, work = Cluster.load("dgx-h100", nodes=2), Workload(read(), context_tokens=2**16)
    costs = {}
    for split in ("states", "mixed", "heads"):
        one = Strategy(ulysses=16, zero=0, ssd=split)
        costs[split] = price(cluster, work, one)
        part = "all_to_all" if split == "heads" else "ring"
        assert split == "mixed" or costs[split].basis.seconds["across"] >= 0.9 * costs[split].seconds[part] > 0
    plain = price(cluster, Workload(Model.load("llama-3-8b"), context_tokens=2**16), Strategy(ulysses=16, zero=0))
    for split in ("states", "heads"):
        assert costs[split].memory["communication"] > costs["mixed"].memory["communication"]
    assert costs["mixed"].memory["communication"] == plain.memory["communication"]


def test_a_halo_inside_a_node_takes_time(read):
    """Of eight ranks of one node without a ring, whose states are passed over the context group."""
    cluster, work = Cluster.load("dgx-h100", nodes=1), Workload(read(), context_tokens=2**16)
    one = Strategy(ulysses=8, shard=8)
    (halo,) = [sent for sent in exchanges_of(RankSizes(work, one, kind="ssd")) if sent.op == "send"]
    assert halo.axis == "context" and halo.bytes == 3 * 64 * 320 * 2
    assert cluster_costs(cluster, None).paths(one).exchange_s("context", "send", halo.bytes) > 5e-6


def test_wrong_use_is_refused(read):
    model, cluster = read(), Cluster.load("dgx-h100", nodes=2)
    work = Workload(model, context_tokens=2**16)
    for wrong, told in (
        ({"tensor": 2, "ring": 8}, "tensor=2"),
        ({"ssd_pass": "chain", "ring": 16}, "ssd_pass=chain needs one stretch of the row on each rank"),
        ({"ssd_pass": "least", "ring": 16}, "ssd_pass=least is what a search asks; legal: gather, chain, tree"),
        ({"attention_chunk_tokens": 64}, "attention_chunk_tokens is not priced for state-space layers; legal: none"),
        ({"ssd": "heads", "ring": 3}, "ssd=heads deals the 64 heads"),
    ):
        with pytest.raises(InputError, match=told):
            price(cluster, work, Strategy(**wrong))
    with pytest.raises(InputError, match="disagree"):
        read(ssd=None)
    with pytest.raises(InputError, match="disagree"):
        read(layer_types=None)
    with pytest.raises(InputError, match="ssd layers are known of llama, qwen2"):
        read(model_type="gemma3_text")
    with pytest.raises(InputError, match=r"ssd.heads=0"):
        read(ssd={"heads": 0, "head_size": 64, "state": 64})
