"""Embeddings go from who encoded them to who owns the token, with exact gradients, for any number of frames."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models.errors import InputError
from cost_models.token_layout import Layout
from executor.mmsp.embeddings import exchange_embeddings, own_frames, route
from executor.mmsp.exchange import Alone
from tests.executor.threads import local_exchanges


@given(frames=st.integers(0, 300), members=st.integers(1, 40))
def test_frames_are_dealt_whole_and_evenly(frames, members):
    ranges = [own_frames(frames, members, index) for index in range(members)]
    assert [frame for own in ranges for frame in own] == list(range(frames))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def _exchange(frames, per_frame, layout, places, vision_at):
    """What every member ends up with, and the gradient of its own embeddings, for embedding n = n, weight n + 1."""
    exchanges = local_exchanges(len(places))

    def work(index):
        way = route(vision_at=vision_at, frames=frames, layout=layout, places=places, index=index)
        own = own_frames(frames, len(places), index)
        numbers = torch.arange(own.start * per_frame, own.stop * per_frame, dtype=torch.float64)
        made_ND = numbers[:, None].expand(-1, 3).clone().requires_grad_()
        got = exchange_embeddings(made_ND, way, exchanges[index])
        got.backward((got.detach() + 1) * torch.tensor([1.0, 2.0, 3.0]))
        return got.detach(), made_ND.grad, numbers, way

    with ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(work, range(len(places))))


@settings(deadline=None, max_examples=40)
@given(
    frames=st.integers(0, 9),
    per_frame=st.integers(1, 4),
    ulysses=st.integers(1, 3),
    ring=st.integers(1, 3),
    text=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_every_token_gets_its_embedding_and_every_encoder_its_gradient(frames, per_frame, ulysses, ring, text, seed):
    """Vision tokens lie anywhere in the row and context members are in any order."""
    vision = frames * per_frame
    random = np.random.default_rng(seed)
    vision_at = np.sort(random.choice(vision + text, vision, replace=False))
    layout = Layout(tokens=vision + text, ulysses=ulysses, ring=ring)
    places = tuple(divmod(int(place), ulysses) for place in random.permutation(ring * ulysses))
    for (got, grad, numbers, way), place in zip(
        _exchange(frames, per_frame, layout, places, vision_at), places, strict=True
    ):
        want = np.flatnonzero(np.isin(vision_at, layout.index(*place)))
        assert got[:, 0].tolist() == want.tolist()
        assert torch.equal(grad, (numbers + 1)[:, None] * torch.tensor([1.0, 2.0, 3.0]))
        assert sum(way.send) == len(numbers)


def test_memory_and_traffic_are_a_ranks_share():
    """1,024 frames of 196 tokens on 8 ranks: a rank sends and receives about an eighth, never the row."""
    frames, per_frame, members = 1024, 196, 8
    vision_at = np.arange(frames * per_frame) + 40
    layout = Layout(tokens=len(vision_at) + 100, ulysses=2, ring=4)
    places = tuple(divmod(place, 2) for place in range(members))
    for index in range(members):
        way = route(vision_at=vision_at, frames=frames, layout=layout, places=places, index=index)
        assert sum(way.send) == frames * per_frame // members
        assert sum(way.receive) <= layout.rank_tokens


def test_wrong_counts_are_named():
    layout = Layout(tokens=10)
    with pytest.raises(InputError, match="7 vision tokens cannot be 2 frames"):
        route(vision_at=np.arange(7), frames=2, layout=layout, places=((0, 0),), index=0)
    way = route(vision_at=np.arange(4), frames=2, layout=layout, places=((0, 0),), index=0)
    with pytest.raises(InputError, match="encoded 3 embeddings, but its frames have 4"):
        exchange_embeddings(torch.zeros(3, 2), way, Alone())
