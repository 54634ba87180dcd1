"""Read and write files by URI: local paths, `file://` and `s3://`, with the conditional write that commits need.

Inputs can also be files on web servers (cluster/stores/web.py), which are read-only.

Files are written whole, because no file of a run ever changes. A write becomes visible completely or not at all:
locally through a temporary file and a rename, on S3 through one put. `put_if_absent` is the primitive under every
record and snapshot: exactly one of any number of racing writers wins. Failures are the errors of
cluster/stores/errors.py, by their cause. Code that reads a Parquet file through `filesystem` must verify its checksums,
and ask `failure_of` whether an error is one of the storage.
"""

import hashlib
import io
import logging
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow
import pyarrow.fs

from cluster.stores import local, local_causes, web
from cluster.stores.errors import DamagedError, StorageError, UnsupportedError
from cluster.stores.local import NewLocalFile, local_path
from cluster.stores.s3 import client, files, listing, probe, reading, writing
from cluster.stores.s3.requests import bucket_and_key

T = TypeVar("T")

_PUT_ATTEMPTS = 5
_PUT_PAUSE_SECONDS = 0.3
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What a parser raises for content that is not right."""

logger = logging.getLogger("clip")


@dataclass(frozen=True)
class Entry:
    """A file in a listing."""

    uri: str
    num_bytes: int
    modified: float
    """Time of the last modification by the clock of the storage, in seconds since 1970."""


def filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow filesystem of a URI, and the path on it (absolute path, `bucket/key`, or the whole web URL).

    Raises ValueError for a scheme other than file, s3, http and https.
    """
    if is_web(uri):
        return web.filesystem(), uri
    if is_s3(uri):
        return files.filesystem(), "/".join(bucket_and_key(uri)).rstrip("/")
    return pyarrow.fs.LocalFileSystem(), str(_local(uri))


def is_s3(uri: str) -> bool:
    """Whether the URI names an S3 object or prefix."""
    return uri.startswith("s3://")


def is_web(uri: str) -> bool:
    """Whether the URI names a file on a web server, which is read-only."""
    return uri.startswith(("http://", "https://"))


