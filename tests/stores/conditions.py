"""Stores without conditional requests, or with others than AWS has. Sources are issues on GitHub."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from urllib3 import HTTPHeaderDict

from tests.stores.imitated import Forward, Quirk
from tests.stores.messages import Answer, Request, error


def ignores(header: str) -> Quirk:
    """Behaves as if the header were not there, e.g. If-None-Match.

    Sources: seaweedfs/seaweedfs#7153 (until 3.96), pithings/mountx#19, versity/versitygw#1708, lxc/incus#3651.
    """

    def quirk(request: Request, forward: Forward) -> Answer:
        request.headers.discard(header)
        return forward(request)

    return quirk


def refuses(header: str, status: int, code: str, message: str = "A header is not supported.") -> Quirk:
    """Answers a request that has the header with an error.

    Sources for If-None-Match: 501 NotImplemented "Conditional object PUTs are not supported." by OVHcloud
    (ovh/public-cloud-roadmap#671), 501 by Backblaze B2 (hashicorp/terraform#37143), and 400 with the same code by
    Alibaba's OSS (ZhuJHua/moodiary#305).
    """

    def quirk(request: Request, forward: Forward) -> Answer:
        if header not in request.headers:
            return forward(request)
        return error(request, status, code, message, Header=header)

    return quirk


def races(seconds: float = 0.1) -> Quirk:
    """Looks whether the object exists, and writes it so much later: of writers at once, all are told 200.

    One after another, the second gets 412. Source: seaweedfs/seaweedfs#8800 (3.97 to 4.16).
    """

    def quirk(request: Request, forward: Forward) -> Answer:
        if "If-None-Match" not in request.headers or request.operation != "PutObject":
            return forward(request)
        if _exists(request, forward):
            return _precondition_failed(request)
        time.sleep(seconds)
        request.headers.discard("If-None-Match")
        return forward(request)

    return quirk


def not_modified(request: Request, forward: Forward) -> Answer:
    """Answers 304 without a body to a conditional put that loses, as MinIO did before 2024-04.

    Source: minio/minio#19442.
    """
    answer = forward(request)
    return Answer(304) if request.method == "PUT" and answer.status == 412 else answer


def inverted(request: Request, forward: Forward) -> Answer:
    """Refuses a conditional put of a new object, and overwrites one that exists.

    Source: ceph/ceph#69991 (the posix backend of RGW).
    """
    if request.method != "PUT" or "If-None-Match" not in request.headers:
        return forward(request)
    if not _exists(request, forward):
        return _precondition_failed(request)
    request.headers.discard("If-None-Match")
    return forward(request)


def conflict(request: Request, forward: Forward) -> Answer:
    """Answers 409 to a conditional put, as if another were in flight. AWS documents it; `first` makes it end."""
    if request.method != "PUT" or "If-None-Match" not in request.headers:
        return forward(request)
    message = "The conditional request cannot succeed due to a conflicting operation against this resource."
    return error(request, 409, "ConditionalRequestConflict", message)


def deleted_names_stay_taken() -> Quirk:
    """Answers 412 to a conditional put of a name that was deleted, although reading it gives 404.

    Source: rustfs/rustfs#1610 (a versioned bucket, whose delete marker counts as an object).
    """
    deleted: set[str] = set()

    def quirk(request: Request, forward: Forward) -> Answer:
        if request.operation == "DeleteObject":
            deleted.add(request.name)
        if request.method == "PUT" and "If-None-Match" in request.headers and request.name in deleted:
            return _precondition_failed(request)
        return forward(request)

    return quirk


def never_matches(request: Request, forward: Forward) -> Answer:
    """Answers 412 to If-Match with the very ETag that HEAD returned.

    Source: seaweedfs/seaweedfs#7274 (3.97, which compares with the ETag of another upload).
    """
    return _precondition_failed(request) if "If-Match" in request.headers else forward(request)


def missing_does_not_match(request: Request, forward: Forward) -> Answer:
    """Answers 412 instead of 404 to If-Match of an object that does not exist.

    Source: apache/opendal#8178 (SeaweedFS until 4.44).
    """
    answer = forward(request)
    return _precondition_failed(request) if "If-Match" in request.headers and answer.status == 404 else answer


def no_tags(request: Request, forward: Forward) -> Answer:
    """Returns no ETag to readers. Sources: drivendataorg/cloudpathlib#582, Alluxio/alluxio#12212."""
    answer = forward(request)
    if request.operation in ("GetObject", "HeadObject"):
        answer.headers.discard("ETag")
    return answer


def absent_at_first(seconds: float) -> Quirk:
    """Answers 404 to readers of an object for so long after its first write.

    Source: cloudflare/cloudflare-docs#32793 (R2; the question is open).
    """
    written: dict[str, float] = {}

    def quirk(request: Request, forward: Forward) -> Answer:
        since_write = time.monotonic() - written.get(request.name, -math.inf)
        if request.method in ("GET", "HEAD") and since_write < seconds:
            return error(request, 404, "NoSuchKey", "The specified key does not exist.")
        answer = forward(request)
        if request.operation in ("PutObject", "CompleteMultipartUpload") and answer.status == 200:
            written.setdefault(request.name, time.monotonic())
        return answer

    return quirk


def one_write_a_second(interval_seconds: float = 1.0) -> Quirk:
    """Answers 429 to a second write of a key within a second, as Cloudflare's R2 documents.

    Source: superdesigndev/treg#456 (6,236 of 242,000 writes).
    """
    written: dict[str, float] = {}
    lock = threading.Lock()

    def quirk(request: Request, forward: Forward) -> Answer:
        if request.operation != "PutObject":
            return forward(request)
        with lock:
            now = time.monotonic()
            too_soon = request.name in written and now - written[request.name] < interval_seconds
            if not too_soon:
                written[request.name] = now
        if too_soon:
            message = "Reduce your concurrent request rate for the same object."
            return error(request, 429, "TooManyRequests", message)
        return forward(request)

    return quirk


def weak_tags(request: Request, forward: Forward) -> Answer:
    """Marks every ETag as weak (W/), as proxies that compress do, and answers 412 to If-Match with a weak tag.

    RFC 9110, 13.1.1: If-Match compares strongly, and a weak tag is never equal in a strong comparison.
    """
    if request.headers.get("If-Match", "").startswith("W/"):
        return _precondition_failed(request)
    _replace(request.headers, "If-None-Match", lambda tag: tag.removeprefix("W/"))
    request.body = request.body.replace(b"<ETag>W/", b"<ETag>") if request.method == "POST" else request.body
    answer = forward(request)
    _replace(answer.headers, "ETag", lambda tag: f"W/{tag}")
    if request.operation not in ("GetObject", "PutObject"):
        answer.body = answer.body.replace(b"<ETag>", b"<ETag>W/")
    return answer


def _replace(headers: HTTPHeaderDict, name: str, change: Callable[[str], str]) -> None:
    if name in headers:
        headers[name] = change(headers[name])


def _precondition_failed(request: Request) -> Answer:
    message = "At least one of the pre-conditions you specified did not hold"
    return error(request, 412, "PreconditionFailed", message)


def _exists(request: Request, forward: Forward) -> bool:
    return forward(request.by_same_user("HEAD", request.path)).status == 200
