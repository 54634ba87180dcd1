import pytest
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import WorkerGroupError

from cluster.ray_private.train import FailureDecision, UserExceptionWithTraceback
from cluster.stores.errors import (
    AccessDeniedError,
    DamagedError,
    StorageFullError,
    ThrottledError,
    UnreachableError,
)
from pipeline.train.workers.worker_group import _NoRetryOfUserErrors, _user_error


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


@pytest.mark.parametrize(
    ("error", "decision"),
    [
        (AccessDeniedError("s3://b/x: access denied"), FailureDecision.RAISE),
        (DamagedError("s3://b/x is damaged"), FailureDecision.RAISE),
        (UnreachableError("s3://b/x: the server cannot be reached"), FailureDecision.RETRY),
        (ThrottledError("s3://b/x: the storage asks to slow down"), FailureDecision.RETRY),
    ],
)
def test_only_errors_of_storage_that_may_pass_are_retried(error: Exception, decision: FailureDecision) -> None:
    policy = _NoRetryOfUserErrors(FailureConfig(max_failures=2))
    failure = WorkerGroupError("a worker failed", {0: UserExceptionWithTraceback(error, "")})
    assert policy.make_decision(failure) is decision


@pytest.mark.parametrize("error", [RuntimeError("a fault"), LibraryError("a library's")])
def test_other_failures_are_not_user_errors(error: Exception) -> None:
    assert _user_error(WorkerGroupError("failed", {0: UserExceptionWithTraceback(error, "")})) is None
