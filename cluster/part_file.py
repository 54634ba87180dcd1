"""Write the Parquet file of a part one row group at a time, so that memory holds one row group at most.

The file is named after the hash of its content, so it becomes visible only when it is complete.
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
    """Limits of a row group, the unit of reading. A row group ends at whichever limit is reached first."""

    max_rows: int = 16_384
    max_bytes: int = 64 * 2**20
    """Maximum bytes of a row group, measured in memory. A larger row becomes a group of its own."""

    def full_groups(self, sizes: Int64) -> list[int]:
        """The number of rows in each full group. The last rows are omitted if later rows may still join their group.

        Args:
            sizes: bytes of each row.
        """
        ends, start = np.cumsum(sizes), 0
        groups: list[int] = []
        while start < len(sizes):
            max_end = (ends[start - 1] if start else 0) + self.max_bytes
            end = min(max(int(np.searchsorted(ends, max_end, side="right")), start + 1), start + self.max_rows)
            if end >= len(sizes):
                break
            groups.append(end - start)
            start = end
        return groups


ROW_GROUPS = RowGroups()


class PartFile:
    """A Parquet file under construction. Leaving its `with` block deletes a file that was not finished."""

    def __init__(self, folder: str, row_groups: RowGroups) -> None:
        self._limits = row_groups
        self._file = storage.NewFile(folder)
        self._sink = _Sink(self._file)
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.Table] = []
        self.row_groups: list[int] = []
        """Number of rows in each row group written so far."""

    def add(self, rows: pa.Table) -> None:
        """Append rows, and write every row group that is full."""
        pending = pa.concat_tables([*self._pending, rows])
        for num_rows in self._limits.full_groups(_row_bytes(pending)):
            self._write_group(pending.slice(0, num_rows))
            pending = pending.slice(num_rows)
        self._pending = [pending]

    def end_group(self) -> None:
        """End the current row group, so that rows added later start a new one."""
        for rows in self._pending:
            if rows.num_rows:
                self._write_group(rows)
        self._pending = []

    def finish(self, prefix: str) -> str | None:
        """Publish the file and return its name, which starts with `prefix`. Returns None for a file without rows."""
        self.end_group()
        if self._writer is None:
            return None
        self._sink.is_footer = True  # closing the writer writes only the footer
        self._writer.close()
        name = f"{prefix}-{self.sha256[:16]}.parquet"
        self._file.publish(name)
        return name

    @property
    def num_rows(self) -> int:
        """Number of rows added."""
        return sum(self.row_groups) + sum(int(rows.num_rows) for rows in self._pending)

    @property
    def num_bytes(self) -> int:
        """Number of bytes written."""
        return self._file.num_bytes

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes written, in hexadecimal."""
        return self._sink.hash.hexdigest()

    @property
    def footer(self) -> bytes:
        """The footer of a finished file: its metadata, the length of the metadata, and the magic bytes."""
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
    """The stream that Arrow writes to: hashes the bytes and keeps the footer. Without a file, bytes are discarded."""

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
    """Bytes of each row in memory, int64 [N]: eight per value, plus the bytes of its texts, images and lists."""
    sizes = np.full(table.num_rows, 8 * table.num_columns, np.int64)
    for name, kind in zip(table.column_names, table.schema.types, strict=True):
        if pa.types.is_list(kind):
            sizes += 8 * pc.fill_null(pc.list_value_length(table[name]), 0).to_numpy()
        elif pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            sizes += pc.fill_null(pc.binary_length(table[name]), 0).to_numpy()
    return sizes
