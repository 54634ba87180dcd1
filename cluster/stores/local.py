"""Read, write, list and delete files on local disks, including network disks that are mounted.

A write becomes visible completely or not at all: the data goes into a hidden temporary file beside its target, which is
then renamed, or linked if the target must not exist yet.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from cluster.stores.errors import StorageFullError

CHUNK_BYTES = 8 * 2**20
"""Number of bytes read at a time."""
_DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}


def local_path(uri: str) -> Path:
    """The absolute path of a local path or a file:// URI. Raises ValueError for another scheme."""
    if uri.startswith("file://"):
        return Path(unquote(urlsplit(uri).path))
    if "://" in uri:
        scheme = uri.split("://", 1)[0]
        raise ValueError(f"'{uri}': unknown scheme '{scheme}'; use a local path, file:// or s3://")
    return Path(uri).absolute()


def read(path: Path) -> Iterator[bytes]:
    """Yield the content of a file in chunks. Raises FileNotFoundError."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def write(path: Path, data: bytes | memoryview) -> None:
    """Write or replace a file. Raises StorageFullError if the disk has no space left."""
    with _explain_full_disk(path, len(data)):
        temporary = _write_temporary(path, data)
        try:
            temporary.replace(path)
        except OSError:
            temporary.unlink()
            raise


def put_if_absent(path: Path, data: bytes) -> bool:
    """Write a file unless it exists; whether it was written. Raises StorageFullError if the disk has no space left."""
    with _explain_full_disk(path, len(data)):
        temporary = _write_temporary(path, data)
        try:
            os.link(temporary, path)  # fails if the name exists; the name appears with its complete content
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
    return True


def delete(path: Path) -> None:
    """Delete a file, or a folder with its content. A missing file is not an error."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every file under a folder recursively, including hidden and temporary ones, in no order."""
    for directory, _, names in os.walk(folder):
        for name in names:
            path = Path(directory, name)
            try:
                status = path.stat()
            except FileNotFoundError:  # a temporary file was renamed meanwhile
                continue
            yield path, status


class NewLocalFile:
    """A hidden file that is written in chunks, and then published under its name in the same folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._temporary = folder / f".new.{uuid.uuid4().hex}.tmp"
        self._stream: BinaryIO | None = None

    def write(self, data: bytes) -> None:
        """Append data. Raises StorageFullError if the disk has no space left."""
        with _explain_full_disk(self._folder, len(data)):
            if self._stream is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._stream = self._temporary.open("xb")  # buffered: an unbuffered write may write only some bytes
            self._stream.write(data)

    def publish(self, name: str) -> None:
        """Make the data visible as a file of this name. Raises StorageFullError if the disk has no space left."""
        assert self._stream is not None, "nothing was written"
        with _explain_full_disk(self._folder / name, self._stream.tell()):
            _sync(self._stream)
            self._temporary.replace(self._folder / name)

    def close(self) -> None:
        """Close the file, and delete it if it was not published."""
        if self._stream is not None:
            with suppress(OSError):  # flushing may fail on a full disk; unpublished data is discarded
                self._stream.close()
        self._temporary.unlink(missing_ok=True)


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
