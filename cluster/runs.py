"""Runs that resume: a run is a folder of stages, a stage is a fixed number of parts, a part is a file and its manifest.

The file is written first, under the name of its content, and the manifest last and only if there is none: a part is
complete when its manifest exists, and of two attempts at a part exactly one counts. A rerun does what is missing.

A part's file holds the rows that are still in, one bucket after the other, and behind them the rows that were dropped.
A bucket is a range of row groups, so the next stage reads "bucket b of every part" without a shuffle service and
without a file per bucket: the exchange of MapReduce (Dean and Ghemawat 2004) over plain Parquet.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage

ROW_GROUP_SIZE = 16_384


def identity(config: Any) -> Any:
    """A configuration as plain data, less what does not change what a run produces.

    A dataclass says so of a field (pools, ports, connections) with `metadata={"operational": True}`.
    """
    if is_dataclass(config) and not isinstance(config, type):
        kept = (f.name for f in fields(config) if not f.metadata.get("operational"))
        return {name: identity(getattr(config, name)) for name in kept}
    if isinstance(config, Mapping):
        return {str(key): identity(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [identity(value) for value in config]
    return config


@dataclass(frozen=True, kw_only=True)
class Part:
    """The manifest of a complete part. `buckets[b]` counts the rows still in of bucket b, `dropped` the others."""

    index: int
    file: str | None
    num_bytes: int
    sha256: str
    footer_bytes: int
    footer_sha256: str  # pages have checksums of their own, but the footer that says where they are has none
    buckets: tuple[int, ...]
    row_group_size: int
    dropped: Mapping[str, int]

    @property
    def num_kept(self) -> int:
        """Rows that are still in."""
        return sum(self.buckets)

    @property
    def num_rows(self) -> int:
        """All rows of the part's file."""
        return self.num_kept + sum(self.dropped.values())

    @cached_property
    def _row_group_ends(self) -> tuple[int, ...]:
        rows = (*self.buckets, sum(self.dropped.values()))
        return tuple(accumulate(-(-n // self.row_group_size) for n in rows))

    def row_groups(self, bucket: int) -> range:
        """The row groups of a bucket; bucket `len(buckets)` is that of the dropped rows."""
        ends = self._row_group_ends
        return range(ends[bucket - 1] if bucket else 0, ends[bucket])


@dataclass(frozen=True)
class Stage:
    """A stage of a run: where its parts lie and how many there are. Plain data, so that workers can have it too."""

    uri: str
    num_parts: int

    def write(
        self,
        index: int,
        table: pa.Table,
        *,
        buckets: np.ndarray[Any, np.dtype[np.int32]] | None = None,
        num_buckets: int = 1,
        row_group_size: int = ROW_GROUP_SIZE,
    ) -> Part:
        """Write one part and its manifest; of two attempts at the same part the first to finish counts.

        Args:
            index: number of the part.
            table: its rows; those whose column `reason` is not null are counted as dropped.
            buckets: bucket of each row, int32; all rows are in bucket 0 when it is left out.
            num_buckets: how many buckets there are, empty ones included.
            row_group_size: rows in a row group, at most.
        """
        assert 0 <= index < self.num_parts, (index, self.num_parts)
        place = np.zeros(table.num_rows, np.int32) if buckets is None else np.array(buckets, np.int32)
        assert ((place >= 0) & (place < num_buckets)).all(), f"there are {num_buckets} buckets"
        dropped: Counter[str] = Counter()
        if "reason" in table.column_names:
            place[table["reason"].is_valid().to_numpy()] = num_buckets
            dropped.update(table["reason"].drop_null().to_pylist())
        rows = np.bincount(place, minlength=num_buckets + 1)
        data = _encode(table.take(np.argsort(place, kind="stable")), [int(n) for n in rows], row_group_size)
        digest = hashlib.sha256(data).hexdigest()
        footer = data[-8 - int.from_bytes(data[-8:-4], "little") :]
        part = Part(
            index=index,
            file=f"part-{index:05d}-{digest[:16]}.parquet" if table.num_rows else None,
            num_bytes=len(data) if table.num_rows else 0,
            sha256=digest,
            footer_bytes=len(footer),
            footer_sha256=hashlib.sha256(footer).hexdigest(),
            buckets=tuple(int(n) for n in rows[:num_buckets]),
            row_group_size=row_group_size,
            dropped=dict(sorted(dropped.items())),
        )
        if part.file:
            storage.write_bytes(storage.join(self.uri, part.file), data)
        record = json.dumps(asdict(part), indent=1, sort_keys=True).encode()
        if storage.put_if_absent(self._manifest(index), record):
            return part
        winner = self.read_manifest(index)
        if part.file and part.file != winner.file:
            storage.delete(storage.join(self.uri, part.file))
        return winner

    def read_manifest(self, index: int) -> Part:
        """The manifest of a complete part."""
        record = json.loads(storage.read_bytes(self._manifest(index)))
        return Part(**record | {"buckets": tuple(record["buckets"])})

    def complete(self) -> dict[int, Part]:
        """The manifests of the parts that are complete, by number."""
        try:
            names = storage.list_files(self.uri, suffixes=(".json",))
        except FileNotFoundError:
            return {}
        indices = sorted(int(name.rsplit("-", 1)[1].removesuffix(".json")) for name in names)
        return {index: self.read_manifest(index) for index in indices}

    def read(self, part: Part, bucket: int, columns: Sequence[str] | None = None) -> pa.Table | None:
        """The rows of one bucket of one part, checksums verified; None where it has none.

        Raises:
            ValueError: the file is not the one its manifest tells of.
        """
        groups = part.row_groups(bucket)
        if not groups or part.file is None:
            return None
        uri = storage.join(self.uri, part.file)
        filesystem, path = storage.filesystem(uri)
        try:
            with filesystem.open_input_file(path) as stream:
                if (found := stream.size()) != part.num_bytes:
                    raise ValueError(f"{part.num_bytes} bytes expected, {found} found")
                footer = stream.read_at(part.footer_bytes, part.num_bytes - part.footer_bytes)
                if hashlib.sha256(footer).hexdigest() != part.footer_sha256:
                    raise ValueError("the footer is damaged")
                metadata = pq.read_metadata(pa.BufferReader(footer))
                with pq.ParquetFile(stream, metadata=metadata, page_checksum_verification=True) as file:
                    return file.read_row_groups(list(groups), columns=columns)
        except (OSError, ValueError) as error:  # Arrow's name no file
            raise ValueError(f"{uri}: {error}; where it is damaged, remove its manifest and rerun") from error

    def _manifest(self, index: int) -> str:
        return storage.join(self.uri, f"_part-{index:05d}.json")


@dataclass(frozen=True)
class Output:
    """A finished stage as the next one reads it: its place and all its manifests."""

    stage: Stage
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, stage: Stage) -> Output:
        """The output of a stage.

        Raises:
            FileNotFoundError: parts of it are missing.
        """
        found = stage.complete()
        missing = sorted(set(range(stage.num_parts)) - found.keys())
        if missing:
            raise FileNotFoundError(f"{stage.uri}: parts {missing} are missing; run its job to the end")
        return cls(stage, tuple(found[index] for index in range(stage.num_parts)))

    def rows_by_bucket(self) -> list[int]:
        """Rows still in, by bucket, over all parts."""
        return [sum(column) for column in zip(*(part.buckets for part in self.parts), strict=True)]

    def bucket(self, bucket: int, columns: Sequence[str] | None = None) -> pa.Table | None:
        """All rows of one bucket that are still in, in the order of the parts; None where there are none."""
        return _concat(self.stage.read(part, bucket, columns) for part in self.parts)

    def part(self, index: int, columns: Sequence[str] | None = None) -> pa.Table | None:
        """All rows of one part that are still in, whatever their buckets; None where there are none."""
        part = self.parts[index]
        return _concat(self.stage.read(part, bucket, columns) for bucket in range(len(part.buckets)))

    def table(self, schema: pa.Schema) -> pa.Table:
        """All rows that are still in, of all parts; for outputs that one process can hold."""
        tables = (self.part(index) for index in range(len(self.parts)))
        return pa.concat_tables([schema.empty_table(), *(table for table in tables if table is not None)])

    def dropped(self, index: int, columns: Sequence[str] | None = None) -> pa.Table | None:
        """The rows that one part dropped, each with its reason."""
        part = self.parts[index]
        return self.stage.read(part, len(part.buckets), columns)

    def reasons(self) -> dict[str, int]:
        """Rows dropped, by reason, most frequent first."""
        total: Counter[str] = Counter()
        for part in self.parts:
            total.update(part.dropped)
        return dict(total.most_common())

    @property
    def num_kept(self) -> int:
        """Rows still in."""
        return sum(part.num_kept for part in self.parts)

    @property
    def num_rows(self) -> int:
        """All rows."""
        return sum(part.num_rows for part in self.parts)


@dataclass(frozen=True)
class Run:
    """A folder that one configuration owns. `run_id` is a hash of the configuration."""

    uri: str
    run_id: str
    configuration: Mapping[str, Any]

    @classmethod
    def open(cls, uri: str, configuration: Mapping[str, Any], *, option: str = "output") -> Run:
        """Start a run in a folder, or go on with the one it holds.

        Args:
            uri: the folder, local or s3://.
            configuration: plain data of everything that decides what the run produces, its inputs included.
            option: name of the option that gave the folder, for messages.

        Raises:
            ValueError: the folder holds a run of another configuration, or cannot be written.
        """
        uri = storage.absolute(uri)
        storage.ensure_writable(uri, option)
        wanted = json.loads(json.dumps(configuration, sort_keys=True))
        record = json.dumps(wanted, indent=1, sort_keys=True).encode()
        place = storage.join(uri, "run.json")
        if not storage.put_if_absent(place, record):
            found = json.loads(storage.read_bytes(place))
            differing = list(_differences(found, wanted))
            if differing:
                raise ValueError(
                    f"{option}={uri} holds a run of another configuration; it differs in "
                    f"{'; '.join(differing[:5])}. Choose another folder, or remove this one."
                )
        return cls(uri, _run_id(record), wanted)

    @classmethod
    def read(cls, uri: str, *, option: str) -> Run:
        """The run that a folder holds.

        Raises:
            FileNotFoundError: it holds none; the message names the option.
        """
        uri = storage.absolute(uri)
        place = storage.join(uri, "run.json")
        if not storage.exists(place):
            raise FileNotFoundError(f"{option}={uri}: no run is there (run.json is missing)")
        record = storage.read_bytes(place)
        return cls(uri, _run_id(record), json.loads(record))

    def output(self, name: str, num_parts: int) -> Output:
        """A stage of this run that is complete.

        Raises:
            FileNotFoundError: parts of it are missing.
        """
        return Output.of(self.stage(name, num_parts))

    def stage(self, name: str, num_parts: int) -> Stage:
        """The stage of that name. The number of parts is a function of the configuration, so it never changes."""
        return Stage(storage.join(self.uri, name), num_parts)


def describe_files(uris: Sequence[str]) -> list[list[Any]]:
    """Name and bytes of each input file: what a run remembers of its inputs, so that it is not resumed on others."""

    def describe(uri: str) -> list[Any]:
        filesystem, path = storage.filesystem(uri)
        info = filesystem.get_file_info(path)
        return [info.base_name, info.size]

    with ThreadPoolExecutor(32) as threads:  # a crawl of Common Crawl has 90,000 files behind a web server
        return list(threads.map(describe, uris))


def _run_id(record: bytes) -> str:
    return hashlib.sha256(record).hexdigest()[:16]


def _concat(tables: Iterable[pa.Table | None]) -> pa.Table | None:
    found = [table for table in tables if table is not None]
    return pa.concat_tables(found) if found else None


def _encode(table: pa.Table, rows_by_bucket: Sequence[int], row_group_size: int) -> bytes:
    """Parquet bytes whose row groups never span two buckets; zstd, but not for large_binary, which holds JPEG."""
    sink = pa.BufferOutputStream()
    leaves = {f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name: f.type for f in table.schema}
    texts = [leaf for leaf, kind in leaves.items() if not pa.types.is_large_binary(kind)]
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression={leaf: "zstd" if leaf in texts else "none" for leaf in leaves},
        use_dictionary=texts,
        write_statistics=texts,
        write_page_checksum=True,
    ) as writer:
        start = 0
        for num_rows in rows_by_bucket:
            if num_rows:
                writer.write_table(table.slice(start, num_rows), row_group_size=row_group_size)
            start += num_rows
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _differences(found: Any, wanted: Any, path: str = "") -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        # What both have says more than what only one has, so it comes first
        for key in sorted(found.keys() | wanted.keys(), key=lambda key: (key not in found or key not in wanted, key)):
            yield from _differences(found.get(key), wanted.get(key), f"{path}.{key}" if path else key)
    elif found != wanted:
        yield f"{path}: {_brief(found)} there, {_brief(wanted)} asked for"


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
