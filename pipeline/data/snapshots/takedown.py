"""Taking pairs down: at once by a tombstone, which hides them, and for good by a version without their bytes.

take_down    names -> a tombstone; from now on no reader shows these pairs, whatever version it opens
compact      a new version whose shards do not hold them
garbage      retires the versions before, and deletes the shards that no version names (garbage.py)
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cluster import storage
from cluster.parquet import writer
from pipeline.data.snapshots import tombstones
from pipeline.data.snapshots.commit import ConflictError, commit
from pipeline.data.snapshots.snapshot import OWN_FIELDS, QUERY_COUNTS, Shard, Snapshot, versions
from pipeline.data.snapshots.tombstones import NAMES, TOMBSTONES, Kind

logger = logging.getLogger("clip")

REWRITE_THREADS = 2
"""Shards that are rewritten at once: each is in memory whole, 256 MiB as they are cut by default."""
MAX_REBASES = 10
"""How often a compaction is made anew because somebody else has committed."""


@dataclass(frozen=True)
class TakenDown:
    """What became of a request."""

    num_pairs: int
    """Pairs that it takes down, in all versions together."""
    not_found: tuple[str, ...]
    """Names that no version has. What has one of them later is taken down when it is committed."""


def take_down(
    uri: str, names: Mapping[Kind, Sequence[str]], reason: str, tell: Callable[[int], None] = lambda _: None
) -> TakenDown:
    """Hide pairs from the readers of all versions, those to come included. The same request again changes nothing.

    Args:
        uri: the data set.
        names: pairs by id, address, or sha256 of the original file, as the columns have them.
        reason: is kept with the names.
        tell: is called with the number of shards searched since the call before.
    """
    rows = [{"kind": kind, "value": value, "reason": reason} for kind in names for value in sorted(set(names[kind]))]
    asked = pa.Table.from_pylist(rows, NAMES)
    found, searched, seen = TOMBSTONES.empty_table(), set[str](), list[str]()
    while True:
        now = versions(uri)
        snapshots = [Snapshot.open(uri, name) for name in now if name not in seen]
        paths = {snapshot.below(shard) for snapshot in snapshots for shard in snapshot.shards} - searched
        found = pa.concat_tables([found, tombstones.search(uri, asked, paths, tell)])
        values = set(found["value"].to_pylist())
        nowhere = [row for row in rows if row["value"] not in values]
        tombstones.put(uri, pa.concat_tables([found, pa.Table.from_pylist(nowhere, TOMBSTONES)]))
        if versions(uri) == now:  # else somebody has committed who may not have seen this tombstone
            return TakenDown(len(set(found["pair_id"].to_pylist())), tuple(row["value"] for row in nowhere))
        seen, searched = now, searched | paths


def compact(uri: str, tell: Callable[[int], None] = lambda _: None) -> Snapshot:
    """The latest version without the bytes of what is taken down; itself where it holds none.

    Shards without such pairs are kept as they are, the others are written anew, their rows in the same order.

    Args:
        uri: the data set.
        tell: is called with the number of shards rewritten since the call before.

    Raises:
        ConflictError: others commit faster than this is done.
        ValueError: a shard is damaged.
    """
    for _ in range(MAX_REBASES):
        latest = Snapshot.open(uri)
        if not latest.num_taken_down:
            return latest
        try:
            return _compact(latest, tell)
        except ConflictError as error:
            logger.warning("%s: the compaction is made anew", error)
    raise ConflictError(f"{uri}: {MAX_REBASES} versions were committed during the compaction; try when it is quieter")


def _compact(latest: Snapshot, tell: Callable[[int], None]) -> Snapshot:
    affected = [shard for shard in latest.shards if shard.taken_down]
    written: dict[str, Shard | None] = {}
    counts = [latest.query_counts()]
    with ThreadPoolExecutor(REWRITE_THREADS) as threads:
        rewritten = threads.map(lambda shard: _rewrite(latest.uri, shard), affected)
        for shard, (new, gone) in zip(affected, rewritten, strict=True):
            written[shard.path] = new
            counts.append(pa.table([gone, np.full(len(gone), -1)], schema=QUERY_COUNTS))
            tell(1)
    total = pa.concat_tables(counts).group_by("query_id", use_threads=False).aggregate([("num_pairs", "sum")])
    total = total.rename_columns(QUERY_COUNTS.names)
    unchanged = {shard.path: _stored(latest, shard) for shard in latest.shards if not shard.taken_down}
    shards = [(unchanged | written)[shard.path] for shard in latest.shards]
    metadata = {name: value for name, value in latest.metadata.items() if name not in OWN_FIELDS}
    metadata["compacted"] = {"from": latest.name, "num_pairs": latest.num_taken_down}
    return commit(
        latest.uri,
        [shard for shard in shards if shard],
        total.filter(np.asarray(total["num_pairs"]) > 0),
        metadata,
        parent=latest.name,
    )


def _stored(snapshot: Snapshot, shard: Shard) -> Shard:
    """The shard as a manifest has it."""
    return Shard(
        path=snapshot.below(shard),
        num_rows=shard.num_rows,
        num_bytes=shard.num_bytes,
        sha256=shard.sha256,
        row_groups=shard.row_groups,
    )


def _without_statistics(schema: pa.Schema) -> pa.Schema:
    """The schema of a shard without what it says of pairs that may be gone (shard.py)."""
    said = schema.metadata or {}
    return schema.with_metadata({name: value for name, value in said.items() if name != b"statistics"})


def _rewrite(uri: str, shard: Shard) -> tuple[Shard | None, pa.Array]:
    """A shard without what is taken down, None where that is all of it; and the query ids of what is gone."""
    sink, groups, gone = pa.BufferOutputStream(), [], []
    with shard.open() as source, writer(sink, _without_statistics(source.schema_arrow)) as file:
        for group, num_rows in enumerate(shard.row_groups):
            table, left = source.read_row_group(group), shard.rows_left(group)
            out = np.setdiff1d(np.arange(num_rows), left)
            gone.append(table["query_ids"].take(out).combine_chunks().flatten())
            if len(left):
                file.write_table(table.take(left))
                groups.append(len(left))
    data = memoryview(sink.getvalue())
    digest = hashlib.sha256(data).hexdigest()
    new = Shard(
        path=f"data/compacted/{digest}.parquet",
        num_rows=sum(groups),
        num_bytes=len(data),
        sha256=digest,
        row_groups=tuple(groups),
    )
    if groups:
        storage.write_bytes(storage.join(uri, new.path), data)
    return (new if groups else None), pa.concat_arrays(gone)
