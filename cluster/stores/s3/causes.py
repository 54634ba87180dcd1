"""The cause of a failed S3 request, read from the server's answer or from the failure of the connection.

Stores of different makes name the same cause differently. An answer that no table knows is passed on as it is.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import botocore.exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

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
from cluster.stores.s3.answers import NOT_S3, REDIRECTED


class Cause(NamedTuple):
    """A cause, what happened, and what to do."""

    kind: type[StorageError]
    problem: str
    advice: str


_DENIED = Cause(
    AccessDeniedError, "access denied", "give the credentials this permission, on this prefix and its encryption key"
)
_ARCHIVED = Cause(AccessDeniedError, "the object is archived", "restore it from its storage class, then run again")
_CREDENTIALS = Cause(
    CredentialsError, "the credentials are not accepted", "renew or correct them (see `aws sts get-caller-identity`)"
)
_EXPIRED = Cause(CredentialsError, "the credentials have expired", "renew them, then run the same command again")
_NO_CREDENTIALS = Cause(
    CredentialsError, "no usable credentials", "set AWS_PROFILE or AWS_ACCESS_KEY_ID, or log in (`aws sso login`)"
)
_CLOCK = Cause(ClockError, "this machine's clock differs too much from the server's", "set the clock (NTP)")
_BUCKET = Cause(NoSuchBucketError, "the bucket does not exist", "create it, or correct its name or AWS_ENDPOINT_URL")
_REGION = Cause(NoSuchBucketError, "the bucket is in another region", "set AWS_REGION to its region")
_THROTTLED = Cause(
    ThrottledError, "the storage asks to slow down, in every attempt", "run the same command again later"
)
_SERVER = Cause(ThrottledError, "the storage failed on its side, in every attempt", "run the same command again later")
_FULL = Cause(
    StorageFullError, "the storage or its quota is full", "free space, then run the same command; complete work is kept"
)
_PATH_STYLE = Cause(
    UnsupportedError,
    "the storage wants the bucket in the host name",
    "set `addressing_style = virtual` in the profile's `s3 =` section of ~/.aws/config",
)
_UNSUPPORTED = Cause(
    UnsupportedError, "the storage does not have this operation", "docs/storage.md lists what is needed of a store"
)
_OTHER = Cause(StorageError, "the storage refused the request", "see its answer")

_CERTIFICATE = Cause(
    CertificateError,
    "the server's certificate cannot be verified",
    "set AWS_CA_BUNDLE to the file of its certificate authority, or ca_bundle in ~/.aws/config",
)
_PROXY = Cause(
    UnreachableError,
    "the proxy cannot be reached",
    "correct HTTP_PROXY and HTTPS_PROXY, or name the server in NO_PROXY",
)
_SILENT = Cause(UnreachableError, "the server is silent, in every attempt", "check it, then run the same command again")
_UNREACHABLE = Cause(
    UnreachableError, "the server cannot be reached", "check the network, HTTP_PROXY and AWS_ENDPOINT_URL"
)
_NOT_S3 = Cause(UnreachableError, "the answer is not one of S3", "correct AWS_ENDPOINT_URL, or the proxy in between")
_REDIRECTED = Cause(UnreachableError, "the server redirects elsewhere", "set AWS_ENDPOINT_URL to where it redirects")
_PLAIN = Cause(UnreachableError, "the server does not speak https", "correct https:// in AWS_ENDPOINT_URL to http://")
_NO_BUNDLE = Cause(
    CertificateError, "the file of certificates does not exist", "correct AWS_CA_BUNDLE, or ca_bundle in ~/.aws/config"
)
_TOO_LARGE = Cause(
    UnsupportedError,
    "a proxy before the storage refuses requests of this size",
    "raise its limit to 33 MiB (client_max_body_size of nginx)",
)
_PROXY_LOGIN = Cause(
    UnreachableError, "the proxy wants a login", "write it into HTTPS_PROXY as http://user:password@host:port"
)
_CONFIGURATION = Cause(
    StorageError, "the configuration of S3 cannot be used", "correct the variables AWS_* or ~/.aws/config"
)

_CODES: tuple[tuple[Cause, tuple[str, ...]], ...] = (
    (
        _DENIED,
        (
            *("AccessDenied", "AccessDeniedException", "Forbidden", "AllAccessDisabled", "AccountProblem"),
            *("UnauthorizedAccess", "InvalidPayer", "MethodNotAllowed", "ObjectLocked"),
            *("KMS.DisabledException", "KMS.NotFoundException", "KMS.KMSInvalidStateException"),
        ),
    ),
    (_ARCHIVED, ("InvalidObjectState", "ObjectNotInActiveTierError")),
    (
        _CREDENTIALS,
        (
            *("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity", "InvalidToken", "AuthFailure"),
            *("InvalidClientTokenId", "UnrecognizedClientException", "NotSignedUp", "Unauthorized"),
            *("MissingSecurityHeader", "CredentialsNotSupported"),
        ),
    ),
    (_EXPIRED, ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired", "ExpiredRequest")),
    (_CLOCK, ("RequestTimeTooSkewed", "RequestInTheFuture")),
    (_BUCKET, ("NoSuchBucket", "InvalidBucketName")),
    (
        _REGION,
        (
            *("PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraintException"),
            *("AuthorizationHeaderMalformed", "IncorrectEndpoint"),
        ),
    ),
    (
        _THROTTLED,
        (
            *("SlowDown", "SlowDownRead", "SlowDownWrite", "TooManyRequests", "TooManyRequestsException"),
            *("Throttling", "ThrottlingException", "RequestThrottled", "RequestLimitExceeded"),
            *("BandwidthLimitExceeded", "OperationAborted", "ConditionalRequestConflict"),
        ),
    ),
    (
        _FULL,
        (
            *("QuotaExceeded", "StorageQuotaExceeded", "BucketQuotaExceeded", "ObjectQuotaExceeded"),
            *("XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage", "InsufficientCapacity"),
            *("CapacityExceeded", "StorageFull"),
        ),
    ),
    (
        _PATH_STYLE,
        (
            *("SecondLevelDomainForbidden", "PathStyleDomainForbidden"),
            *("VirtualHostDomainRequired", "PathStyleNotSupported"),
        ),
    ),
    (_NOT_S3, (NOT_S3,)),
    (_REDIRECTED, (REDIRECTED,)),
    (_UNSUPPORTED, ("NotImplemented", "XNotImplemented", "MissingContentMD5", "UnsupportedOperation")),
)
_BY_CODE = {code: cause for cause, codes in _CODES for code in codes}
_MISSING = ("NoSuchKey", "NoSuchUpload", "NoSuchVersion")
_BY_STATUS: dict[int, Cause] = {
    301: _REGION,
    302: _REDIRECTED,
    307: _REGION,
    308: _REDIRECTED,
    401: _CREDENTIALS,
    403: _DENIED,
    405: _DENIED,
    407: _PROXY_LOGIN,
    413: _TOO_LARGE,
    429: _THROTTLED,
    501: _UNSUPPORTED,
    503: _THROTTLED,
    507: _FULL,
}

_OF_TLS = (("WRONG_VERSION_NUMBER", _PLAIN), ("No such file", _NO_BUNDLE))
"""What the message of an SSLError contains that is not about a certificate."""
_BY_FAILURE: tuple[tuple[tuple[type[Exception], ...], Cause], ...] = (
    ((boto.ProxyConnectionError,), _PROXY),
    ((boto.ReadTimeoutError,), _SILENT),
    ((boto.ConnectionError, boto.HTTPClientError, HTTPError), _UNREACHABLE),
    ((ResponseParserError,), _NOT_S3),
    (
        (
            *(boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError, boto.SSOError),
            *(boto.LoginError, boto.TokenRetrievalError, boto.NoAuthTokenError, boto.MetadataRetrievalError),
        ),
        _NO_CREDENTIALS,
    ),
)
"""The first row that names a class of the failure counts."""

FAILURES = (ClientError, BotoCoreError, ResponseParserError, HTTPError)
"""Every error that boto3 raises for a request or for the body of a response."""


MAX_MESSAGE = 500
"""Characters of a server's message in an error."""
_BEGINNING = re.compile(
    r"^An error occurred \(([^)]{0,100})\) when calling the (\w{1,50}) operation(?: \([^)]{0,50}\))?: "
)