def join(uri: str, *parts: str) -> str:
    """The URI of a file or folder below a folder."""
    return "/".join([(uri or ".").rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """A URI that does not depend on the working directory. Local URIs become absolute plain paths.

    Raises ValueError for an unknown scheme, and for s3:// without a bucket.
    """
    if is_s3(uri):
        bucket_and_key(uri)
    return uri.rstrip("/") if is_s3(uri) or is_web(uri) else str(_local(uri))


def exists(uri: str) -> bool:
    """Whether a file or a folder exists. On S3 a folder exists if any object has its prefix."""
    if is_s3(uri):
        return listing.exists(uri)
    if is_web(uri):
        with suppress(FileNotFoundError):
            return web.num_bytes(uri) >= 0
        return False
    return local.status(_local(uri)) is not None


def num_bytes(uri: str) -> int:
    """The size of a file. Raises FileNotFoundError and StorageError."""
    if is_s3(uri):
        return reading.version(uri).num_bytes
    if is_web(uri):
        return web.num_bytes(uri)
    status = local.status(_local(uri))
    if status is None:
        raise FileNotFoundError(f"nothing at '{uri}'")
    return status.st_size


def open_input(uri: str) -> pyarrow.NativeFile:
    """Open a file for reading at any position. Raises FileNotFoundError and StorageError."""
    opened, path = filesystem(uri)
    try:
        return opened.open_input_file(path)
    except OSError as error:
        raise failure_of(uri, error) or error from error


def read_bytes(uri: str) -> bytes:
    """The whole content of a file. Raises FileNotFoundError, and StorageError if not all of its bytes arrive."""
    if is_web(uri):
        with web.HttpFileSystem().open(uri) as file:
            data: bytes = file.read()
            return data
    return b"".join(read_chunks(uri))


def read_chunks(uri: str) -> Iterator[bytes]:
    """Yield the content of a local file or an S3 object, a few megabytes at a time. Raises as read_bytes does."""
    yield from reading.read(uri) if is_s3(uri) else local.read(_local(uri))


def read_twice(uri: str, parse: Callable[[bytes], T]) -> T:
    """Read a file whole and parse it, and once more if that fails, because a read may fail once.

    Args:
        uri: the file.
        parse: gives the result, or raises if the content is not right.

    Raises:
        FileNotFoundError: the file does not exist.
        StorageError: the storage fails to deliver its bytes.
        DamagedError: the content was not right, both times.
    """
    for attempt in (1, 2):
        data = read_bytes(uri)
        try:
            return parse(data)
        except _MALFORMED as error:
            if attempt == 2:
                raise DamagedError(f"{uri} is damaged: {error}") from error
    raise AssertionError("the loop returns or raises")


def read_verified(uri: str, sha256: str) -> bytes:
    """The content of a file with this hash. Raises as `read_twice`."""

    def verify(data: bytes) -> bytes:
        if (found := hashlib.sha256(data).hexdigest()) != sha256:
            raise ValueError(f"sha256 {sha256} expected, {found} found")
        return data

    return read_twice(uri, verify)


def failure_of(uri: str, error: BaseException) -> Exception | None:
    """The failure of the storage that made a reader of a file raise an error; None if the content made it.

    Args:
        uri: the file, or its path on a filesystem of pyarrow.
        error: what the reader raised, such as pyarrow, which gives OSError for both.
    """
    if isinstance(error, StorageError | FileNotFoundError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return local_causes.cause(Path(uri), "read", error)
    return None


def check_content(uri: str, num_bytes: int, sha256: str) -> None:
    """Read a file whole, and a second time if it is not as expected, because a read may fail once.

    Raises:
        FileNotFoundError: the file does not exist.
        StorageError: the storage fails to deliver its bytes.
        DamagedError: its size or its sha256 is another one, both times.
    """
    for attempt in (1, 2):
        digest, size = hashlib.sha256(), 0
        for chunk in read_chunks(uri):
            digest.update(chunk)
            size += len(chunk)
        if size == num_bytes and digest.hexdigest() == sha256:
            if attempt == 2:
                logger.warning("%s: the first read gave other bytes than the second, which are right", uri)
            return
    found = f"{num_bytes} bytes expected, {size} found"
    if size == num_bytes:
        found = f"sha256 {sha256} expected, {digest.hexdigest()} found"
    raise DamagedError(f"{uri}: {found}")


def write_bytes(uri: str, data: bytes | memoryview) -> None:
    """Write or replace a file. Readers see the complete old content or the complete new content.

    Raises:
        StorageFullError: the disk has no space left.
        OSError: the stored size differs from the size of the data.
    """
    if is_s3(uri):
        writing.write(uri, data)
    else:
        local.write(_local(uri), data)


def put_if_absent(uri: str, data: bytes) -> bool:
    """Write a file unless it exists; whether the file now holds exactly this data.

    Of racing writers with different data, exactly one gets True. A retried put whose first response was lost finds its
    own data and also gets True. So data that must have a single author has to include the author's id.
    Raises StorageFullError if the disk has no space left.
    """
    for _ in range(_PUT_ATTEMPTS):
        written = writing.put_if_absent(uri, data) if is_s3(uri) else local.put_if_absent(_local(uri), data)
        with suppress(FileNotFoundError):
            return written or read_bytes(uri) == data
        time.sleep(_PUT_PAUSE_SECONDS)  # it was deleted meanwhile, or a store shows it late
    raise UnsupportedError(
        f"{uri}: the storage says that it exists, and that there is nothing. Some stores keep the name of a deleted "
        "object in a bucket with versions; use a bucket without them, or another folder"
    )


class NewFile:
    """A file that is written in chunks, and becomes visible under its name only when it is complete.

    Until then the data is in a hidden local file. For S3 it is in memory, because objects are written with one call.
    """

    def __init__(self, folder: str) -> None:
        self.num_bytes = 0
        """Number of bytes written."""
        self._folder = folder
        self._stream = io.BytesIO() if is_s3(folder) else NewLocalFile(_local(folder))

    def write(self, data: bytes) -> None:
        """Append data. Raises StorageFullError if the disk has no space left."""
        self._stream.write(data)
        self.num_bytes += len(data)

    def publish(self, name: str) -> None:
        """Make the data visible as a file of this name in the folder. Raises as `write_bytes` does."""
        if isinstance(self._stream, io.BytesIO):
            writing.write(join(self._folder, name), self._stream.getvalue())  # copies nothing
        else:
            self._stream.publish(name)

    def close(self) -> None:
        """Close the file, and delete it if it was not published."""
        self._stream.close()


def list_files(uri: str, suffixes: Sequence[str] = ()) -> list[str]:
    """List all files under a folder recursively, sorted, without hidden ones (a file or folder name starts with a dot).

    For the URI of a file, the list holds only that URI, regardless of `suffixes`. Local files are absolute plain paths.
    Raises FileNotFoundError if the folder does not exist or no file has one of the suffixes.
    """
    root = absolute(uri)
    uris = [] if _is_file(uri) else [entry.uri for entry in entries(uri)]
    if not uris:
        if not exists(uri):
            raise FileNotFoundError(f"nothing at '{uri}'")
        if is_s3(uri) or _is_file(uri):
            return [root]
    visible = [file_uri for file_uri in uris if "/." not in file_uri[len(root) :]]
    matching = [file_uri for file_uri in visible if not suffixes or file_uri.endswith(tuple(suffixes))]
    if not matching:
        patterns = " or ".join(f"*{suffix}" for suffix in suffixes) or "files"
        raise FileNotFoundError(f"no {patterns} under '{uri}' ({len(visible)} other files)")
    return matching


def entries(uri: str) -> list[Entry]:
    """Every file under a folder recursively, including hidden and temporary ones, sorted by URI. May be empty."""
    if is_s3(uri):
        listed = [Entry(key_uri, size, modified.timestamp()) for key_uri, size, modified in listing.objects(uri)]
    else:
        found = local.files(_local(uri))
        listed = [Entry(str(path), status.st_size, status.st_mtime) for path, status in found]
    return sorted(listed, key=lambda entry: entry.uri)


def delete(uri: str) -> None:
    """Delete a file, or a folder with its content. A missing file is not an error."""
    if is_s3(uri):
        listing.delete(uri)
    else:
        local.delete(_local(uri))


def delete_files(uris: Sequence[str]) -> dict[str, OSError]:
    """Delete files, many in one request where the storage can. A missing file is not an error.

    Returns:
        The error of each file that was not deleted, by its URI.
    """
    errors = listing.delete_files([uri for uri in uris if is_s3(uri)])
    for uri in uris:
        if not is_s3(uri):
            try:
                local.delete(_local(uri))
            except OSError as error:
                errors[uri] = error
    return errors


def unfinished_uploads(uri: str) -> list[tuple[str, str, float]]:
    """The unfinished uploads of objects below a prefix: URI of the object, id of the upload, seconds since 1970."""
    if not is_s3(uri):
        return []
    return [
        (object_uri, upload_id, begun.timestamp()) for object_uri, upload_id, begun in listing.unfinished_uploads(uri)
    ]


def abort_upload(uri: str, upload_id: str) -> None:
    """Abort an unfinished upload and delete its parts. An upload that is gone is not an error."""
    writing.abort_upload(uri, upload_id)


def location() -> dict[str, str]:
    """The environment variables by which other machines use the same storage, with credentials of their own."""
    return client.location()


def check_reachable(uri: str, option: str) -> None:
    """Find out within seconds what would stop every request to the storage of `uri`.

    Raises:
        StorageError: the storage cannot be reached, refuses the credentials, or has no such bucket. The message names
            the option. That the file does not exist or is not readable is no error here.
    """
    if is_s3(uri):
        with _naming(option):
            probe.check_reachable(absolute(uri))


def ensure_writable(uri: str, option: str) -> None:
    """Try in a folder, once per process, all that runs and data sets need: write, commit, read, list and delete.

    Raises:
        ValueError, StorageError: one of them fails. The message names the option that sets the folder.
    """
    with _naming(option):
        if is_web(uri):
            raise ValueError(f"'{uri}': files on web servers are read-only; choose a writable folder")
        if is_s3(uri):
            probe.probe(absolute(uri))
        else:
            local.probe(_local(uri))


@contextmanager
def _naming(option: str) -> Iterator[None]:
    """Begin the message of an error with the name of an option."""
    try:
        yield
    except StorageError as error:
        raise type(error)(f"{option}: {error}") from error
    except (ValueError, FileNotFoundError) as error:  # no folder can be made where the system has its own
        raise ValueError(f"{option}: {error}") from error


def _is_file(uri: str) -> bool:
    """Whether a URI names a file; False for S3, where a listing tells it."""
    if is_s3(uri) or is_web(uri):
        return is_web(uri)
    status = local.status(_local(uri))
    return status is not None and stat.S_ISREG(status.st_mode)


def _local(uri: str) -> Path:
    if uri.startswith("s3:"):
        raise ValueError(f"'{uri}': write s3://bucket/key")
    return local_path(uri)
