"""Snapshots: immutable, content-addressed versions of a data set.

    <dataset>/data/<run>/part-00000-<sha256>.parquet   shards, written once under the name of their content
    <dataset>/manifests/<sha256>.parquet               which shards make a snapshot; its hash is the snapshot's id
    <dataset>/query_counts/<sha256>.parquet            how many pairs each query has in a snapshot of that id
    <dataset>/overlaps/<sha256>.parquet                pictures of evaluation sets that were found
    <dataset>/snapshots/v00000001.json                 the version, and the commit: put if absent
    <dataset>/refs/tags/<name>.json                    another name of a version; put if absent
    <dataset>/tombstones/...                           what is taken down, from all versions (tombstones.py)

A version exists when its record does, and whoever puts the record of a number first has that number. The id is a
function of the pairs alone: the same pairs in the same shards give the same id wherever they lie. docs/snapshots.md
tells the formats and the protocol.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from pipeline.data import tombstones
from pipeline.schemas import OVERLAPS, PAIRS

SCHEMA_VERSION = 1
"""Of the version's record: docs/snapshot.schema.json."""
SHARDS = pa.schema(
    [
        ("path", pa.string()),  # below the data set
        ("num_rows", pa.int64()),
        ("num_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("row_groups", pa.list_(pa.int32())),  # rows of each row group
    ]
)
QUERY_COUNTS = pa.schema([("query_id", pa.int32()), ("num_pairs", pa.int64())])
OWN_FIELDS = frozenset(
    {
        *("schema_version", "name", "snapshot_id", "parent", "commit_id", "created"),
        *("num_pairs", "num_bytes", "num_shards", "schema"),
    }
)
"""What commit() puts into a record, beside the metadata."""
VERIFY_THREADS = 4
_VERSION = re.compile(r"v(\d{8})")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ConflictError(ValueError):
    """Somebody else has committed meanwhile; what was made on top of the version before has to be made anew."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file of pairs (schemas.PAIRS). `path` is below the data set in a manifest, a URI in a Snapshot."""

    path: str
    num_rows: int
    num_bytes: int
    sha256: str
    row_groups: tuple[int, ...]
    taken_down: tuple[tuple[int, int], ...] = ()
    """Row group and row, sorted, of what no reader may show; counted in all of the above."""

    def rows_left(self, row_group: int) -> npt.NDArray[np.int64]:
        """The rows of a row group that may be read, ascending."""
        gone = [row for group, row in self.taken_down if group == row_group]
        return np.delete(np.arange(self.row_groups[row_group]), gone)

    def read_row_group(self, row_group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The pairs of a row group, less those taken down. Raises as open() does."""
        with self.open() as file:
            table = file.read_row_group(row_group, columns=columns)
        return table.take(pa.array(self.rows_left(row_group))) if self.taken_down else table

    @contextmanager
    def open(self) -> Iterator[pq.ParquetFile]:
        """The whole file, what is taken down included; page checksums are verified. Needs `path` as a URI.

        Raises:
            FileNotFoundError: it is gone.
            ValueError: it is damaged.
        """
        filesystem, path = storage.filesystem(self.path)
        try:
            with pq.ParquetFile(path, filesystem=filesystem, page_checksum_verification=True, pre_buffer=True) as file:
                yield file
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.path}: this shard is gone") from error
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(f"{self.path}: this shard is damaged ({error}); see jobs.snapshot verify") from error


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One version of a data set. `metadata` is its record: parent, totals, schema, funnel, configuration, versions."""

    uri: str
    name: str
    snapshot_id: str
    shards: tuple[Shard, ...]
    metadata: Mapping[str, Any]

    @property
    def num_rows(self) -> int:
        """Pairs in all shards that are not taken down."""
        return sum(shard.num_rows for shard in self.shards) - self.num_taken_down

    @property
    def num_taken_down(self) -> int:
        """Pairs in all shards that no reader may show."""
        return sum(len(shard.taken_down) for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.num_bytes for shard in self.shards)

    @classmethod
    def open(cls, uri: str, version: str | None = None) -> Snapshot:
        """One version of a data set: the one of that name ("v00000003") or tag, or else the latest.

        Everything that is taken down by now is marked in its shards, however old the version is.

        Raises:
            FileNotFoundError: no such version, or none at all.
            ValueError: a record, the manifest or a tombstone is damaged or of another program.
        """
        uri = storage.absolute(uri)
        names = versions(uri)
        tagged = tags(uri) if version and not _VERSION.fullmatch(version) else {}
        name = tagged.get(version, version) if version else (names[-1] if names else None)
        if name is None or name not in names:
            there = [*names, *sorted(tagged)]
            raise FileNotFoundError(f"{uri}: no snapshot {version or 'yet'}; there are {there or 'none'}")
        record = _read_record(uri, name)
        down = tombstones.places(tombstones.read(uri))
        shards = tuple(
            replace(shard, path=storage.join(uri, shard.path), taken_down=down.get(shard.path, ()))
            for shard in read_manifest(uri, record)
        )
        return cls(uri=uri, name=name, snapshot_id=record["snapshot_id"], shards=shards, metadata=record)

    def below(self, shard: Shard) -> str:
        """The path of one of its shards below the data set."""
        return shard.path[len(self.uri.rstrip("/")) + 1 :]

    def query_counts(self) -> pa.Table:
        """QUERY_COUNTS: how many pairs each query has that has any, those taken down included."""
        data = storage.read_bytes(storage.join(self.uri, "query_counts", f"{self.snapshot_id}.parquet"))
        return pq.ParquetFile(pa.BufferReader(data)).read()

    def overlaps(self) -> pa.Table | None:
        """OVERLAPS of its pairs, or of those left out for them, with evaluation sets; None where not looked for."""
        overlap = self.metadata.get("overlap")
        if overlap is None:
            return None
        data = storage.read_bytes(storage.join(self.uri, "overlaps", f"{overlap['sha256']}.parquet"))
        return pq.ParquetFile(pa.BufferReader(data)).read()

    def verify(self, tell: Callable[[int], None] = lambda _: None) -> list[str]:
        """What is wrong: totals, counts of queries, and size, sha256 and rows of every shard; nothing: it is sound.

        Reads every byte once, VERIFY_THREADS shards at a time, a few megabytes of each in memory.

        Args:
            tell: is called with the number of bytes that were checked since the call before.
        """
        faults = list(self._faults_of_record())
        with ThreadPoolExecutor(VERIFY_THREADS) as threads:
            for shard, fault in zip(self.shards, threads.map(_fault_of_shard, self.shards), strict=True):
                faults += [fault] if fault else []
                tell(shard.num_bytes)
        return faults

    def _faults_of_record(self) -> Iterator[str]:
        totals = _totals(self.shards)
        found = {name: self.metadata[name] for name in totals}
        if found != totals:
            yield f"{_record_uri(self.uri, self.name)}: {totals} expected by the manifest, {found} found"
        try:
            self.query_counts()
        except (OSError, ValueError) as error:
            yield f"{self.uri}: the counts of queries of {self.name} cannot be read ({error})"


def versions(uri: str) -> list[str]:
    """The names of a data set's versions, oldest first."""
    return [name for name in _json_names(storage.join(uri, "snapshots")) if _VERSION.fullmatch(name)]


def tags(uri: str) -> dict[str, str]:
    """The tags of a data set, each with the version that it names."""
    folder = storage.join(uri, "refs", "tags")
    names = [name for name in _json_names(folder) if _TAG.fullmatch(name)]
    return {name: json.loads(storage.read_bytes(storage.join(folder, f"{name}.json")))["version"] for name in names}


def tag(uri: str, name: str, version: str) -> None:
    """Give a version another name, for good. What has a tag is kept by the garbage collector.

    Raises:
        FileNotFoundError: there is no such version.
        ValueError: the name is none for a tag, or another version's.
    """
    if not _TAG.fullmatch(name) or _VERSION.fullmatch(name):
        raise ValueError(f"tag={name}: begin with a letter or digit; up to 64 letters, digits, '.', '_' and '-'")
    version = Snapshot.open(uri, version).name
    record = json.dumps({"schema_version": SCHEMA_VERSION, "version": version}).encode()
    if not storage.put_if_absent(storage.join(uri, "refs", "tags", f"{name}.json"), record):
        raise ValueError(f"tag={name} names {tags(uri)[name]} already; tags are never moved, choose another name")


def put_overlaps(uri: str, overlaps: pa.Table) -> str:
    """Write OVERLAPS into a data set, and give their sha256, for a record's `overlap`."""
    data = tombstones.encode(overlaps.cast(OVERLAPS))
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
    manifest = tombstones.encode(
        pa.table([[getattr(shard, name) for shard in shards] for name in SHARDS.names], schema=SHARDS)
    )
    snapshot_id = hashlib.sha256(manifest).hexdigest()
    counts = tombstones.encode(query_counts.cast(QUERY_COUNTS))
    storage.put_if_absent(storage.join(uri, "query_counts", f"{snapshot_id}.parquet"), counts)
    if not storage.put_if_absent(_manifest_uri(uri, snapshot_id), manifest):
        raise ValueError(f"{_manifest_uri(uri, snapshot_id)} is damaged; remove it and commit again")
    overlap = metadata.get("overlap")
    commit_id = uuid.uuid4().hex  # so that of two commits with one content each knows its own record
    while True:
        names = versions(uri)
        latest = _read_record(uri, names[-1]) if names else None
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
            **_totals(shards),
            "schema_version": SCHEMA_VERSION,
            "schema": {field.name: str(field.type) for field in PAIRS},
            "name": name,
            "snapshot_id": snapshot_id,
            "parent": latest["name"] if latest else None,
            "commit_id": commit_id,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if storage.put_if_absent(_record_uri(uri, name), json.dumps(record, indent=1, sort_keys=True).encode()):
            if tombstones.files(uri) != buried:  # a take-down that has not seen this version: one of us sees the other
                tombstones.follow(uri, {shard.path for shard in shards})
            return Snapshot.open(uri, name)


def read_manifest(uri: str, record: Mapping[str, Any]) -> list[Shard]:
    """The shards of a version, their paths below the data set. Raises ValueError where the manifest is damaged."""
    place = _manifest_uri(uri, record["snapshot_id"])
    data = storage.read_bytes(place)
    if hashlib.sha256(data).hexdigest() != record["snapshot_id"]:
        raise ValueError(f"{place}: the manifest of {record['name']} is damaged (its sha256 is not its name)")
    rows = pq.ParquetFile(pa.BufferReader(data)).read().to_pylist()
    return [Shard(**row | {"row_groups": tuple(row["row_groups"])}) for row in rows]


def _read_record(uri: str, name: str) -> dict[str, Any]:
    place = _record_uri(uri, name)
    try:
        record: dict[str, Any] = json.loads(storage.read_bytes(place))
        found = record.get("schema_version")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{place}: the record of {name} is damaged ({error})") from error
    if found != SCHEMA_VERSION:
        raise ValueError(
            f"{place}: schema_version {found}, this program reads {SCHEMA_VERSION}; use the one that wrote it"
        )
    if OWN_FIELDS - record.keys() or record["name"] != name:
        raise ValueError(f"{place}: the record of {name} is damaged (not a record of this version)")
    return record


def _totals(shards: Sequence[Shard]) -> dict[str, int]:
    return {
        "num_pairs": sum(shard.num_rows for shard in shards),
        "num_bytes": sum(shard.num_bytes for shard in shards),
        "num_shards": len(shards),
    }


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


def _fault_of_shard(shard: Shard) -> str | None:
    digest, size = hashlib.sha256(), 0
    try:
        for chunk in storage.read_chunks(shard.path):
            digest.update(chunk)
            size += len(chunk)
        if size != shard.num_bytes:
            return f"{shard.path}: {shard.num_bytes} bytes expected, {size} found"
        if digest.hexdigest() != shard.sha256:
            return f"{shard.path}: sha256 {shard.sha256} expected, {digest.hexdigest()} found"
        filesystem, path = storage.filesystem(shard.path)
        metadata = pq.read_metadata(path, filesystem=filesystem)
    except FileNotFoundError:
        return f"{shard.path}: is missing"
    except (OSError, pa.ArrowInvalid) as error:
        return f"{shard.path}: cannot be read ({error})"
    rows = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    if rows != shard.row_groups or metadata.num_rows != shard.num_rows:
        return (
            f"{shard.path}: {shard.num_rows} rows in groups {shard.row_groups} expected, {metadata.num_rows} in {rows}"
        )
    return None


def _json_names(folder: str) -> list[str]:
    names = (entry.uri.rsplit("/", 1)[-1] for entry in storage.entries(folder))
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def _record_uri(uri: str, name: str) -> str:
    return storage.join(uri, "snapshots", f"{name}.json")


def _manifest_uri(uri: str, snapshot_id: str) -> str:
    return storage.join(uri, "manifests", f"{snapshot_id}.parquet")
