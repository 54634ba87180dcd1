"""Read and write files by URI: local paths, `file://` and `s3://`, with the conditional write that commits need.

Inputs can also be files on web servers (cluster/http.py), which are read-only. cluster/s3.py implements S3.

Files are written whole, because no file of a run ever changes. A write becomes visible completely or not at all:
locally through a temporary file and a rename, on S3 through one put. `put_if_absent` is the primitive under every
record and snapshot: exactly one of any number of racing writers wins. Code that reads a Parquet file through
`filesystem` must verify its checksums, because pyarrow accepts a truncated body as complete.
"""

import errno
import functools
import io
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

import pyarrow.fs
from botocore.exceptions import BotoCoreError, ClientError

from cluster import http, s3

_DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}


class StorageFullError(OSError):
    """The disk has no space left for a file. No part of the file is visible."""


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
        return _web_filesystem(), uri
    if is_s3(uri):
        bucket, key = s3.bucket_and_key(uri)
        return s3.filesystem(bucket), f"{bucket}/{key}".rstrip("/")
    return pyarrow.fs.LocalFileSystem(), str(_local_path(uri))


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
    """A URI that does not depend on the working directory. Local URIs become absolute plain paths."""
    return uri.rstrip("/") if is_s3(uri) or is_web(uri) else str(_local_path(uri))


def exists(uri: str) -> bool:
    """Whether a file or a folder exists. On S3 a folder exists if any object has its prefix."""
    files, path = filesystem(uri)
    return bool(files.get_file_info(path).type != pyarrow.fs.FileType.NotFound)


def read_bytes(uri: str) -> bytes:
    """The whole content of a file. Raises FileNotFoundError, and OSError if fewer bytes arrive than the file has."""
    if is_web(uri):
        with http.HttpFileSystem().open(uri) as file:
            data: bytes = file.read()
            return data
    return b"".join(s3.read(uri)) if is_s3(uri) else _local_path(uri).read_bytes()


def read_chunks(uri: str) -> Iterator[bytes]:
    """Yield the content of a local file or an S3 object, a few megabytes at a time. Raises as read_bytes does."""
    if is_s3(uri):
        yield from s3.read(uri)
        return
    with _local_path(uri).open("rb") as file:
        while chunk := file.read(s3.CHUNK_BYTES):
            yield chunk


def write_bytes(uri: str, data: bytes | memoryview) -> None:
    """Write or replace a file. Readers see the complete old content or the complete new content.

    Raises:
        StorageFullError: the disk has no space left.
        OSError: the stored size differs from the size of the data.
    """
    if is_s3(uri):
        s3.write(uri, data)
        return
    path = _local_path(uri)
    with _explain_full_disk(path, len(data)):
        temporary = _write_temporary(path, data)
        try:
            temporary.replace(path)
        except OSError:
            temporary.unlink()
            raise


def put_if_absent(uri: str, data: bytes) -> bool:
    """Write a file unless it exists; whether the file now holds exactly this data.

    Of racing writers with different data, exactly one gets True. A retried put whose first response was lost finds its
    own data and also gets True. So data that must have a single author has to include the author's id.
    Raises StorageFullError if the disk has no space left.
    """
    if is_s3(uri):
        written = s3.put_if_absent(uri, data)
    else:
        path = _local_path(uri)
        with _explain_full_disk(path, len(data)):
            temporary = _write_temporary(path, data)
            try:
                os.link(temporary, path)  # fails if the name exists; the name appears with its complete content
                written = True
            except FileExistsError:
                written = False
            finally:
                temporary.unlink()
    return written or read_bytes(uri) == data


class NewFile:
    """A file that is written in chunks, and becomes visible under its name only when it is complete.

    Until then the data is in a hidden local file. For S3 it is in memory, because objects are written with one call.
    """

    def __init__(self, folder: str) -> None:
        self.num_bytes = 0
        """Number of bytes written."""
        self._folder = folder
        self._temporary = None if is_s3(folder) else _local_path(folder) / f".new.{uuid.uuid4().hex}.tmp"
        self._stream: BinaryIO | None = None

    def write(self, data: bytes) -> None:
        """Append data. Raises StorageFullError if the disk has no space left."""
        with _explain_full_disk(Path(self._folder), len(data)):
            if self._stream is None:
                self._stream = self._open()
            self._stream.write(data)
        self.num_bytes += len(data)

    def publish(self, name: str) -> None:
        """Make the data visible as a file of this name in the folder. Raises as `write_bytes` does."""
        assert self._stream is not None, "nothing was written"
        uri = join(self._folder, name)
        if self._temporary is None:
            assert isinstance(self._stream, io.BytesIO)
            s3.write(uri, self._stream.getbuffer())
            return
        with _explain_full_disk(_local_path(uri), self.num_bytes):
            _sync(self._stream)
            self._temporary.replace(_local_path(uri))

    def close(self) -> None:
        """Close the file, and delete it if it was not published."""
        if self._stream is not None:
            with suppress(OSError):  # flushing may fail on a full disk; unpublished data is discarded
                self._stream.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)

    def _open(self) -> BinaryIO:
        if self._temporary is None:
            return io.BytesIO()
        self._temporary.parent.mkdir(parents=True, exist_ok=True)
        return self._temporary.open("xb")  # buffered, because an unbuffered write may silently write only some bytes


