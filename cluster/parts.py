"""Read and write the parts of a stage: each part is a Parquet file and a manifest.

A stage has a fixed number of parts. The file is written first, named after its content. The manifest is written last,
and only if none exists. So a part is complete when its manifest exists, and of two attempts at a part exactly one
counts. Manifest names begin with an underscore, so pandas, pyarrow and Spark read a stage's folder as one table.

A part's file holds the kept rows, bucket by bucket, followed by the dropped rows. A bucket is a range of row groups, so
the next stage reads "bucket b of every part" without a shuffle service and without one file per bucket. This is the
exchange of MapReduce (Dean and Ghemawat 2004) over plain Parquet.

A stage can be redone, for example when a crawl retries failed images. This writes a new generation of all its parts,
which replaces the previous generation once it is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster import parquet, storage
from cluster.part_file import ROW_GROUPS, PartFile, RowGroups
from cluster.removal import remove_if_possible
from cluster.storage import Entry
from cluster.stores.errors import DamagedError


@dataclass(frozen=True, kw_only=True)
class Part:
    """The manifest of a complete part. `buckets[b]` counts kept rows of bucket b, `dropped` other rows by reason."""

    index: int
    file: str | None
    num_bytes: int
    sha256: str
    footer_bytes: int
    footer_sha256: str  # Parquet has checksums for pages but not for the footer
    buckets: tuple[int, ...]
    row_groups: tuple[int, ...]  # rows per group, in file order; no group has rows of two buckets
    dropped: Mapping[str, int]

    @property
    def num_kept(self) -> int:
        """Number of kept rows."""
        return sum(self.buckets)

    @property
    def num_rows(self) -> int:
        """Number of rows in the part's file, kept and dropped."""
        return self.num_kept + sum(self.dropped.values())

    def groups_of(self, bucket: int) -> range:
        """The row groups of a bucket. Bucket `len(buckets)` holds the dropped rows."""
        rows = (*self.buckets, sum(self.dropped.values()))
        first = sum(rows[:bucket])
        ends = np.cumsum([0, *self.row_groups])
        return range(*(int(group) for group in np.searchsorted(ends, (first, first + rows[bucket]))))


