"""Tell answers of S3 from those of something else, such as a login page, a gateway or a server that redirects.

botocore takes a 200 with an empty body or with any well-formed page for success: an empty listing, a version that does
not exist. It follows a redirect that names no region until Python's stack ends. So each answer is looked at before
botocore parses it, and one that is not S3's becomes an error of S3, which botocore retries and reports as any other.
"""

from __future__ import annotations

import re
from typing import Any, Final
from xml.sax.saxutils import escape

from botocore import handlers

NOT_S3: Final = "NotAnAnswerOfS3"
REDIRECTED: Final = "RedirectedElsewhere"
"""Codes of the errors that are made here."""

_ROOTS = {
    "ListObjectsV2": b"ListBucketResult",
    "ListObjects": b"ListBucketResult",
    "ListMultipartUploads": b"ListMultipartUploadsResult",
    "CreateMultipartUpload": b"InitiateMultipartUploadResult",
    "CompleteMultipartUpload": b"CompleteMultipartUploadResult",
    "DeleteObjects": b"DeleteResult",
}
"""The root element of an operation's answer."""
_TAGGED = ("PutObject", "UploadPart")
"""Operations whose answer has an ETag and no body."""
_DATED = ("GetObject", "HeadObject")
"""Operations whose answer has an ETag or a date."""
_START = re.compile(rb"\s*(?:<\?[^>]{0,200}>\s*)?<(?:[\w.-]{1,30}:)?(\w{1,50})")
_REDIRECTS = (301, 302, 303, 307)


def watch_answers(events: Any) -> None:
    """Look at every answer to a client before botocore parses it.

    This replaces the handler of botocore that makes a 500 of every 200 whose body is not what S3 answers, because a
    page of a gateway would then be called a failure of the storage.
    """
    events.unregister("before-parse.s3.*", handlers._handle_200_error)  # type: ignore[attr-defined]  # not in its stubs
    events.register("before-parse.s3", _check_answer)


def _check_answer(operation_model: Any, response_dict: dict[str, Any], **_: Any) -> None:
    """Turn an answer that is not S3's into an error, and one with the status 200 that is an error into a failure."""
    status, headers, body = response_dict["status_code"], response_dict["headers"], response_dict["body"]
    content = body if isinstance(body, bytes) else b""
    if status in _REDIRECTS and "x-amz-bucket-region" not in headers and b"<Error" not in content:
        _replace(response_dict, 308, REDIRECTED, f"{status} to {headers.get('location', 'nowhere')}")
    elif status == 200 and _root_of(content) == b"Error":
        response_dict["status_code"] = 500  # retried: S3 begins some answers before it knows whether it will succeed
    elif status in (200, 204) and not _is_answer(operation_model.name, headers, content):
        kind = headers.get("content-type", "no type")
        _replace(response_dict, 503, NOT_S3, f"{status} with {len(content)} bytes of {kind}")


def _is_answer(operation: str, headers: Any, content: bytes) -> bool:
    if operation in _TAGGED:
        return "etag" in headers
    root = _ROOTS.get(operation)
    if root is None:
        return operation not in _DATED or "etag" in headers or "last-modified" in headers
    return _root_of(content) == root


def _root_of(content: bytes) -> bytes:
    """The name of the root element of an XML document; empty if there is none."""
    start = _START.match(content)
    return start[1] if start else b""


def _replace(response_dict: dict[str, Any], status: int, code: str, message: str) -> None:
    error = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    response_dict.update(status_code=status, body=error.encode())
