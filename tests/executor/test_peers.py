"""The run against peers: every side that runs here is exact on a packed row, and what cannot run says why."""

import pytest

from benchmarks.gloo_ranks import run_ranks
from benchmarks.namespaces import Namespaces
from benchmarks.peer_sides import sides
from benchmarks.peers import Line, compare, joined, main, ratio, report
from cost_models import InputError
from cost_models.hardware.machine import cores

EDGES = (0, 5, 24, 32)
WRONG_IN_FP32 = ("ring-flash-attn zigzag",)
"""Its gradients: a buffer is aliased where a cast to float32 does nothing."""


def test_sides_of_a_packed_row_are_exact_or_say_why_not(tmp_path):
    try:
        with Namespaces([None]) as node:
            ranks = run_ranks(compare, ((4, 2, 8), EDGES, "fp32", 1, str(tmp_path)), [node.names[0]] * 2)
    except InputError as error:
        pytest.skip(str(error))
    against = {name: ours for name, (_, ours) in sides(2, cores()).items()}
    lines = {line.name: line for line in joined(ranks, 2, against)}
    for name in ("mm_sp 1 × 2", "mm_sp 2 × 1", "all-to-all", "one process"):
        assert lines[name].error_out < 1e-5 and lines[name].error_grad < 1e-5, name
        assert len(lines[name].times_ms) == 1 and (lines[name].sent_mb > 0)
    assert lines["torch ring"].why_not == "no packed rows" and lines["yunchang 1 × 2"].why_not
    for name in ("ring-flash-attn zigzag", "ring-flash-attn llama3"):
        if not lines[name].why_not:
            assert lines[name].error_out < 1e-5
            assert name in WRONG_IN_FP32 or lines[name].error_grad < 1e-5
    assert "no packed rows" in report(list(lines.values()), counted=True)


def test_ratios_are_of_the_same_rounds():
    made = {"against": "ours", "why_not": "", "sent_mb": 0.0, "error_out": 0.0, "error_grad": 0.0}
    ours, peer = (
        Line(name="ours", times_ms=(1.0, 4.0, 2.0), **made),
        Line(name="peer", times_ms=(2.0, 8.0, 6.0), **made),
    )
    assert ratio(peer, ours) == (2.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--ranks=1"], "peers: --ranks 1; legal: 2 to 16"),
        (["--ranks=4", "--nodes=3"], "--nodes 3 does not divide 4"),
        (["--lengths=nowhere.csv"], "nowhere.csv"),
    ],
)
def test_a_mistake_is_one_line(options, says, capsys):
    assert main(options) == 2
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1
