"""Columns of a Parquet file, and how much a shard of any kind may grow to when it is read.

    stored    bytes of the columns once decompressed, 8 a value: from the footer, before anything is read
    expanded  bytes of the rows' values, 64 a value as Python holds it: from the dictionaries, before any row is made

One long text in a dictionary or behind links, run lengths and compression let a small file stand for more than a
machine holds. Both numbers may be 64 times what the file takes on the disk, or 256 MiB where that is more; text that
people wrote compresses 3 to 10 times. Texts and pictures stay in their dictionaries until a row is asked for. Needs
pyarrow. Left out: a footer that states less than its pages hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longvila.job import JobError

TIMES = 64
LEAST_BYTES = 2**28
_STORED_BYTES, _EXPANDED_BYTES = 8, 64  # of a value, besides what it holds


class Growth:
    """Counts what a file's content takes; `add` raises JobError where it is more than the file may stand for."""

    def __init__(self, file: Path) -> None:
        self._file, self._held_bytes = file, 0
        state = file.stat()
        self._disk_bytes = min(state.st_size, 512 * state.st_blocks or state.st_size)  # holes take nothing
        self._most_bytes = max(LEAST_BYTES, TIMES * self._disk_bytes)

    def add(self, size_bytes: int) -> None:
        self._held_bytes += size_bytes
        if self._held_bytes > self._most_bytes:
            raise JobError(
                f"{self._file}: stands for more than {self._most_bytes / 2**20:,.0f} MiB, "
                f"the most that {self._disk_bytes / 2**20:,.1f} MiB on the disk may grow to"
            )


class Columns:
    """A Parquet file. What is wrong with it as a whole is a JobError of one line, from every method."""

    def __init__(self, file: Path) -> None:
        self._file, self._growth = file, Growth(file)
        with _readable(file) as self._arrow:
            schema = self._arrow.parquet.ParquetFile(file).schema
            self.leaves: list[str] = [schema.column(place).path for place in range(len(schema.names))]
            self._table = self._arrow.parquet.ParquetFile(file, read_dictionary=self.leaves)
        self.names: list[str] = self._table.schema_arrow.names
        if twice := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise JobError(f"{file}: has two columns of the name {twice[0]!r}")
        self.groups: int = self._table.num_row_groups
        Growth(file).add(_EXPANDED_BYTES * self._table.metadata.num_rows)

    def read(self, group: int, names: Sequence[str]) -> Any:
        """Columns, or leaves of them, of a row group as an Arrow table."""
        stored, footer = Growth(self._file), self._table.metadata.row_group(group)
        for chunk in (footer.column(place) for place in range(footer.num_columns)):
            if any(f"{chunk.path_in_schema}.".startswith(f"{name}.") for name in names):
                stored.add(chunk.total_uncompressed_size + _STORED_BYTES * chunk.num_values)
        with _readable(self._file):
            return self._table.read_row_group(group, columns=list(names))

    def rows(self, group: int, names: Sequence[str]) -> list[dict[str, Any] | str]:
        """The rows of a group as values; instead of a row that has none in Python, why."""
        count = int(self._table.metadata.row_group(group).num_rows)
        if not names:
            return [{} for _ in range(count)]
        table = self.read(group, names)
        for column in table.columns:
            for chunk in column.chunks:
                self._growth.add(self._expanded(chunk))
        return _values(table)

    def media(self, group: int, name: str) -> list[Any]:
        """What the rows name by a column of media: paths as they are, `{path}` or b"" where bytes are held.

        Of `{bytes, path}` without bytes, as Hugging Face writes a picture by its path, the path.
        """
        inside = [leaf for leaf in self.leaves if leaf.startswith(f"{name}.") and name not in self.leaves]
        paths, contents = ([leaf for leaf in inside if leaf.endswith(end)] for end in (".path", ".bytes"))
        if paths and contents and self._nulls(group, contents[0]):
            rows, filled = self.rows(group, paths), self._filled(self.read(group, contents)[name])
            return [
                row if isinstance(row, str) else _by_path(row[name], held)
                for row, held in zip(rows, filled, strict=True)
            ]
        if not (paths and contents):
            held = self.read(group, [name])[name]
            if self._holds_bytes(held.type):
                return [b"" if valid else None for valid in held.is_valid().to_pylist()]
            if self._arrow.types.is_list(held.type) and self._holds_bytes(held.type.value_type):
                lengths = self._arrow.compute.list_value_length(held).to_pylist()
                self._growth.add(_EXPANDED_BYTES * sum(length or 0 for length in lengths))
                return [None if length is None else [b""] * length for length in lengths]
        return [row[name] if isinstance(row, dict) else row for row in self.rows(group, paths or [name])]

    def _nulls(self, group: int, leaf: str) -> bool:
        """Whether a leaf may be null in some row: of those that never are, nothing has to be read to know it."""
        footer = self._table.metadata.row_group(group)
        (chunk,) = (c for c in map(footer.column, range(footer.num_columns)) if c.path_in_schema == leaf)
        return not (chunk.is_stats_set and chunk.statistics.has_null_count and chunk.statistics.null_count == 0)

    def _filled(self, column: Any) -> list[Any]:
        """For each `{bytes}` of a column, or each in its lists, whether it holds bytes."""
        return [held for chunk in column.chunks for held in self._valid(chunk).to_pylist()]

    def _valid(self, array: Any) -> Any:
        if self._arrow.types.is_struct(array.type):
            return self._arrow.compute.struct_field(array, "bytes").is_valid()
        if self._arrow.types.is_fixed_size_list(array.type):
            array = array.cast(self._arrow.list_(array.type.value_type))
        return type(array).from_arrays(array.offsets, self._valid(array.values))

    def _holds_bytes(self, kind: Any) -> bool:
        kinds = self._arrow.types
        kind = kind.value_type if kinds.is_dictionary(kind) else kind
        return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))

    def _expanded(self, array: Any) -> int:
        """Bytes that an array takes as Python's values."""
        kinds, compute = self._arrow.types, self._arrow.compute
        size = _EXPANDED_BYTES * len(array)
        if kinds.is_dictionary(array.type):
            lengths = compute.take(compute.binary_length(array.dictionary), array.indices)
            return size + int(compute.sum(lengths).as_py() or 0)
        if kinds.is_struct(array.type):
            return size + sum(map(self._expanded, array.flatten()))
        if kinds.is_map(array.type):
            return size + self._expanded(array.keys) + self._expanded(array.items)
        if kinds.is_nested(array.type):
            return size + self._expanded(array.flatten())
        return size


