"""The benchmark of state-space splits: what it compares, its price by hand, and mistakes in its options."""

import pytest

from benchmarks.ssd import SHAPES, Links, case_of, main, price_s
from benchmarks.ssd_ranks import Shape
from cost_models.curves.samples import Sample


def sample(path, op, seconds_per_byte, latency_s, size):
    return Sample(
        op=op, shape=(4,), dtype="fp32", ranks=4, path=path, bytes=size,
        median_s=latency_s + seconds_per_byte * size, iqr_s=0.0,
    )  # fmt: skip


def links():
    """A message inside a node takes 1 ms, one across 2 ms and 1 s a megabyte; collectives 3 ms and 1 s a megabyte."""
    curves = [("inside", "send_recv", 0.0, 1e-3), ("across", "send_recv", 1e-6, 2e-3)]
    curves += [(axis, op, 1e-6, 3e-3) for axis in ("context", "ulysses", "ring") for op in ("all_to_all", "all_gather")]
    return Links([sample(*curve, size) for curve in curves for size in (1e3, 1e6)])


def test_every_split_that_the_grid_allows_is_compared():
    for shape in SHAPES:
        assert case_of(shape).splits == (
            ("states", "gather"), ("states", "chain"), ("states", "tree"),
            ("mixed", "gather"), ("mixed", "tree"), ("heads", "gather"),
        )  # fmt: skip


def test_a_price_is_the_scan_and_twice_the_rounds():
    shape = Shape(tokens=4096, heads=4, head_size=50, state=100)
    channels, state = 4 * 250, 4 * 50 * 100 * 4
    heads = 3 / 4 * 1024 * 4 * (251 + 50) * 4
    assert price_s(shape, ("heads", "gather"), 0.5, links()) == pytest.approx(0.5 + 2 * (6e-3 + heads * 1e-6))
    halo = 3e-3 + 3 * channels * 4 * 1e-6
    gathered = 3e-3 + 3 * (state + 16) * 1e-6
    assert price_s(shape, ("states", "gather"), 0.5, links()) == pytest.approx(0.5 + 2 * (halo + gathered))
    # c0 | c3 on the first node, c1 | c2 on the second: across, inside, across
    hops = 1e-3 + 2 * (2e-3 + state * 1e-6)
    assert price_s(shape, ("states", "chain"), 0.5, links()) == pytest.approx(0.5 + 2 * (halo + hops))


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
