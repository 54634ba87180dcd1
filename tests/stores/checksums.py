"""Stores without the checksums that AWS's clients send since January 2025, or without checksums at all."""

from __future__ import annotations

from tests.stores.imitated import Forward, Quirk
from tests.stores.messages import Answer, Request, error

_PREFIX = "x-amz-checksum-"
_ALGORITHM = "x-amz-sdk-checksum-algorithm"


def refuses_checksums(request: Request, forward: Forward) -> Answer:
    """Answers 501 to every request with a header about checksums, even one that only asks for them in the answer."""
    if not _headers(request):
        return forward(request)
    return error(request, 501, "NotImplemented", "A header you provided implies functionality that is not implemented.")


def refuses_checksum(algorithm: str) -> Quirk:
    """Answers 501 to every request with checksums of this algorithm, e.g. SHA256. Others are accepted."""

    def quirk(request: Request, forward: Forward) -> Answer:
        asked = [name.removeprefix(_PREFIX) for name in _headers(request)]
        asked += [request.headers[name].lower() for name in _headers(request) if name.endswith("-algorithm")]
        if algorithm.lower() not in asked:
            return forward(request)
        message = f"Checksum algorithm {algorithm} is not implemented."
        return error(request, 501, "NotImplemented", message)

    return quirk


def unsupported_header(request: Request, forward: Forward) -> Answer:
    """Answers 400 to the first header about checksums that it does not know, and names it, as Backblaze B2 did."""
    found = _headers(request)
    if not found:
        return forward(request)
    return error(request, 400, "InvalidArgument", f"Unsupported header '{found[0]}' received for this API call.")


def forgets_checksums(request: Request, forward: Forward) -> Answer:
    """Accepts checksums and returns none, as stores do that only keep an ETag."""
    answer = forward(request)
    for name in list(answer.headers):
        if name.lower().startswith(_PREFIX):
            answer.headers.discard(name)
    return answer


def _headers(request: Request) -> list[str]:
    """The headers about checksums, in lower case."""
    names = [name.lower() for name in request.headers]
    return [name for name in names if name.startswith(_PREFIX) or name in (_ALGORITHM, "x-amz-trailer")]


def stores_framing(request: Request, forward: Forward) -> Answer:
    """Stores the chunks and the trailer of aws-chunked bodies as content. boto3 sends such bodies only over TLS.

    Stores that do not know STREAMING-UNSIGNED-PAYLOAD-TRAILER take the body for the content.
    """
    if request.headers.get("Content-Encoding", "").startswith("aws-chunked"):
        for name in (
            "Content-Encoding",
            "x-amz-decoded-content-length",
            "x-amz-trailer",
            "x-amz-content-sha256",
            _ALGORITHM,
        ):
            request.headers.discard(name)
    return forward(request)
