"""A rest between two looks of Ray Data at its tasks.

A pipeline whose next block nobody has asked for yet leaves Ray Data 2.60 nothing to wait for: it looks again at once,
and again, which takes a CPU from whoever shares the machine, and Python's global lock from whoever shares the process
(a training loop runs at 45% of its speed).
"""

import time

from ray.data._internal.execution.execution_callback import ExecutionCallback

PAUSE_SECONDS = 0.05
"""Short beside a task, long beside a look."""


class Rest(ExecutionCallback):
    """Sleeps after each round of the scheduling loop, which runs in a thread of its own."""

    def on_execution_step(self, executor: object) -> None:  # noqa: ARG002
        """Between two rounds."""
        time.sleep(PAUSE_SECONDS)
