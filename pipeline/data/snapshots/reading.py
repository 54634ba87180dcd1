"""Read captions and images of a snapshot for training, by row group and in shuffled order, with verified checksums.

The cost of a read does not depend on the size of the snapshot: the footer of a shard is read once (its size and its
end), then two columns per row group. The manifest contains the number of rows of each row group, so any position of an
epoch is found without reading shards. `pairs` keeps two windows in memory: the one that it yields, and the next one,
which threads read ahead.
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

from cluster import parquet, storage
from cluster.stores.errors import DamagedError
from pipeline.data.snapshots.epoch_order import Int64, Order, Rows, ShardInfo
from pipeline.data.snapshots.snapshot import Shard
from pipeline.data.snapshots.tombstones import remaining_rows
from pipeline.schemas import PAIRS, PAIRS_VERSION

COLUMNS = ("caption", "image")
MAX_OPEN = 64
"""Maximum number of shards whose footers a reader keeps in memory, about 100 KB each."""
CACHE_BYTES = 512 * 2**20
"""Maximum bytes of row groups that a reader keeps in memory for later steps."""
MAX_ATTEMPTS = 3
"""Maximum number of attempts to read a row group; pyarrow reports a truncated S3 response as damage."""


@dataclass(frozen=True)
class Shards:
    """The files of a snapshot and their file system. Plain data, so that it can be sent to reading tasks."""

    filesystem: FileSystem
    paths: tuple[str, ...]
    infos: tuple[ShardInfo, ...]

    def captions(self, most: int) -> Iterator[str]:
        """The first `most` captions in the snapshot's order, without those that are taken down."""
        reader = ShardReader(self)
        captions = (
            caption
            for shard, info in enumerate(self.infos)
            for group in range(len(info.row_groups))
            for caption in reader.read_remaining(shard, group, ["caption"])["caption"].to_pylist()
        )
        return islice(captions, most)


def shard_infos(shards: Iterable[Shard]) -> tuple[ShardInfo, ...]:
    """The information about a snapshot's shards that a reader needs."""
    return tuple(ShardInfo(shard.path, shard.row_groups, shard.taken_down) for shard in shards)


