"""A table of times on a grid, read between its knots in log-log, and packed in a small .npz.

    log t(x, y, …) = multilinear in (log x, log y, …); outside the knots the nearest edge is read
and the caller carries on from there with its physical form (`read` returns the clamped point for that). Times in
seconds, axes in the unit of the axis (tokens, elements, bytes). A table whose entries rise along every axis gives a
reading that rises too. The scalar path is plain Python, because one numpy call takes longer than such a reading.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class LogGrid:
    """Times at the knots of a grid.

    >>> grid = LogGrid([np.array([1.0, 4.0])], np.log([2.0, 8.0]))
    >>> round(grid.read(2.0)[0], 9), grid.read(16.0)[1]
    (4.0, (4.0,))
    """

    def __init__(self, axes: Sequence[npt.ArrayLike], log_s: npt.ArrayLike) -> None:
        self.axes = [np.asarray(axis, np.float64) for axis in axes]
        self.log_s = np.asarray(log_s, np.float64)
        assert self.log_s.shape == tuple(len(axis) for axis in self.axes)
        self._log_axes = [np.log(axis) for axis in self.axes]
        strides = [int(np.prod(self.log_s.shape[i + 1 :])) for i in range(len(self.axes))]
        self._knots = [(axis.tolist(), np.log(axis).tolist(), s) for axis, s in zip(self.axes, strides, strict=True)]

    @cached_property
    def _flat(self) -> list[float]:
        return self.log_s.ravel().tolist()

    def read(self, *point: float) -> tuple[float, tuple[float, ...]]:
        """Seconds at one point clamped into the grid, and that clamped point."""
        at, shares, clamped = 0, [], []
        for value, (knots, logs, stride) in zip(point, self._knots):  # noqa: B905 (strict costs a tenth of the reading)
            i = bisect_right(knots, value) - 1
            if i < 0:
                value = knots[0]
            elif i >= len(knots) - 1:
                value = knots[-1]
                at += (len(knots) - 1) * stride
            else:
                at += i * stride
                if value > knots[i]:
                    shares.append((stride, (math.log(value) - logs[i]) / (logs[i + 1] - logs[i])))
            clamped.append(value)
        return math.exp(_blend(self._flat, at, shares, len(shares))), tuple(clamped)

    def read_many(self, *point: npt.ArrayLike) -> tuple[Floats, list[Floats]]:
        """The same for numbers and arrays that broadcast together; an axis that is a number is cut away first."""
        table, clamped = self.log_s, []
        arrays: list[tuple[Floats, Floats]] = []
        for value, axis, logs in zip(point, self.axes, self._log_axes, strict=True):
            inside = np.minimum(np.maximum(np.asarray(value, np.float64), axis[0]), axis[-1])
            clamped.append(inside)
            if inside.ndim == 0:
                table = _cut(table, len(arrays), logs, float(np.log(inside)))
            else:
                arrays.append((logs, np.log(inside)))
        if len(arrays) == 1:
            return np.exp(np.interp(arrays[0][1], arrays[0][0], table)), clamped
        return np.exp(_multilinear(table, arrays)), clamped


def _cut(table: Floats, axis: int, logs: Floats, at: float) -> Floats:
    """The table at one point of an axis, which is then gone."""
    i = min(bisect_right(logs, at), len(logs) - 1) - 1
    low = np.asarray(table.take(max(i, 0), axis))
    if i < 0:
        return low
    share = (at - logs[i]) / (logs[i + 1] - logs[i])
    return np.asarray(low + (table.take(i + 1, axis) - low) * share)


def _multilinear(table: Floats, arrays: Sequence[tuple[Floats, Floats]]) -> Floats:
    """The table at points that are arrays on every axis: (log knots, log values) of each."""
    cells = []
    for logs, at in arrays:
        low = np.minimum(np.searchsorted(logs, at, side="right"), len(logs) - 1) - 1
        low = np.maximum(low, 0)
        high = np.minimum(low + 1, len(logs) - 1)
        cells.append((low, high, (at - logs[low]) / np.where(high > low, logs[high] - logs[low], 1.0)))
    total: Any = 0.0
    for bits in product((0, 1), repeat=len(cells)):
        index = tuple(cell[bit] for bit, cell in zip(bits, cells, strict=True))
        shares = (cell[2] if bit else 1.0 - cell[2] for bit, cell in zip(bits, cells, strict=True))
        total = total + math.prod(shares) * table[index]
    return np.asarray(total)


def _blend(flat: list[float], at: int, shares: list[tuple[int, float]], axes: int) -> float:
    """The multilinear reading at cell `at`: along the last of `axes` split axes, between two of one axis fewer."""
    if axes == 0:
        return flat[at]
    stride, share = shares[axes - 1]
    if axes == 1:
        low = flat[at]
        return low + (flat[at + stride] - low) * share
    low = _blend(flat, at, shares, axes - 1)
    return low + (_blend(flat, at + stride, shares, axes - 1) - low) * share


def pack(path: Path, arrays: Mapping[str, npt.ArrayLike]) -> None:
    """Write arrays in float32, the same bytes for the same input: one flat body and a JSON index of names and shapes.

    One body, because reading a dozen small members of an archive takes longer than reading one large one.
    """
    index: dict[str, list[int]] = {}
    parts = []
    for name in sorted(arrays):
        array = np.asarray(arrays[name], np.float32)
        index[name] = list(array.shape)
        parts.append(array.ravel())
    text = np.frombuffer(json.dumps(index).encode(), np.uint8)
    with zipfile.ZipFile(path, "w") as archive:
        members: dict[str, npt.NDArray[np.generic]] = {"index": text, "body": np.concatenate(parts)}
        for name, member in members.items():
            data = io.BytesIO()
            np.lib.format.write_array(data, member, allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data.getvalue(), compresslevel=9)


def unpack(path: Path) -> dict[str, Floats]:
    """Read what `pack` wrote; nothing in it can be a pickle."""
    with np.load(path, allow_pickle=False) as archive:
        index, body = json.loads(archive["index"].tobytes()), archive["body"]
    arrays, at = {}, 0
    for name, shape in index.items():
        size = math.prod(shape)
        arrays[name] = body[at : at + size].reshape(shape).astype(np.float64)
        at += size
    return arrays
