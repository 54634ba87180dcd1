"""Write and read tombstones: lists of pairs that no reader may show, in any version of the data set.

    <dataset>/tombstones/t00000001-<sha256>.parquet    written once and never changed; all files apply together

A tombstone contains the name of each pair that is taken down (its id, a URL, or the sha256 of the original file) and
its location: shard, row group and row. So a reader can skip these rows without a search. The names apply to later
versions too: a commit searches its new shards for all names that were ever taken down (commit.py).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster import parquet, storage
from cluster.stores.errors import DamagedError, UnsupportedError
from pipeline.data.web.urls import url_key

Kind = Literal["pair_id", "url", "sha256"]
"""The column of PAIRS by which a pair is named; `sha256` is the hash of the original file."""
NAMES = pa.schema([("kind", pa.string()), ("value", pa.string()), ("reason", pa.string())])
TOMBSTONES = pa.schema(
    [
        *NAMES,
        ("pair_id", pa.string()),  # this and the columns below are null for a name that was not found
        ("path", pa.string()),  # path of the shard, relative to the data set
        ("row_group", pa.int32()),
        ("row", pa.int32()),  # index within the row group
    ]
)
NUM_THREADS = 8
RowLocation = tuple[str, int, int]
"""Path of the shard, row group, row."""


def files(uri: str) -> list[str]:
    """The URIs of the tombstones of a data set, oldest first."""
    uris = (entry.uri for entry in storage.entries(storage.join(uri, "tombstones")))
    return [uri for uri in uris if uri.endswith(".parquet")]


def read(uri: str) -> pa.Table:
    """TOMBSTONES: all take-downs of a data set.

    Raises:
        ValueError: a tombstone is damaged. Ignoring it would show pairs that are taken down.
    """
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        return pa.concat_tables([TOMBSTONES.empty_table(), *threads.map(_read_one, files(uri))])


def rows_by_shard(table: pa.Table) -> dict[str, tuple[tuple[int, int], ...]]:
    """The sorted (row group, row) of all pairs that are taken down, by the path of the shard."""
    by_shard = defaultdict(set)
    for path, row_group, row in _locations(table):
        by_shard[path].add((row_group, row))
    return {path: tuple(sorted(rows)) for path, rows in by_shard.items()}


def remaining_rows(num_rows: int, row_group: int, taken_down: Iterable[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """The rows of a row group that are not taken down, in ascending order.

    Args:
        num_rows: number of rows of the row group.
        row_group: index of the row group.
        taken_down: (row group, row) of the pairs of the shard that are taken down, as returned by `rows_by_shard`.
    """
    hidden = [row for group, row in taken_down if group == row_group]
    return np.delete(np.arange(num_rows), hidden)


def search(
    uri: str, names: pa.Table, paths: Iterable[str], progress: Callable[[int], None] = lambda _: None
) -> pa.Table:
    """TOMBSTONES with the locations of NAMES in these shards.

    Reads one to three text columns of each shard, with one shard at a time in each of NUM_THREADS threads.

    Args:
        uri: the data set.
        names: NAMES.
        paths: paths of shards, relative to the data set.
        progress: called with the number of shards searched since the previous call.
    """
    names_by_kind = [names.filter(pc.equal(names["kind"], kind)) for kind in get_args(Kind)]
    names_by_kind = [table for table in names_by_kind if table.num_rows]
    found = [TOMBSTONES.empty_table()]
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        for table in threads.map(
            lambda path: _search_shard(uri, path, names_by_kind), sorted(set(paths)) if names_by_kind else []
        ):
            found.append(table)
            progress(1)
    return pa.concat_tables(found)


def put(uri: str, table: pa.Table) -> None:
    """Write a tombstone with the rows of TOMBSTONES that are in no earlier tombstone, if there are any.

    Raises:
        UnsupportedError: the listing of the storage does not show the tombstone.
    """
    before = {tuple(row.values()) for row in read(uri).to_pylist()}
    new = [row for row in table.to_pylist() if tuple(row.values()) not in before]
    if new:
        data = parquet.encode(pa.Table.from_pylist(new, TOMBSTONES))
        # The number is for human readers: two files with the same number differ in their hashes, and both apply
        name = f"t{len(files(uri)) + 1:08d}-{hashlib.sha256(data).hexdigest()}.parquet"
        tombstone = storage.join(storage.absolute(uri), "tombstones", name)
        storage.put_if_absent(tombstone, data)
        if tombstone not in files(uri):
            raise UnsupportedError(
                f"{tombstone}: the listing of this storage does not show it after its write, so readers may show the "
                "pairs that it takes down; use a storage with consistent listings (docs/storage.md)"
            )


def follow(uri: str, paths: Iterable[str]) -> None:
    """Write a tombstone for the pairs in these shards whose names were taken down before."""
    names = read(uri).select(NAMES.names)
    if names.num_rows:
        put(uri, search(uri, names.group_by(NAMES.names).aggregate([]), paths))


def _read_one(uri: str) -> pa.Table:
    try:
        data = storage.read_verified(uri, uri.removesuffix(".parquet").rsplit("-", 1)[-1])
    except DamagedError as error:
        raise DamagedError(
            f"{uri}: this tombstone is damaged ({error}); restore the file with the sha256 in its name"
        ) from error
    try:
        table = parquet.decode(data, uri)
    except ValueError as error:
        raise ValueError(f"{uri}: jobs.snapshot did not write this tombstone ({error}); remove it") from error
    return parquet.cast(table, TOMBSTONES, uri).select(TOMBSTONES.names)


def _locations(table: pa.Table) -> list[RowLocation]:
    located = table.filter(table["path"].is_valid())
    return list(zip(*(located[name].to_pylist() for name in ("path", "row_group", "row")), strict=True))


def _search_shard(uri: str, path: str, names_by_kind: Sequence[pa.Table]) -> pa.Table:
    kinds = [table["kind"][0].as_py() for table in names_by_kind]
    shard_uri = storage.join(uri, path)
    filesystem, shard_path = storage.filesystem(shard_uri)

    def read() -> tuple[pa.Table, list[int]]:
        with pq.ParquetFile(
            shard_path, filesystem=filesystem, page_checksum_verification=True, pre_buffer=True
        ) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            return file.read(columns=sorted({*kinds, "pair_id"})), sizes

    pairs, sizes = parquet.read_repeatedly(shard_uri, read)
    starts = np.cumsum([0, *sizes])
    found = [TOMBSTONES.empty_table()]
    for kind, names in zip(kinds, names_by_kind, strict=True):
        name_indices, rows = _matches(_comparable(kind, names["value"]), _comparable(kind, pairs[kind]))
        groups = np.searchsorted(starts, rows, side="right") - 1
        columns = {
            **{name: names[name].take(name_indices) for name in NAMES.names},
            "pair_id": pairs["pair_id"].take(rows),
            "path": [path] * len(rows),
            "row_group": groups,
            "row": rows - starts[groups],
        }
        found.append(pa.table(columns).cast(TOMBSTONES))
    return pa.concat_tables(found)


def _comparable(kind: str, values: pa.ChunkedArray) -> pa.Array:
    """Names as they are compared: URLs by `url_key`, so that one name takes down all spellings of a URL."""
    if kind != "url":
        return values.combine_chunks()
    return pa.array([None if url is None else url_key(url) for url in values.to_pylist()], pa.string())


def _matches(names: pa.Array, values: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The indices (name, value) of all equal pairs, ordered by value."""
    same = defaultdict(list)
    for index, name in enumerate(names.to_pylist()):
        same[name].append(index)
    rows = np.flatnonzero(pc.is_in(values, value_set=names).to_numpy(zero_copy_only=False))
    pairs = [(index, row) for row in rows.tolist() for index in same[values[row].as_py()]]
    matches = np.array(pairs, np.int64).reshape(-1, 2)
    return matches[:, 0], matches[:, 1]