class ShardReader:
    """Read row groups, with a cache of open shards. Threads may share a reader for `read`, but not for `take`."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self._open: OrderedDict[int, tuple[pa.NativeFile, pq.FileMetaData]] = OrderedDict()
        self._cache: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()

    def read(self, shard: int, row_group: int, columns: Sequence[str] = COLUMNS) -> pa.Table:
        """Read all rows of a row group.

        Raises:
            FileNotFoundError: the shard does not exist.
            StorageError: the storage fails to deliver it.
            ValueError: the shard is damaged, or is not the one in the snapshot.
        """
        path, expected = self.shards.paths[shard], self.shards.infos[shard].row_groups[row_group]
        for attempt in range(1, MAX_ATTEMPTS + 1):
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
            except parquet.CONTENT_ERRORS as error:
                with self._lock:
                    self._open.pop(shard, None)
                if failure := storage.failure_of(path, error):
                    raise failure from error
                if attempt == MAX_ATTEMPTS:
                    raise DamagedError(
                        f"{path}: this shard of the snapshot is damaged ({error}, in {attempt} reads); run "
                        "jobs.snapshot verify"
                    ) from error
        if version > PAIRS_VERSION:
            raise ValueError(
                f"{path}: schema version {version}, this program reads up to {PAIRS_VERSION}; use a newer program"
            )
        if {field.name: field.type for field in table.schema} != {name: PAIRS.field(name).type for name in columns}:
            raise ValueError(
                f"{path}: this shard has the columns {table.schema.to_string()}, unlike those that this program reads; "
                "use the program that wrote it"
            )
        if table.num_rows != expected:
            raise ValueError(
                f"{path}: row group {row_group} has {table.num_rows} rows, the snapshot expects {expected}"
            )
        return table

    def read_remaining(self, shard: int, row_group: int, columns: Sequence[str] = COLUMNS) -> pa.Table:
        """Read the rows of a row group that are not taken down. Raises the errors of `read`."""
        table = self.read(shard, row_group, columns)
        kept = self.remaining_rows(shard, row_group)
        return table if len(kept) == table.num_rows else table.take(pa.array(kept))

    def remaining_rows(self, shard: int, row_group: int) -> Int64:
        """The indices within a row group of the rows that are not taken down."""
        info = self.shards.infos[shard]
        return remaining_rows(info.row_groups[row_group], row_group, info.taken_down)

    def take(self, rows: Rows) -> pa.Table:
        """Read some rows of a row group, and keep the row group in the cache for later calls."""
        key = (rows.shard, rows.row_group)
        table = self._cache.pop(key, None)
        if table is None:
            table = self.read(*key)
            self._cached_bytes += table.nbytes
        self._cache[key] = table
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return table.take(pa.array(rows.rows))

    def _file(self, shard: int) -> tuple[pa.NativeFile, pq.FileMetaData]:
        """The open file of a shard, and its footer."""
        with self._lock:
            if opened := self._open.get(shard):
                self._open.move_to_end(shard)
                return opened
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
    """Yield the image and caption of every row of an epoch, in the order of the epoch.

    Args:
        shards: the shards of the snapshot.
        order: the order of the same shards.
        epoch: number of the epoch, counted from 0.
        start: position in the epoch at which to begin.
        reader: index of this reader. Readers take windows in turn, so that all readers together read each row once.
        num_readers: number of readers.
        num_threads: number of threads that read ahead, which is also the number of concurrent requests.

    Raises:
        FileNotFoundError: a shard does not exist.
        ValueError: a shard is damaged, or is not the one in the snapshot.
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
            following = next(ahead, None)  # the threads read this window while the current one is yielded
            yield from current.pairs()
    finally:
        threads.shutdown(cancel_futures=True)


class _Window:
    """The rows of one window, whose row groups are read by threads."""

    def __init__(
        self, order: Order, epoch: int, window: int, start: int, source: ShardReader, threads: ThreadPoolExecutor
    ) -> None:
        numbers = order.rows(epoch, window)[max(0, start - order.start(epoch, window)) :]
        self._num_rows = len(numbers)
        self._located = order.locate(numbers)
        self._tables = [threads.submit(source.read, rows.shard, rows.row_group) for rows in self._located]

    def wait(self) -> None:
        """Wait until all row groups are read."""
        for table in self._tables:
            table.result()

    def pairs(self) -> Iterator[tuple[bytes, str]]:
        """Yield the image and caption of each row, in order."""
        images: list[memoryview] = []
        captions = np.empty(self._num_rows, object)
        which, first, last = (np.empty(self._num_rows, np.int64) for _ in range(3))
        for located, future in zip(self._located, self._tables, strict=True):
            table = future.result()
            offsets, data = _values(table["image"])
            which[located.positions] = len(images)
            first[located.positions], last[located.positions] = offsets[located.rows], offsets[located.rows + 1]
            captions[located.positions] = table["caption"].to_numpy(zero_copy_only=False)[located.rows]
            images.append(data)
        columns = (which.tolist(), first.tolist(), last.tolist(), captions.tolist())
        for group, begin, end, caption in zip(*columns, strict=True):
            yield images[group][begin:end].tobytes(), caption


def _values(column: pa.ChunkedArray) -> tuple[np.ndarray[Any, np.dtype[np.int64]], memoryview]:
    """The offsets of the values of a large_binary column, including the end of the last one, and the bytes."""
    array = column.combine_chunks()
    _, offsets, data = array.buffers()
    return np.frombuffer(offsets, np.int64, len(array) + 1, offset=8 * array.offset), memoryview(data or b"")
