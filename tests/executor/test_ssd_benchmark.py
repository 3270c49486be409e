"""The benchmark of state-space splits: what it compares, its price by hand, and mistakes in its options."""

from dataclasses import replace

import pytest

from benchmarks.attention_ranks import PATH, Measured
from benchmarks.ssd import SHAPES, Prices, case_of, main, scanned
from cost_models.curves.samples import SCANS, Sample


def sample(op, median_s, size=0.0, **given):
    return Sample(op=op, dtype="fp32", bytes=size, median_s=median_s, iqr_s=0.0, **{"ranks": 2, **given})


def measured(scan_s=0.1):
    """A node of two: kernels; 1 ms and 1 ns a byte inside it, 2 ms and 1 us a byte between nodes; scans."""
    shapes = sorted(set().union(*map(scanned, SHAPES)))
    scans = [sample(op, scan_s, shape=shape) for op in SCANS for shape in shapes]
    inside = [
        sample(op, 1e-3 + 1e-9 * size, size, path=PATH, shape=(2,))
        for op in ("all_to_all", "all_gather", "send_recv") for size in (1e3, 1e6)
    ]  # fmt: skip
    across = [sample("send_recv", 2e-3 + 1e-6 * size, size, path="network", shape=(4,)) for size in (1e3, 1e6)]
    moved = [sample("memory_bound", 1e-6 + 1e-10 * size, size) for size in (1e3, 1e6)]
    return Measured(samples=(*scans, *inside, *across, *moved), cards=((1e6, 2e-3), (1e6, 2e-3)))


def test_every_split_that_the_grid_allows_is_compared():
    for shape in SHAPES:
        assert case_of(shape).splits == (
            ("states", "gather"), ("states", "chain"), ("states", "tree"),
            ("mixed", "gather"), ("mixed", "tree"), ("heads", "gather"),
        )  # fmt: skip


def test_a_price_is_the_measured_scan_and_the_links():
    """Forward and backward: what crosses the node's link takes a microsecond a byte, its messages two milliseconds."""
    prices, shape = Prices(measured(), 8.0), SHAPES[1]
    state_s = shape.heads * shape.head_size * shape.state * 4 * 1e-6
    halo_s = 3 * shape.heads * (shape.head_size + 2 * shape.state) * 4 * 1e-6
    priced, played = prices.of(shape, ("states", "chain"))  # c0 | c3 on one node, c1 | c2 on the other: across twice
    assert priced == pytest.approx(2 * (0.1 + 2 * state_s + halo_s), rel=0.05)
    assert played == pytest.approx(priced, rel=0.05)
    priced, played = prices.of(shape, ("heads", "gather"))
    moved = shape.tokens // 4 * shape.heads * (2 * shape.head_size + 2 * shape.state + 1) * 4
    assert priced == pytest.approx(2 * (0.1 + moved * 1e-6), rel=0.05)  # a half of two ranks' bytes leaves the node
    assert played == pytest.approx(priced, rel=0.05)
    slower = Prices(measured(0.3), 8.0).of(shape, ("heads", "gather"))[0]
    assert slower - priced == pytest.approx(0.4, rel=1e-3)


def test_states_are_gathered_by_transfers_around_the_group():
    """Three steps, in each of which a summary leaves either node; heads' messages beyond the first take a rank's
    processor as long as the smallest inside a node."""
    prices, shape = Prices(measured(), 8.0), SHAPES[1]
    summary_s = 2e-3 + shape.heads * (shape.head_size * shape.state + 1) * 4 * 1e-6
    halo_s = 3 * shape.heads * (shape.head_size + 2 * shape.state) * 4 * 1e-6
    priced, played = prices.of(shape, ("states", "gather"))
    assert priced == pytest.approx(2 * (0.1 + 3 * summary_s + halo_s), rel=0.05)
    assert played == pytest.approx(priced, rel=0.05)
    each = [one for one in measured().samples if one.op != "send_recv" or one.path == "network"]
    free = Prices(replace(measured(), samples=tuple(each)), 8.0)
    told, less = (one.of(shape, ("heads", "gather")) for one in (prices, free))
    assert [one - other for one, other in zip(told, less, strict=True)] == pytest.approx([4 * 2 * 1e-3] * 2, rel=0.1)


def test_the_choice_is_a_plans():
    """Far apart the split that is priced least; where links decide nothing, one that sends least between nodes."""
    prices, shape = Prices(measured(), 8.0), SHAPES[0]
    splits = case_of(shape).splits
    told = [prices.of(shape, split)[0] for split in splits]
    assert told[prices.chosen(shape, splits)] <= min(told) * 1.05
    pair = (("heads", "gather"), ("states", "chain"))
    assert prices.chosen(SHAPES[0], pair) == 1  # heads are sent at 8 Mbit/s: many times the seconds


def test_scans_of_other_sizes_do_not_speak_for_those_that_were_measured():
    """Nor one of nearly as much work, beside which the samples would have to rise."""
    shape, found = SHAPES[1], measured()
    others = [
        replace(one, median_s=0.7 * one.median_s) if one.op in SCANS and one.shape[3] != shape.state else one
        for one in found.samples
    ]
    split = ("states", "chain")
    assert Prices(replace(found, samples=tuple(others)), 8.0).of(shape, split) == Prices(found, 8.0).of(shape, split)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--rates=0", "--rates 0; legal: 1 to 100000"),
        ("--shapes=512x8", "--shapes '512x8'; legal: TOKENSxHEADSxSIZExSTATE"),
        ("--shapes=512x6x8x8", "--shapes 512x6x8x8; legal: 8 to 65536 tokens, heads in fours"),
        ("--rounds=0", "--rounds 0 --window 0.05; legal: 1 to 1000"),
    ],
)
def test_mistakes_are_one_line(option, says, capsys):
    assert main([option]) == 2
    assert says in capsys.readouterr().err
