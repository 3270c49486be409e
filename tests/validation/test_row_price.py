"""What the pages publish is `price`'s own, or, for an operator alone, that of the functions that `price` is made of."""

from dataclasses import replace

import pytest

from cost_models import Model, Workload, price
from cost_models.framework import OURS
from validation.cases import Case
from validation.longest import longest
from validation.longvila import METHODS, cluster, kept
from validation.operator_time import operator_s
from validation.operators import operator_case
from validation.rows import FOLDER, files, read
from validation.score import score
from validation.standard import case_of


@pytest.mark.parametrize("file", [name for name in files() if name.startswith("train")])
def test_what_is_published_of_a_row_is_its_price(file):
    (report,) = score([file], FOLDER)
    published = {one.row: one for one in report.verdicts}
    for row in read(file):
        if row.number not in published:
            continue
        case, one = case_of(row), published[row.number]
        assert isinstance(case, Case)
        asked = (case.cluster, case.workload, case.strategy)
        cost = price(*asked, framework=case.framework)
        assert one.predicted_s == cost.step_s
        assert one.neutral_s == price(*asked, framework=OURS).step_s
        assert "allocated" not in one.peaks or one.peaks["allocated"][0] == cost.memory.allocated_bytes


@pytest.mark.parametrize("file", [name for name in files() if name.startswith("op_")])
def test_what_is_published_of_an_operator_is_its_own_phases(file):
    (report,) = score([file], FOLDER)
    published = {one.row: one for one in report.verdicts}
    for row in read(file):
        if row.number in published:
            case, one = operator_case(row), published[row.number]
            assert one.predicted_s == operator_s(case.call, case.framework)
            assert one.neutral_s == operator_s(case.call, OURS)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_of_the_headline_is_a_price(name):
    method, work = METHODS[name], Workload(Model.load("llama-3-8b"), context_tokens=2**15)
    run, where = kept(method, cluster(8), work), cluster(8)
    asked = replace(work, precision=method.framework.precision, global_batch=run.strategy.data)
    assert run.cost == price(where, asked, run.strategy, framework=method.framework)


def test_a_printed_longest_row_is_judged_by_the_memory_of_price():
    row = next(row for row in read("train_fpdt_ulysses_offload") if row.number == "9")
    case = case_of(row)
    most = longest(case)
    for tokens, fits in ((most, True), (most + 16, False)):
        work = replace(case.workload, context_tokens=tokens, text_tokens=None)
        assert price(case.cluster, work, case.strategy, framework=case.framework).fits is fits
