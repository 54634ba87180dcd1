"""Open, check and read the input files of a job, on any file system and of any supported type."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from cluster import storage
from pipeline.data.queries import wikipedia
from pipeline.data.sources import extract, img2dataset, tables
from pipeline.data.sources.parquet_rows import parquet_rows
from pipeline.data.sources.rows import Row
from pipeline.data.sources.warc_records import ReadError

READ_AHEAD_BYTES = 8 * 2**20
MAX_ARCHIVES_CHECKED = 64
"""Number of archives that are checked before work begins; checking one archive reads several MB ahead."""


def check_dumps(uris: Sequence[str]) -> None:
    """Raise ValueError if a file is not a Wikipedia dump."""
    for uri in uris:
        wikipedia.check_dump(open_uri(uri), uri)


def check_inputs(inputs: Sequence[str]) -> None:
    """Check every table and the first MAX_ARCHIVES_CHECKED archives before work begins.

    Raises:
        ValueError: a file is empty, its content does not match the type in its name, or a table lacks a column.
    """
    archives = [uri for uri in inputs if uri.endswith(extract.ARCHIVE_SUFFIXES)]
    shards = [uri for uri in inputs if uri.endswith(img2dataset.SHARD_SUFFIX)]
    try:
        for uri in archives[:MAX_ARCHIVES_CHECKED]:
            extract.check_archive(uri, open_uri)
        for uri in sorted(set(inputs) - {*archives, *shards}):
            tables.check_table(uri, *storage.filesystem(uri))
    except ValueError as error:
        raise ValueError(f"input={error}") from error


def read_input(uri: str, config: extract.ExtractConfig) -> pa.Table:
    """Read CANDIDATES of one archive, table or img2dataset shard."""
    if uri.endswith(extract.ARCHIVE_SUFFIXES):
        return extract.read_archive(uri, open_uri, config)
    if uri.endswith(img2dataset.SHARD_SUFFIX):
        with open_shard(uri) as (stream, listed):
            return img2dataset.read_shard(uri, stream, listed)
    return tables.read_table(uri, *storage.filesystem(uri))


@contextmanager
def open_shard(uri: str, further_columns: Sequence[str] = ()) -> Iterator[tuple[io.BufferedReader, Iterable[Row]]]:
    """Open a webdataset shard as a seekable stream, with the rows of img2dataset's table of the shard, if it has one.

    Args:
        uri: URI of the shard.
        further_columns: columns of the table to read, beside key, url and caption.
    """
    table = img2dataset.table_of_shard(uri)
    rows = parquet_rows(*storage.filesystem(table), ["key", *further_columns]) if storage.exists(table) else ()
    with open_uri(uri) as stream:
        yield stream, rows


def open_uri(uri: str) -> io.BufferedReader:
    """Open a file as a stream with a position, as archive readers need, with read-ahead suited to object stores.

    Reading raises ReadError where the storage fails, so that no reader takes that for damage of the content.
    """
    return io.BufferedReader(_Input(uri), READ_AHEAD_BYTES)


class _Input(io.RawIOBase):
    """A file of any storage, whose failures are ReadError."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._uri = uri
        self._file = storage.open_input(uri)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            num_bytes: int = self._file.readinto(buffer)
        except OSError as error:
            raise ReadError(str(storage.failure_of(self._uri, error) or error)) from error
        return num_bytes

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position: int = self._file.seek(offset, whence)
        return position

    def tell(self) -> int:
        position: int = self._file.tell()
        return position

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
