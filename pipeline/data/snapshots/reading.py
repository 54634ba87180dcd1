"""Reading a snapshot for training: captions and images, by row group and in the shuffled order, checksums verified.

What a read costs: a shard's footer once (its size, its end), and then a row group's two columns, whatever the size of
the snapshot. The manifest says how many rows each row group has, so any place of an epoch is found without reading.
`pairs` holds the row groups of the window that it hands out and, read by threads meanwhile, those of the next.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem

from pipeline.data.snapshots.epoch_order import Int64, Order, Rows, ShardInfo
from pipeline.data.snapshots.snapshot import Shard
from pipeline.data.snapshots.tombstones import rows_left
from pipeline.schemas import PAIRS, PAIRS_VERSION

COLUMNS = ("caption", "image")
MAX_OPEN = 64
"""Shards whose footers a reader keeps: some 100 KB each."""
HELD_BYTES = 512 * 2**20
"""Row groups that a reading process keeps for the steps to come."""
ATTEMPTS = 3
"""A body cut short on its way from S3 looks like damage to pyarrow; the next one is whole."""


@dataclass(frozen=True)
class Shards:
    """The files of a snapshot and how to open them. Plain data, so that reading tasks can have it."""

    filesystem: FileSystem
    paths: tuple[str, ...]
    infos: tuple[ShardInfo, ...]

    def captions(self, most: int) -> Iterator[str]:
        """The first captions, in the snapshot's order, without those that have been taken down."""
        reader = ShardReader(self)
        every = (
            caption
            for shard, info in enumerate(self.infos)
            for group in range(len(info.row_groups))
            for caption in reader.left(shard, group, ["caption"])["caption"].to_pylist()
        )
        return islice(every, most)


def shard_infos(shards: Iterable[Shard]) -> tuple[ShardInfo, ...]:
    """What a reader needs to know of a snapshot's shards."""
    return tuple(ShardInfo(shard.path, shard.row_groups, shard.taken_down) for shard in shards)


