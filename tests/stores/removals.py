"""Stores that delete objects one by one, or not at all. Sources are issues on GitHub."""

from __future__ import annotations

import re
from urllib.parse import quote
from xml.sax.saxutils import unescape

from urllib3 import HTTPHeaderDict

from tests.stores.imitated import Forward, Quirk
from tests.stores.messages import Answer, Request, error

_KEY = re.compile(rb"<Key>([^<]*)</Key>")


def refuses_without_md5(code: str, message: str) -> Quirk:
    """Answers 400 to DeleteObjects without Content-MD5, which boto3 no longer sends."""

    def quirk(request: Request, forward: Forward) -> Answer:
        if request.operation != "DeleteObjects" or "Content-MD5" in request.headers:
            return forward(request)
        return error(request, 400, code, message)

    return quirk


missing_content_md5 = refuses_without_md5("MissingContentMD5", "Missing required header for this request: Content-Md5.")
"""MinIO before 2025-01-20. Sources: CERT-Polska/karton#269, minio/minio#20855."""

invalid_without_md5 = refuses_without_md5("InvalidRequest", "DeleteObjects requires one valid Content-MD5 header")
"""Sources: flyology-ada/flyology-object-storage#20, cubefs/cubefs#4062."""


def refuses_delete_of_many(status: int, code: str, message: str) -> Quirk:
    """Has no DeleteObjects, with or without Content-MD5."""

    def quirk(request: Request, forward: Forward) -> Answer:
        return error(request, status, code, message) if request.operation == "DeleteObjects" else forward(request)

    return quirk


no_delete_of_many = refuses_delete_of_many(
    501, "NotImplemented", "A header or query you provided requested a function that is not implemented."
)
"""The S3 interface of Google Cloud Storage. Sources: minio/mc#4778, supabase/storage#898."""

invalid_delete_of_many = refuses_delete_of_many(400, "InvalidArgument", "Invalid argument.")
"""The same interface at another time. Source: boto/boto3#2293."""

delete_of_many_not_allowed = refuses_delete_of_many(
    405, "MethodNotAllowed", "The specified method is not allowed against this resource."
)
"""Riak CS, MEGA S4. Sources: basho/riak_cs#549, meganz/s4-specs#5."""


def delete_of_many_denied(request: Request, forward: Forward) -> Answer:
    """Answers 200 to DeleteObjects, with AccessDenied for each key in the body. Nothing is deleted."""
    if request.operation != "DeleteObjects":
        return forward(request)
    return _denied(_KEY.findall(request.body))


def first_key_locked(request: Request, forward: Forward) -> Answer:
    """Answers 200 to DeleteObjects, deletes all but the first key, and says AccessDenied for that one.

    Source: versity/versitygw#1567 (object lock).
    """
    if request.operation != "DeleteObjects":
        return forward(request)
    locked, *others = _KEY.findall(request.body)
    for key in others:
        path = f"{request.path.rstrip('/')}/{quote(unescape(key.decode()))}"
        forward(request.by_same_user("DELETE", path))
    return _denied([locked])


def _denied(keys: list[bytes]) -> Answer:
    errors = b"".join(
        b"<Error><Key>" + key + b"</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        for key in keys
    )
    body = b'<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">' + errors + b"</DeleteResult>"
    return Answer(200, HTTPHeaderDict({"Content-Type": "application/xml"}), body)
