"""Stores whose listings are older, smaller, later or in another order than those of AWS.

Sources are issues on GitHub.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from urllib.parse import unquote_plus, urlencode
from xml.sax.saxutils import unescape

from tests.stores.imitated import Forward, Quirk
from tests.stores.messages import Answer, Request, error

LAST_MODIFIED = re.compile(rb"(<LastModified>)([^<]*)(</LastModified>)")
_CONTENTS = re.compile(rb"<Contents>.*?</Contents>", re.DOTALL)
_KEY = re.compile(rb"<Key>([^<]*)</Key>")
_TOKEN = re.compile(rb"<NextContinuationToken>[^<]*</NextContinuationToken>")
_NOT_TRUNCATED = b"<IsTruncated>false</IsTruncated>"
_EXTRA_TOKEN = "extra"
_KEY_COUNT = re.compile(rb"<KeyCount>[^<]*</KeyCount>")


def small_pages(max_keys: int) -> Quirk:
    """Lists at most so many keys per page, whatever the client asks for."""

    def quirk(request: Request, forward: Forward) -> Answer:
        if request.operation.startswith("List"):
            parameter = "max-uploads" if request.operation == "ListMultipartUploads" else "max-keys"
            asked = int(request.parameters.get(parameter, max_keys))
            request.query = urlencode({**request.parameters, parameter: min(asked, max_keys)})
        return forward(request)

    return quirk


def only_first_version(request: Request, forward: Forward) -> Answer:
    """Has no ListObjectsV2: ignores its parameters and answers as ListObjects does, without a continuation token.

    Source: Corymbia/eucalyptus#116 (until 2018-11).
    """
    if request.operation == "ListObjectsV2":
        unknown = ("list-type", "continuation-token", "start-after", "fetch-owner")
        known = {name: value for name, value in request.parameters.items() if name not in unknown}
        request.query = urlencode(known)
    return forward(request)


def unordered(request: Request, forward: Forward) -> Answer:
    """Lists the keys of each page in reverse, and refuses to start after a key, since it has no order.

    Sources: lance-format/lance#3771 (S3 Express One Zone), storj/roadmap#62.
    """
    if request.operation == "ListObjectsV2" and "start-after" in request.parameters:
        return error(request, 501, "NotImplemented", "This bucket does not support StartAfter.")
    return _with_contents(request, forward, lambda contents: contents[::-1])


def stale(seconds: float) -> Quirk:
    """Lists a key only so long after it was written."""
    written: dict[str, float] = {}

    def quirk(request: Request, forward: Forward) -> Answer:
        if request.operation in ("PutObject", "CompleteMultipartUpload"):
            answer = forward(request)
            if answer.status == 200:
                written.setdefault(request.name, time.monotonic())
            return answer
        bucket = request.name.strip("/")

        def old_enough(contents: Sequence[bytes]) -> list[bytes]:
            since = time.monotonic() - seconds
            return [entry for entry in contents if written.get(f"/{bucket}/{key_of(entry)}", since) <= since]

        return _with_contents(request, forward, old_enough)

    return quirk


def no_token(request: Request, forward: Forward) -> Answer:
    """Says that the listing goes on, and gives no token to go on with. It knows start-after.

    Sources: minio/minio-go#1704 (Huawei's OBS), findify/s3mock#144.
    """
    answer = forward(request)
    if request.operation == "ListObjectsV2":
        answer.body = _TOKEN.sub(b"", answer.body)
    return answer


def extra_page(request: Request, forward: Forward) -> Answer:
    """Says after the last page that the listing goes on; the next page is empty. Source: versity/versitygw#770."""
    if request.parameters.get("continuation-token") == _EXTRA_TOKEN:
        request.query = urlencode({"list-type": "2", "prefix": request.parameters.get("prefix", ""), "max-keys": "0"})
        return forward(request)
    answer = forward(request)
    if request.operation == "ListObjectsV2" and _NOT_TRUNCATED in answer.body and b"<Contents>" in answer.body:
        token = f"<NextContinuationToken>{_EXTRA_TOKEN}</NextContinuationToken>".encode()
        answer.body = answer.body.replace(_NOT_TRUNCATED, b"<IsTruncated>true</IsTruncated>" + token)
    return answer


def raw_keys(request: Request, forward: Forward) -> Answer:
    """Ignores encoding-type=url, and lists keys as they are. Source: versity/versitygw#813."""
    if request.operation.startswith("List"):
        known = {name: value for name, value in request.parameters.items() if name != "encoding-type"}
        request.query = urlencode(known)
    return forward(request)


def key_of(entry: bytes) -> str:
    """The key of an entry of a listing that was asked for with encoding-type=url, as boto3 does."""
    found = _KEY.search(entry)
    assert found is not None
    return unquote_plus(unescape(found[1].decode()))


def _with_contents(request: Request, forward: Forward, change: Callable[[Sequence[bytes]], Sequence[bytes]]) -> Answer:
    answer = forward(request)
    contents = _CONTENTS.findall(answer.body) if request.operation.startswith("ListObjects") else []
    if contents:
        head, tail = answer.body.split(contents[0], 1)[0], answer.body.rsplit(contents[-1], 1)[1]
        changed = change(contents)
        count = b"<KeyCount>%d</KeyCount>" % len(changed)
        answer.body = _KEY_COUNT.sub(count, head) + b"".join(changed) + _KEY_COUNT.sub(count, tail)
    return answer
