"""Stores that delete objects one by one, or not at all."""

from __future__ import annotations

import re

from urllib3 import HTTPHeaderDict

from tests.stores.imitated import Forward
from tests.stores.messages import Answer, Request, error

_KEY = re.compile(rb"<Key>[^<]*</Key>")


def missing_content_md5(request: Request, forward: Forward) -> Answer:
    """Answers 400 to DeleteObjects without Content-MD5, as MinIO did before 2025-01-20. boto3 no longer sends it."""
    if request.operation != "DeleteObjects" or "Content-MD5" in request.headers:
        return forward(request)
    return error(request, 400, "MissingContentMD5", "Missing required header for this request: Content-Md5.")


def no_delete_of_many(request: Request, forward: Forward) -> Answer:
    """Has no DeleteObjects, as the S3 interface of Google Cloud Storage had not."""
    if request.operation != "DeleteObjects":
        return forward(request)
    return error(request, 501, "NotImplemented", "A header you provided implies functionality that is not implemented.")


def delete_of_many_denied(request: Request, forward: Forward) -> Answer:
    """Answers 200 to DeleteObjects, with AccessDenied for each key in the body. Nothing is deleted."""
    if request.operation != "DeleteObjects":
        return forward(request)
    keys = _KEY.findall(request.body)
    errors = b"".join(
        b"<Error>" + key + b"<Code>AccessDenied</Code><Message>Access Denied</Message></Error>" for key in keys
    )
    body = b'<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">' + errors + b"</DeleteResult>"
    return Answer(200, HTTPHeaderDict({"Content-Type": "application/xml"}), body)
