"""Stores, and networks before them, that lose or change bytes, are slow, or fall silent."""

from __future__ import annotations

from urllib3 import HTTPHeaderDict

from tests.stores.imitated import Forward, Quirk
from tests.stores.messages import Answer, NoAnswerError, Request


def truncated(request: Request, forward: Forward) -> Answer:
    """Answers GetObject with half of the body, and a Content-Length that fits that half."""
    answer = forward(request)
    if request.operation == "GetObject" and answer.status in (200, 206):
        answer.body = answer.body[: len(answer.body) // 2]
    return answer


def cut_off(request: Request, forward: Forward) -> Answer:
    """Answers GetObject with half of the body, and closes the connection."""
    answer = forward(request)
    if request.operation == "GetObject" and answer.status in (200, 206):
        answer.length, answer.body = len(answer.body), answer.body[: len(answer.body) // 2]
    return answer


def flipped_bit(times: int | None = None) -> Quirk:
    """Answers GetObject with one flipped bit in the middle of the body, in the first `times` answers per key or always.

    The answer states no checksum, so only the reader's own checks can notice.
    """
    flipped: dict[str, int] = {}

    def quirk(request: Request, forward: Forward) -> Answer:
        answer = forward(request)
        number = flipped.get(request.name, 0)
        if request.operation == "GetObject" and answer.body and (times is None or number < times):
            flipped[request.name] = number + 1
            middle = len(answer.body) // 2
            answer.body = answer.body[:middle] + bytes([answer.body[middle] ^ 1]) + answer.body[middle + 1 :]
            for name in [name for name in answer.headers if name.lower().startswith("x-amz-checksum-")]:
                answer.headers.discard(name)
        return answer

    return quirk


def silent(request: Request, _: Forward) -> Answer:
    """Accepts the request and sends nothing until the store closes."""
    request.closed.wait()
    raise NoAnswerError


def slow(seconds: float) -> Quirk:
    """Answers each request this much later."""

    def quirk(request: Request, forward: Forward) -> Answer:
        if request.closed.wait(seconds):
            raise NoAnswerError
        return forward(request)

    return quirk


def hangs_up(*_: object) -> Answer:
    """Closes the connection without a response; nothing is done."""
    raise NoAnswerError


def error_after_complete(request: Request, forward: Forward) -> Answer:
    """Answers CompleteMultipartUpload with status 200 and an error in the body; nothing is done.

    AWS documents that this can happen, because it sends the status and blanks before it completes the upload.
    Sources: apache/arrow-rs#4965, scylladb/scylladb#20517.
    """
    if request.operation != "CompleteMultipartUpload":
        return forward(request)
    message = b"We encountered an internal error. Please try again."
    body = b'<?xml version="1.0" encoding="UTF-8"?>\n  \n'  # AWS sends blanks while it works
    body += b"<Error><Code>InternalError</Code><Message>" + message + b"</Message></Error>"
    return Answer(200, HTTPHeaderDict({"Content-Type": "application/xml"}), body)
