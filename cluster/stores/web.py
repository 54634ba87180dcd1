"""Read files from web servers by HTTP range requests, such as Common Crawl's archives, without downloading them first.

Every response is checked: a wrong length, a wrong range or a changed file size is an error, never a short read.
Transient failures (connection errors, 429, 5xx, a truncated body) are retried with growing pauses. Retry-After is
honoured up to MAX_PAUSE_SECONDS.
"""

from __future__ import annotations

import functools
import io
import re
from typing import Any

import fsspec
import urllib3
from urllib3.exceptions import HTTPError
from urllib3.util import Retry, Timeout

RETRY_ATTEMPTS = 10
"""Maximum attempts per request."""
PAUSE_SECONDS = 0.5
"""Pause before the second retry. It doubles with every further retry, up to MAX_PAUSE_SECONDS."""
MAX_PAUSE_SECONDS = 60.0
BLOCK_BYTES = 2**20
"""Minimum size of a range request; smaller reads are buffered."""
_TIMEOUT = Timeout(connect=10.0, read=60.0)
_TRANSIENT = (429, 500, 502, 503, 504)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class HttpFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A read-only filesystem whose paths are the full URLs of files on web servers."""

    cachable = False

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """URL, type and size of a file. Raises FileNotFoundError and OSError as `request` does."""
        return {"name": path, "type": "file", "size": num_bytes(path)}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """List the file itself, because web servers do not list folders."""
        return [self.info(path)] if detail else [path]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.BufferedReader:
        if mode != "rb":
            raise ValueError(f"'{path}': files on web servers are read-only")
        return io.BufferedReader(HttpFile(path), BLOCK_BYTES)


class HttpFile(io.RawIOBase):
    """One seekable file on a web server."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._size = num_bytes(url)
        self._position = 0

    def readable(self) -> bool:
        """Return True: the file can be read."""
        return True

    def seekable(self) -> bool:
        """Return True: reading can start at any byte."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a byte offset, which may be past the end."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        """The offset of the next byte to read."""
        return self._position

    def readall(self) -> bytes:
        """Read the rest of the file in one request; the base class would request 8 KiB at a time."""
        return self.read(max(0, self._size - self._position)) or b""

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, up to the end of the file. Raises OSError if the response is not the requested range."""
        count = min(len(buffer), self._size - self._position)
        if count <= 0:
            return 0
        last = self._position + count - 1
        response = request("GET", self._url, {"Range": f"bytes={self._position}-{last}"})
        content_range = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status != 206 or content_range is None:
            raise OSError(
                f"{self._url}: the server does not support range requests (status {response.status}); "
                "download the file first"
            )
        if [int(number) for number in content_range.groups()] != [self._position, last, self._size]:
            raise OSError(
                f"{self._url}: requested bytes {self._position}-{last} of {self._size}, received {content_range[0]}"
            )
        if len(response.data) != count:
            raise OSError(f"{self._url}: received {len(response.data)} of {count} bytes")
        buffer[:count] = response.data
        self._position += count
        return count


def num_bytes(url: str) -> int:
    """The size of a file. Raises FileNotFoundError, and OSError if the server does not report a size."""
    response = request("HEAD", url, {})
    length = response.headers.get("Content-Length", "")
    if not length.isdigit():
        raise OSError(f"{url}: the server does not report the file's size; download the file first")
    return int(length)


def request(method: str, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
    """Send a request and return the response with its complete body.

    Raises:
        FileNotFoundError: the status is 404 or 410.
        OSError: another status of 400 or above, or no complete response within RETRY_ATTEMPTS attempts.
    """
    try:
        # Without content encoding, lengths and ranges refer to the stored file
        response = _pool().request(
            method, url, headers={**headers, "Accept-Encoding": "identity"}, decode_content=False
        )
    except HTTPError as error:
        raise OSError(f"{url}: {error}") from error
    if response.status in {404, 410}:
        raise FileNotFoundError(f"nothing at '{url}' (status {response.status})")
    if response.status >= 400:
        raise OSError(f"{url}: refused with status {response.status}")
    return response


@functools.lru_cache
def _pool() -> urllib3.PoolManager:
    retry = Retry(
        total=RETRY_ATTEMPTS - 1,
        backoff_factor=PAUSE_SECONDS,
        backoff_max=MAX_PAUSE_SECONDS,
        status_forcelist=_TRANSIENT,
        allowed_methods={"GET", "HEAD"},
        raise_on_status=False,
        retry_after_max=int(MAX_PAUSE_SECONDS),
    )
    return urllib3.PoolManager(retries=retry, timeout=_TIMEOUT, maxsize=32)
