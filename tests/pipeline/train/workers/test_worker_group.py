import pytest
from ray.train.v2.api.exceptions import WorkerGroupError

from cluster.ray_private.train import UserExceptionWithTraceback
from cluster.stores.errors import StorageFullError
from pipeline.train.workers.worker_group import _user_error


class LibraryError(ValueError):
    """A library's subclass of ValueError, like pyarrow's ArrowInvalid."""


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, FloatingPointError, PermissionError, StorageFullError])
def test_a_user_error_is_found_among_the_failures_of_the_workers(kind: type[Exception]) -> None:
    cause = kind("the user's")
    failures: dict[int, Exception] = {
        0: UserExceptionWithTraceback(RuntimeError("connection closed by peer"), ""),
        1: UserExceptionWithTraceback(cause, ""),
    }
    assert _user_error(WorkerGroupError("two workers failed", failures)) is cause


@pytest.mark.parametrize("error", [RuntimeError("a fault"), LibraryError("a library's")])
def test_other_failures_are_not_user_errors(error: Exception) -> None:
    assert _user_error(WorkerGroupError("failed", {0: UserExceptionWithTraceback(error, "")})) is None
