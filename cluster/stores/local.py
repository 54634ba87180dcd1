"""Read, write, list and delete files on local disks of any make, including network disks that are mounted.

A write becomes visible completely or not at all: the data goes into a hidden temporary file beside its target, which is
then renamed, or named by `exclusive` if the target must not exist yet. File and folder are synced to disk if the file
system can do that, so a power failure loses no file whose writing has returned.

Every function raises the errors of `local_causes`: a StorageError by its cause, or ValueError for a path that cannot be
one. A missing file is a FileNotFoundError.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

from cluster.stores import exclusive
from cluster.stores.errors import UnsupportedError
from cluster.stores.local_causes import DENIED, IN_USE, NOT_EMPTY, cause, explained
from cluster.stores.waiting import waiting_for

CHUNK_BYTES = 8 * 2**20
"""Number of bytes read at a time."""
_RETRY_SECONDS = (0.1, 0.3, 0.9)
"""Pauses before the attempts to repeat what a network disk refused because a file is open elsewhere."""
_KEPT_OPEN = (".nfs", ".fuse_hidden")
"""Beginnings of the names that NFS and FUSE give to files that were deleted while open, until they are closed."""
_NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_NO_FOLDER_SYNC = _NO_SYNC | {errno.EISDIR, errno.EBADF, errno.EACCES, errno.EPERM}

Result = TypeVar("Result")

logger = logging.getLogger("clip")


def local_path(uri: str) -> Path:
    """The absolute path of a local path or a file:// URI. Raises ValueError for another scheme."""
    if uri.startswith("file://"):
        return Path(unquote(urlsplit(uri).path))
    if "://" in uri:
        scheme = uri.split("://", 1)[0]
        raise ValueError(f"'{uri}': unknown scheme '{scheme}'; use a local path, file:// or s3://")
    return Path(uri).absolute()


def read(path: Path) -> Iterator[bytes]:
    """Yield the content of a file in chunks. Raises FileNotFoundError, and others as the module says."""
    with explained(path, "read"):
        file, chunk = _again_if_stale(lambda: _open(path))
    with file:
        while chunk:
            yield chunk
            with explained(path, "read"):
                chunk = file.read(CHUNK_BYTES)


def write(path: Path, data: bytes | memoryview) -> None:
    """Write or replace a file. Raises StorageFullError if the disk has no space left, and others as the module says."""
    with explained(path, _writing(len(data))), _temporary_file(path, data) as temporary:
        _replace(temporary, path)
        _sync_folder(path.parent)


def put_if_absent(path: Path, data: bytes) -> bool:
    """Write a file unless it exists; whether it was written. Exactly one of any number of racing writers writes it.

    Raises UnsupportedError if the file system cannot guarantee that (exclusive.py), and others as `write` does.
    """
    return _put_if_absent(path, data) is not None


def probe(folder: Path) -> str:
    """Check that files of a folder can be written, replaced, put if absent, and deleted. Creates a missing folder.

    Returns how `put_if_absent` keeps an existing file: by "links", "renames" or "locks" (exclusive.py). Raises
    UnsupportedError if it does not keep it, and others as `write` does.
    """
    path = folder / f".probe-{uuid.uuid4().hex}"
    try:
        way, again = _put_if_absent(path, b"first"), _put_if_absent(path, b"second")
        kept = b"".join(read(path))
        write(path, b"third")
        if way is None or again is not None or kept != b"first" or b"".join(read(path)) != b"third":
            raise UnsupportedError(
                f"{str(folder)!r}: its file system replaces files that must be kept, or gives old content after a file "
                "was replaced; use a folder on another disk, or s3://"
            )
        delete(path)
        return way
    finally:
        _discard(path)


def delete(path: Path) -> None:
    """Delete a file, a symbolic link, or a folder with its content. A missing file is not an error.

    What a network disk refuses because a file is open elsewhere is tried a few times. If only files remain that the
    system keeps until they are closed, a warning names their folder.
    """
    for seconds in (*_RETRY_SECONDS, None):
        with waiting_for(f"delete {str(path)!r}"):
            failures = _delete(path)
        if not failures:
            return
        if seconds is None or not all(error.errno in IN_USE | DENIED | NOT_EMPTY for _, error in failures):
            break
        time.sleep(seconds)
    names = [name for _, _, names in os.walk(path) for name in names]
    if names and all(name.startswith(_KEPT_OPEN) for name in names):
        logger.warning("%r is not deleted completely, because other programs have files in it open", str(path))
        return
    failed, error = next((failure for failure in failures if failure[1].errno not in NOT_EMPTY), failures[0])
    raise cause(failed, "delete", error) from error


def status(path: Path) -> os.stat_result | None:
    """The size, times and kind of a file or folder; None if it, or the target of a symbolic link, does not exist."""
    with explained(path, "look at"):
        try:
            return _again_if_stale(path.stat)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                raise
            return None


