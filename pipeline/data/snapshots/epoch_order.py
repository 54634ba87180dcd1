"""Compute the order in which training reads a snapshot: a pure function of (shards, seed, epoch).

An epoch takes all row groups in a seeded order, cuts that order into windows, and shuffles the rows within each window.
So a reader needs the row groups of one or two windows in memory and no list of rows, and finds any position with two
binary searches. Rows that are taken down are in no window; the numbers of all other rows do not change.
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
    """The purpose of a random draw; draws for different purposes are independent."""

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
    """URI of the file."""
    row_groups: tuple[int, ...]
    """Number of rows of each row group."""
    taken_down: tuple[tuple[int, int], ...] = ()
    """(row group, row) of each pair that no reader may show, sorted."""


@dataclass(frozen=True)
class Rows:
    """A selection of rows of one row group."""

    shard: int
    row_group: int
    rows: Int64
    """Indices within the row group, in the requested order."""
    numbers: Int64
    """Number of each of these rows in the whole snapshot."""
    positions: Int64
    """Position of each of these rows in the request."""


class Order:
    """The order of a snapshot's rows in each epoch.

    Args:
        shards: in the snapshot's order; row numbers count through all of them.
        window: number of row groups whose rows are shuffled together.
        seed: seed of the shuffle.
    """

    def __init__(self, shards: Sequence[ShardInfo], *, window: int, seed: int) -> None:
        self._window = window
        self._seed = seed
        self._shard_of = np.repeat(np.arange(len(shards)), [len(shard.row_groups) for shard in shards])
        self._first_group = np.cumsum([0, *(len(shard.row_groups) for shard in shards)])
        sizes = np.array([rows for shard in shards for rows in shard.row_groups], np.int64)
        self._starts = np.cumsum([0, *sizes])
        taken_down = [
            self._starts[first + group] + row
            for first, shard in zip(self._first_group, shards, strict=False)
            for group, row in shard.taken_down
        ]
        self._taken_down = np.array(taken_down, np.int64)
        self._sizes = sizes - np.diff(np.searchsorted(self._taken_down, self._starts))
        self.num_rows = int(self._sizes.sum())
        self.num_windows = -(-len(sizes) // window)
        self._epoch: tuple[int, Int64, Int64] | None = None

    def window_at(self, epoch: int, position: int) -> int:
        """The window that contains this position of the epoch."""
        _, ends = self._order(epoch)
        return int(np.searchsorted(ends, position, side="right")) // self._window

    def start(self, epoch: int, window: int) -> int:
        """The position in the epoch of a window's first row."""
        _, ends = self._order(epoch)
        return int(ends[window * self._window - 1]) if window else 0

    def rows(self, epoch: int, window: int) -> Int64:
        """The numbers of a window's rows, in shuffled order."""
        order, _ = self._order(epoch)
        groups = order[window * self._window : (window + 1) * self._window]
        rows = np.concatenate([np.arange(self._starts[group], self._starts[group + 1]) for group in groups])
        if len(self._taken_down):
            rows = rows[~np.isin(rows, self._taken_down)]
        return _shuffle(rows, self._seed, Purpose.ROWS, epoch)

    def locate(self, numbers: Int64) -> list[Rows]:
        """Find the rows with these numbers, grouped by row group; each group keeps the order of `numbers`."""
        groups = np.searchsorted(self._starts, numbers, side="right") - 1
        found = []
        for group in np.unique(groups):
            positions = np.flatnonzero(groups == group)
            shard = int(self._shard_of[group])
            row_group = int(group - self._first_group[shard])
            own_numbers = numbers[positions]
            found.append(Rows(shard, row_group, own_numbers - self._starts[group], own_numbers, positions))
        return found

    def _order(self, epoch: int) -> tuple[Int64, Int64]:
        """The row groups in the order of the epoch, and the cumulative number of their rows."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = _shuffle(np.arange(len(self._sizes)), self._seed, Purpose.ROW_GROUPS, epoch)
            self._epoch = epoch, order, np.cumsum(self._sizes[order])
        return self._epoch[1:]


def draw(seed: int, purpose: Purpose, time: int, numbers: Int64) -> npt.NDArray[np.uint64]:
    """One uniform 64-bit draw for each number (of a row, for example); `time` is the epoch or the step."""
    words = numbers.astype(np.uint64)
    return draws(seed, np.full_like(words, purpose), np.full_like(words, time), words)


def _shuffle(values: Int64, seed: int, purpose: Purpose, epoch: int) -> Int64:
    shuffled: Int64 = values[np.argsort(draw(seed, purpose, epoch, values), kind="stable")]
    return shuffled
