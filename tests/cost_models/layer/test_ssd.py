"""Layers that mix tokens by a state: their weights, their bytes, and what is refused."""

import json

import numpy as np
import pytest

from cost_models import Cluster, Model, Strategy, Workload, price
from cost_models.batch import price_batch
from cost_models.errors import InputError
from cost_models.layer.decoder import operators
from cost_models.layer.sizes import RankSizes
from cost_models.ssd_messages import SsdLayer, rounds
from cost_models.token_layout import Layout

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
    exchanges = [one for row in operators(sizes) for one in row.exchanges[0]]
    mine = sum(sent_bytes(one, axes[one.axis]) for one in exchanges if one.op != "send")
    layout = Layout(tokens=tokens, ring=ring, ulysses=ulysses, kind="zigzag")
    layer = SsdLayer(heads=64, head_size=64, state=128)
    halo = 3 * 64 * 320 * 2
    told = [one for one in rounds(layout, layer, split, "gather") if one.bytes.sum() > 2 * halo * ring * ulysses]
    assert mine == pytest.approx(sum(one.bytes.sum(axis=1).max() for one in told))


@pytest.mark.parametrize(("tokens", "ring", "ulysses", "megabytes"), [(2**18, 1, 8, 14.7), (2**21, 32, 8, 535)])
def test_states_of_published_sizes(read, tokens, ring, ulysses, megabytes):
    """64 heads of 64 with a state of 128: what a rank receives of the gathered states."""
    sizes = RankSizes(
        Workload(read(), context_tokens=tokens), Strategy(ring=ring, ulysses=ulysses, ring_kind="balanced"), kind="ssd"
    )
    ranks = ring * ulysses
    (gathered,) = [one for row in operators(sizes) for one in row.exchanges[0] if one.op == "all_gather"]
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


def test_a_batch_of_strategies_is_priced_as_each_alone(read):
    cluster, work = Cluster.load("dgx-h100", nodes=2), Workload(read(), context_tokens=2**17)
    for split in ("states", "mixed", "heads"):
        several = [Strategy(ring=r, ulysses=u, shard=r * u, ssd=split) for r, u in ((1, 8), (2, 8), (4, 4), (16, 1))]
        alone = [price(cluster, work, one).step_s for one in several]
        assert np.allclose(price_batch(cluster, work, several).step_s, alone, rtol=1e-12)


def test_wrong_use_is_refused(read):
    model, cluster = read(), Cluster.load("dgx-h100", nodes=2)
    work = Workload(model, context_tokens=2**16)
    with pytest.raises(InputError, match="mode=decode is not priced"):
        Workload(model, context_tokens=2**16, mode="decode")
    with pytest.raises(InputError, match="lora_rank=8 is not priced"):
        Workload(model, context_tokens=2**16, lora_rank=8)
    for wrong, told in (
        ({"tensor": 2, "ring": 8}, "tensor=2"),
        ({"ssd_pass": "tree", "ring": 16}, "ssd_pass=tree is run, but not priced"),
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
