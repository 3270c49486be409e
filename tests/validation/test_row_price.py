"""Every number that the accuracy pages publish for a training step is `price`'s own."""

import pytest

from cost_models import price
from cost_models.framework import OURS
from validation.cases import Case, allocated_bytes
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
        assert one.predicted_bytes is None or one.predicted_bytes == allocated_bytes(cost)
