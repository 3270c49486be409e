"""The nearest simple monotone table: the mean of the smallest rising table above and the largest one below.

Both running extremes rise along every axis, so their mean does. Where the data already rise nothing changes; a library
that picks a slow tile for one shape leaves a dip, and half of it is kept. Log-seconds in, log-seconds out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cost_models.curves.grid import Floats


def rising(log_s: Floats, axes: Sequence[int]) -> Floats:
    """`log_s` made non-decreasing along `axes`.

    >>> rising(np.array([0.0, 2.0, 1.0, 3.0]), [0]).tolist()
    [0.0, 1.5, 1.5, 3.0]
    """
    above, below = log_s, log_s
    for axis in axes:
        above = np.maximum.accumulate(above, axis=axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis=axis), axis)
    return (above + below) / 2
