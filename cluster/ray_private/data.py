"""Private parts of Ray Data: callbacks of executions, the release of failed executions, the logger of progress bars."""

from __future__ import annotations

from typing import Any

from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.streaming_executor import StreamingExecutor

PROGRESS_LOGGER = "ray.data._internal.progress"

__all__ = ["PROGRESS_LOGGER", "ExecutionCallback", "KillOnError"]


class KillOnError(ExecutionCallback):
    """Kill the actors of an execution that fails.

    Ray Data 2.60 drops its references to them instead, and the frames of the error's traceback hold others. The actors
    would keep their CPUs until the error is garbage, so whatever runs next could wait for ever.
    """

    def before_execution_starts(self, executor: Any) -> None:
        """Change how the executor shuts down after an error."""
        executor.__class__ = _KillingExecutor


class _KillingExecutor(StreamingExecutor):
    def shutdown(self, force: bool, exception: Exception | None = None) -> None:
        super().shutdown(force or exception is not None, exception)
