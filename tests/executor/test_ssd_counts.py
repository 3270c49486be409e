"""What the price says of a scan, counted as it runs: bytes of its operators, what it keeps, and its calls."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from cost_models import Model, Strategy, Workload
from cost_models.layer.sizes import RankSizes
from cost_models.layer.ssd import (
    BLOCK,
    FROM_HEADS,
    HALO,
    LEVEL_CALLS,
    SCAN_CALLS,
    SCAN_PASSES,
    SKIP_PASSES,
    TO_HEADS,
    ssd_operators,
)
from cost_models.program import Passed
from cost_models.ssd_messages import passing_order, runs
from cost_models.timing.passing import joined_s
from cost_models.token_layout import Layout
from cost_models.workload import Precision
from executor.mmsp.exchange import Alone
from executor.mmsp.ssd import SsdSplit
from executor.mmsp.state_passing import Passing
from longvila import ssd
from tests.executor.threads import local_exchanges

VIEWS = {"view", "_unsafe_view", "split", "split_with_sizes", "slice", "select", "transpose", "permute", "expand"}
VIEWS |= {"unsqueeze", "squeeze", "detach", "alias", "unbind", "t", "new_empty", "empty_like", "promote_types"}
FILLED = {"new_zeros", "zeros_like", "ones_like"}
"""They read nothing of the tensor that they are made like."""
SHAPES = [(64, 64, 64), (32, 64, 32), (64, 32, 64), (16, 64, 64)]


class Counting(TorchDispatchMode):
    """Calls of operators that are no views, and bytes that all but products read and write."""

    def __init__(self):
        super().__init__()
        self.calls, self.bytes = 0, 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        if operator.overloadpacket.__name__ not in VIEWS:
            self.calls += 1
            read = () if operator.overloadpacket.__name__ in FILLED else args
            parts = [one for part in (*read, out) for one in (part if isinstance(part, list | tuple) else [part])]
            dense = [one for one in parts if isinstance(one, torch.Tensor) and 0 not in one.stride()]
            self.bytes += (
                0
                if operator.overloadpacket.__name__ == "bmm"
                else sum(one.numel() * one.element_size() for one in dense)
            )
        return out


def counted(chunks, size, state, chunk, heads=2):
    """((calls, bytes) forward, (calls, bytes) backward, bytes kept) of one scan."""
    tokens = chunks * chunk
    shapes = [(1, tokens, heads, width) for width in (size, state, state)] + [(1, tokens, heads)]
    leaves = [torch.randn(shape).abs().neg().requires_grad_() for shape in shapes]
    inputs, kept = [one * 1 for one in leaves], {}
    own = {one.untyped_storage().data_ptr() for one in inputs}

    def pack(saved):
        kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved), Counting() as forward:
        y, _ = ssd.scan(*inputs, chunk=chunk)
    with Counting() as backward:
        torch.autograd.grad(y, inputs, torch.ones_like(y))
    return forward, backward, sum(size for place, size in kept.items() if place not in own)


def test_the_price_counts_the_bytes_of_a_scan():
    """By channel, token of a chunk, value of y, which is skipped elsewhere, and number of a chunk's state."""
    chunks, found, rows = 104, [], []
    for size, state, chunk in SHAPES:
        forward, backward, kept = counted(chunks, size, state, chunk)
        found.append([one / (2 * chunks * chunk) for one in (forward.bytes, backward.bytes / 2, kept)])
        rows.append([size + 2 * state, chunk, size, size * state / chunk])
    each = np.array([*SCAN_PASSES, (4, 12, 8, 12)]) - [[0, 0, one, 0] for one in (*SKIP_PASSES, 0)]
    assert np.abs(np.array(found).T / (each @ np.array(rows).T) - 1).max() < 0.06


@pytest.mark.parametrize(("chunks", "levels"), [(8, 0), (16, 0), (17, 1), (257, 2)])
def test_the_host_calls_of_a_scan_grow_by_levels(chunks, levels):
    assert BLOCK == ssd.BLOCK
    for one, first, further in zip(counted(chunks, 4, 4, 2), SCAN_CALLS, LEVEL_CALLS, strict=False):
        assert abs(one.calls - first - further * levels) <= 4


class Mute(Alone):
    """A member of a group whose others send zeros."""

    def all_to_all(self, rows, send, receive):
        return rows.contiguous()


def counted_back(made, leaf, *more):
    grads = [torch.ones_like(one) for one in made]
    with Counting() as backward:
        torch.autograd.grad(made, (leaf, *more), grads)
    return backward


