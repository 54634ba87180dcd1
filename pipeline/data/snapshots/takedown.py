"""Take pairs down: hide them at once with a tombstone, then commit a version without their bytes.

take_down    write a tombstone; from now on, no reader shows these pairs in any version
compact      commit a new version whose shards do not contain these pairs
garbage      delete the older versions, and the shards that no version refers to (garbage.py)
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.parquet import writer
from pipeline.data.snapshots import tombstones
from pipeline.data.snapshots.commit import ConflictError, commit
from pipeline.data.snapshots.snapshot import OWN_FIELDS, QUERY_COUNTS, Shard, Snapshot, versions
from pipeline.data.snapshots.tombstones import NAMES, TOMBSTONES, Kind

logger = logging.getLogger("clip")

REWRITE_THREADS = 2
"""Number of shards that are rewritten at the same time. Each is in memory as a whole, 256 MiB by default."""
MAX_REBASES = 10
"""Maximum number of attempts at a compaction; an attempt fails if another writer commits."""


@dataclass(frozen=True)
class TakenDown:
    """The result of a take-down request."""

    num_pairs: int
    """Number of pairs taken down, over all versions."""
    not_found: tuple[str, ...]
    """Names that are in no version. If a later commit contains one of these names, it is taken down then."""


def take_down(
    uri: str, names: Mapping[Kind, Sequence[str]], reason: str, progress: Callable[[int], None] = lambda _: None
) -> TakenDown:
    """Hide pairs from the readers of all existing and future versions. Repeating a request changes nothing.

    Args:
        uri: the data set.
        names: names of pairs by kind: id, URL (in any spelling), or sha256 of the original file.
        reason: text that is stored with the names.
        progress: called with the number of shards searched since the previous call.
    """
    rows = [{"kind": kind, "value": value, "reason": reason} for kind in names for value in sorted(set(names[kind]))]
    requested = pa.Table.from_pylist(rows, NAMES)
    found, searched, known = TOMBSTONES.empty_table(), set[str](), list[str]()
    while True:
        current = versions(uri)
        snapshots = [Snapshot.open(uri, name) for name in current if name not in known]
        paths = {snapshot.below(shard) for snapshot in snapshots for shard in snapshot.shards} - searched
        found = pa.concat_tables([found, tombstones.search(uri, requested, paths, progress)])
        values = set(found["value"].to_pylist())
        not_found = [row for row in rows if row["value"] not in values]
        tombstones.put(uri, pa.concat_tables([found, pa.Table.from_pylist(not_found, TOMBSTONES)]))
        if versions(uri) == current:  # otherwise a concurrent commit may have missed this tombstone
            return TakenDown(len(set(found["pair_id"].to_pylist())), tuple(row["value"] for row in not_found))
        known, searched = current, searched | paths


def compact(uri: str, progress: Callable[[int], None] = lambda _: None) -> Snapshot:
    """Commit a version without the bytes of the pairs that are taken down, and return it.

    If the latest version contains no such pairs, it is returned. Shards without such pairs are reused. The other shards
    are rewritten, with the remaining rows in the same order.

    Args:
        uri: the data set.
        progress: called with the number of shards rewritten since the previous call.

    Raises:
        ConflictError: other writers committed during each of MAX_REBASES attempts.
        ValueError: a shard is damaged.
    """
    for _ in range(MAX_REBASES):
        latest = Snapshot.open(uri)
        if not latest.num_taken_down:
            return latest
        try:
            return _compact(latest, progress)
        except ConflictError as error:
            logger.warning("%s: restarting the compaction", error)
    raise ConflictError(
        f"{uri}: {MAX_REBASES} versions were committed during the compaction; try again while nobody commits"
    )


def _compact(latest: Snapshot, progress: Callable[[int], None]) -> Snapshot:
    affected = [shard for shard in latest.shards if shard.taken_down]
    written: dict[str, Shard | None] = {}
    counts = [latest.query_counts()]
    with ThreadPoolExecutor(REWRITE_THREADS) as threads:
        rewritten = threads.map(lambda shard: _rewrite(latest.uri, shard), affected)
        for shard, (new, query_ids) in zip(affected, rewritten, strict=True):
            written[shard.path] = new
            counts.append(pa.table([query_ids, np.full(len(query_ids), -1)], schema=QUERY_COUNTS))
            progress(1)
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
    """The shard as in a manifest: with a relative path, and without `taken_down`."""
    return Shard(
        path=snapshot.below(shard),
        num_rows=shard.num_rows,
        num_bytes=shard.num_bytes,
        sha256=shard.sha256,
        row_groups=shard.row_groups,
    )


def _without_statistics(schema: pa.Schema) -> pa.Schema:
    """The schema of a shard without the statistics (shard.py), which include removed pairs."""
    metadata = schema.metadata or {}
    return schema.with_metadata({name: value for name, value in metadata.items() if name != b"statistics"})


def _remaining(source: pq.ParquetFile, shard: Shard) -> tuple[memoryview, list[int], list[pa.Array]]:
    """The file of a shard without the pairs that are taken down, the rows of its groups, and their query ids."""
    sink, groups, query_ids = pa.BufferOutputStream(), [], []
    with writer(sink, _without_statistics(source.schema_arrow)) as file:
        for group, num_rows in enumerate(shard.row_groups):
            table, remaining = source.read_row_group(group), shard.remaining_rows(group)
            removed = np.setdiff1d(np.arange(num_rows), remaining)
            query_ids.append(table["query_ids"].take(removed).combine_chunks().flatten())
            if len(remaining):
                file.write_table(table.take(remaining))
                groups.append(len(remaining))
    return memoryview(sink.getvalue()), groups, query_ids


def _rewrite(uri: str, shard: Shard) -> tuple[Shard | None, pa.Array]:
    """Write a shard without the pairs that are taken down.

    Returns:
        The new shard, or None if no pairs remain; and the query ids of the removed pairs.
    """
    # Read and verified as a whole, because Parquet has no checksum of what its footer says about the columns
    whole = pa.BufferReader(storage.read_verified(shard.path, shard.sha256))
    with pq.ParquetFile(whole, page_checksum_verification=True) as source:
        data, groups, query_ids = _remaining(source, shard)
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
    return (new if groups else None), pa.concat_arrays(query_ids)
