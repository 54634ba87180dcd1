"""Choose the pairs of each step as a pure function of (shards, seed, epoch, step), for any number of workers.

Step s of an epoch takes rows [s B, (s + 1) B) of the epoch's order (pipeline/data/snapshots/epoch_order.py). Rows after
the last whole batch are not used in this epoch. The order of rows within a step does not affect the loss. The rows of a
step are sorted by row number before they are divided among the workers, so that each worker reads few row groups.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.data.snapshots.epoch_order import Int64, Order, Rows, ShardInfo


class Plan:
    """The rows of every step of a run.

    Args:
        shards: the snapshot's shards, in order; row numbers count through all of them.
        global_batch_size: the number of pairs B in a step.
        shuffle_row_groups: the number of row groups in a shuffle window.
        seed: the seed of the order.

    Raises:
        ValueError: the snapshot has fewer rows than one batch.
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
        """The epoch of a step of the run, and the ascending numbers of its B rows."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        start, stop = step_in_epoch * self.global_batch_size, (step_in_epoch + 1) * self.global_batch_size
        first, last = (self._order.window_at(epoch, position) for position in (start, stop - 1))
        rows = np.concatenate([self._order.rows(epoch, window) for window in range(first, last + 1)])
        offset = self._order.start(epoch, first)
        return epoch, np.sort(rows[start - offset : stop - offset])

    def share(self, step: int, local_batch_sizes: Sequence[int], rank: int) -> tuple[int, list[Rows]]:
        """The epoch of a step, and the rows of one worker, grouped by row group."""
        epoch, numbers = self.step(step)
        start = sum(local_batch_sizes[:rank])
        return epoch, self._order.locate(numbers[start : start + local_batch_sizes[rank]])
