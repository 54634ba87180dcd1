"""A rest between two looks of Ray Data at its tasks.

A pipeline whose next block nobody has asked for yet leaves Ray Data 2.60 nothing to wait for: it looks again at once,
and again, which takes a CPU from whoever shares the machine, and Python's global lock from whoever shares the process
(a training loop runs at 45% of its speed).
"""

import time
from typing import Any

from cluster.ray_private.data import ExecutionCallback

SHORTEST_SECONDS, LONGEST_SECONDS = 0.002, 0.1


class Rest(ExecutionCallback):
    """Sleeps after each round of a scheduling loop, twice as long after each one in which nothing has happened."""

    def __init__(self) -> None:
        self._seconds = SHORTEST_SECONDS
        self._seen: object = None

    def on_execution_step(self, executor: Any) -> None:
        """Between two rounds."""
        metrics = [operator.metrics for operator in executor._topology]
        seen = [(m.num_tasks_submitted, m.num_task_outputs_generated, m.num_outputs_taken) for m in metrics]
        self._seconds = min(2 * self._seconds, LONGEST_SECONDS) if seen == self._seen else SHORTEST_SECONDS
        self._seen = seen
        time.sleep(self._seconds)
