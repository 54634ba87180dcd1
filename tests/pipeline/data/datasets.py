"""Build small data sets whose pairs are identified by numbers."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.parquet import writer
from pipeline.data.snapshots.commit import commit
from pipeline.data.snapshots.snapshot import QUERY_COUNTS, Shard, Snapshot
from pipeline.hashing import hash128
from pipeline.schemas import PAIRS

ROWS_PER_GROUP = 4
NUM_QUERIES = 3


def pair_id(number: int) -> str:
    return hash128(str(number))


def sha256(number: int, picture: str = "") -> str:
    return hashlib.sha256(f"{number}{picture}".encode()).hexdigest()


def pairs(numbers: Iterable[int], picture: str = "") -> pa.Table:
    """PAIRS with these numbers; pair n has the queries n % 3 and 3."""
    rows = [
        {
            "pair_id": pair_id(number),
            "url": f"http://a.example/{number}.jpg",
            "caption": f"number {number}",
            "image": f"image of {number}{picture} ".encode() * 9,
            "sha256": sha256(number, picture),
            "query_ids": [number % NUM_QUERIES, NUM_QUERIES],
        }
        for number in numbers
    ]
    return pa.Table.from_pylist(rows, PAIRS)


def add_shard(dataset: str, numbers: Iterable[int], picture: str = "") -> Shard:
    """Write a shard in row groups of 4 rows."""
    table, sink = pairs(numbers, picture), pa.BufferOutputStream()
    with writer(sink, table.schema) as file:
        file.write_table(table, row_group_size=ROWS_PER_GROUP)
    data = bytes(sink.getvalue())
    digest = hashlib.sha256(data).hexdigest()
    path = f"data/run/part-00000-{digest[:16]}.parquet"
    storage.write_bytes(storage.join(dataset, path), data)
    num_full, num_remaining = divmod(table.num_rows, ROWS_PER_GROUP)
    groups = (*[ROWS_PER_GROUP] * num_full, *([num_remaining] if num_remaining else []))
    return Shard(path=path, num_rows=table.num_rows, num_bytes=len(data), sha256=digest, row_groups=groups)


def counts(numbers: Iterable[int]) -> pa.Table:
    """QUERY_COUNTS of these pairs."""
    ids = [query for number in numbers for query in (number % NUM_QUERIES, NUM_QUERIES)]
    num_by_query = {query: ids.count(query) for query in sorted(set(ids))}
    return pa.table([list(num_by_query), list(num_by_query.values())], schema=QUERY_COUNTS)


def make(
    dataset: str, *shards: Iterable[int], metadata: Mapping[str, Any] | None = None, parent: str | None = None
) -> Snapshot:
    """Commit one shard for each group of numbers."""
    lists = [list(shard) for shard in shards]
    written = [add_shard(dataset, numbers) for numbers in lists]
    total = counts(number for numbers in lists for number in numbers)
    return commit(dataset, written, total, metadata or {"run": "abc"}, parent=parent)


def readable(snapshot: Snapshot) -> list[int]:
    """The numbers of the pairs that a reader sees, in order."""
    tables = [
        shard.read_row_group(group, ["caption"]) for shard in snapshot.shards for group in range(len(shard.row_groups))
    ]
    return [int(text.removeprefix("number ")) for table in tables for text in table["caption"].to_pylist()]


def stored(snapshot: Snapshot) -> list[int]:
    """The numbers of the pairs that the files contain, in order."""
    texts = [text for shard in snapshot.shards for text in pq.read_table(shard.path)["caption"].to_pylist()]
    return [int(text.removeprefix("number ")) for text in texts]
