"""Parts: a stage is a fixed number of them, and each is a file and its manifest.

The file is written first, under the name of its content, and the manifest last and only if there is none: a part is
complete when its manifest exists, and of two attempts at a part exactly one counts. Manifests begin with an underscore,
so that a stage's folder is a table to pandas, pyarrow and Spark.

A part's file holds the rows that are still in, one bucket after the other, and behind them the rows that were dropped.
A bucket is a range of row groups, so the next stage reads "bucket b of every part" without a shuffle service and
without a file per bucket: the exchange of MapReduce (Dean and Ghemawat 2004) over plain Parquet.

A stage may be done over, as when a crawl attempts again what had failed: that is a new generation of all of its parts,
which counts from the moment that it is complete.
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

from cluster import storage
from cluster.part_file import ROW_GROUPS, PartFile, RowGroups


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
    row_groups: tuple[int, ...]  # rows of each, in the file's order; none has rows of two buckets
    dropped: Mapping[str, int]

    @property
    def num_kept(self) -> int:
        """Rows that are still in."""
        return sum(self.buckets)

    @property
    def num_rows(self) -> int:
        """All rows of the part's file."""
        return self.num_kept + sum(self.dropped.values())

    def groups_of(self, bucket: int) -> range:
        """The row groups of a bucket; bucket `len(buckets)` is that of the dropped rows."""
        rows = (*self.buckets, sum(self.dropped.values()))
        first = sum(rows[:bucket])
        ends = np.cumsum([0, *self.row_groups])
        return range(*(int(place) for place in np.searchsorted(ends, (first, first + rows[bucket]))))


@dataclass(frozen=True)
class Stage:
    """A stage of a run: where its parts lie and how many there are. Plain data, so that workers can have it too."""

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
        """Write one part and its manifest; of two attempts at the same part the first to finish counts.

        Args:
            index: number of the part.
            table: its rows; those whose column `reason` is not null are counted as dropped.
            buckets: bucket of each row, int32; all rows are in bucket 0 when it is left out.
            num_buckets: how many buckets there are, empty ones included.
            row_groups: how large a row group is, at most.
        """
        place = np.zeros(table.num_rows, np.int32) if buckets is None else buckets
        assert ((place >= 0) & (place < num_buckets)).all(), f"there are {num_buckets} buckets"
        kept, dropped = _split(table)
        if dropped.num_rows:
            place = place[table["reason"].is_null().to_numpy()]
        if (np.diff(place) < 0).any():  # images are better not copied
            order = np.argsort(place, kind="stable")
            kept, place = kept.take(order), place[order]
        ends = [int(end) for end in np.searchsorted(place, np.arange(1, num_buckets + 1))]
        pieces = [[kept.slice(start, end - start)] for start, end in zip([0, *ends], ends, strict=False)]
        pieces[-1].append(dropped)
        return self.write_pieces(index, pieces, row_groups=row_groups)

    def write_pieces(
        self, index: int, buckets: Iterable[Iterable[pa.Table]], *, row_groups: RowGroups = ROW_GROUPS
    ) -> Part:
        """Write one part from pieces of its buckets, one bucket after the other; no more is held than a row group.

        Args:
            index: number of the part.
            buckets: the rows of each, in order; those whose column `reason` is not null are counted as dropped.
            row_groups: how large a row group is, at most.
        """
        assert 0 <= index < self.num_parts, (index, self.num_parts)
        rows_by_bucket, dropped = [], list[pa.Table]()
        with PartFile(self.uri, row_groups) as file:
            for bucket in buckets:
                before = file.num_rows
                for piece in bucket:
                    kept, out = _split(piece)
                    dropped.append(out)
                    file.add(kept)
                file.end_group()
                rows_by_bucket.append(file.num_rows - before)
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
            buckets=tuple(rows_by_bucket),
            row_groups=tuple(file.row_groups),
            dropped=_reasons(dropped),
        )
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
        return Part(**record | {name: tuple(record[name]) for name in ("buckets", "row_groups")})

    def complete(self) -> dict[int, Part]:
        """The manifests of the parts that are complete, by number."""
        try:
            names = storage.list_files(self.uri, suffixes=(".json",))
        except FileNotFoundError:
            return {}
        found = {name.rsplit("/", 1)[1] for name in names}
        indices = [index for index in range(self.num_parts) if self._manifest_name(index) in found]
        return {index: self.read_manifest(index) for index in indices}

    def newest(self) -> Stage:
        """The newest generation of this stage that is complete; this one where none is newer."""
        following = replace(self, generation=self.generation + 1)
        return following.newest() if len(following.complete()) == self.num_parts else self

    def read(self, part: Part, bucket: int, columns: Sequence[str] | None = None) -> pa.Table | None:
        """The rows of one bucket of one part, checksums verified; None where it has none.

        Raises:
            ValueError: the file is not the one its manifest tells of.
        """
        groups = part.groups_of(bucket)
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
        return storage.join(self.uri, self._manifest_name(index))

    def _manifest_name(self, index: int) -> str:
        return f"_part-{index:05d}.{self.generation}.json" if self.generation else f"_part-{index:05d}.json"


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
        """The schema's columns of all rows that are still in, of all parts; for outputs that one process can hold."""
        tables = (self.part(index, schema.names) for index in range(len(self.parts)))
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

    def with_dropped(self, index: int, columns: Sequence[str] | None = None) -> pa.Table | None:
        """All rows of one part, those that it dropped behind the others; None where it is empty."""
        return _concat((self.part(index, columns), self.dropped(index, columns)))

    def delete_files_of(self, earlier: Output) -> None:
        """Delete what only an earlier generation of this stage holds."""
        for before, now in zip(earlier.parts, self.parts, strict=True):
            if before.file and before.file != now.file:
                storage.delete(storage.join(self.stage.uri, before.file))

    @property
    def num_kept(self) -> int:
        """Rows still in."""
        return sum(part.num_kept for part in self.parts)

    @property
    def num_rows(self) -> int:
        """All rows."""
        return sum(part.num_rows for part in self.parts)


def _concat(tables: Iterable[pa.Table | None]) -> pa.Table | None:
    found = [table for table in tables if table is not None]
    return pa.concat_tables(found) if found else None


def _split(rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The rows that are still in, and those that are dropped; nothing is copied where all are of one kind."""
    out = rows["reason"].is_valid() if "reason" in rows.column_names else pa.array(np.zeros(rows.num_rows, bool))
    num_out = pc.sum(out).as_py() or 0
    if num_out in (0, rows.num_rows):
        empty = rows.slice(0, 0)
        return (empty, rows) if num_out else (rows, empty)
    return rows.filter(pc.invert(out)), rows.filter(out)


def _reasons(dropped: Iterable[pa.Table]) -> dict[str, int]:
    """How often each reason occurs, by name."""
    total: Counter[str] = Counter()
    for rows in dropped:
        if "reason" in rows.column_names:
            total.update(rows["reason"].to_pylist())
    return dict(sorted(total.items()))
