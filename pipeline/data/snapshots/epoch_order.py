"""The order in which training reads a snapshot: a pure function of (shards, seed, epoch), whoever reads it.

An epoch takes all row groups in a seeded order, cuts that order into windows, and shuffles the rows within each window.
So a reader holds the row groups of one or two windows at a time and no list of rows, and finds any position by two
binary searches. Rows that have been taken down are in no window; the numbers of the others stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.hashing import draws

Int64 = np.ndarray[Any, np.dtype[np.int64]]


class Purpose(IntEnum):
    """What a draw is for: draws of different purposes are independent."""

    ROW_GROUPS = 1
    ROWS = 2
    CROP_TOP = 3
    CROP_LEFT = 4
    DROPOUT = 5
    ROUNDING = 6


@dataclass(frozen=True)
class ShardInfo:
    """A Parquet file of pairs."""

    path: str
    """URI."""
    row_groups: tuple[int, ...]
    """Rows of each row group."""
    taken_down: tuple[tuple[int, int], ...] = ()
    """Row group and row, sorted, of what no reader may show."""


@dataclass(frozen=True)
class Rows:
    """Some rows of one row group."""

    shard: int
    row_group: int
    rows: Int64
    """Places within the row group, in the order asked for."""
    numbers: Int64
    """Number of each of these rows in the whole snapshot."""
    at: Int64
    """RowLocation of each among all the rows that were asked for."""


class Order:
    """The order of a snapshot's rows, epoch by epoch.

    Args:
        shards: in the snapshot's order; rows are numbered through them.
        window: row groups whose rows are shuffled together.
        seed: of the order.
    """

    def __init__(self, shards: Sequence[ShardInfo], *, window: int, seed: int) -> None:
        self._window = window
        self._seed = seed
        self._shard_of = np.repeat(np.arange(len(shards)), [len(shard.row_groups) for shard in shards])
        self._first_group = np.cumsum([0, *(len(shard.row_groups) for shard in shards)])
        sizes = np.array([rows for shard in shards for rows in shard.row_groups], np.int64)
        self._starts = np.cumsum([0, *sizes])
        gone = [
            self._starts[first + group] + row
            for first, shard in zip(self._first_group, shards, strict=False)
            for group, row in shard.taken_down
        ]
        self._gone = np.array(gone, np.int64)
        self._sizes = sizes - np.diff(np.searchsorted(self._gone, self._starts))
        self.num_rows = int(self._sizes.sum())
        self.num_windows = -(-len(sizes) // window)
        self._epoch: tuple[int, Int64, Int64] | None = None

    def window_at(self, epoch: int, position: int) -> int:
        """The window that has the row at this place of the epoch's sequence."""
        _, ends = self._order(epoch)
        return int(np.searchsorted(ends, position, side="right")) // self._window

    def start(self, epoch: int, window: int) -> int:
        """The place of a window's first row in the epoch's sequence."""
        _, ends = self._order(epoch)
        return int(ends[window * self._window - 1]) if window else 0

    def rows(self, epoch: int, window: int) -> Int64:
        """The numbers of a window's rows, in order."""
        order, _ = self._order(epoch)
        groups = order[window * self._window : (window + 1) * self._window]
        rows = np.concatenate([np.arange(self._starts[group], self._starts[group + 1]) for group in groups])
        if len(self._gone):
            rows = rows[~np.isin(rows, self._gone)]
        return _shuffle(rows, self._seed, Purpose.ROWS, epoch)

    def locate(self, numbers: Int64) -> list[Rows]:
        """Where rows of these numbers lie, by row group; within each in the order of `numbers`."""
        groups = np.searchsorted(self._starts, numbers, side="right") - 1
        found = []
        for group in np.unique(groups):
            at = np.flatnonzero(groups == group)
            shard = int(self._shard_of[group])
            place = int(group - self._first_group[shard])
            found.append(Rows(shard, place, numbers[at] - self._starts[group], numbers[at], at))
        return found

    def _order(self, epoch: int) -> tuple[Int64, Int64]:
        """The epoch's row groups in their order, and how many rows there are up to the end of each."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = _shuffle(np.arange(len(self._sizes)), self._seed, Purpose.ROW_GROUPS, epoch)
            self._epoch = epoch, order, np.cumsum(self._sizes[order])
        return self._epoch[1:]


def draw(seed: int, purpose: Purpose, time: int, numbers: Int64) -> npt.NDArray[np.uint64]:
    """One uniform 64-bit draw for each number, of rows or whatever; `time` is the epoch or step."""
    words = numbers.astype(np.uint64)
    return draws(seed, np.full_like(words, purpose), np.full_like(words, time), words)


def _shuffle(values: Int64, seed: int, purpose: Purpose, epoch: int) -> Int64:
    shuffled: Int64 = values[np.argsort(draw(seed, purpose, epoch, values), kind="stable")]
    return shuffled
