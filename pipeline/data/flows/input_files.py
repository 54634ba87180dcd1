"""The files that a job reads: opened wherever they lie, looked into before work begins, read by what they are."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from pipeline.data.queries import wikipedia
from pipeline.data.sources import extract, img2dataset, tables

READ_AHEAD_BYTES = 8 * 2**20
MAX_ARCHIVES_CHECKED = 64
"""Each is read ahead of what is looked at."""


def check_dumps(uris: Sequence[str]) -> None:
    """Raises ValueError where a file is no dump."""
    for uri in uris:
        wikipedia.check_dump(open_uri(uri), uri)


def check_inputs(inputs: Sequence[str]) -> None:
    """Look into every table, and into the first archives, before work begins.

    Raises ValueError where one is empty, of another type than its name says, or lacks a column.
    """
    archives = [uri for uri in inputs if uri.endswith(extract.ARCHIVE_SUFFIXES)]
    for uri in archives[:MAX_ARCHIVES_CHECKED]:
        extract.check_archive(uri, open_uri)
    for uri in inputs:
        if not uri.endswith((*extract.ARCHIVE_SUFFIXES, img2dataset.SHARD_SUFFIX)):
            tables.check_table(uri, *storage.filesystem(uri))


def read_input(uri: str, config: extract.ExtractConfig) -> pa.Table:
    """CANDIDATES of one archive, table or img2dataset shard."""
    if uri.endswith(extract.ARCHIVE_SUFFIXES):
        return extract.read_archive(uri, open_uri, config)
    if uri.endswith(img2dataset.SHARD_SUFFIX):
        with open_shard(uri) as (stream, listed):
            return img2dataset.read_shard(uri, stream, listed)
    return tables.read_table(uri, *storage.filesystem(uri))


@contextmanager
def open_shard(uri: str) -> Iterator[tuple[io.BufferedReader, pa.Table | None]]:
    """A webdataset shard, which can be sought, and img2dataset's table beside it, where there is one."""
    filesystem, path = storage.filesystem(uri)
    beside = img2dataset.table_beside(path)
    listed = pq.read_table(beside, filesystem=filesystem) if filesystem.get_file_info(beside).is_file else None
    with open_uri(uri) as stream:
        yield stream, listed


def open_uri(uri: str) -> io.BufferedReader:
    """A file that tells its position, as archive readers want it, read ahead in pieces that suit an object store."""
    filesystem, path = storage.filesystem(uri)
    return io.BufferedReader(filesystem.open_input_file(path), READ_AHEAD_BYTES)
