"""Private parts of Ray Data: the callback between two rounds of its scheduler, and the logger of its progress bars."""

from ray.data._internal.execution.execution_callback import ExecutionCallback

PROGRESS_LOGGER = "ray.data._internal.progress"

__all__ = ["PROGRESS_LOGGER", "ExecutionCallback"]
