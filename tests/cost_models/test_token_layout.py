"""Every causal pair of a document is in exactly one tile, for any ulysses, ring, length and packing."""

import itertools
from csv import DictReader
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models import Model, Strategy, Workload
from cost_models.errors import InputError
from cost_models.layer.heads import HeadSplit
from cost_models.layer.sizes import RankSizes
from cost_models.token_layout import RING_LAYOUTS, Layout, document_starts


def _shares(kind: str, ring: int, seed: int) -> tuple[int, ...]:
    """Unequal blocks in half of the zigzags, of shares that rows this short cannot always have."""
    unequal = kind == "zigzag" and ring > 1 and seed % 2
    return tuple(np.random.default_rng(seed).integers(1, 9, ring).tolist()) if unequal else ()


def _coverage(layout: Layout) -> np.ndarray:
    """How often each (query, key) pair of the padded row is computed, built from what the ranks hold."""
    seen = np.zeros((layout.padded_tokens, layout.padded_tokens), dtype=np.int64)
    blocks = [np.concatenate([layout.index(r, u) for u in range(layout.ulysses)]) for r in range(layout.ring)]
    for q, kv in itertools.product(range(layout.ring), repeat=2):
        for tile in layout.tiles(q, kv):
            rows, columns = blocks[q][slice(*tile.q)], blocks[kv][slice(*tile.kv)]
            behind = tile.lead + np.arange(len(rows))[:, None] - np.arange(len(columns))
            mask = (behind >= 0) | (not tile.causal)
            mask &= (behind < tile.window) | (not tile.window)
            assert mask.any(axis=1).all(), "a query of a tile sees no key"
            seen[rows[:, None], columns[None]] += mask
            if q != kv:
                layout.travels[kv].on_the_way(tile.kv, (q - kv) % layout.ring)
    return seen


def _expected(layout: Layout) -> np.ndarray:
    document = np.repeat(np.arange(len(layout.edges) - 1), np.diff(layout.edges))
    behind = np.arange(len(document))[:, None] - np.arange(len(document))
    near = (behind < layout.window) | (not layout.window)
    return ((document[:, None] == document[None]) & (behind >= 0) & near).astype(np.int64)


@settings(deadline=None)
@given(
    tokens=st.integers(1, 70),
    ulysses=st.integers(1, 5),
    ring=st.integers(1, 6),
    kind=st.sampled_from(RING_LAYOUTS),
    cuts=st.sets(st.integers(1, 69), max_size=5),
    window=st.sampled_from([0, 0, 1, 2, 5, 16, 100]),
    seed=st.integers(0, 99),
)
def test_every_causal_pair_of_a_document_exactly_once(tokens, ulysses, ring, kind, cuts, window, seed):
    document_L = np.searchsorted(sorted(cuts), np.arange(tokens), side="right")
    documents = document_starts(document_L)
    layout = Layout(
        tokens=tokens, ulysses=ulysses, ring=ring, kind=kind, documents=documents, window=window,
        shares=_shares(kind, ring, seed),
    )  # fmt: skip
    assert np.array_equal(_coverage(layout), _expected(layout))


