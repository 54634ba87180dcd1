"""Pause Ray Data's scheduling loop between its rounds.

When a pipeline waits for its consumer, the scheduling loop of Ray Data 2.60 has nothing to wait for and spins. It then
takes a whole CPU, and Python's global lock from the process it runs in (a training loop drops to 45% of its speed).
"""

import time
from typing import Any

from cluster.ray_private.data import ExecutionCallback

MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.002, 0.1


class SchedulerPause(ExecutionCallback):
    """Sleep after each scheduling round, twice as long after each round without progress."""

    def __init__(self) -> None:
        self._seconds = MIN_PAUSE_SECONDS
        self._last_counts: object = None

    def on_execution_step(self, executor: Any) -> None:
        """Sleep after one round."""
        metrics = [operator.metrics for operator in executor._topology]
        counts = [(m.num_tasks_submitted, m.num_task_outputs_generated, m.num_outputs_taken) for m in metrics]
        idle = counts == self._last_counts
        self._seconds = min(2 * self._seconds, MAX_PAUSE_SECONDS) if idle else MIN_PAUSE_SECONDS
        self._last_counts = counts
        time.sleep(self._seconds)