@dataclass(frozen=True)
class Stage:
    """A stage of a run: the folder and the number of its parts. Plain data, so it can be sent to workers."""

    uri: str
    num_parts: int
    generation: int = 0

    def write(
        self,
        index: int,
        table: pa.Table,
        *,
        buckets: np.ndarray[Any, np.dtype[np.int32]] | None = None,
        num_buckets: int = 1,
        row_groups: RowGroups = ROW_GROUPS,
    ) -> Part:
        """Write one part and its manifest. Of several attempts at the same part, the first to finish counts.

        Args:
            index: number of the part.
            table: rows of the part. Rows whose `reason` is not null are dropped.
            buckets: bucket of each row, int32. By default all rows are in bucket 0.
            num_buckets: number of buckets, including empty ones.
            row_groups: limits of a row group.
        """
        bucket_of_row = np.zeros(table.num_rows, np.int32) if buckets is None else buckets
        assert ((bucket_of_row >= 0) & (bucket_of_row < num_buckets)).all(), f"buckets must be below {num_buckets}"
        kept, dropped = _split(table)
        if dropped.num_rows:
            bucket_of_row = bucket_of_row[table["reason"].is_null().to_numpy()]
        if (np.diff(bucket_of_row) < 0).any():  # avoids copying images that are in order already
            order = np.argsort(bucket_of_row, kind="stable")
            kept, bucket_of_row = kept.take(order), bucket_of_row[order]
        ends = [int(end) for end in np.searchsorted(bucket_of_row, np.arange(1, num_buckets + 1))]
        pieces = [[kept.slice(start, end - start)] for start, end in zip([0, *ends], ends, strict=False)]
        pieces[-1].append(dropped)
        return self.write_pieces(index, pieces, row_groups=row_groups)

    def write_pieces(
        self, index: int, buckets: Iterable[Iterable[pa.Table]], *, row_groups: RowGroups = ROW_GROUPS
    ) -> Part:
        """Write one part from an iterable of tables per bucket, holding at most one row group of kept rows in memory.

        Args:
            index: number of the part.
            buckets: the rows of each bucket, in order. Rows whose `reason` is not null are dropped.
            row_groups: limits of a row group.
        """
        assert 0 <= index < self.num_parts, (index, self.num_parts)
        num_kept_by_bucket, dropped = [], list[pa.Table]()
        with PartFile(self.uri, row_groups) as file:
            for bucket in buckets:
                before = file.num_rows
                for piece in bucket:
                    kept, dropped_rows = _split(piece)
                    dropped.append(dropped_rows)
                    file.add(kept)
                file.end_group()
                num_kept_by_bucket.append(file.num_rows - before)
            for piece in dropped:
                file.add(piece)
            name = file.finish(f"part-{index:05d}")
        part = Part(
            index=index,
            file=name,
            num_bytes=file.num_bytes,
            sha256=file.sha256,
            footer_bytes=len(file.footer),
            footer_sha256=hashlib.sha256(file.footer).hexdigest(),
            buckets=tuple(num_kept_by_bucket),
            row_groups=tuple(file.row_groups),
            dropped=_reasons(dropped),
        )
        record = json.dumps(asdict(part), indent=1, sort_keys=True).encode()
        if storage.put_if_absent(self._manifest(index), record):
            return part
        winner = self.read_manifest(index)
        if part.file and part.file != winner.file:
            remove_if_possible([storage.join(self.uri, part.file)], "it is tried again when the stage ends")
        return winner

    def read_manifest(self, index: int) -> Part:
        """The manifest of a complete part."""

        def parse(data: bytes) -> Part:
            record = json.loads(data)
            return Part(**record | {name: tuple(record[name]) for name in ("buckets", "row_groups")})

        return storage.read_twice(self._manifest(index), parse)

    def complete(
        self, listing: Sequence[Entry] | None = None, known: Mapping[int, Part] | None = None
    ) -> dict[int, Part]:
        """The manifests of all complete parts, by part number.

        Args:
            listing: the files in the folder of the stage. By default they are listed.
            known: manifests that were read before, which are not read again.
        """
        existing = {entry.uri.rsplit("/", 1)[1] for entry in (self.listing() if listing is None else listing)}
        indices = [index for index in range(self.num_parts) if self._manifest_name(index) in existing]
        known = known or {}
        return {index: known[index] if index in known else self.read_manifest(index) for index in indices}

    def listing(self) -> list[Entry]:
        """All files in the folder of the stage, also those of other generations, of dead writers, and hidden ones."""
        return storage.entries(self.uri)

    def completion_times(self) -> list[float]:
        """The times at which parts were completed, in seconds since 1970. Costs one listing and reads no manifests."""
        manifests = {self._manifest(index) for index in range(self.num_parts)}
        return [entry.modified for entry in storage.entries(self.uri) if entry.uri in manifests]

    def newest(self) -> Stage:
        """The newest complete generation of this stage, or this generation if no newer one is complete."""
        following = replace(self, generation=self.generation + 1)
        return following.newest() if len(following.complete()) == self.num_parts else self

    def read(self, part: Part, bucket: int, columns: Sequence[str] | None = None) -> pa.Table | None:
        """The rows of one bucket of one part, with checksums verified. Returns None for an empty bucket.

        Raises:
            StorageError: the storage fails to deliver the file.
            DamagedError: the file is gone or is not the one of its manifest; the message says how to write it again.
        """
        groups = part.groups_of(bucket)
        if not groups or part.file is None:
            return None
        uri = storage.join(self.uri, part.file)
        filesystem, path = storage.filesystem(uri)

        def read() -> pa.Table:
            with filesystem.open_input_file(path) as stream:
                if (num_bytes := stream.size()) != part.num_bytes:
                    raise pa.ArrowInvalid(f"{part.num_bytes} bytes expected, {num_bytes} found")
                footer = stream.read_at(part.footer_bytes, part.num_bytes - part.footer_bytes)
                if hashlib.sha256(footer).hexdigest() != part.footer_sha256:
                    raise pa.ArrowInvalid("the footer is not the one that was written")
                metadata = pq.read_metadata(pa.BufferReader(footer))
                with pq.ParquetFile(
                    stream, metadata=metadata, page_checksum_verification=True, pre_buffer=True
                ) as file:
                    return file.read_row_groups(list(groups), columns=columns)

        try:
            return parquet.read_written(uri, part.num_bytes, part.sha256, read)
        except (DamagedError, FileNotFoundError) as error:
            found = str(error).removeprefix(f"{uri}: ")
            problem = "is gone" if isinstance(error, FileNotFoundError) else f"is damaged ({found})"
            raise DamagedError(
                f"{uri}: {problem}; remove {self._manifest(part.index)} and run the same command, which writes it again"
            ) from error

    def _manifest(self, index: int) -> str:
        return storage.join(self.uri, self._manifest_name(index))

    def _manifest_name(self, index: int) -> str:
        return f"_part-{index:05d}.{self.generation}.json" if self.generation else f"_part-{index:05d}.json"


