"""Create versions and tags of a data set, each by a single write of a file that must not exist yet.

The first writer of the record of a version number gets that number. Other writers take the next number, or get a
ConflictError if they gave a parent. Everything that a version refers to is written before its record: shards, manifest,
counts, and tombstones for the pairs that it must not show.
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
    """Another writer has committed since; the change must be made again on top of the latest version."""


def put_overlaps(uri: str, overlaps: pa.Table) -> str:
    """Write OVERLAPS into a data set and return the sha256 of the file, for the field `overlap` of a record."""
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
    """Create a version with these shards.

    If the latest version already has the same id and the same `overlap`, that version is returned instead. Committing
    the content of an older version again creates a new version with the same id, because readers get the latest version
    by default. If the process is killed, the new version either exists completely or not at all, and the call can be
    repeated.

    Args:
        uri: the data set.
        shards: the shards in order, with paths relative to the data set.
        query_counts: QUERY_COUNTS of these shards.
        metadata: plain data for the version's record, to which OWN_FIELDS are added.
        parent: the version from which this one was made. If None, the new version replaces any latest version, which is
            right for content that was not derived from another version.

    Raises:
        ConflictError: the latest version is not `parent`; the message names the latest version.
        FileNotFoundError: a shard does not exist.
        ValueError: a shard has the wrong size, or the existing manifest is damaged.
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
    commit_id = uuid.uuid4().hex  # distinguishes the records of two commits with equal content
    while True:
        names = versions(uri)
        latest = read_record(uri, names[-1]) if names else None
        if latest is not None and latest["snapshot_id"] == snapshot_id and latest.get("overlap") == overlap:
            return Snapshot.open(uri, latest["name"])
        if parent is not None and (latest is None or latest["name"] != parent):
            winner = latest["name"] if latest else "no version"
            raise ConflictError(f"{uri}: {winner} is the latest now, not {parent}; make the change again on top of it")
        tombstone_files = tombstones.files(uri)
        known = {shard.path for shard in read_manifest(uri, latest)} if latest and tombstone_files else set()
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
            # A concurrent take-down may have missed this version. Both sides write first and read afterwards, so at
            # least one of them sees the other.
            if tombstones.files(uri) != tombstone_files:
                tombstones.follow(uri, {shard.path for shard in shards})
            return Snapshot.open(uri, name)


def tag(uri: str, name: str, version: str) -> None:
    """Give a version a second, permanent name. The garbage collector keeps versions that have a tag.

    Raises:
        FileNotFoundError: the version does not exist.
        ValueError: the name is not a valid tag, or is already the tag of another version.
    """
    if not TAG.fullmatch(name) or VERSION.fullmatch(name):
        raise ValueError(
            f"tag={name}: use up to 64 letters, digits, '.', '_' and '-', beginning with a letter or digit, and not a "
            "version name"
        )
    version = Snapshot.open(uri, version).name
    record = json.dumps({"schema_version": SCHEMA_VERSION, "version": version}).encode()
    if not storage.put_if_absent(storage.join(uri, "refs", "tags", f"{name}.json"), record):
        raise ValueError(f"tag={name} already names {tags(uri)[name]}; tags cannot be moved, choose another name")


def _check_shards(uri: str, shards: Sequence[Shard]) -> None:
    """Check that all shards exist with the right size, by listing their folders: one request per 1,000 files."""
    folders = sorted({shard.path.rpartition("/")[0] for shard in shards})
    base = storage.join(uri, "")
    sizes = {
        entry.uri[len(base) :]: entry.num_bytes
        for folder in folders
        for entry in storage.entries(storage.join(uri, folder))
    }
    for shard in shards:
        shard_uri = storage.join(uri, shard.path)
        if shard.path not in sizes:
            raise FileNotFoundError(f"{shard_uri}: this shard does not exist; write it before the commit")
        if sizes[shard.path] != shard.num_bytes:
            raise ValueError(
                f"{shard_uri}: {shard.num_bytes} bytes expected, {sizes[shard.path]} found; write it again"
            )
