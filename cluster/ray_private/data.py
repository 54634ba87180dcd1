"""Private parts of Ray Data: the callback after each scheduling round, and the logger of the progress bars."""

from ray.data._internal.execution.execution_callback import ExecutionCallback

PROGRESS_LOGGER = "ray.data._internal.progress"

__all__ = ["PROGRESS_LOGGER", "ExecutionCallback"]