def storage_error(error: Exception, uri: str) -> OSError | ValueError:
    """The error of a failed request by its cause, in one line that names `uri`.

    Returns:
        FileNotFoundError for a missing object, ValueError for a URI that no store can have, else a StorageError.
    """
    if isinstance(error, boto.ParamValidationError):
        return ValueError(f"'{uri}' is not an S3 URI: {_one_line(error)}")
    if isinstance(error, ClientError):
        status, code = status_of(error), error.response.get("Error", {}).get("Code", "")
        if code in _MISSING or (status == 404 and code not in _BY_CODE):
            return FileNotFoundError(f"nothing at '{uri}'")
        cause = _cause_of_answer(status, code, error.response.get("Error", {}).get("Message", ""))
    elif isinstance(error, boto.SSLError):
        cause = next((cause for words, cause in _OF_TLS if words in str(error)), _CERTIFICATE)
    else:
        matching = (cause for kinds, cause in _BY_FAILURE if isinstance(error, kinds))
        cause = next(matching, _CONFIGURATION)
    return cause.kind(f"{uri}: {cause.problem} ({_one_line(error)}); {cause.advice}")


def configuration_error(error: Exception, uri: str) -> StorageError:
    """The error of a client that cannot be made or used, such as a profile or a file that does not exist.

    An error of the system is one of the files of credentials, and must not be taken for a missing object.
    """
    if isinstance(error, FAILURES):
        found = storage_error(error, uri)
        if isinstance(found, StorageError):
            return found
    cause = _NO_CREDENTIALS if isinstance(error, OSError) else _CONFIGURATION
    return cause.kind(f"{uri}: {cause.problem} ({_one_line(error)}); {cause.advice}")


def status_of(error: ClientError) -> int:
    """The HTTP status of an answer; 0 if it had none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _cause_of_answer(status: int, code: str, message: str) -> Cause:
    if code == "AuthorizationHeaderMalformed" and not re.search("region|scope", message):
        return _CREDENTIALS
    found = _BY_CODE.get(code) or _BY_STATUS.get(status)
    return found or (_SERVER if status >= 500 else _OTHER)


def _one_line(error: Exception) -> str:
    """The message of an error, without the words that every message of boto3 begins with."""
    return _BEGINNING.sub(r"\1 to \2: ", " ".join(str(error).split()))[:MAX_MESSAGE]
