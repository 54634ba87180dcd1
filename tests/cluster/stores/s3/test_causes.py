"""The cause of a failed request: one line that names the object, the server's answer and what to do."""

import botocore.exceptions as boto
import pytest
from botocore.exceptions import ClientError

from cluster.stores.errors import (
    AccessDeniedError,
    CertificateError,
    ClockError,
    CredentialsError,
    NoSuchBucketError,
    StorageError,
    StorageFullError,
    ThrottledError,
    UnreachableError,
    UnsupportedError,
)
from cluster.stores.s3.causes import _BY_CODE, MAX_MESSAGE, configuration_error, storage_error

URI = "s3://bucket/a key"


def answer(status: int, code: str, message: str = "of the server") -> ClientError:
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "PutObject")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "AccessDenied", AccessDeniedError),
        (403, "403", AccessDeniedError),
        (400, "ExpiredToken", CredentialsError),
        (403, "RequestTimeTooSkewed", ClockError),
        (404, "NoSuchBucket", NoSuchBucketError),
        (404, "NoSuchKey", FileNotFoundError),
        (404, "404", FileNotFoundError),
        (403, "QuotaExceeded", StorageFullError),
        (507, "", StorageFullError),
        (503, "", ThrottledError),
        (522, "", ThrottledError),
        (501, "", UnsupportedError),
        (418, "Teapot", StorageError),
        (0, "", StorageError),
    ],
)
def test_an_answer(status: int, code: str, kind: type[Exception]) -> None:
    error = storage_error(answer(status, code), URI)
    assert type(error) is kind
    assert URI in str(error)


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (
            boto.SSLError(endpoint_url="https://s", error=Exception("unable to get local issuer certificate")),
            CertificateError,
        ),
        (boto.SSLError(endpoint_url="https://s", error=Exception("[SSL: WRONG_VERSION_NUMBER]")), UnreachableError),
        (boto.EndpointConnectionError(endpoint_url="http://s"), UnreachableError),
        (boto.ConnectTimeoutError(endpoint_url="http://s"), UnreachableError),
        (boto.ReadTimeoutError(endpoint_url="http://s"), UnreachableError),
        (boto.ProxyConnectionError(proxy_url="http://p"), UnreachableError),
        (boto.NoCredentialsError(), CredentialsError),
        (boto.UnauthorizedSSOTokenError(), CredentialsError),
        (boto.ProfileNotFound(profile="x"), StorageError),
    ],
)
def test_a_failure_without_an_answer(failure: Exception, kind: type[Exception]) -> None:
    error = storage_error(failure, URI)
    assert type(error) is kind
    assert str(error).startswith(f"{URI}: ")


@pytest.mark.parametrize("code", sorted(_BY_CODE))
def test_every_known_code_has_one_line_with_the_answer_and_advice(code: str) -> None:
    error = storage_error(answer(400, code, "the server's\nwords " * 200), URI)
    assert isinstance(error, StorageError)
    assert type(error) is not StorageError
    text = str(error)
    assert "\n" not in text
    assert f"({code} to PutObject: the server's words" in text
    assert text.rpartition("); ")[2], "it ends with what to do"
    assert len(text) < MAX_MESSAGE + 400


def test_an_impossible_name_is_the_users() -> None:
    error = storage_error(boto.ParamValidationError(report="Invalid bucket name 'a b'"), "s3://a b/c")
    assert type(error) is ValueError
    assert "'s3://a b/c' is not an S3 URI" in str(error)


def test_a_missing_file_of_credentials_is_not_a_missing_object() -> None:
    error = configuration_error(FileNotFoundError(2, "No such file or directory", "/no/token"), URI)
    assert type(error) is CredentialsError
    assert "/no/token" in str(error)
