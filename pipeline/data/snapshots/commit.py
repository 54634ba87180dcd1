"""Commits: versions and tags come into being by one write each, that of a file that must not be there.

Whoever puts the record of a number first has that number; the others take the next one, or are told. All that the
version names is there before: its shards, its manifest, its counts, and tombstones for what it must not show.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from cluster import parquet, storage
from pipeline.data.snapshots import tombstones
from pipeline.data.snapshots.snapshot import (
    OWN_FIELDS,
    QUERY_COUNTS,
    SCHEMA_VERSION,
    SHARDS,
    TAG,
    VERSION,
    Shard,
    Snapshot,
    manifest_uri,
    read_manifest,
    read_record,
    record_uri,
    tags,
    totals_of,
    versions,
)
from pipeline.schemas import OVERLAPS, PAIRS


class ConflictError(ValueError):
    """Somebody else has committed meanwhile; what was made on top of the version before has to be made anew."""


def put_overlaps(uri: str, overlaps: pa.Table) -> str:
    """Write OVERLAPS into a data set, and give their sha256, for a record's `overlap`."""
    data = parquet.encode(overlaps.cast(OVERLAPS))
    sha256 = hashlib.sha256(data).hexdigest()
    storage.put_if_absent(storage.join(uri, "overlaps", f"{sha256}.parquet"), data)
    return sha256


def commit(
    uri: str,
    shards: Sequence[Shard],
    query_counts: pa.Table,
    metadata: Mapping[str, Any],
    *,
    parent: str | None = None,
) -> Snapshot:
    """Make a version of these shards; where the latest version has the same id already, that one is returned, unless
    something else is known of its overlap with evaluation sets.

    The content of an older version, committed again, is a new version of the same id: the latest is what people get who
    name none. Killed at any moment, it leaves the versions before or the new one, and may be called again.

    Args:
        uri: the data set.
        shards: in order, their paths below the data set.
        query_counts: QUERY_COUNTS of these shards.
        metadata: plain data for the version's record, to which OWN_FIELDS are added.
        parent: the version that this one was made from. Where it is not given, the new version takes the place of
            whatever is the latest: right for what was not made from another version.

    Raises:
        ConflictError: the latest version is not `parent`; names the one that is.
        FileNotFoundError: a shard is not there.
        ValueError: a shard has another size, or the manifest that is there is damaged.
    """
    assert not OWN_FIELDS & metadata.keys(), OWN_FIELDS & metadata.keys()
    uri = storage.absolute(uri)
    _check_shards(uri, shards)
    manifest = parquet.encode(
        pa.table([[getattr(shard, name) for shard in shards] for name in SHARDS.names], schema=SHARDS)
    )
    snapshot_id = hashlib.sha256(manifest).hexdigest()
    counts = parquet.encode(query_counts.cast(QUERY_COUNTS))
    storage.put_if_absent(storage.join(uri, "query_counts", f"{snapshot_id}.parquet"), counts)
    if not storage.put_if_absent(manifest_uri(uri, snapshot_id), manifest):
        raise ValueError(f"{manifest_uri(uri, snapshot_id)} is damaged; remove it and commit again")
    overlap = metadata.get("overlap")
    commit_id = uuid.uuid4().hex  # so that of two commits with one content each knows its own record
    while True:
        names = versions(uri)
        latest = read_record(uri, names[-1]) if names else None
        if latest is not None and latest["snapshot_id"] == snapshot_id and latest.get("overlap") == overlap:
            return Snapshot.open(uri, latest["name"])
        if parent is not None and (latest is None or latest["name"] != parent):
            winner = latest["name"] if latest else "no version"
            raise ConflictError(f"{uri}: {winner} is the latest now, not {parent}; make the change on top of it")
        buried = tombstones.files(uri)
        known = {shard.path for shard in read_manifest(uri, latest)} if latest and buried else set()
        tombstones.follow(uri, {shard.path for shard in shards} - known)
        name = f"v{int(names[-1][1:]) + 1 if names else 1:08d}"
        record = {
            **metadata,
            **totals_of(shards),
            "schema_version": SCHEMA_VERSION,
            "schema": {field.name: str(field.type) for field in PAIRS},
            "name": name,
            "snapshot_id": snapshot_id,
            "parent": latest["name"] if latest else None,
            "commit_id": commit_id,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if storage.put_if_absent(record_uri(uri, name), json.dumps(record, indent=1, sort_keys=True).encode()):
            if tombstones.files(uri) != buried:  # a take-down that has not seen this version: one of us sees the other
                tombstones.follow(uri, {shard.path for shard in shards})
            return Snapshot.open(uri, name)


def tag(uri: str, name: str, version: str) -> None:
    """Give a version another name, for good. What has a tag is kept by the garbage collector.

    Raises:
        FileNotFoundError: there is no such version.
        ValueError: the name is none for a tag, or another version's.
    """
    if not TAG.fullmatch(name) or VERSION.fullmatch(name):
        raise ValueError(f"tag={name}: begin with a letter or digit; up to 64 letters, digits, '.', '_' and '-'")
    version = Snapshot.open(uri, version).name
    record = json.dumps({"schema_version": SCHEMA_VERSION, "version": version}).encode()
    if not storage.put_if_absent(storage.join(uri, "refs", "tags", f"{name}.json"), record):
        raise ValueError(f"tag={name} names {tags(uri)[name]} already; tags are never moved, choose another name")


def _check_shards(uri: str, shards: Sequence[Shard]) -> None:
    """By listing their folders, which is one request for a thousand files."""
    folders = sorted({shard.path.rpartition("/")[0] for shard in shards})
    base = storage.join(uri, "")
    found = {
        entry.uri[len(base) :]: entry.num_bytes
        for folder in folders
        for entry in storage.entries(storage.join(uri, folder))
    }
    for shard in shards:
        place = storage.join(uri, shard.path)
        if shard.path not in found:
            raise FileNotFoundError(f"{place}: this shard is not there; write it before the commit")
        if found[shard.path] != shard.num_bytes:
            raise ValueError(f"{place}: {shard.num_bytes} bytes expected, {found[shard.path]} found; write it again")
