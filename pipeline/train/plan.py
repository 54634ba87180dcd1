"""Which pairs make which step: a pure function of (shards, seed, epoch, step), the same for any number of workers.

The shards say which of their rows are taken down. Those are left out; the others keep their numbers and so their crops.

An epoch takes all row groups in a seeded order, cuts that order into windows of `shuffle_row_groups`, and shuffles the
rows within each window. Step s takes rows [s B, (s + 1) B) of the sequence that results; rows beyond the last whole
batch sit this epoch out. So a reader opens the row groups of one or two windows at a time and holds no list of rows.

Within a step the order of rows makes no difference to the loss. They are sorted by place before the workers share them
out, so that a worker reads few row groups.
"""

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


@dataclass(frozen=True)
class ShardInfo:
    """A Parquet file of pairs."""

    path: str
    """URI."""
    row_groups: tuple[int, ...]
    """Rows of each row group."""
    taken_down: tuple[tuple[int, int], ...] = ()
    """Row group and row of each pair that nobody may show any more; it is in no step."""


@dataclass(frozen=True)
class Rows:
    """Some rows of one row group."""

    shard: int
    row_group: int
    rows: Int64
    """Places within the row group, ascending."""
    numbers: Int64
    """Number of each of these rows in the whole snapshot."""


class Plan:
    """The order of a run.

    Args:
        shards: in the snapshot's order; rows are numbered through them.
        global_batch_size: B.
        shuffle_row_groups: row groups of a window.
        seed: of the order.

    Raises:
        ValueError: there are fewer rows than one batch has.
    """

    def __init__(
        self, shards: Sequence[ShardInfo], *, global_batch_size: int, shuffle_row_groups: int, seed: int
    ) -> None:
        self.global_batch_size = global_batch_size
        self._window = shuffle_row_groups
        self._seed = seed
        self._shard_of = np.repeat(np.arange(len(shards)), [len(shard.row_groups) for shard in shards])
        self._first_group = np.cumsum([0, *(len(shard.row_groups) for shard in shards)])
        stored = np.array([rows for shard in shards for rows in shard.row_groups], np.int64)
        self._starts = np.cumsum([0, *stored])
        places = [(self._first_group[i] + group, row) for i, s in enumerate(shards) for group, row in s.taken_down]
        groups, rows = np.array(places, np.int64).reshape(-1, 2).T
        self._taken_down = self._starts[groups] + rows
        self._sizes = stored - np.bincount(groups, minlength=len(stored))
        self.num_rows = int(self._sizes.sum())
        self.steps_per_epoch = self.num_rows // global_batch_size
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"global_batch_size={global_batch_size} is more than the snapshot's {self.num_rows} pairs; "
                "choose a smaller batch"
            )
        self._epoch: tuple[int, Int64, Int64] | None = None

    def step(self, step: int) -> tuple[int, Int64]:
        """The epoch that a step of the run belongs to, and the numbers of its B rows, ascending."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        order, ends = self._order(epoch)
        start, stop = step_in_epoch * self.global_batch_size, (step_in_epoch + 1) * self.global_batch_size
        window = self._window
        first = int(np.searchsorted(ends, start, side="right")) // window
        last = int(np.searchsorted(ends, stop - 1, side="right")) // window
        offset = int(ends[first * window - 1]) if first else 0
        windows = (order[w * window : (w + 1) * window] for w in range(first, last + 1))
        rows = np.concatenate([self._shuffled(epoch, groups) for groups in windows])
        return epoch, np.sort(rows[start - offset : stop - offset])

    def share(self, step: int, local_batch_sizes: Sequence[int], rank: int) -> tuple[int, list[Rows]]:
        """The epoch of a step, and one worker's part of its rows, by row group."""
        epoch, numbers = self.step(step)
        start = sum(local_batch_sizes[:rank])
        own = numbers[start : start + local_batch_sizes[rank]]
        groups = np.searchsorted(self._starts, own, side="right") - 1
        found = []
        for group in np.unique(groups):
            of_group = own[groups == group]
            shard = int(self._shard_of[group])
            place = int(group - self._first_group[shard])
            found.append(Rows(shard, place, of_group - self._starts[group], of_group))
        return epoch, found

    def _order(self, epoch: int) -> tuple[Int64, Int64]:
        """The epoch's row groups in their order, and how many rows there are up to the end of each."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = _shuffle(np.arange(len(self._sizes)), self._seed, Purpose.ROW_GROUPS, epoch)
            self._epoch = epoch, order, np.cumsum(self._sizes[order])
        return self._epoch[1:]

    def _shuffled(self, epoch: int, groups: Int64) -> Int64:
        rows = np.concatenate([np.arange(self._starts[group], self._starts[group + 1]) for group in groups])
        if len(self._taken_down):
            rows = rows[~np.isin(rows, self._taken_down)]
        return _shuffle(rows, self._seed, Purpose.ROWS, epoch)


def draw(seed: int, purpose: Purpose, time: int, numbers: Int64) -> npt.NDArray[np.uint64]:
    """One uniform 64-bit draw for each number, of rows or whatever; `time` is the epoch or step."""
    words = numbers.astype(np.uint64)
    return draws(seed, np.full_like(words, purpose), np.full_like(words, time), words)


def _shuffle(values: Int64, seed: int, purpose: Purpose, epoch: int) -> Int64:
    shuffled: Int64 = values[np.argsort(draw(seed, purpose, epoch, values), kind="stable")]
    return shuffled
