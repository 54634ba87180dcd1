"""What stands before a store: web servers, proxies and portals that answer themselves. Sources are issues on GitHub."""

from __future__ import annotations

import gzip

from urllib3 import HTTPHeaderDict

from tests.stores.imitated import Forward, Quirk
from tests.stores.messages import Answer, Request

WELL_FORMED_PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body><p>Sign in</p></body></html>\n"
"""An HTML page that is XML as well, so that parsers of S3's answers find nothing in it, and no error."""
PAGE = WELL_FORMED_PAGE.replace(b"</p>", b"<br>")


def page_for_everything(page: bytes = PAGE, status: int = 200) -> Quirk:
    """A captive portal or a web console listens there: one page for every request."""
    headers = HTTPHeaderDict({"Content-Type": "text/html; charset=utf-8"})
    return lambda *_: Answer(status, HTTPHeaderDict(headers), page)


def redirects(location: str, status: int = 301) -> Quirk:
    """Sends every request elsewhere, as web servers do from http to https, and portals to their page."""
    headers = HTTPHeaderDict({"Content-Type": "text/html", "Location": location})
    return lambda *_: Answer(status, HTTPHeaderDict(headers), PAGE)


def small_bodies(max_bytes: int) -> Quirk:
    """Answers 413 to larger requests, as nginx does by default above 1 MB (client_max_body_size)."""

    def quirk(request: Request, forward: Forward) -> Answer:
        return page_for_everything(status=413)(request, forward) if len(request.body) > max_bytes else forward(request)

    return quirk


def unknown_error(request: Request, forward: Forward) -> Answer:
    """Cloudflare cannot make sense of the server's answer: 520, which boto3 does not repeat."""
    return page_for_everything(status=520)(request, forward)


def compressed(request: Request, forward: Forward) -> Answer:
    """Compresses what is read, although the client accepts no compression, and leaves Content-Range as it was."""
    answer = forward(request)
    if request.operation == "GetObject" and answer.status in (200, 206):
        answer.body = gzip.compress(answer.body)
        answer.headers["Content-Encoding"] = "gzip"
        for name in [name for name in answer.headers if name.lower().startswith("x-amz-checksum-")]:
            answer.headers.discard(name)
    return answer


def no_length(request: Request, forward: Forward) -> Answer:
    """Answers HEAD without Content-Length, as nginx does that compresses. Source: minio/minio-java#820."""
    answer = forward(request)
    if request.operation == "HeadObject" and answer.status == 200:
        answer.length = -1
    return answer


def other_body_after_complete(request: Request, forward: Forward) -> Answer:
    """Completes a multipart upload, and answers 200 with something else. Source: oven-sh/bun#34044."""
    answer = forward(request)
    if request.operation == "CompleteMultipartUpload" and answer.status == 200:
        answer.body = b""
    return answer
