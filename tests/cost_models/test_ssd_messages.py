"""Bytes of state-space layers against arithmetic by hand, and where heads send less than states."""

import numpy as np
import pytest

from cost_models.ssd_messages import SsdLayer, rounds
from cost_models.token_layout import Layout

LAYER = SsdLayer(heads=64, head_size=64, state=128)


def received_mb(tokens, ranks, split, way):
    """Of the rank that receives most."""
    layout = Layout(tokens=tokens, ring=ranks, kind="contiguous")
    return float(sum(one.bytes for one in rounds(layout, LAYER, split, way)).sum(0).max()) / 1e6


@pytest.mark.parametrize(("tokens", "ranks", "megabytes"), [(2**18, 8, 15), (2**20, 64, 132), (2**21, 256, 535)])
def test_gathered_states_are_one_state_of_each_other_rank(tokens, ranks, megabytes):
    """G - 1 states of 64 heads x 64 x 128 in float32; the halo of three tokens adds 0.1 MB."""
    assert received_mb(tokens, ranks, "states", "gather") == pytest.approx(megabytes, abs=0.6)


def test_states_send_less_on_few_ranks_and_heads_on_many():
    few = {split: received_mb(2**18, 8, split, "gather") for split in ("states", "heads")}
    many = {split: received_mb(2**21, 64, split, "gather") for split in ("states", "heads")}
    assert few["states"] < few["heads"] / 50
    assert received_mb(2**17, 64, "states", "gather") > received_mb(2**17, 64, "heads", "gather")
    assert many["states"] < many["heads"]
    assert received_mb(2**21, 64, "states", "tree") < many["states"] / 10


def test_a_chain_sends_one_state_a_hop_and_a_tree_doubles_its_reach():
    layout = Layout(tokens=64, ring=8, kind="contiguous")
    chain = rounds(layout, LAYER, "states", "chain")
    assert len(chain) == 1 + 7 and all(np.count_nonzero(one.bytes) == 1 for one in chain[1:])
    assert chain[1].bytes.max() == 64 * 64 * 128 * 4
    tree = rounds(layout, LAYER, "states", "tree")
    assert [np.count_nonzero(one.bytes) for one in tree[1:]] == [7, 6, 4]
    zigzag = rounds(Layout(tokens=64, ring=4), LAYER, "states", "tree")
    assert len(zigzag) == 1 + 3  # seven stretches: the two chunks in the middle are one