@dataclass(frozen=True)
class Output:
    """A complete stage as input of the next one: the stage and all its manifests."""

    stage: Stage
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, stage: Stage, complete: Mapping[int, Part] | None = None) -> Output:
        """The output of a stage.

        Args:
            stage: the stage.
            complete: the manifests of its complete parts. By default they are read.

        Raises:
            FileNotFoundError: parts of it are missing.
        """
        complete = stage.complete() if complete is None else complete
        missing = sorted(set(range(stage.num_parts)) - complete.keys())
        if missing:
            raise FileNotFoundError(f"{stage.uri}: parts {missing} are missing; run its job to the end")
        return cls(stage, tuple(complete[index] for index in range(stage.num_parts)))

    def num_kept_by_bucket(self) -> list[int]:
        """Number of kept rows in each bucket, summed over all parts."""
        return [sum(column) for column in zip(*(part.buckets for part in self.parts), strict=True)]

    def bucket(self, bucket: int, columns: Sequence[str] | None = None) -> pa.Table | None:
        """All kept rows of one bucket, in the order of the parts. Returns None for an empty bucket."""
        return _concat(self.stage.read(part, bucket, columns) for part in self.parts)

    def part(self, index: int, columns: Sequence[str] | None = None) -> pa.Table | None:
        """All kept rows of one part, in the order of their buckets. Returns None if no row was kept."""
        part = self.parts[index]
        return _concat(self.stage.read(part, bucket, columns) for bucket in range(len(part.buckets)))

    def table(self, schema: pa.Schema) -> pa.Table:
        """All kept rows of all parts, with the columns of the schema. The output must fit into memory."""
        tables = (self.part(index, schema.names) for index in range(len(self.parts)))
        return pa.concat_tables([schema.empty_table(), *(table for table in tables if table is not None)])

    def dropped(self, index: int, columns: Sequence[str] | None = None) -> pa.Table | None:
        """The dropped rows of one part, each with its reason. Returns None if no row was dropped."""
        part = self.parts[index]
        return self.stage.read(part, len(part.buckets), columns)

    def reasons(self) -> dict[str, int]:
        """Number of dropped rows by reason, most frequent first."""
        total: Counter[str] = Counter()
        for part in self.parts:
            total.update(part.dropped)
        return dict(total.most_common())

    def with_dropped(self, index: int, columns: Sequence[str] | None = None) -> pa.Table | None:
        """All rows of one part, the dropped rows last. Returns None for an empty part."""
        return _concat((self.part(index, columns), self.dropped(index, columns)))

    def delete_replaced_files(self, earlier: Output) -> None:
        """Delete the part files of an earlier generation that this generation does not use, where that is possible."""
        pairs = zip(earlier.parts, self.parts, strict=True)
        replaced = [before.file for before, now in pairs if before.file and before.file != now.file]
        remove_if_possible(
            [storage.join(self.stage.uri, file) for file in replaced],
            "pq.read_table reads the rows of their parts twice; the next run of the same command tries again",
        )

    @property
    def num_kept(self) -> int:
        """Number of kept rows."""
        return sum(part.num_kept for part in self.parts)

    @property
    def num_rows(self) -> int:
        """Number of rows, kept and dropped."""
        return sum(part.num_rows for part in self.parts)


def _concat(tables: Iterable[pa.Table | None]) -> pa.Table | None:
    nonempty = [table for table in tables if table is not None]
    return pa.concat_tables(nonempty) if nonempty else None


def _split(rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The kept rows and the dropped rows. Copies nothing if all rows are kept or all are dropped."""
    is_dropped = rows["reason"].is_valid() if "reason" in rows.column_names else pa.array(np.zeros(rows.num_rows, bool))
    num_dropped = pc.sum(is_dropped).as_py() or 0
    if num_dropped in (0, rows.num_rows):
        empty = rows.slice(0, 0)
        return (empty, rows) if num_dropped else (rows, empty)
    return rows.filter(pc.invert(is_dropped)), rows.filter(is_dropped)


def _reasons(dropped: Iterable[pa.Table]) -> dict[str, int]:
    """Number of rows by reason, sorted by the name of the reason."""
    total: Counter[str] = Counter()
    for rows in dropped:
        if "reason" in rows.column_names:
            total.update(rows["reason"].to_pylist())
    return dict(sorted(total.items()))
