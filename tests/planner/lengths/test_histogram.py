"""Histograms of lengths: what is refused, and that batches are what the file says."""

import numpy as np
import pytest

from cost_models.errors import InputError
from planner.lengths.histogram import Histogram


@pytest.fixture
def written(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "lengths.csv"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "its columns must be tokens,count or"),
        ("tokens\n10\n", "its columns must be tokens,count or"),
        ("tokens,count\n", "no line below its header"),
        ("tokens,count\n10,-3\n", "line 2: count='-3' must be a number from 0"),
        ("tokens,count\n10,nan\n", "line 2: count='nan'"),
        ("tokens,count\n10,1e400\n", "line 2: count='1e400'"),
        ("tokens,count\n10,2\n-5,1\n", "line 3: tokens='-5' must be a whole number from 1"),
        (f"tokens,count\n{10**30},1\n", "must be a whole number from 1 to 4294967296"),
        ("tokens,count\n10,0\n", "all counts are 0"),
        ("tokens,count\n10\n", "line 2: 1 cells for 2 columns"),
        ("tokens,count\n10,\n", "neither count nor share is given"),
        ("tokens,count,tokens\n1,2,3\n", "column 'tokens' is there twice"),
        ("tokens,cuont\n1,2\n", "column 'cuont' is unknown; did you mean count?"),
        ("bucket_from,bucket_to_exclusive,count\n10,5,1\n", "bucket_to_exclusive=5 must be above bucket_from=10"),
        ('tokens,count\n"10,2\n', "is no CSV file"),
    ],
)
def test_what_is_wrong_is_named(written, text, said):
    with pytest.raises(InputError) as error:
        Histogram.load(written(text))
    assert said in str(error.value)


def test_a_batch_has_its_tokens_and_no_document_beyond_the_limit(written):
    found = Histogram.load(written("tokens,count\n100,3\n3000,1\n"))
    lengths = found.draw(200_000, 1000, seed=1)
    assert found.longest == 3000
    assert lengths.sum() == 200_000 and lengths.max() == 1000
    hundreds, thousands = (lengths[:-1] == 100).sum(), (lengths[:-1] == 1000).sum()
    assert hundreds / (thousands / 3) == pytest.approx(3, rel=0.3)
    assert np.array_equal(lengths, found.draw(200_000, 1000, seed=1))


def test_a_bucket_is_even_over_the_logarithm(written):
    found = Histogram.load(written("bucket_from,bucket_to_exclusive,share\n1,1025,0.5\n1025,1026,0\n"))
    assert found.longest == 1024
    assert np.median(found.draw(10**6, 2000, 0)) == pytest.approx(32, rel=0.15)


def test_a_step_of_too_many_documents_is_refused(written):
    with pytest.raises(InputError, match="more than 8,000,000 documents of these lengths; legal: at most so many"):
        Histogram.load(written("tokens,count\n1,1\n")).draw(2**24, 1024, 0)
