"""Tell answers of S3 from those of something else, such as a login page, a gateway or a server that redirects.

botocore takes a 200 with an empty body or with any well-formed page for success: an empty listing, a version that does
not exist. It follows a redirect that names no region until Python's stack ends. So each answer is looked at before
botocore parses it, and one that is not S3's becomes an error of S3, which botocore retries and reports as any other.
"""

from __future__ import annotations

import re
from typing import Any, Final
from xml.sax.saxutils import escape

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
_START = re.compile(rb"\s*(?:<\?[^>]{0,200}>\s*)?<(?:[\w.-]{1,30}:)?(\w{1,50})")
_REDIRECTS = (301, 302, 303, 307)


def check_answer(operation_model: Any, response_dict: dict[str, Any], **_: Any) -> None:
    """Turn an answer that is not S3's into an error. A handler of botocore's event before-parse."""
    status, headers, body = response_dict["status_code"], response_dict["headers"], response_dict["body"]
    content = body if isinstance(body, bytes) else b""
    if status in _REDIRECTS and "x-amz-bucket-region" not in headers and b"<Error" not in content:
        _replace(response_dict, 308, REDIRECTED, f"{status} to {headers.get('location', 'nowhere')}")
    elif status in (200, 204) and not _is_answer(operation_model.name, headers, content):
        kind = headers.get("content-type", "no type")
        _replace(response_dict, 503, NOT_S3, f"{status} with {len(content)} bytes of {kind}")


def _is_answer(operation: str, headers: Any, content: bytes) -> bool:
    if operation in _TAGGED:
        return "etag" in headers
    root = _ROOTS.get(operation)
    if root is None:
        return operation != "GetObject" or "etag" in headers or "last-modified" in headers
    start = _START.match(content)
    # An error with the status 200 is botocore's to handle
    return start is not None and start[1] in (root, b"Error")


def _replace(response_dict: dict[str, Any], status: int, code: str, message: str) -> None:
    error = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    response_dict.update(status_code=status, body=error.encode())