@pytest.mark.parametrize("split", ["heads", "mixed"])
def test_the_price_counts_the_copies_around_an_exchange_of_heads(split):
    ulysses, ring, heads, size, state = 2, 2, 8, 64, 64
    layout = Layout(tokens=512, ulysses=ulysses, ring=ring, kind="zigzag")
    places = tuple((one, other) for one in range(ring) for other in range(ulysses))
    groups = {"context": Mute(size=4), "ulysses": Mute(size=2), "ring": Alone()}
    dealt = SsdSplit(layout=layout, places=places, split=split, **groups)
    width, tokens = size + 2 * state, layout.rank_tokens
    channels, a = (torch.randn(shape).requires_grad_() * 1 for shape in ((1, tokens, heads, width), (1, tokens, heads)))
    inner = ssd.Inner(
        channels_BSHW=channels, a_BSH=a, taps_HWK=torch.randn(heads, width, 4), skip_H=torch.randn(heads),
        state=state, chunk=64,
    )  # fmt: skip
    with Counting() as forward:
        mine = dealt._by_heads(inner)
    backward = counted_back((mine.channels_BSHW, mine.a_BSH), channels, a)
    moved = 4 * tokens * heads * (width + 1)
    y = torch.randn(*mine.channels_BSHW.shape[:3], size).requires_grad_() * 1
    with Counting() as forward_y:
        back = dealt._back(y)
    backward_y = counted_back((back,), y)
    for counts, size_, expected in (
        ((forward, backward), moved, TO_HEADS[split]),
        ((forward_y, backward_y), 4 * tokens * heads * size, FROM_HEADS[split]),
    ):
        for one, (passes, calls) in zip(counts, expected, strict=True):
            assert (one.bytes / size_, one.calls) == (pytest.approx(passes, rel=0.03), calls)


def test_the_price_counts_the_gradient_of_a_halo():
    layout, places = Layout(tokens=512, ulysses=2, ring=2, kind="zigzag"), ((0, 0), (0, 1), (1, 0), (1, 1))
    dealt = SsdSplit(layout=layout, places=places, context=Mute(size=4), ulysses=Mute(size=2), ring=Mute(size=2))
    channels = torch.randn(1, layout.rank_tokens, 8, 192).requires_grad_() * 1
    before = dealt._halo(4).fetch(channels, Mute(size=4), 1)
    alone = counted_back((channels * 1,), channels)
    both = counted_back((channels * 1, before), channels)
    moved = channels.numel() * 4
    put = 2  # rows put into zeros are few: the counter takes them for a reading and a writing of all
    assert (both.bytes - alone.bytes) / moved - put == pytest.approx(HALO[0], rel=0.1)


def test_one_rank_alone_fetches_no_halo_and_has_no_gradient_of_one():
    layout = Layout(tokens=64, ulysses=1, ring=1)
    alone = SsdSplit(layout=layout, places=((0, 0),), context=Alone(), ulysses=Alone(), ring=Alone())
    before = alone._halo(4).fetch(torch.randn(1, 64, 2, 12).requires_grad_(), Alone(), 1)
    assert not before.any()
    assert not before.requires_grad
    assert before.shape == (1, 1, 3, 2, 12)


class Uncounted:
    """An exchange whose own copies are not counted."""

    def __init__(self, exchange):
        self.exchange, self.size, self.index = exchange, exchange.size, exchange.index

    def all_gather(self, buffer):
        with _disable_current_modes():
            return self.exchange.all_gather(buffer)

    def start_transfer(self, send, receive):
        with _disable_current_modes():
            got = self.exchange.start_transfer(send, receive).wait()
        return Given(got)


class Given(NamedTuple):
    got: list

    def wait(self):
        return self.got


