"""Read objects whole or by range, resuming where a response ends early.

Reads compare the size, the ETag and the time of all answers. So two contents are never mixed, and no conditional read
is needed, which stores with weak ETags refuse. A response with half of the content and a consistent length is not
noticed by boto3; the range that the answer names tells the true size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

from botocore.exceptions import ClientError

from cluster.stores.errors import StorageError, UnreachableError, UnsupportedError
from cluster.stores.s3.causes import FAILURES, status_of
from cluster.stores.s3.client import RETRY_ATTEMPTS, client
from cluster.stores.s3.requests import pause, request, target
from cluster.stores.waiting import waiting_for

CHUNK_BYTES = 8 * 2**20
"""Number of bytes read at a time."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Version(NamedTuple):
    """What tells one content of an object from another."""

    num_bytes: int
    etag: str | None
    modified: datetime | None

    def is_same(self, other: Version) -> bool:
        """Whether both answers are about the same content. Some stores' ETags or times differ for one content."""
        return self.num_bytes == other.num_bytes and (self.etag == other.etag or self.modified == other.modified)


def version(uri: str) -> Version:
    """The size and identity of an object. Raises FileNotFoundError."""
    with request("looking at", uri):
        try:
            head = client().head_object(**target(uri))
            if "ContentLength" in head:
                return Version(head["ContentLength"], head.get("ETag"), head.get("LastModified"))
        except ClientError as error:
            if status_of(error) == 404 or not error.response["Error"]["Code"].isdigit():
                raise
        # The answer has no size, or refuses without a body that says why. A read of one byte tells both
        try:
            one = client().get_object(**target(uri), Range="bytes=0-0")
        except ClientError as error:
            if status_of(error) == 416:
                return Version(0, None, None)
            raise
    content_range = _CONTENT_RANGE.fullmatch(one.get("ContentRange", ""))
    if content_range is None:
        raise UnsupportedError(f"{uri}: the store tells no size of this object; see docs/storage.md")
    return Version(int(content_range[3]), one.get("ETag"), one.get("LastModified"))


def read(uri: str) -> Iterator[bytes]:
    """Yield the content of an object in chunks.

    Raises:
        FileNotFoundError: the object does not exist.
        StorageError: RETRY_ATTEMPTS requests in a row for the remaining bytes gave none, or the object was replaced.
    """
    yield from _stream(uri, 0, None, None)


def read_range(uri: str, start: int, stop: int, known: Version) -> bytes:
    """The bytes from offset `start` to before `stop` of an object, whose version is known. Raises as `read`."""
    return b"".join(_stream(uri, start, stop, known))


def _stream(uri: str, position: int, stop: int | None, known: Version | None) -> Iterator[bytes]:
    """Yield the bytes from `position` to before `stop`; None is the end."""
    attempt = 0
    while stop is None or position < stop:
        before, cause = position, "the response ended early"
        response = _get(uri, position, stop)
        if response is None:
            return
        found, skip = _answered(uri, response, position)
        if known is not None and not found.is_same(known):
            raise StorageError(f"{uri}: was replaced by another object while it was read; run the same command again")
        known, stop = found, found.num_bytes if stop is None else stop
        try:
            for chunk in _chunks(uri, response):
                wanted, skip = chunk[skip:][: stop - position], max(0, skip - len(chunk))
                position += len(wanted)
                if wanted:
                    yield wanted
        except (*FAILURES, OSError) as error:
            cause = str(error)
        if position < stop:
            attempt = 0 if position > before else attempt + 1
            if attempt == RETRY_ATTEMPTS:
                raise UnreachableError(
                    f"{uri}: read {position} of {stop} bytes ({cause}), in every attempt; run the same command again"
                )
            pause(attempt)


def _get(uri: str, start: int, stop: int | None) -> dict[str, Any] | None:
    """The response with the bytes from `start`; None for an object without bytes."""
    with request("reading", uri):
        try:
            response: dict[str, Any] = client().get_object(
                **target(uri), Range=f"bytes={start}-{'' if stop is None else stop - 1}"
            )
        except ClientError as error:
            if status_of(error) == 416 and start == 0:  # there is no byte 0
                return None
            raise
    return response


def _answered(uri: str, response: dict[str, Any], start: int) -> tuple[Version, int]:
    """The version that an answer is about, and how many of its bytes come before `start`."""
    content_range = _CONTENT_RANGE.fullmatch(response.get("ContentRange", ""))
    if content_range is None or int(content_range[1]) != start:  # the store ignores ranges
        return version(uri), start
    first, last, num_bytes = (int(number) for number in content_range.groups())
    if response.get("ContentEncoding") and response.get("ContentLength") != last - first + 1:
        raise UnsupportedError(
            f"{uri}: a gateway before the storage compresses its answers ({response['ContentEncoding']}); turn that off"
        )
    return Version(num_bytes, response.get("ETag"), response.get("LastModified")), 0


def _chunks(uri: str, response: dict[str, Any]) -> Iterator[bytes]:
    chunks = response["Body"].iter_chunks(CHUNK_BYTES)
    while True:
        with waiting_for(f"reading {uri}"):
            chunk = next(chunks, b"")
        if not chunk:
            return
        yield chunk