def list_files(uri: str, suffixes: Sequence[str] = ()) -> list[str]:
    """List all files under a folder recursively, sorted, without hidden ones (a file or folder name starts with a dot).

    For the URI of a file, the list holds only that URI, regardless of `suffixes`. Local files are absolute plain paths.
    Raises FileNotFoundError if the folder does not exist or no file has one of the suffixes.
    """
    files, root = filesystem(uri)
    prefix = "s3://" if is_s3(uri) else ""
    kind = files.get_file_info(root).type
    if kind == pyarrow.fs.FileType.File:
        return [prefix + root]
    if kind == pyarrow.fs.FileType.NotFound:
        raise FileNotFoundError(f"nothing at '{uri}'")
    uris = [entry.uri for entry in entries(uri)]
    visible = [file_uri for file_uri in uris if "/." not in file_uri[len(prefix + root) :]]
    matching = [file_uri for file_uri in visible if not suffixes or file_uri.endswith(tuple(suffixes))]
    if not matching:
        patterns = " or ".join(f"*{suffix}" for suffix in suffixes) or "files"
        raise FileNotFoundError(f"no {patterns} under '{uri}' ({len(visible)} other files)")
    return matching


def entries(uri: str) -> list[Entry]:
    """Every file under a folder recursively, including hidden and temporary ones, sorted by URI. May be empty."""
    if is_s3(uri):
        listed = [Entry(key_uri, size, modified.timestamp()) for key_uri, size, modified in s3.objects(uri)]
    else:
        listed = list(_local_entries(_local_path(uri)))
    return sorted(listed, key=lambda entry: entry.uri)


def delete(uri: str) -> None:
    """Delete a file, or a folder with its content. A missing file is not an error."""
    if is_s3(uri):
        s3.delete(uri)
    elif (path := _local_path(uri)).is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def ensure_writable(uri: str, option: str) -> None:
    """Check that a folder is writable, before hours of work depend on it.

    Raises ValueError, which names the option that sets the folder.
    """
    probe = join(uri, f".writable-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"")
        delete(probe)
    except (OSError, ValueError, ClientError, BotoCoreError) as error:
        raise ValueError(f"{option}: cannot write to '{uri}' ({error}); choose a writable folder") from error


def _local_entries(folder: Path) -> Iterator[Entry]:
    for directory, _, names in os.walk(folder):
        for name in names:
            path = Path(directory, name)
            try:
                status = path.stat()
            except FileNotFoundError:  # a temporary file was renamed meanwhile
                continue
            yield Entry(str(path), status.st_size, status.st_mtime)


@contextmanager
def _explain_full_disk(path: Path, num_bytes: int) -> Iterator[None]:
    """Turn the error of a full disk into a StorageFullError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL_ERRNOS:
            raise
        raise StorageFullError(
            f"'{path}': cannot write {num_bytes:,} bytes ({os.strerror(error.errno or 0)}). Free disk space or enlarge "
            "the folder's disk, then run the same command again; complete work is kept"
        ) from error


def _write_temporary(path: Path, data: bytes | memoryview) -> Path:
    """Write the data to a new hidden file beside `path`, synced to disk, ready to be renamed or linked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            _sync(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync(file: BinaryIO) -> None:
    """Sync a file to disk; otherwise a power failure can leave its name without its content."""
    file.flush()
    os.fsync(file.fileno())


def _local_path(uri: str) -> Path:
    if uri.startswith("file://"):
        return Path(unquote(urlsplit(uri).path))
    if "://" in uri:
        scheme = uri.split("://", 1)[0]
        raise ValueError(f"'{uri}': unknown scheme '{scheme}'; use a local path, file:// or s3://")
    return Path(uri).absolute()


@functools.lru_cache
def _web_filesystem() -> pyarrow.fs.FileSystem:
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(http.HttpFileSystem()))
