"""Create versions and tags of a data set, each by a single write of a file that must not exist yet.

The first writer of the record of a version number gets that number. Other writers take the next number, or get a
ConflictError if they gave a parent. Everything that a version refers to is written before its record: shards, manifest,
counts, and tombstones for the pairs that it must not show. A lease (leases.py) keeps garbage collections from deleting
these files meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from cluster import parquet, storage
from cluster.stores.errors import UnsupportedError
from pipeline.data.snapshots import tombstones
from pipeline.data.snapshots.leases import Lease
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

MAX_STALE_LISTINGS = 8
"""How many times a commit lists the versions before it refuses a storage whose listings lack a version that exists."""
_STALE_LISTING_SECONDS = 0.1
"""First pause before the versions are listed again; each next one is twice as long, 13 s in total."""


class ConflictError(ValueError):
    """Another writer has committed since; the change must be made again on top of the latest version."""


def put_overlaps(uri: str, overlaps: pa.Table) -> str:
    """Write OVERLAPS into a data set and return the sha256 of the file, for the field `overlap` of a record."""
    data = parquet.encode(overlaps.cast(OVERLAPS))
    sha256 = hashlib.sha256(data).hexdigest()
    storage.put_if_absent(overlaps_uri(uri, sha256), data)
    return sha256


def overlaps_uri(uri: str, sha256: str) -> str:
    """The URI of the overlaps with this hash."""
    return storage.join(uri, "overlaps", f"{sha256}.parquet")


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
        FileNotFoundError: a shard does not exist, or the overlaps do not.
        StorageError: the storage failed; UnsupportedError if its listings lack files that exist.
        ValueError: a shard has the wrong size, or the existing manifest is damaged.
    """
    assert not OWN_FIELDS & metadata.keys(), OWN_FIELDS & metadata.keys()
    uri = storage.absolute(uri)
    manifest = parquet.encode(
        pa.table([[getattr(shard, name) for shard in shards] for name in SHARDS.names], schema=SHARDS)
    )
    snapshot_id = hashlib.sha256(manifest).hexdigest()
    with Lease(uri, "commit") as lease:
        lease.wait_for_sweeps()
        # No sweep deletes anything from here on. Files that one has deleted before are missing now.
        _check_files(uri, shards, metadata)
        counts = parquet.encode(query_counts.cast(QUERY_COUNTS))
        storage.put_if_absent(storage.join(uri, "query_counts", f"{snapshot_id}.parquet"), counts)
        if not storage.put_if_absent(manifest_uri(uri, snapshot_id), manifest):
            raise ValueError(f"{manifest_uri(uri, snapshot_id)} is damaged; remove it and commit again")
        name = _put_record(uri, shards, snapshot_id, metadata, parent, lease)
        return Snapshot.open(uri, name)


def _put_record(
    uri: str, shards: Sequence[Shard], snapshot_id: str, metadata: Mapping[str, Any], parent: str | None, lease: Lease
) -> str:
    """Put the record under the first free number, and return its name, or that of a latest version that is the same."""
    commit_id = uuid.uuid4().hex  # distinguishes the records of two commits with equal content
    num_tries = Counter[str]()
    while True:
        names = versions(uri)
        latest = read_record(uri, names[-1]) if names else None
        if latest and (latest["snapshot_id"], latest.get("overlap")) == (snapshot_id, metadata.get("overlap")):
            return names[-1]
        if parent is not None and (latest is None or latest["name"] != parent):
            winner = latest["name"] if latest else "no version"
            raise ConflictError(f"{uri}: {winner} is the latest now, not {parent}; make the change again on top of it")
        tombstone_files = tombstones.files(uri)
        if tombstone_files:
            known = {shard.path for shard in read_manifest(uri, latest)} if latest else set()
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
        lease.check()
        if storage.put_if_absent(record_uri(uri, name), json.dumps(record, indent=1, sort_keys=True).encode()):
            if not lease.is_held():  # the put took so long that a sweep may not have respected the lease
                _check_files(uri, shards, metadata)
            # A concurrent take-down may have missed this version. Both sides write first and read afterwards, so at
            # least one of them sees the other.
            if tombstones.files(uri) != tombstone_files:
                tombstones.follow(uri, {shard.path for shard in shards})
            return name
        num_tries[name] += 1
        _wait_for_listing(uri, name, num_tries[name])


def _wait_for_listing(uri: str, name: str, num_tries: int) -> None:
    """Pause before the versions are listed again. Normally the next listing shows the version that was there first.

    Raises:
        UnsupportedError: the version exists, but MAX_STALE_LISTINGS listings did not show it.
    """
    if num_tries == MAX_STALE_LISTINGS:
        raise UnsupportedError(
            f"{record_uri(uri, name)} exists, but {num_tries} listings of its folder did not show it; a data set needs "
            "a storage whose listings show every file at once (docs/storage.md), without a cache in front of it"
        )
    if num_tries > 1:
        time.sleep(_STALE_LISTING_SECONDS * 2 ** (num_tries - 2))


def tag(uri: str, name: str, version: str) -> None:
    """Give a version a second, permanent name. The garbage collector keeps versions that have a tag.

    Raises:
        FileNotFoundError: the version does not exist.
        ValueError: the name is not a valid tag, or is already the tag of another version, perhaps in upper or lower
            case, which some disks do not distinguish.
    """
    if not TAG.fullmatch(name) or VERSION.fullmatch(name):
        raise ValueError(
            f"tag={name}: use up to 64 letters, digits, '.', '_' and '-', beginning with a letter or digit, and not a "
            "version name"
        )
    uri = storage.absolute(uri)
    version = Snapshot.open(uri, version).name
    with Lease(uri, "commit") as lease:
        lease.wait_for_sweeps()
        read_record(uri, version)  # no sweep retires it from here on
        _check_tag(uri, name, version)
        record = json.dumps({"schema_version": SCHEMA_VERSION, "version": version}).encode()
        lease.check()
        if not storage.put_if_absent(storage.join(uri, "refs", "tags", f"{name}.json"), record):
            _check_tag(uri, name, version)
            raise ValueError(f"tag={name} exists already; tags cannot be moved, choose another name")


def _check_tag(uri: str, name: str, version: str) -> None:
    """Check that no other version has this tag, and that no tag differs from it only in case. Raises ValueError."""
    for known, known_version in tags(uri).items():
        if known == name and known_version != version:
            raise ValueError(f"tag={name} already names {known_version}; tags cannot be moved, choose another name")
        if known != name and known.casefold() == name.casefold():
            raise ValueError(
                f"tag={name}: the tag {known} differs from it only in case, which some disks do not distinguish; "
                "choose another name"
            )


def _check_files(uri: str, shards: Sequence[Shard], metadata: Mapping[str, Any]) -> None:
    """Check that the shards and the overlaps of a version exist. Raises as `commit` does."""
    _check_shards(uri, shards)
    overlap = metadata.get("overlap")
    if overlap and not storage.exists(overlaps := overlaps_uri(uri, overlap["sha256"])):
        raise FileNotFoundError(f"{overlaps}: these overlaps do not exist; run the job again")


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
            raise FileNotFoundError(
                f"{shard_uri}: this shard does not exist; run the job that writes it again (a garbage collection "
                "deletes shards without a version once they are older than its grace period)"
            )
        if sizes[shard.path] != shard.num_bytes:
            raise ValueError(
                f"{shard_uri}: {shard.num_bytes} bytes expected, {sizes[shard.path]} found; write it again"
            )
