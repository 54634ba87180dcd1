"""Snapshots: immutable, content-addressed versions of a data set.

    <dataset>/data/<run>/part-00000-<sha256>.parquet   shards, written once under the name of their content
    <dataset>/manifests/<sha256>.parquet               which shards make a snapshot; its hash is the snapshot's id
    <dataset>/query_counts/<sha256>.parquet            how many pairs each query has in a snapshot of that id
    <dataset>/overlaps/<sha256>.parquet                pictures of evaluation sets that were found
    <dataset>/snapshots/v00000001.json                 the version, and the commit: put if absent
    <dataset>/refs/tags/<name>.json                    another name of a version; put if absent
    <dataset>/tombstones/...                           what is taken down, from all versions (tombstones.py)

A version exists when its record does (commit.py). The id depends on the pairs, the shards and the run that wrote them,
which is in their paths, and not on where the data set lies. docs/snapshots.md tells the formats and the protocol.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from pipeline.data.snapshots import tombstones

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
"""What a commit puts into a record, beside the metadata."""
VERIFY_THREADS = 4
VERSION = re.compile(r"v(\d{8})")
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


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
        return tombstones.rows_left(self.row_groups[row_group], row_group, self.taken_down)

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
        tagged = tags(uri) if version and not VERSION.fullmatch(version) else {}
        name = tagged.get(version, version) if version else (names[-1] if names else None)
        if name is None or name not in names:
            there = [*names, *sorted(tagged)]
            raise FileNotFoundError(f"{uri}: no snapshot {version or 'yet'}; there are {there or 'none'}")
        record = read_record(uri, name)
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
        totals = totals_of(self.shards)
        found = {name: self.metadata[name] for name in totals}
        if found != totals:
            yield f"{record_uri(self.uri, self.name)}: {totals} expected by the manifest, {found} found"
        try:
            self.query_counts()
        except (OSError, ValueError) as error:
            yield f"{self.uri}: the counts of queries of {self.name} cannot be read ({error})"


def versions(uri: str) -> list[str]:
    """The names of a data set's versions, oldest first."""
    return [name for name in _json_names(storage.join(uri, "snapshots")) if VERSION.fullmatch(name)]


def tags(uri: str) -> dict[str, str]:
    """The tags of a data set, each with the version that it names."""
    folder = storage.join(uri, "refs", "tags")
    names = [name for name in _json_names(folder) if TAG.fullmatch(name)]
    return {name: json.loads(storage.read_bytes(storage.join(folder, f"{name}.json")))["version"] for name in names}


def read_manifest(uri: str, record: Mapping[str, Any]) -> list[Shard]:
    """The shards of a version, their paths below the data set. Raises ValueError where the manifest is damaged."""
    place = manifest_uri(uri, record["snapshot_id"])
    data = storage.read_bytes(place)
    if hashlib.sha256(data).hexdigest() != record["snapshot_id"]:
        raise ValueError(f"{place}: the manifest of {record['name']} is damaged (its sha256 is not its name)")
    rows = pq.ParquetFile(pa.BufferReader(data)).read().to_pylist()
    return [Shard(**row | {"row_groups": tuple(row["row_groups"])}) for row in rows]


def read_record(uri: str, name: str) -> dict[str, Any]:
    """The record of a version. Raises ValueError where it is damaged or of another program."""
    place = record_uri(uri, name)
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


def totals_of(shards: Sequence[Shard]) -> dict[str, int]:
    """What a record says of all shards."""
    return {
        "num_pairs": sum(shard.num_rows for shard in shards),
        "num_bytes": sum(shard.num_bytes for shard in shards),
        "num_shards": len(shards),
    }


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


def record_uri(uri: str, name: str) -> str:
    """Where the record of a version is."""
    return storage.join(uri, "snapshots", f"{name}.json")


def manifest_uri(uri: str, snapshot_id: str) -> str:
    """Where a manifest is."""
    return storage.join(uri, "manifests", f"{snapshot_id}.parquet")