class ShardReader:
    """Reads row groups; what it has opened stays open for a while. Threads may share it."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self._open: OrderedDict[int, tuple[pa.NativeFile, pq.FileMetaData]] = OrderedDict()
        self._held: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    def read(self, shard: int, row_group: int, columns: Sequence[str] = COLUMNS) -> pa.Table:
        """All rows of a row group.

        Raises:
            FileNotFoundError: the shard is gone.
            ValueError: the shard is damaged, or not the one that the snapshot tells of.
        """
        path, expected = self.shards.paths[shard], self.shards.infos[shard].row_groups[row_group]
        for attempt in range(1, ATTEMPTS + 1):
            try:
                stream, metadata = self._file(shard)
                with pq.ParquetFile(
                    stream, metadata=metadata, page_checksum_verification=True, pre_buffer=True
                ) as file:
                    table = file.read_row_group(row_group, columns=list(columns))
                version = int((metadata.metadata or {}).get(b"schema_version", PAIRS_VERSION))
                break
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{path}: this shard of the snapshot is gone") from error
            except (pa.ArrowException, OSError, ValueError) as error:
                with self._lock:
                    self._open.pop(shard, None)
                if attempt == ATTEMPTS:
                    raise ValueError(f"{path}: this shard of the snapshot is damaged ({error})") from error
        if version > PAIRS_VERSION:
            raise ValueError(f"{path}: schema version {version}, this program reads up to {PAIRS_VERSION}; use a later")
        if {field.name: field.type for field in table.schema} != {name: PAIRS.field(name).type for name in columns}:
            raise ValueError(f"{path}: this shard of the snapshot is damaged (columns {table.schema.to_string()})")
        if table.num_rows != expected:
            raise ValueError(f"{path}: row group {row_group} has {table.num_rows} rows, the snapshot says {expected}")
        return table

    def left(self, shard: int, row_group: int, columns: Sequence[str] = COLUMNS) -> pa.Table:
        """The rows of a row group without those that have been taken down. Raises as `read`."""
        table = self.read(shard, row_group, columns)
        kept = self.places_left(shard, row_group)
        return table if len(kept) == table.num_rows else table.take(pa.array(kept))

    def places_left(self, shard: int, row_group: int) -> Int64:
        """The places in a row group whose rows have not been taken down."""
        info = self.shards.infos[shard]
        return rows_left(info.row_groups[row_group], row_group, info.taken_down)

    def take(self, rows: Rows) -> pa.Table:
        """Some rows of a row group, which is kept in memory for the next call that asks for rows of it."""
        key = (rows.shard, rows.row_group)
        table = self._held.pop(key, None)
        if table is None:
            table = self.read(*key)
            self._held_bytes += table.nbytes
        self._held[key] = table
        while self._held_bytes > HELD_BYTES and len(self._held) > 1:
            self._held_bytes -= self._held.popitem(last=False)[1].nbytes
        return table.take(pa.array(rows.rows))

    def _file(self, shard: int) -> tuple[pa.NativeFile, pq.FileMetaData]:
        """A shard, opened, and its footer."""
        with self._lock:
            if found := self._open.get(shard):
                self._open.move_to_end(shard)
                return found
        stream = self.shards.filesystem.open_input_file(self.shards.paths[shard])
        metadata = pq.read_metadata(stream)
        with self._lock:
            self._open[shard] = stream, metadata
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        return stream, metadata


def pairs(
    shards: Shards,
    order: Order,
    epoch: int,
    *,
    start: int = 0,
    reader: int = 0,
    num_readers: int = 1,
    num_threads: int = 4,
) -> Iterator[tuple[bytes, str]]:
    """Image and caption of every row of an epoch, in its order.

    Args:
        shards: the snapshot's.
        order: of the same shards.
        epoch: counted from 0.
        start: place in the epoch's sequence to begin at.
        reader: which of the readers this is: they take the windows in turns, and together each row once.
        num_readers: how many there are.
        num_threads: threads that read ahead, beside this one: so many requests at once.

    Raises:
        FileNotFoundError: a shard is gone.
        ValueError: a shard is damaged, or not the one that the snapshot tells of.
    """
    if start >= order.num_rows:
        return
    source = ShardReader(shards)
    windows = [
        window for window in range(order.window_at(epoch, start), order.num_windows) if window % num_readers == reader
    ]
    threads = ThreadPoolExecutor(num_threads)
    try:
        ahead = (_Window(order, epoch, window, start, source, threads) for window in windows)
        following = next(ahead, None)
        while following is not None:
            current = following
            current.wait()
            following = next(ahead, None)  # is read while the current one is handed out
            yield from current.pairs()
    finally:
        threads.shutdown(cancel_futures=True)


class _Window:
    """The rows of one window, while threads read their row groups."""

    def __init__(
        self, order: Order, epoch: int, window: int, start: int, source: ShardReader, threads: ThreadPoolExecutor
    ) -> None:
        numbers = order.rows(epoch, window)[max(0, start - order.start(epoch, window)) :]
        self._num_rows = len(numbers)
        self._places = order.locate(numbers)
        self._tables = [threads.submit(source.read, place.shard, place.row_group) for place in self._places]

    def wait(self) -> None:
        """Until all of it is there."""
        for table in self._tables:
            table.result()

    def pairs(self) -> Iterator[tuple[bytes, str]]:
        """Image and caption of each row, in order."""
        images: list[memoryview] = []
        captions = np.empty(self._num_rows, object)
        which, first, last = (np.empty(self._num_rows, np.int64) for _ in range(3))
        for place, future in zip(self._places, self._tables, strict=True):
            table = future.result()
            ends, data = _values(table["image"])
            which[place.at] = len(images)
            first[place.at], last[place.at] = ends[place.rows], ends[place.rows + 1]
            captions[place.at] = table["caption"].to_numpy(zero_copy_only=False)[place.rows]
            images.append(data)
        columns = (which.tolist(), first.tolist(), last.tolist(), captions.tolist())
        for group, begin, end, caption in zip(*columns, strict=True):
            yield images[group][begin:end].tobytes(), caption


def _values(column: pa.ChunkedArray) -> tuple[np.ndarray[Any, np.dtype[np.int64]], memoryview]:
    """Where each value of a column of large_binary begins and the last one ends, and the bytes of all."""
    array = column.combine_chunks()
    _, offsets, data = array.buffers()
    return np.frombuffer(offsets, np.int64, len(array) + 1, offset=8 * array.offset), memoryview(data or b"")