@pytest.mark.parametrize(("ring", "ulysses", "kind"), [(2, 2, "zigzag"), (8, 1, "contiguous"), (4, 1, "zigzag")])
@pytest.mark.parametrize("way", ["gather", "chain", "tree"])
def test_the_price_counts_the_joins_of_states(ring, ulysses, kind, way):
    """Readings and writings of a summary by the rank that has most of them; a chain's ranks join one after another."""
    strategy, heads, size, state = Strategy(ring=ring, ulysses=ulysses, ring_kind=kind), 2, 32, 64
    layout, ranks = Layout(tokens=1024, ring=ring, ulysses=ulysses, kind=kind), strategy.context
    stretches = tuple(runs(layout.index(*divmod(rank, ulysses))) for rank in range(ranks))
    order, slots = passing_order(strategy, "context"), max(map(len, stretches))
    if way == "chain" and slots > 1:
        pytest.skip("a chain has one stretch a rank")
    exchanges, summary = local_exchanges(ranks), heads * (size * state + 1) * 4

    def rank(member):
        passing = Passing(exchange=Uncounted(exchanges[member]), stretches=stretches, way=way)
        own, decay = torch.randn(len(stretches[member]), 1, heads, size, state), torch.rand(1, 1, heads)
        given = own.requires_grad_() * 1, decay.expand(len(own), 1, heads).clone().requires_grad_() * 1
        with Counting() as forward:
            entries = passing(*given)
        grad = torch.ones_like(entries)
        with Counting() as backward:
            torch.autograd.grad(entries, given, grad)
        product = (ranks + 1 - 1 / ranks) * slots if way == "gather" else 0  # left out by the counter
        return [one.bytes / summary + product for one in (forward, backward)]

    with ThreadPoolExecutor(ranks) as pool:
        found = np.array(list(pool.map(rank, range(ranks))))
    reach = len(order) - (kind == "zigzag" and ulysses == 1)
    phase = Passed(
        part="ring", axis="context", way=way, state_bytes=summary, summary_bytes=summary, slots=slots,
        stretches=len(order), reach=reach, turns=kind == "zigzag", chained=slots == 1, pass_s=1.0,
    )  # fmt: skip
    for counts, back in zip(found.T, (False, True), strict=True):
        told = float(joined_s(phase._replace(back=back), way, ranks))
        if way == "chain":
            counts = [counts.sum() - (4 * ranks if back else 0) + (4 if back else 0) - (ranks - 1)]
        waits = 3 * slots * max(0, (reach - 1).bit_length() - 1) if way == "tree" else 0  # for joins of other ranks
        assert max(counts) * 0.9 <= told <= max(counts) * 1.2 + waits  # a rank that fills up has fewer stretches


SIZES = {"heads": 4, "head_size": 32, "state": 32, "conv": 4, "chunk": 32}
HIDDEN, TOKENS, PLACES = 64, 4096, ((0, 0), (0, 1), (1, 0), (1, 1))


def kept_by_a_layer(split, dtype):
    """Bytes of storages that the mixer of one of four ranks, ring 2 x ulysses 2, keeps for its backward pass."""
    layout, context = Layout(tokens=TOKENS, ring=2, ulysses=2), local_exchanges(4)
    ulysses, ring = [local_exchanges(2) for _ in range(2)], [local_exchanges(2) for _ in range(2)]

    def rank(member):
        (row, column), storages = PLACES[member], {}
        mixer = ssd.DiscreteMamba2(HIDDEN, *(SIZES[one] for one in ("heads", "head_size", "state", "conv", "chunk")))
        own = {one.untyped_storage().data_ptr() for one in mixer.to(dtype).parameters()}
        over = SsdSplit(
            layout=layout, context=context[member], ulysses=ulysses[row][column], ring=ring[column][row], places=PLACES,
            split=split,
        )  # fmt: skip

        def pack(saved):
            storage = saved.untyped_storage()
            storages[storage.data_ptr()] = storage  # held, so that no other takes its place
            return saved

        x = torch.randn(1, TOKENS // 4, HIDDEN, dtype=dtype).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            mixed, _ = mixer(x, ssd=over)
        del storages[x.untyped_storage().data_ptr()], mixed
        return sum(storage.nbytes() for place, storage in storages.items() if place not in own)

    with ThreadPoolExecutor(4) as pool:
        return max(pool.map(rank, range(4)))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("split", ["states", "mixed", "heads"])
def test_the_price_counts_what_a_rank_keeps_of_a_layer(tmp_path, split, dtype):
    """Also where heads are dealt out: x, B, C and a as they came are kept once, the projection not at all."""
    config = {
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 64, "layer_types": ["ssd"], "ssd": SIZES,
    }  # fmt: skip
    (file := tmp_path / "config.json").write_text(json.dumps(config))
    precision = Precision(param=dtype, reduce="fp32", master="fp32")
    work = Workload(Model.load(str(file)), context_tokens=TOKENS, precision=precision)
    table = ssd_operators(RankSizes(work, Strategy(ring=2, ulysses=2, ssd=split), kind="ssd"))
    told = sum(float(row.kept) * bool(row.active) for row in table if row.name not in ("norm", "sum"))
    counted_bytes = kept_by_a_layer(split, {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype])
    assert told == pytest.approx(counted_bytes, rel=0.02)
