"""Snapshots: immutable, content-addressed versions of a data set.

    <dataset>/data/<run>/part-00000-<sha256>.parquet   shards, written once under the name of their content
    <dataset>/manifests/<sha256>.parquet               which shards make a snapshot; its hash is the snapshot's id
    <dataset>/query_counts/<sha256>.parquet            how many pairs each query has in a snapshot of that id
    <dataset>/snapshots/v00000001.json                 the version, and the commit: put if absent

A version exists when its record does. Of two commits at once one puts the record first, and the other takes the next
number. The id is a function of the pairs alone: the same pairs in the same shards give the same id wherever they lie.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from pipeline.schemas import PAIRS

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
_VERSION = re.compile(r"v(\d{8})\.json$")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file of pairs (schemas.PAIRS). `path` is below the data set in a manifest, a URI in a Snapshot."""

    path: str
    num_rows: int
    num_bytes: int
    sha256: str
    row_groups: tuple[int, ...]


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
        """Pairs in all shards."""
        return sum(shard.num_rows for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.num_bytes for shard in self.shards)

    @classmethod
    def open(cls, uri: str, version: str | None = None) -> Snapshot:
        """One version of a data set: the one of that name ("v00000003"), or else the latest.

        Raises:
            FileNotFoundError: no such version, or none at all.
            ValueError: the manifest is not the one that the version names.
        """
        uri = uri.rstrip("/")
        filesystem, root = _filesystem(uri)
        names = versions(uri)
        name = version or (names[-1] if names else None)
        if name is None or name not in names:
            raise FileNotFoundError(f"{uri}: no snapshot {name or 'yet'}; there are {names or 'none'}")
        record = json.loads(_read(filesystem, f"{root}/snapshots/{name}.json"))
        manifest = _read(filesystem, f"{root}/manifests/{record['snapshot_id']}.parquet")
        if hashlib.sha256(manifest).hexdigest() != record["snapshot_id"]:
            raise ValueError(f"{uri}: the manifest of {name} is damaged (its sha256 is not {record['snapshot_id']})")
        shards = tuple(
            Shard(**row | {"path": f"{uri}/{row['path']}", "row_groups": tuple(row["row_groups"])})
            for row in pq.read_table(pa.BufferReader(manifest)).to_pylist()
        )
        return cls(uri=uri, name=name, snapshot_id=record["snapshot_id"], shards=shards, metadata=record)

    def query_counts(self) -> pa.Table:
        """QUERY_COUNTS: how many pairs each query has that has any."""
        filesystem, root = _filesystem(self.uri)
        return pq.read_table(pa.BufferReader(_read(filesystem, f"{root}/query_counts/{self.snapshot_id}.parquet")))

    def verify(self) -> list[str]:
        """What is wrong with the shards: size, sha256. Reads every byte; an empty list is a sound snapshot."""
        faults = []
        for shard in self.shards:
            filesystem, path = _filesystem(shard.path)
            info = filesystem.get_file_info(path)
            if info.type == pyarrow.fs.FileType.NotFound:
                faults.append(f"{shard.path}: is missing")
            elif info.size != shard.num_bytes:
                faults.append(f"{shard.path}: {shard.num_bytes} bytes expected, {info.size} found")
            elif (digest := hashlib.sha256(_read(filesystem, path)).hexdigest()) != shard.sha256:
                faults.append(f"{shard.path}: sha256 {shard.sha256} expected, {digest} found")
        return faults


def versions(uri: str) -> list[str]:
    """The names of a data set's versions, oldest first."""
    filesystem, root = _filesystem(uri.rstrip("/"))
    selector = pyarrow.fs.FileSelector(f"{root}/snapshots", allow_not_found=True)
    files = (info.base_name for info in filesystem.get_file_info(selector))
    return sorted(name.removesuffix(".json") for name in files if _VERSION.match(name))


def commit(
    uri: str,
    shards: Sequence[Shard],
    query_counts: pa.Table,
    metadata: Mapping[str, Any],
    put_if_absent: Callable[[str, bytes], bool],
) -> Snapshot:
    """Make a version of these shards; where the latest version has the same id already, that one is returned.

    Args:
        uri: the data set.
        shards: in order, their paths below the data set.
        query_counts: QUERY_COUNTS of these shards.
        metadata: plain data for the version's record; parent, totals and schema are added.
        put_if_absent: writes a file unless it is there; whether ours is there now (cluster.storage.put_if_absent).
    """
    uri = uri.rstrip("/")
    manifest = _encode(pa.table([[getattr(shard, name) for shard in shards] for name in SHARDS.names], schema=SHARDS))
    snapshot_id = hashlib.sha256(manifest).hexdigest()
    put_if_absent(f"{uri}/query_counts/{snapshot_id}.parquet", _encode(query_counts.cast(QUERY_COUNTS)))
    put_if_absent(f"{uri}/manifests/{snapshot_id}.parquet", manifest)
    while True:
        names = versions(uri)
        parent = Snapshot.open(uri, names[-1]) if names else None
        if parent is not None and parent.snapshot_id == snapshot_id:
            return parent
        name = f"v{int(names[-1][1:]) + 1 if names else 1:08d}"
        totals = {
            "num_pairs": sum(shard.num_rows for shard in shards),
            "num_bytes": sum(shard.num_bytes for shard in shards),
            "num_shards": len(shards),
        }
        record = {
            **metadata,
            **totals,
            "schema": {field.name: str(field.type) for field in PAIRS},
            "name": name,
            "snapshot_id": snapshot_id,
            "parent": parent.name if parent else None,
        }
        if put_if_absent(f"{uri}/snapshots/{name}.json", json.dumps(record, indent=1, sort_keys=True).encode()):
            return Snapshot.open(uri, name)


def _encode(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())


def _filesystem(uri: str) -> tuple[Any, str]:
    """Filesystem and path of a local path or a URI; S3's endpoint and keys come from the standard chain."""
    if "://" not in uri:
        return pyarrow.fs.LocalFileSystem(), uri
    filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
    return filesystem, path


def _read(filesystem: Any, path: str) -> bytes:
    with filesystem.open_input_stream(path) as stream:
        data: bytes = stream.read()
    return data
