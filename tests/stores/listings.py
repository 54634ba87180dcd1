"""Stores whose listings are older, smaller, later or in another order than those of AWS."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from urllib.parse import unquote_plus, urlencode
from xml.sax.saxutils import unescape

from tests.stores.imitated import Forward, Quirk
from tests.stores.messages import Answer, Request

LAST_MODIFIED = re.compile(rb"(<LastModified>)([^<]*)(</LastModified>)")
_CONTENTS = re.compile(rb"<Contents>.*?</Contents>", re.DOTALL)
_KEY = re.compile(rb"<Key>([^<]*)</Key>")
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
    """Has no ListObjectsV2: ignores its parameters and answers as ListObjects does, without a continuation token."""
    if request.operation == "ListObjectsV2":
        unknown = ("list-type", "continuation-token", "start-after", "fetch-owner")
        known = {name: value for name, value in request.parameters.items() if name not in unknown}
        request.query = urlencode(known)
    return forward(request)


def unordered(request: Request, forward: Forward) -> Answer:
    """Lists the keys of each page in reverse, as a store may that promises no order (S3 Express One Zone)."""
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