@settings(deadline=None)
@given(
    tokens=st.integers(1, 70),
    ulysses=st.integers(1, 5),
    chunk=st.integers(1, 40),
    cuts=st.sets(st.integers(1, 69), max_size=5),
    window=st.sampled_from([0, 0, 1, 2, 5, 16, 100]),
)
def test_chunks_of_a_row_hold_every_causal_pair_once(tokens, ulysses, chunk, cuts, window):
    """A chunk's tokens of all ranks are a piece of the row, and its queries see no later chunk."""
    documents = document_starts(np.searchsorted(sorted(cuts), np.arange(tokens), side="right"))
    layout = Layout(tokens=tokens, ulysses=ulysses, documents=documents, window=window, chunk_tokens=chunk)
    size = layout.block_tokens // layout.chunks
    held = np.stack([layout.index(0, u).reshape(layout.chunks, -1) for u in range(ulysses)], axis=1)
    assert held.flatten().tolist() == list(range(layout.padded_tokens))
    assert size <= -(-chunk // ulysses) * ulysses
    seen = np.zeros((layout.padded_tokens, layout.padded_tokens), dtype=np.int64)
    for (q, kv), tiles in layout.chunk_tiles().items():
        for tile in tiles:
            rows, columns = q * size + np.arange(*tile.q), kv * size + np.arange(*tile.kv)
            behind = tile.lead + np.arange(len(rows))[:, None] - np.arange(len(columns))
            mask = ((behind >= 0) | (not tile.causal)) & ((behind < tile.window) | (not tile.window))
            assert mask.any(axis=1).all(), "a query of a tile sees no key"
            assert tile.window or not tile.causal or len(rows) == len(columns)
            seen[rows[:, None], columns[None]] += mask
    assert np.array_equal(seen, _expected(layout))


@settings(deadline=None)
@given(
    tokens=st.integers(1, 200),
    ulysses=st.integers(1, 6),
    ring=st.integers(1, 6),
    kind=st.sampled_from(RING_LAYOUTS),
    cuts=st.sets(st.integers(1, 199), max_size=5),
    seed=st.integers(0, 99),
)
def test_every_token_has_one_owner_and_ascends(tokens, ulysses, ring, kind, cuts, seed):
    documents = (0, *sorted(cut for cut in cuts if cut < tokens))
    shares = _shares(kind, ring, seed)
    layout = Layout(tokens=tokens, ulysses=ulysses, ring=ring, kind=kind, documents=documents, shares=shares)
    held = []
    for r, u in itertools.product(range(ring), range(ulysses)):
        index_S = layout.index(r, u)
        assert index_S.shape == (layout.held[r] // ulysses,)
        assert (np.diff(index_S) > 0).all()
        assert (layout.owner(index_S) == r * ulysses + u).all()
        assert layout.real_tokens(r, u) == int((index_S < tokens).sum())
        held.append(index_S)
    assert np.array_equal(np.sort(np.concatenate(held)), np.arange(layout.padded_tokens))
    assert layout.padded_tokens - tokens < 2 * ring * ulysses


def test_causal_pairs_of_unequal_blocks_are_in_proportion_to_their_tokens():
    layout = Layout(tokens=160, ulysses=2, ring=4, shares=(5, 2, 1, 2))
    assert layout.held == (80, 32, 16, 32)
    pairs = [sum(int((layout.index(r, u) + 1).sum()) for u in range(2)) for r in range(4)]
    assert pairs == [held * 161 // 2 for held in layout.held]
    assert [[one.tokens(hop) for hop in (1, 2, 3, 4)] for one in layout.travels] == [
        [80, 80, 80, 0],
        [32, 32, 32, 0],
        [16, 16, 16, 0],
        [32, 32, 32, 0],
    ]


def test_shares_that_no_ring_has_are_refused():
    for wrong in ({"ring": 3}, {"kind": "balanced"}, {"shares": (1, 0)}, {"ring": 1, "shares": (1,)}):
        with pytest.raises(InputError, match="token_shares"):
            Layout(**{"tokens": 64, "ring": 2, "shares": (3, 1), **wrong})


def test_zigzag_work_is_equal_and_needs_one_tile_per_hop():
    layout = Layout(tokens=64, ring=4, ulysses=2)
    for q in range(4):
        tiles = [layout.tiles(q, kv) for kv in range(4)]
        assert [len(tile) for tile in tiles] == [1, 1, 1, 1]
        areas = [(t.q.stop - t.q.start) * (t.kv.stop - t.kv.start) for (t,) in tiles]
        assert areas == [16 * 16 if kv == q else 16 * 8 for kv in range(4)]


def _packed(name: str, tokens: int, seed: int) -> tuple[int, ...]:
    """Starts of documents of a published histogram, drawn until they fill a row; the last is cut short."""
    with (Path(__file__).parents[2] / f"measurements/lengths_{name}.csv").open() as lines:
        buckets = [(int(b["bucket_from"]), int(b["bucket_to_exclusive"]), float(b["share"])) for b in DictReader(lines)]
    random, starts = np.random.default_rng(seed), [0]
    low, high, share = map(np.array, zip(*buckets, strict=True))
    while starts[-1] < tokens:
        bucket = random.choice(len(low), p=share / share.sum())
        starts.append(starts[-1] + max(1, int(random.integers(low[bucket], high[bucket]))))
    return tuple(starts[:-1])


def _pairs(layout: Layout) -> np.ndarray:
    """(query, key) pairs that each ring rank works on."""
    area = np.zeros(layout.ring)
    for q, kv in itertools.product(range(layout.ring), repeat=2):
        for tile in layout.tiles(q, kv):
            rows, columns = tile.q.stop - tile.q.start, tile.kv.stop - tile.kv.start
            area[q] += rows * (rows + 1) / 2 if tile.causal else rows * columns
    return area


@pytest.mark.parametrize("ring", [4, 8])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["longca_pile", "longca_prolong64k", "longca_prolong512k", "magiattention_default"])
def test_packed_documents_of_real_corpora_are_balanced(name, seed, ring):
    """The fullest rank is within a tenth of the mean."""
    documents = _packed(name, 2**16, seed)
    balanced, zigzag = (
        Layout(tokens=2**16, ring=ring, kind=kind, documents=documents) for kind in ("balanced", "zigzag")
    )
    pairs = _pairs(balanced)
    assert pairs.sum() == _pairs(zigzag).sum()
    assert pairs.max() <= 1.1 * pairs.mean()


def test_documents_on_one_rank_do_not_travel():
    layout = Layout(tokens=64, ring=4, ulysses=2, kind="balanced", documents=(0, 16, 32, 48))
    assert all(one.tokens(1) == one.hops == 0 for one in layout.travels)
    assert _pairs(layout).tolist() == [16 * 17 / 2] * 4


def test_a_long_document_travels_and_the_short_ones_stay():
    """40 tokens cut over 4 ranks; next to its part each rank has a short one of its own."""
    layout = Layout(tokens=64, ring=4, kind="balanced", documents=(0, 40, 46, 52, 58))
    assert [(one.tokens(1), one.hops) for one in layout.travels] == [(10, 3)] * 4
    zigzag = Layout(tokens=64, ring=4, documents=layout.documents)
    assert _pairs(layout).max() < _pairs(zigzag).max() / 1.4


def test_contiguous_skips_the_future():
    layout = Layout(tokens=64, ring=4, kind="contiguous")
    assert [len(layout.tiles(1, kv)) for kv in range(4)] == [1, 1, 0, 0]


def test_padding_is_a_document_of_its_own():
    assert Layout(tokens=3, ring=4, documents=(0, 2)).edges == (0, 2, 3, 8)
    assert Layout(tokens=1).edges == (0, 1)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "ulysses", "lengths", "sent"),
    [
        (28, 4, 8, [4, 3] * 4, 8),  # Qwen2-7B
        (12, 2, 8, [2] * 4 + [1] * 4, 8),  # Qwen2-1.5B
        (32, 8, 8, [4] * 8, 8),  # Llama-3-8B: no repetition
        (32, 8, 32, [1] * 32, 32),
        (32, 8, 2, [16] * 2, 8),
        (7, 7, 2, [4, 3], 7),
        (7, 7, 4, [2, 2, 2, 1], 7),
    ],
)
def test_known_head_splits(heads, kv_heads, ulysses, lengths, sent):
    split = HeadSplit(q_heads=heads, kv_heads=kv_heads, ulysses=ulysses)
    assert [share.q_heads for share in split.shares] == lengths
    assert split.sent_kv_heads == sent


