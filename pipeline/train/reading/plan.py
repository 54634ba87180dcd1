"""Which pairs make which step: a pure function of (shards, seed, epoch, step), the same for any number of workers.

Step s of an epoch takes rows [s B, (s + 1) B) of the epoch's order (pipeline/data/snapshots/epoch_order.py); rows
beyond the last whole
batch sit this epoch out. Within a step the order of rows makes no difference to the loss. They are sorted by place
before the workers share them out, so that a worker reads few row groups.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.data.snapshots.epoch_order import Int64, Order, Rows, ShardInfo


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
        self._order = Order(shards, window=shuffle_row_groups, seed=seed)
        self.num_rows = self._order.num_rows
        self.steps_per_epoch = self.num_rows // global_batch_size
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"global_batch_size={global_batch_size} is more than the snapshot's {self.num_rows} pairs; "
                "choose a smaller batch"
            )

    def step(self, step: int) -> tuple[int, Int64]:
        """The epoch that a step of the run belongs to, and the numbers of its B rows, ascending."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        start, stop = step_in_epoch * self.global_batch_size, (step_in_epoch + 1) * self.global_batch_size
        first, last = (self._order.window_at(epoch, position) for position in (start, stop - 1))
        rows = np.concatenate([self._order.rows(epoch, window) for window in range(first, last + 1)])
        offset = self._order.start(epoch, first)
        return epoch, np.sort(rows[start - offset : stop - offset])

    def share(self, step: int, local_batch_sizes: Sequence[int], rank: int) -> tuple[int, list[Rows]]:
        """The epoch of a step, and one worker's part of its rows, by row group."""
        epoch, numbers = self.step(step)
        start = sum(local_batch_sizes[:rank])
        return epoch, self._order.locate(numbers[start : start + local_batch_sizes[rank]])
