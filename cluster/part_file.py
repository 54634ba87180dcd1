"""The file of a part while it grows: a row group is written as soon as it is full, so that no more is held in memory.

The file has its content's name, which is known at the end; only then does it become visible.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster import storage
from cluster.parquet import writer

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RowGroups:
    """How a part's rows are cut into row groups, the unit of reading: by rows and by bytes, whichever comes first."""

    max_rows: int = 16_384
    max_bytes: int = 64 * 2**20
    """Of the rows in memory; a row that is larger is a group of its own."""

    def full(self, sizes: Int64) -> list[int]:
        """Rows of each group that is sure to be full, whatever rows follow these.

        Args:
            sizes: bytes of each row.
        """
        ends, start = np.cumsum(sizes), 0
        found: list[int] = []
        while start < len(sizes):
            room = (ends[start - 1] if start else 0) + self.max_bytes
            end = min(max(int(np.searchsorted(ends, room, side="right")), start + 1), start + self.max_rows)
            if end >= len(sizes):
                break
            found.append(end - start)
            start = end
        return found


ROW_GROUPS = RowGroups()


class PartFile:
    """Rows -> row groups -> a Parquet file. As a context manager it leaves nothing behind of what is not finished."""

    def __init__(self, folder: str, row_groups: RowGroups) -> None:
        self._limits = row_groups
        self._file = storage.NewFile(folder)
        self._sink = _Sink(self._file)
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.Table] = []
        self.row_groups: list[int] = []
        """Rows of each group that is written."""

    def add(self, rows: pa.Table) -> None:
        """More rows, of the group that is not full yet and of those that follow."""
        pending = pa.concat_tables([*self._pending, rows])
        for num_rows in self._limits.full(_row_bytes(pending)):
            self._write_group(pending.slice(0, num_rows))
            pending = pending.slice(num_rows)
        self._pending = [pending]

    def end_group(self) -> None:
        """What is added from here on is in other groups than what there is."""
        for rows in self._pending:
            if rows.num_rows:
                self._write_group(rows)
        self._pending = []

    def finish(self, prefix: str) -> str | None:
        """Make the file visible under a name that begins so; the name, or None where there are no rows."""
        self.end_group()
        if self._writer is None:
            return None
        self._sink.is_footer = True  # all that a writer has left to write
        self._writer.close()
        name = f"{prefix}-{self.sha256[:16]}.parquet"
        self._file.publish(name)
        return name

    @property
    def num_rows(self) -> int:
        """Rows handed over."""
        return sum(self.row_groups) + sum(int(rows.num_rows) for rows in self._pending)

    @property
    def num_bytes(self) -> int:
        """Bytes written."""
        return self._file.num_bytes

    @property
    def sha256(self) -> str:
        """Of the bytes written."""
        return self._sink.hash.hexdigest()

    @property
    def footer(self) -> bytes:
        """Of a finished file: its metadata, their length, and the magic bytes."""
        return self._sink.footer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._writer is not None and self._writer.is_open:
            self._sink.file = None
            self._writer.close()

    def _write_group(self, rows: pa.Table) -> None:
        if self._writer is None:
            self._writer = writer(pa.PythonFile(self._sink, mode="w"), rows.schema)
        self._writer.write_table(rows, row_group_size=rows.num_rows)
        self.row_groups.append(rows.num_rows)


class _Sink:
    """What Arrow writes to: hashed on its way, the footer kept; without a file it is lost."""

    closed = False

    def __init__(self, file: storage.NewFile) -> None:
        self.hash = hashlib.sha256()
        self.footer = b""
        self.is_footer = False
        self.file: storage.NewFile | None = file

    def write(self, data: bytes) -> None:
        if self.file is None:
            return
        self.hash.update(data)
        self.file.write(data)
        if self.is_footer:
            self.footer += data


def _row_bytes(table: pa.Table) -> Int64:
    """Bytes of each row in memory, int64 [N]: of texts, images and lists what each has, of other values eight."""
    sizes = np.full(table.num_rows, 8 * table.num_columns, np.int64)
    for name, kind in zip(table.column_names, table.schema.types, strict=True):
        if pa.types.is_list(kind):
            sizes += 8 * pc.fill_null(pc.list_value_length(table[name]), 0).to_numpy()
        elif pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            sizes += pc.fill_null(pc.binary_length(table[name]), 0).to_numpy()
    return sizes