@settings(deadline=None)
@given(kv_heads=st.integers(1, 8), group=st.integers(1, 8), data=st.data())
def test_heads_are_tiled_and_each_query_meets_its_own_kv(kv_heads, group, data):
    heads = kv_heads * group
    ulysses = data.draw(st.integers(1, heads))
    split = HeadSplit(q_heads=heads, kv_heads=kv_heads, ulysses=ulysses)
    met = []
    for index, share in enumerate(split.shares):
        assert 1 <= share.q_heads <= -(-heads // ulysses)
        for run in split.runs(index):
            per_kv = (run.q_stop - run.q_start) // (run.kv_stop - run.kv_start)
            met += [
                (share.q_start + q, share.kv_start + run.kv_start + (q - run.q_start) // per_kv)
                for q in range(run.q_start, run.q_stop)
            ]
    assert met == [(q, q // group) for q in range(heads)]


def test_wrong_degrees_name_the_legal_values():
    with pytest.raises(InputError, match="ulysses=64 exceeds the model's 32 query heads; at most 32"):
        HeadSplit(q_heads=32, kv_heads=8, ulysses=64)
    with pytest.raises(InputError, match="'spiral' is not one of zigzag, contiguous, balanced"):
        Layout(tokens=4, kind="spiral")
    with pytest.raises(InputError, match="ring=0 must be at least 1"):
        Layout(tokens=4, ring=0)


@settings(deadline=None)
@given(
    tokens=st.integers(1, 5000),
    ulysses=st.integers(1, 14),
    ring=st.integers(1, 9),
    kind=st.sampled_from(["zigzag", "contiguous"]),
)
def test_the_price_pads_a_row_as_the_executor_does(tokens, ulysses, ring, kind):
    layout = Layout(tokens=tokens, ulysses=ulysses, ring=ring, kind=kind)
    strategy = Strategy(ulysses=ulysses, ring=ring, ring_kind=kind)
    sizes = RankSizes(Workload(Model.load("longvila-8b"), context_tokens=tokens), strategy)
    assert (sizes.tokens, sizes.ring_tokens) == (layout.rank_tokens, layout.block_tokens)
