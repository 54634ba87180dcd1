"""Open and verify snapshots: immutable, content-addressed versions of a data set.

    <dataset>/data/<run>/part-00000-<sha256>.parquet   shards, written once, named by their content
    <dataset>/manifests/<sha256>.parquet               the shards of a snapshot; its hash is the id of the snapshot
    <dataset>/query_counts/<sha256>.parquet            number of pairs of each query in the snapshot with that id
    <dataset>/overlaps/<sha256>.parquet                pictures of evaluation sets that were found
    <dataset>/snapshots/v00000001.json                 the record of a version; put if absent, which is the commit
    <dataset>/refs/tags/<name>.json                    a second name of a version; put if absent
    <dataset>/tombstones/...                           pairs that are taken down from all versions (tombstones.py)

A version exists if its record exists (commit.py). The id depends on the pairs, the shards, and the run that wrote the
shards (which is in their paths), but not on the location of the data set. docs/snapshots.md describes the formats and
the protocol.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import parquet, storage
from cluster.stores.errors import DamagedError
from pipeline.data.snapshots import tombstones

T = TypeVar("T")

SCHEMA_VERSION = 1
"""Version of the record's format, which is described by docs/assets/snapshot.schema.json."""
SHARDS = pa.schema(
    [
        ("path", pa.string()),  # relative to the data set
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
"""Fields of a record that a commit adds to the metadata."""
VERIFY_THREADS = 4
VERSION = re.compile(r"v(\d{8})")
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file of PAIRS. `path` is relative to the data set in a manifest, and a URI in a Snapshot."""

    path: str
    num_rows: int
    num_bytes: int
    sha256: str
    row_groups: tuple[int, ...]
    taken_down: tuple[tuple[int, int], ...] = ()
    """(row group, row) of each pair that no reader may show, sorted. The other fields include these pairs."""

    def remaining_rows(self, row_group: int) -> npt.NDArray[np.int64]:
        """The rows of a row group that are not taken down, in ascending order."""
        return tombstones.remaining_rows(self.row_groups[row_group], row_group, self.taken_down)

    def read_row_group(self, row_group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the pairs of a row group that are not taken down. Raises the errors of `read`."""
        table = self.read(lambda file: file.read_row_group(row_group, columns=columns))
        return table.take(pa.array(self.remaining_rows(row_group))) if self.taken_down else table

    def read(self, read: Callable[[pq.ParquetFile], T]) -> T:
        """Call `read` with the open file, including pairs that are taken down, and again if one read fails.

        Args:
            read: reads from the file, whose page checksums are verified. `path` must be a URI.

        Raises:
            FileNotFoundError: the file does not exist.
            StorageError: the storage fails to deliver it.
            DamagedError: the file is not the one that was written.
        """
        filesystem, path = storage.filesystem(self.path)

        def attempt() -> T:
            with pq.ParquetFile(path, filesystem=filesystem, page_checksum_verification=True, pre_buffer=True) as file:
                return read(file)

        try:
            return parquet.read_written(self.path, self.num_bytes, self.sha256, attempt)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.path}: this shard is gone") from error
        except DamagedError as error:
            found = str(error).removeprefix(f"{self.path}: ")
            raise DamagedError(f"{self.path}: this shard is damaged ({found}); run jobs.snapshot verify") from error


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
        """Number of pairs in all shards that are not taken down."""
        return sum(shard.num_rows for shard in self.shards) - self.num_taken_down

    @property
    def num_taken_down(self) -> int:
        """Number of pairs in all shards that are taken down."""
        return sum(len(shard.taken_down) for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Total bytes of all shards."""
        return sum(shard.num_bytes for shard in self.shards)

    @classmethod
    def open(cls, uri: str, version: str | None = None) -> Snapshot:
        """Open a version of a data set by its name ("v00000003") or tag; by default, open the latest version.

        All pairs taken down so far are marked in the shards, even if the version is older than the take-down.

        Raises:
            FileNotFoundError: the version does not exist, or the data set has no version.
            ValueError: a record, the manifest or a tombstone is damaged or was written by another program.
        """
        uri = storage.absolute(uri)
        names = versions(uri)
        tagged = tags(uri) if version and not VERSION.fullmatch(version) else {}
        name = tagged.get(version, version) if version else (names[-1] if names else None)
        if name is None or name not in names:
            existing = [*names, *sorted(tagged)]
            raise FileNotFoundError(f"{uri}: no snapshot {version or 'yet'}; there are {existing or 'none'}")
        record = read_record(uri, name)
        taken_down = tombstones.rows_by_shard(tombstones.read(uri))
        shards = tuple(
            replace(shard, path=storage.join(uri, shard.path), taken_down=taken_down.get(shard.path, ()))
            for shard in read_manifest(uri, record)
        )
        return cls(uri=uri, name=name, snapshot_id=record["snapshot_id"], shards=shards, metadata=record)

    def below(self, shard: Shard) -> str:
        """The path of a shard relative to the data set."""
        return shard.path[len(self.uri.rstrip("/")) + 1 :]

    def query_counts(self) -> pa.Table:
        """QUERY_COUNTS of all queries that have pairs, including pairs that are taken down."""
        uri = storage.join(self.uri, "query_counts", f"{self.snapshot_id}.parquet")
        return storage.read_twice(uri, lambda data: parquet.decode(data, uri))

    def overlaps(self) -> pa.Table | None:
        """OVERLAPS with evaluation sets, of pairs in the snapshot and of dropped pairs; None if not searched for."""
        overlap = self.metadata.get("overlap")
        if overlap is None:
            return None
        uri = storage.join(self.uri, "overlaps", f"{overlap['sha256']}.parquet")
        return parquet.decode(storage.read_verified(uri, overlap["sha256"]), uri)

    def verify(self, progress: Callable[[int], None] = lambda _: None) -> list[str]:
        """Check totals, query counts, and the size, sha256 and rows of every shard; return the list of faults.

        Reads every byte once, VERIFY_THREADS shards at a time, with a few megabytes of each in memory.

        Args:
            progress: called with the number of bytes checked since the previous call.
        """
        faults = list(self._faults_of_record())
        with ThreadPoolExecutor(VERIFY_THREADS) as threads:
            for shard, fault in zip(self.shards, threads.map(_fault_of_shard, self.shards), strict=True):
                faults += [fault] if fault else []
                progress(shard.num_bytes)
        return faults

    def _faults_of_record(self) -> Iterator[str]:
        totals = totals_of(self.shards)
        found = {name: self.metadata[name] for name in totals}
        if found != totals:
            yield f"{record_uri(self.uri, self.name)}: {totals} expected by the manifest, {found} found"
        try:
            self.query_counts()
        except (FileNotFoundError, ValueError) as error:
            yield f"{self.uri}: the query counts of {self.name} cannot be read ({error})"


def versions(uri: str) -> list[str]:
    """The names of a data set's versions, oldest first."""
    return [name for name in _json_names(storage.join(uri, "snapshots")) if VERSION.fullmatch(name)]


def tags(uri: str) -> dict[str, str]:
    """The tags of a data set, with the version of each. Raises DamagedError if a tag is damaged."""
    folder = storage.join(uri, "refs", "tags")
    names = [name for name in _json_names(folder) if TAG.fullmatch(name)]
    return {name: _read_tag(storage.join(folder, f"{name}.json")) for name in names}


def _read_tag(path: str) -> str:
    def parse(data: bytes) -> str:
        version = json.loads(data)["version"]
        if not isinstance(version, str) or not VERSION.fullmatch(version):
            raise ValueError(f"version is {version!r}")
        return version

    try:
        return storage.read_twice(path, parse)
    except DamagedError as error:
        raise DamagedError(f"{path}: this tag is damaged ({error}); restore the file") from error


def read_manifest(uri: str, record: Mapping[str, Any]) -> list[Shard]:
    """The shards of a version, with paths relative to the data set. Raises DamagedError and StorageError."""
    manifest = manifest_uri(uri, record["snapshot_id"])
    try:
        rows = parquet.decode(storage.read_verified(manifest, record["snapshot_id"]), manifest).to_pylist()
    except DamagedError as error:
        raise DamagedError(f"{manifest}: the manifest of {record['name']} is damaged ({error})") from error
    return [Shard(**row | {"row_groups": tuple(row["row_groups"])}) for row in rows]


def read_record(uri: str, name: str) -> dict[str, Any]:
    """The record of a version. Raises ValueError if the record is damaged or was written by another program."""
    path = record_uri(uri, name)

    def parse(data: bytes) -> tuple[dict[str, Any], Any]:
        record = json.loads(data)
        return record, record.get("schema_version")

    try:
        record, version = storage.read_twice(path, parse)
    except DamagedError as error:
        raise DamagedError(f"{path}: the record of {name} is damaged ({error})") from error
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: schema_version {version}, this program reads {SCHEMA_VERSION}; use the program that wrote it"
        )
    if OWN_FIELDS - record.keys() or record["name"] != name:
        raise ValueError(f"{path}: the record of {name} is damaged (not a record of this version)")
    return record


def totals_of(shards: Sequence[Shard]) -> dict[str, int]:
    """The totals over all shards that a record contains."""
    return {
        "num_pairs": sum(shard.num_rows for shard in shards),
        "num_bytes": sum(shard.num_bytes for shard in shards),
        "num_shards": len(shards),
    }


def _fault_of_shard(shard: Shard) -> str | None:
    try:
        storage.check_content(shard.path, shard.num_bytes, shard.sha256)
        metadata = shard.read(lambda file: file.metadata)
    except FileNotFoundError:
        return f"{shard.path}: missing"
    except DamagedError as error:
        return str(error)
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
    """The URI of the record of a version."""
    return storage.join(uri, "snapshots", f"{name}.json")


def manifest_uri(uri: str, snapshot_id: str) -> str:
    """The URI of a manifest."""
    return storage.join(uri, "manifests", f"{snapshot_id}.parquet")
