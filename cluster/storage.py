"""Bytes at a URI: local paths, `file://` and `s3://` alike, with the one conditional write that commits need.

Inputs may also be files of a web server (cluster/http.py), which nothing is written to. S3 is in cluster/s3.py.

Whole objects only, because every file of ours is written once and never changed: a write becomes visible complete or
not at all (locally a temporary file and a rename, on S3 one put). `put_if_absent` is the primitive under every record
and snapshot: of any number of racing writers one wins. What reads a Parquet file through `filesystem` checks its
checksums, since pyarrow takes a body cut short for whole.
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

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


class StorageFullError(OSError):
    """There is no room left for a file; nothing of it is visible."""


@dataclass(frozen=True)
class Entry:
    """A file of a listing."""

    uri: str
    num_bytes: int
    modified: float
    """When it was written, by the storage's clock: seconds since 1970."""


def filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow filesystem of a URI and the path on it (absolute locally, `bucket/key` on S3, all of a web address).

    Raises ValueError for a scheme that is none of file, s3, http and https.
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
    """Whether the URI names a file of a web server, which can only be read."""
    return uri.startswith(("http://", "https://"))


def join(uri: str, *parts: str) -> str:
    """The URI of something below a folder."""
    return "/".join([(uri or ".").rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """The same place for a process with another working directory: local paths become absolute and plain."""
    return uri.rstrip("/") if is_s3(uri) or is_web(uri) else str(_local_path(uri))


def exists(uri: str) -> bool:
    """Whether a file, or a folder (on S3: any object under the prefix), is there."""
    files, path = filesystem(uri)
    return bool(files.get_file_info(path).type != pyarrow.fs.FileType.NotFound)


def read_bytes(uri: str) -> bytes:
    """The whole content. Raises FileNotFoundError, and OSError where fewer bytes arrive than the file has."""
    if is_web(uri):
        with http.HttpFileSystem().open(uri) as file:
            data: bytes = file.read()
            return data
    return b"".join(s3.read(uri)) if is_s3(uri) else _local_path(uri).read_bytes()


def read_chunks(uri: str) -> Iterator[bytes]:
    """The content of a local file or an S3 object, some megabytes at a time. Raises as read_bytes does."""
    if is_s3(uri):
        yield from s3.read(uri)
        return
    with _local_path(uri).open("rb") as file:
        while chunk := file.read(s3.CHUNK_BYTES):
            yield chunk


def write_bytes(uri: str, data: bytes | memoryview) -> None:
    """Writes a file, replacing what was there; readers see the old content or the new, never a part of it.

    Raises:
        StorageFullError: there is no room for it.
        OSError: the stored size is not the size of the data.
    """
    if is_s3(uri):
        s3.write(uri, data)
        return
    path = _local_path(uri)
    with _room_for(path, len(data)):
        temporary = _write_temporary(path, data)
        try:
            temporary.replace(path)
        except OSError:
            temporary.unlink()
            raise


def put_if_absent(uri: str, data: bytes) -> bool:
    """Writes a file unless one is there; True where the file now holds exactly this data.

    Of racing writers with different data one gets True. A retried put whose first answer was lost finds its own data
    and gets True as well, so data that must have one author carries the author's id.
    Raises StorageFullError where there is no room for it.
    """
    if is_s3(uri):
        written = s3.put_if_absent(uri, data)
    else:
        path = _local_path(uri)
        with _room_for(path, len(data)):
            temporary = _write_temporary(path, data)
            try:
                os.link(temporary, path)  # fails if the name exists, and the name appears with all of its content
                written = True
            except FileExistsError:
                written = False
            finally:
                temporary.unlink()
    return written or read_bytes(uri) == data


class NewFile:
    """A file that is written bit by bit and gets its name at the end, when it becomes visible, complete.

    Until then it is a hidden one locally; for S3, whose objects are put whole, it is in memory.
    """

    def __init__(self, folder: str) -> None:
        self.num_bytes = 0
        """Bytes written."""
        self._folder = folder
        self._temporary = None if is_s3(folder) else _local_path(folder) / f".new.{uuid.uuid4().hex}.tmp"
        self._stream: BinaryIO | None = None

    def write(self, data: bytes) -> None:
        """Append. Raises StorageFullError where there is no room for it."""
        with _room_for(Path(self._folder), len(data)):
            if self._stream is None:
                self._stream = self._open()
            self._stream.write(data)
        self.num_bytes += len(data)

    def publish(self, name: str) -> None:
        """Make what is written the folder's file of that name. Raises as `write_bytes` does."""
        assert self._stream is not None, "nothing is written"
        uri = join(self._folder, name)
        if self._temporary is None:
            assert isinstance(self._stream, io.BytesIO)
            s3.write(uri, self._stream.getbuffer())
            return
        with _room_for(_local_path(uri), self.num_bytes):
            _sync(self._stream)
            self._temporary.replace(_local_path(uri))

    def close(self) -> None:
        """Ends it; where it has not been published nothing of it is left."""
        if self._stream is not None:
            with suppress(OSError):  # what there was no room for is thrown away
                self._stream.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)

    def _open(self) -> BinaryIO:
        if self._temporary is None:
            return io.BytesIO()
        self._temporary.parent.mkdir(parents=True, exist_ok=True)
        return self._temporary.open("xb")  # buffered: a bare file may take a part of the bytes and say nothing


def list_files(uri: str, suffixes: Sequence[str] = ()) -> list[str]:
    """All files under a folder, recursively and sorted, hidden ones (a name or folder that starts with a dot) left out.

    A URI of a file lists itself, whatever its suffix. Local files come as absolute plain paths.
    Raises FileNotFoundError if nothing is there or nothing has one of the suffixes.
    """
    files, root = filesystem(uri)
    prefix = "s3://" if is_s3(uri) else ""
    kind = files.get_file_info(root).type
    if kind == pyarrow.fs.FileType.File:
        return [prefix + root]
    if kind == pyarrow.fs.FileType.NotFound:
        raise FileNotFoundError(f"nothing at '{uri}'")
    places = [entry.uri for entry in entries(uri)]
    visible = [place for place in places if "/." not in place[len(prefix + root) :]]
    found = [place for place in visible if not suffixes or place.endswith(tuple(suffixes))]
    if not found:
        wanted = " or ".join(f"*{suffix}" for suffix in suffixes) or "any file"
        raise FileNotFoundError(f"no {wanted} under '{uri}' ({len(visible)} other files there)")
    return found


def entries(uri: str) -> list[Entry]:
    """Every file under a folder, recursively, hidden and temporary ones too; by URI, none where nothing is there."""
    if is_s3(uri):
        listed = [Entry(place, size, modified.timestamp()) for place, size, modified in s3.objects(uri)]
    else:
        listed = list(_local_entries(_local_path(uri)))
    return sorted(listed, key=lambda entry: entry.uri)


def delete(uri: str) -> None:
    """Removes a file, or a folder with all that is in it; nothing there is no error."""
    if is_s3(uri):
        s3.delete(uri)
    elif (path := _local_path(uri)).is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def ensure_writable(uri: str, option: str) -> None:
    """Tries a write under a folder before hours of work depend on it.

    Raises ValueError that names the option whose value the folder is.
    """
    probe = join(uri, f".writable-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"")
        delete(probe)
    except (OSError, ValueError, ClientError, BotoCoreError) as error:
        raise ValueError(f"{option}: cannot write to '{uri}' ({error}); name a folder you may write") from error


def _local_entries(folder: Path) -> Iterator[Entry]:
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            try:
                status = path.stat()
            except FileNotFoundError:  # a temporary file that has been renamed since
                continue
            yield Entry(str(path), status.st_size, status.st_mtime)


@contextmanager
def _room_for(path: Path, num_bytes: int) -> Iterator[None]:
    """Says what to do where a disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise StorageFullError(
            f"'{path}': no room for its {num_bytes:,} bytes ({os.strerror(error.errno or 0)}). Free some, or make the "
            "folder's disk larger, and give the same command again: what is complete is kept"
        ) from error


def _write_temporary(path: Path, data: bytes | memoryview) -> Path:
    """A hidden file of its own beside `path` with the data on disk, ready to be renamed or linked."""
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
    """To the disk, else a power cut can leave the name without the content."""
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
