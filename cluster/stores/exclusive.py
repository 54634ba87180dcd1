"""Give a file a name that must not exist yet, on file systems of any make. Of racing writers, exactly one succeeds.

The content is complete before it gets its name, so no reader sees a part of it. The name is given in the first of these
ways that the file system has:

- "links": a hard link, which fails if the name exists. Atomic, on NFS among all machines.
- "renames": a rename that fails if the name exists (renameat2 with RENAME_NOREPLACE), on exFAT, FAT and SMB. Atomic
  among the processes of a machine, and among machines if the file server refuses to replace the file, as SMB does.
- "locks": a lock on a hidden file of the folder is held while the name is looked up and the file is renamed. Exclusive
  as far as the locks of the file system reach: always among the processes of a machine, and on most FUSE file systems
  only among them. The system releases the lock of a killed process, so such a process never blocks another.

A file system without any of them is refused.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.stores.errors import StorageError, UnsupportedError

LOCK_FILE = ".put_if_absent.lock"
"""Name of the file that is locked in each folder. It stays: removing a file that others lock would let two in."""
LOCK_SECONDS = 60.0
"""A lock is held for milliseconds. After this time, its holder must have been stopped."""
_POLL_SECONDS = 0.01

_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EACCES, errno.EMLINK}
_NO_LINKS |= {errno.EXDEV, 524}  # 524 is the Linux kernel's own ENOTSUPP, which some network file systems let through
_NO_EXCLUSIVE_RENAMES = _NO_LINKS - {errno.EMLINK, errno.EXDEV}
_NO_LOCKS = (_NO_LINKS | {errno.ENOLCK}) - {errno.EACCES, errno.EMLINK, errno.EXDEV}
"""What file systems answer to an operation that they do not have. Some answer as to a missing permission. A permission
that really is missing fails the last way, too."""
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
"""The function of the C library, None if it is too old."""

logger = logging.getLogger("clip")

_warned: set[int] = set()
"""Device numbers of the file systems about whose locks a warning was logged."""
_thread_lock = threading.Lock()
"""Locks of files exclude other processes, but not the threads of the same process."""


class _RefusedError(Exception):
    """The file system does not have a way."""


def name_exclusively(temporary: Path, path: Path) -> str | None:
    """Give a complete file of the same folder the name `path`, unless that exists. The temporary name may remain.

    Every process must take the same way, so none is remembered: all are tried in order, which costs two calls at most.

    Returns:
        "links", "renames" or "locks", the way in which the file got its name; None if the name exists.

    Raises:
        UnsupportedError: the file system has none of the ways.
        OSError: the system's error for another cause.
    """
    refusals = []
    for way, attempt in (("links", _link), ("renames", _rename_without_replacing), ("locks", _rename_under_lock)):
        try:
            attempt(temporary, path)
        except _RefusedError as refusal:
            refusals.append(f"{way}: {refusal}")
            continue
        except FileExistsError:
            if not _has_moved(temporary):
                return None
        except FileNotFoundError:
            if not (_has_moved(temporary) and os.path.lexists(path)):
                raise
        if way == "locks":
            _warn(path.parent)
        return way
    raise UnsupportedError(
        f"{str(path)!r}: two jobs could write this file at once, because its file system has neither hard links, nor "
        f"renames that keep an existing file, nor locks ({'; '.join(refusals)}). Use a folder on another disk, or s3://"
    )


def _warn(folder: Path) -> None:
    device = folder.stat().st_dev
    if device not in _warned:
        _warned.add(device)
        logger.warning(
            "%r: its file system has no hard links, and no renames that keep an existing file. So records are written "
            "under a lock. On most such file systems a lock excludes only jobs on the same machine: run all jobs that "
            "write to this folder on one machine, or use a folder on another disk, or s3://",
            str(folder),
        )


def _has_moved(temporary: Path) -> bool:
    """Whether the file has got its name although the operation failed.

    That happens on network file systems: the reply is lost, the client asks again, and the server finds the name taken
    by the first request. Nobody else knows the temporary name.
    """
    try:
        with temporary.open("rb") as file:  # opening a file makes NFS ask the server for its attributes
            return os.fstat(file.fileno()).st_nlink > 1
    except FileNotFoundError:
        return True


@contextmanager
def _refused_by(numbers: set[int]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise
        raise _RefusedError(error.strerror) from error


def _link(temporary: Path, path: Path) -> None:
    with _refused_by(_NO_LINKS):
        os.link(temporary, path)


def _rename_without_replacing(temporary: Path, path: Path) -> None:
    if _renameat2 is None:
        raise _RefusedError("the C library has no renameat2")
    with _refused_by(_NO_EXCLUSIVE_RENAMES):
        if _renameat2(_AT_FDCWD, os.fsencode(temporary), _AT_FDCWD, os.fsencode(path), _RENAME_NOREPLACE):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))


def _rename_under_lock(temporary: Path, path: Path) -> None:
    with _thread_lock:
        # One lock for the whole folder, because different names may be the same file (`A` and `a`)
        descriptor = os.open(path.with_name(LOCK_FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(descriptor, path)
            try:
                path.lstat()  # os.path.lexists would take any error for a missing file
            except FileNotFoundError:
                temporary.replace(path)
            else:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        finally:
            os.close(descriptor)  # releases the lock


def _lock(descriptor: int, path: Path) -> None:
    """Lock an open file. Polls instead of waiting in the kernel, so that a stopped holder cannot block for ever."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            with _refused_by(_NO_LOCKS):
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EACCES}:
                raise
        if time.monotonic() > deadline:
            raise StorageError(
                f"{str(path)!r}: another process has locked '{LOCK_FILE}' beside it for {LOCK_SECONDS:.0f} s. End that "
                "process, which may be stopped, and run the same command again"
            )
        time.sleep(_POLL_SECONDS)
