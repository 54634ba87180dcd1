"""Tombstones: pairs that no reader may show any more, whatever version of the data set it reads.

    <dataset>/tombstones/t00000001-<sha256>.parquet    written once, never changed; all of them together count

A tombstone names what is taken down (a pair's id, an address, the sha256 of an original file) and says where it lies:
shard, row group, row. So a reader leaves those rows out without a search. The name stays in force: a commit searches
the shards that are new in its version for all that was ever taken down (pipeline/data/snapshots/snapshot.py).
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

Kind = Literal["pair_id", "url", "sha256"]
"""The column of schemas.PAIRS by which pairs are named; sha256 is that of the original file."""
NAMES = pa.schema([("kind", pa.string()), ("value", pa.string()), ("reason", pa.string())])
TOMBSTONES = pa.schema(
    [
        *NAMES,
        ("pair_id", pa.string()),  # this and what follows are null for a name that is nowhere
        ("path", pa.string()),  # of the shard, below the data set
        ("row_group", pa.int32()),
        ("row", pa.int32()),  # within the row group
    ]
)
NUM_THREADS = 8
RowLocation = tuple[str, int, int]
"""Shard, row group, row."""


def files(uri: str) -> list[str]:
    """The tombstones of a data set, oldest first."""
    found = (entry.uri for entry in storage.entries(storage.join(uri, "tombstones")))
    return [name for name in found if name.endswith(".parquet")]


def read(uri: str) -> pa.Table:
    """TOMBSTONES: all take-downs of a data set.

    Raises:
        ValueError: one is damaged. It is no one's to ignore.
    """
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        return pa.concat_tables([TOMBSTONES.empty_table(), *threads.map(_read_one, files(uri))])


def places(table: pa.Table) -> dict[str, tuple[tuple[int, int], ...]]:
    """The row group and row of everything taken down, sorted, by shard."""
    found = defaultdict(set)
    for path, row_group, row in _places(table):
        found[path].add((row_group, row))
    return {path: tuple(sorted(rows)) for path, rows in found.items()}


def rows_left(num_rows: int, row_group: int, taken_down: Iterable[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """The rows of a row group that may be read, ascending.

    Args:
        num_rows: of the row group.
        row_group: its number.
        taken_down: row group and row of what is taken down of its shard, as `places` gives it.
    """
    gone = [row for group, row in taken_down if group == row_group]
    return np.delete(np.arange(num_rows), gone)


def search(uri: str, names: pa.Table, paths: Iterable[str], tell: Callable[[int], None] = lambda _: None) -> pa.Table:
    """TOMBSTONES: where these NAMES lie in these shards.

    Reads one to three columns of texts of each shard, a shard at a time in each of NUM_THREADS threads.

    Args:
        uri: the data set.
        names: NAMES.
        paths: of shards, below the data set.
        tell: is called with the number of shards that were searched since the call before.
    """
    wanted = [names.filter(pc.equal(names["kind"], kind)) for kind in get_args(Kind)]
    wanted = [table for table in wanted if table.num_rows]
    found = [TOMBSTONES.empty_table()]
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        for table in threads.map(lambda path: _search_shard(uri, path, wanted), sorted(set(paths)) if wanted else []):
            found.append(table)
            tell(1)
    return pa.concat_tables(found)


def put(uri: str, table: pa.Table) -> None:
    """Add a tombstone of those rows of TOMBSTONES that no earlier one has; none if there are none."""
    before = {tuple(row.values()) for row in read(uri).to_pylist()}
    new = [row for row in table.to_pylist() if tuple(row.values()) not in before]
    if new:
        data = parquet.encode(pa.Table.from_pylist(new, TOMBSTONES))
        # Numbered to be read by people: two that get one number differ in their hash, and both count
        name = f"t{len(files(uri)) + 1:08d}-{hashlib.sha256(data).hexdigest()}.parquet"
        storage.put_if_absent(storage.join(uri, "tombstones", name), data)


def follow(uri: str, paths: Iterable[str]) -> None:
    """Add a tombstone for whatever earlier ones have taken down and these shards hold again."""
    names = read(uri).select(NAMES.names)
    if names.num_rows:
        put(uri, search(uri, names.group_by(NAMES.names).aggregate([]), paths))


def _read_one(uri: str) -> pa.Table:
    data = storage.read_bytes(uri)
    if hashlib.sha256(data).hexdigest() != uri.removesuffix(".parquet").rsplit("-", 1)[-1]:
        raise ValueError(f"{uri}: this tombstone is damaged; put the file back as it was, its name is its sha256")
    return pq.ParquetFile(pa.BufferReader(data)).read()


def _places(table: pa.Table) -> list[RowLocation]:
    held = table.filter(table["path"].is_valid())
    return list(zip(*(held[name].to_pylist() for name in ("path", "row_group", "row")), strict=True))


def _search_shard(uri: str, path: str, wanted: Sequence[pa.Table]) -> pa.Table:
    filesystem, place = storage.filesystem(storage.join(uri, path))
    kinds = [table["kind"][0].as_py() for table in wanted]
    with pq.ParquetFile(place, filesystem=filesystem, page_checksum_verification=True, pre_buffer=True) as file:
        held = file.read(columns=sorted({*kinds, "pair_id"}))
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    starts = np.cumsum([0, *sizes])
    found = [TOMBSTONES.empty_table()]
    for kind, names in zip(kinds, wanted, strict=True):
        which = pc.index_in(held[kind], value_set=names["value"].combine_chunks())
        rows = np.flatnonzero(which.is_valid().to_numpy())
        groups = np.searchsorted(starts, rows, side="right") - 1
        columns = {
            **{name: names[name].take(which.drop_null()) for name in NAMES.names},
            "pair_id": held["pair_id"].take(rows),
            "path": [path] * len(rows),
            "row_group": groups,
            "row": rows - starts[groups],
        }
        found.append(pa.table(columns).cast(TOMBSTONES))
    return pa.concat_tables(found)
