"""Read files from web servers by HTTP range requests, such as Common Crawl's archives, without downloading them first.

Every response is checked: a wrong length, a wrong range or a changed file size is an error, never a short read.
Transient failures (connection errors, 429, 5xx, a truncated body) are retried with growing pauses. Retry-After is
honoured up to MAX_PAUSE_SECONDS. Proxies are those of HTTP_PROXY, HTTPS_PROXY and NO_PROXY.
"""

from __future__ import annotations

import functools
import re
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import fsspec
import pyarrow.fs
import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError, ProxyError, SSLError
from urllib3.util import Retry, Timeout

from cluster.stores.errors import (
    AccessDeniedError,
    CertificateError,
    CredentialsError,
    StorageError,
    ThrottledError,
    UnreachableError,
    UnsupportedError,
)
from cluster.stores.range_file import RangeFile
from cluster.stores.waiting import waiting_for

RETRY_ATTEMPTS = 10
"""Maximum attempts per request."""
PAUSE_SECONDS = 0.5
"""Pause before the second retry. It doubles with every further retry, up to MAX_PAUSE_SECONDS."""
MAX_PAUSE_SECONDS = 60.0
_TIMEOUT = Timeout(connect=10.0, read=60.0)
_TRANSIENT = (429, 500, 502, 503, 504)
_BY_STATUS = {
    401: (CredentialsError, "download the file first, with its credentials"),
    403: (AccessDeniedError, "download the file first, with its credentials"),
    429: (ThrottledError, "run the same command again later"),
    **dict.fromkeys((500, 502, 503, 504), (ThrottledError, "run the same command again later")),
}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@functools.lru_cache
def filesystem() -> pyarrow.fs.FileSystem:
    """The filesystem of pyarrow whose paths are URLs. It can be pickled."""
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(HttpFileSystem()))


class HttpFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A read-only filesystem whose paths are the full URLs of files on web servers."""

    cachable = False

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """URL, type and size of a file. Raises FileNotFoundError and OSError as `request` does."""
        return {"name": path, "type": "file", "size": num_bytes(path)}

    def isfile(self, path: str) -> bool:  # noqa: ARG002  # fsspec calls it by this name
        """Return True, so that opening tells why a file cannot be opened; fsspec's own takes every error for False."""
        return True

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """List the file itself, because web servers do not list folders."""
        return [self.info(path)] if detail else [path]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> RangeFile:
        if mode != "rb":
            raise ValueError(f"'{path}': files on web servers are read-only")
        size = num_bytes(path)
        return RangeFile(size, lambda start, stop: read_range(path, start, stop, size))


def read_range(url: str, start: int, stop: int, num_bytes: int) -> bytes:
    """The bytes from offset `start` to before `stop` of a file of `num_bytes`.

    Raises:
        FileNotFoundError: the file does not exist.
        StorageError: the response is not the requested range.
    """
    response = request("GET", url, {"Range": f"bytes={start}-{stop - 1}"})
    content_range = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if response.status != 206 or content_range is None:
        raise UnsupportedError(
            f"{url}: the server does not support range requests (status {response.status}); download the file first"
        )
    if [int(number) for number in content_range.groups()] != [start, stop - 1, num_bytes]:
        raise StorageError(
            f"{url}: requested bytes {start}-{stop - 1} of {num_bytes}, received {content_range[0]}; run again"
        )
    if len(response.data) != stop - start:
        raise StorageError(f"{url}: received {len(response.data)} of {stop - start} bytes; run again")
    return response.data


def num_bytes(url: str) -> int:
    """The size of a file. Raises FileNotFoundError, and StorageError if the server does not report a size."""
    response = request("HEAD", url, {})
    length = response.headers.get("Content-Length", "")
    if not length.isdigit():
        raise UnsupportedError(f"{url}: the server does not report the file's size; download the file first")
    return int(length)


def request(method: str, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
    """Send a request and return the response with its complete body.

    Raises:
        FileNotFoundError: the status is 404 or 410.
        StorageError: another status of 400 or above, or no complete response within RETRY_ATTEMPTS attempts.
    """
    try:
        with waiting_for(f"{method} {url}"):
            # Without content encoding, lengths and ranges refer to the stored file
            response = _pool(_proxy_of(url)).request(
                method, url, headers={**headers, "Accept-Encoding": "identity"}, decode_content=False
            )
    except HTTPError as error:
        raise _failure(url, error) from error
    if response.status in {404, 410}:
        raise FileNotFoundError(f"nothing at '{url}' (status {response.status})")
    if response.status >= 400:
        kind, advice = _BY_STATUS.get(response.status, (StorageError, "download the file first"))
        raise kind(f"{url}: refused with status {response.status}; {advice}")
    return response


def _failure(url: str, error: HTTPError) -> StorageError:
    """The error of a request without a response, by its cause."""
    reason = error.reason if isinstance(error, MaxRetryError) and error.reason else error
    if isinstance(reason, SSLError):
        advice = "set SSL_CERT_FILE to the file of its certificate authority"
        return CertificateError(f"{url}: the server's certificate cannot be verified ({reason}); {advice}")
    if isinstance(reason, ProxyError):
        return UnreachableError(f"{url}: the proxy cannot be reached ({reason}); correct HTTP_PROXY or NO_PROXY")
    return UnreachableError(f"{url}: the server cannot be reached ({reason}); check the address and the network")


def _proxy_of(url: str) -> str | None:
    """The proxy of a URL by HTTP_PROXY, HTTPS_PROXY and NO_PROXY; None for a direct connection."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


@functools.lru_cache
def _pool(proxy: str | None = None) -> urllib3.PoolManager:
    retry = Retry(
        total=RETRY_ATTEMPTS - 1,
        backoff_factor=PAUSE_SECONDS,
        backoff_max=MAX_PAUSE_SECONDS,
        status_forcelist=_TRANSIENT,
        allowed_methods={"GET", "HEAD"},
        raise_on_status=False,
        retry_after_max=int(MAX_PAUSE_SECONDS),
    )
    if proxy is None:
        return urllib3.PoolManager(retries=retry, timeout=_TIMEOUT, maxsize=32)
    parts = urlsplit(proxy)
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
    headers = urllib3.make_headers(proxy_basic_auth=login)
    return urllib3.ProxyManager(proxy, proxy_headers=headers, retries=retry, timeout=_TIMEOUT, maxsize=32)