def files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every regular file under a folder recursively, including hidden and temporary ones, in no order.

    Leaves out what the system itself or `put_if_absent` keeps there. Yields nothing if the folder does not exist.
    Raises as the module says if a folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # deleted meanwhile
            raise cause(Path(error.filename or folder), "list", error) from error

    walk = os.walk(folder, onerror=fail)  # which ignores errors by default
    while True:
        with waiting_for(f"list {str(folder)!r}"):
            directory, _, names = next(walk, (None, [], []))
        if directory is None:
            return
        for name in names:
            if name == exclusive.LOCK_FILE or name.startswith(_KEPT_OPEN):
                continue
            path = Path(directory, name)
            found = status(path)
            if found is not None and stat.S_ISREG(found.st_mode):
                yield path, found


class NewLocalFile:
    """A hidden file that is written in chunks, and then published under its name in the same folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._temporary = _temporary_path(folder)
        self._stream: BinaryIO | None = None

    def write(self, data: bytes) -> None:
        """Append data. Raises StorageFullError if the disk has no space left, and others as the module says."""
        with explained(self._folder, _writing(len(data))):
            if self._stream is None:
                _make_folder(self._folder)
                self._stream = self._temporary.open("xb")  # buffered: an unbuffered write may write only some bytes
            self._stream.write(data)

    def publish(self, name: str) -> None:
        """Make the data visible as a file of this name. Raises as `write` does."""
        assert self._stream is not None, "nothing was written"
        path = self._folder / name
        with explained(path, _writing(self._stream.tell())):
            _sync_file(self._stream)
            self._stream.close()  # some network disks write, and report errors, only now
            _replace(self._temporary, path)
            _sync_folder(self._folder)

    def close(self) -> None:
        """Close the file, and delete it if it was not published."""
        if self._stream is not None:
            with suppress(OSError):  # flushing may fail on a full disk; unpublished data is discarded
                self._stream.close()
            _discard(self._temporary)


def _put_if_absent(path: Path, data: bytes) -> str | None:
    with explained(path, _writing(len(data))), _temporary_file(path, data) as temporary:
        way = exclusive.name_exclusively(temporary, path)
        if way is not None:
            _sync_folder(path.parent)
    return way


def _writing(num_bytes: int) -> str:
    return f"write {num_bytes:,} bytes"


def _temporary_path(folder: Path) -> Path:
    """A new hidden name, which garbage collection recognises."""
    return folder / f".new.{uuid.uuid4().hex}.tmp"


@contextmanager
def _temporary_file(path: Path, data: bytes | memoryview) -> Iterator[Path]:
    """A new hidden file beside `path` with the data, synced to disk. Removed at the end unless it was renamed."""
    _make_folder(path.parent)
    temporary = _temporary_path(path.parent)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            _sync_file(file)
        yield temporary
    finally:
        _discard(temporary)


def _discard(path: Path) -> None:
    """Delete a hidden file, if that is possible. Garbage collection removes what is left."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents where they are missing, durably."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        _make_folder(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError:  # a file, or a symbolic link without a target
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
    _sync_folder(folder.parent)


def _replace(temporary: Path, path: Path) -> None:
    """Rename a file to a name that may exist."""
    for seconds in (*_RETRY_SECONDS, None):
        try:
            temporary.replace(path)
        except FileNotFoundError:
            if os.path.lexists(temporary) or not os.path.lexists(path):
                raise
            return  # a network disk renamed it, its reply was lost, and the repeated request found no file
        except OSError as error:
            if seconds is None or error.errno not in IN_USE | DENIED | {errno.ESTALE}:
                raise
            time.sleep(seconds)
        else:
            return


def _sync_file(file: BinaryIO) -> None:
    """Sync a file to disk; otherwise a power failure can leave its name without its content."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _sync_folder(folder: Path) -> None:
    """Sync the names in a folder to disk; otherwise a power failure can undo a rename."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def _open(path: Path) -> tuple[BinaryIO, bytes]:
    """An open file, and its first chunk."""
    file = path.open("rb")
    try:
        return file, file.read(CHUNK_BYTES)
    except OSError:
        file.close()
        raise


def _again_if_stale(operation: Callable[[], Result]) -> Result:
    """Do it once more if NFS says that the file was replaced while it was looked up or opened."""
    try:
        return operation()
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
    return operation()


def _delete(path: Path) -> list[tuple[Path, OSError]]:
    """Delete what can be deleted, without following symbolic links. Returns what cannot be, and why, in order."""
    failures: list[tuple[Path, OSError]] = []
    try:
        if path.is_dir() and not path.is_symlink():
            _delete_folder(path, None, failures)
        else:
            path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        failures.append((path, error))
    return failures


def _delete_folder(path: Path, parent: int | None, failures: list[tuple[Path, OSError]]) -> None:
    """Delete a folder; its parent is open as a descriptor. Raises OSError if the folder itself stays."""
    name = path if parent is None else path.name
    # Names are looked up in open folders, so that nobody can put a link to another folder in the place of one of these
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        with os.scandir(descriptor) as found:
            entries = list(found)
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    _delete_folder(path / entry.name, descriptor, failures)
                else:
                    os.unlink(entry.name, dir_fd=descriptor)
            except FileNotFoundError:  # deleted meanwhile
                continue
            except OSError as error:
                failures.append((path / entry.name, error))
    finally:
        os.close(descriptor)
    os.rmdir(name, dir_fd=parent)
