"""Files of a web server, read in ranges: archives as Common Crawl's server has them, without a download first.

A range is asked for whole and checked: an answer of another length, of another part or of a file that has changed its
size is an error, never a short read. Attempts that fail in passing (connection, 429, 5xx, a body cut short) are
repeated with growing pauses; Retry-After is kept to, up to MAX_PAUSE_SECONDS.
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
"""Attempts at one request."""
PAUSE_SECONDS = 0.5
"""Before the second repetition; it doubles from one to the next, up to MAX_PAUSE_SECONDS."""
MAX_PAUSE_SECONDS = 60.0
BLOCK_BYTES = 2**20
"""What is asked for at least, where less is wanted."""
_TIMEOUT = Timeout(connect=10.0, read=60.0)
_TRANSIENT = (429, 500, 502, 503, 504)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class HttpFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The files of web servers, each under its whole address; to be read only."""

    cachable = False

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Address, type and bytes of a file. Raises FileNotFoundError, and OSError as `request` does."""
        return {"name": path, "type": "file", "size": num_bytes(path)}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """The file itself: web servers do not list folders."""
        return [self.info(path)] if detail else [path]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.BufferedReader:
        if mode != "rb":
            raise ValueError(f"'{path}': files of web servers can only be read")
        return io.BufferedReader(HttpFile(path), BLOCK_BYTES)


class HttpFile(io.RawIOBase):
    """One file of a web server that can be read from any place on."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._size = num_bytes(url)
        self._position = 0

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be read from any place on."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte, which may lie behind the end."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        """The byte that is read next."""
        return self._position

    def readall(self) -> bytes:
        """What is left, in one request; the base class would ask for 8 KiB a time."""
        return self.read(max(0, self._size - self._position)) or b""

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, up to the end of the file. Raises OSError where the bytes do not come."""
        count = min(len(buffer), self._size - self._position)
        if count <= 0:
            return 0
        last = self._position + count - 1
        answer = request("GET", self._url, {"Range": f"bytes={self._position}-{last}"})
        found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if answer.status != 206 or found is None:
            raise OSError(f"{self._url}: the server does not give parts of files (status {answer.status}); download it")
        if [int(number) for number in found.groups()] != [self._position, last, self._size]:
            raise OSError(f"{self._url}: asked for bytes {self._position}-{last} of {self._size}, got {found[0]}")
        if len(answer.data) != count:
            raise OSError(f"{self._url}: {len(answer.data)} of {count} bytes came")
        buffer[:count] = answer.data
        self._position += count
        return count


def num_bytes(url: str) -> int:
    """The size of a file. Raises FileNotFoundError, and OSError where the server does not tell."""
    answer = request("HEAD", url, {})
    length = answer.headers.get("Content-Length", "")
    if not length.isdigit():
        raise OSError(f"{url}: the server does not tell the file's size; download it")
    return int(length)


def request(method: str, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
    """The answer to a request, with its whole body.

    Raises:
        FileNotFoundError: 404 or 410.
        OSError: another refusal, or no whole answer in RETRY_ATTEMPTS attempts.
    """
    try:
        # No encoding: lengths and ranges are those of the file as it is stored
        answer = _pool().request(method, url, headers={**headers, "Accept-Encoding": "identity"}, decode_content=False)
    except HTTPError as error:
        raise OSError(f"{url}: {error}") from error
    if answer.status in {404, 410}:
        raise FileNotFoundError(f"nothing at '{url}' (status {answer.status})")
    if answer.status >= 400:
        raise OSError(f"{url}: refused with status {answer.status}")
    return answer


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
