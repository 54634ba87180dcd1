"""Stores without conditional requests, or with others than AWS has."""

from __future__ import annotations

from collections.abc import Callable

from urllib3 import HTTPHeaderDict

from tests.stores.imitated import Forward, Quirk
from tests.stores.messages import Answer, Request, error


def ignores(header: str) -> Quirk:
    """Behaves as if the header were not there, e.g. If-None-Match."""

    def quirk(request: Request, forward: Forward) -> Answer:
        request.headers.discard(header)
        return forward(request)

    return quirk


def refuses(header: str, status: int, code: str, message: str = "A header is not supported.") -> Quirk:
    """Answers a request that has the header with an error.

    The usual ones are 501 NotImplemented ("A header you provided implies functionality that is not implemented.") and
    400 InvalidArgument.
    """

    def quirk(request: Request, forward: Forward) -> Answer:
        if header not in request.headers:
            return forward(request)
        return error(request, status, code, message, Header=header)

    return quirk


def weak_tags(request: Request, forward: Forward) -> Answer:
    """Marks every ETag as weak (W/), as proxies that compress do, and answers 412 to If-Match with a weak tag.

    RFC 9110, 13.1.1: If-Match compares strongly, and a weak tag is never equal in a strong comparison.
    """
    if request.headers.get("If-Match", "").startswith("W/"):
        return error(request, 412, "PreconditionFailed", "At least one of the preconditions did not hold.")
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