def _by_path(held: Any, filled: Any) -> Any:
    """A medium, or a list of them, by its path where no bytes are held and a path is there."""
    if isinstance(held, list):
        return [_by_path(*pair) for pair in zip(held, filled, strict=True)]
    return held if held is None or filled or held["path"] is None else held["path"]


def _values(table: Any) -> list[dict[str, Any] | str]:
    try:
        rows: list[dict[str, Any] | str] = table.to_pylist()
        return rows
    except (ValueError, OverflowError) as fault:
        if table.num_rows == 1:
            return [f"holds a value that cannot be read ({' '.join(str(fault).split())[:100]})"]
    half = table.num_rows // 2
    return _values(table.slice(0, half)) + _values(table.slice(half))


@contextmanager
def _readable(file: Path) -> Iterator[Any]:
    """pyarrow, whose faults become a line that names the file."""
    try:
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise JobError(f"{file}: Parquet needs pyarrow: pip install 'mmsp[parquet]'") from None
    try:
        yield pyarrow
    except (pyarrow.ArrowException, OSError) as fault:
        raise JobError(f"{file}: is no readable Parquet file ({' '.join(str(fault).split())[:100]})") from None


def parquet_rows(file: Path) -> list[Mapping[str, Any]]:
    """All rows of a Parquet file of plain values."""
    columns = Columns(file)
    rows: list[Mapping[str, Any]] = []
    for row in (row for group in range(columns.groups) for row in columns.rows(group, columns.names)):
        if isinstance(row, str):
            raise JobError(f"{file}: row {len(rows) + 1}: {row}")
        rows.append(row)
    return rows
