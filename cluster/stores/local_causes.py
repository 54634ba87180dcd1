"""Turn the errors of the system for a local file into those of cluster/stores/errors.py, by their cause.

A disk that is silent instead, such as that of a network, is shown by cluster/stores/waiting.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.stores.errors import (
    AccessDeniedError,
    StorageError,
    StorageFullError,
    UnreachableError,
    UnsupportedError,
)
from cluster.stores.waiting import waiting_for

IN_USE = {errno.EBUSY, errno.ETXTBSY}
"""What network disks answer for a file that is open elsewhere."""
DENIED = {errno.EACCES, errno.EPERM}
"""What systems answer to a missing permission, and some network disks for a file that is open elsewhere."""
NOT_EMPTY = {errno.ENOTEMPTY, errno.EEXIST}
"""What systems answer to the removal of a folder that is not empty."""

_RERUN = "then run the same command again; complete work is kept"
_CAUSES: tuple[tuple[type[StorageError | ValueError], set[int], str], ...] = (
    (StorageFullError, {errno.ENOSPC, errno.EDQUOT}, f"Free disk space or enlarge the folder's disk, {_RERUN}"),
    (AccessDeniedError, DENIED, "Give this user the permission, or use another path or user"),
    (AccessDeniedError, {errno.EROFS}, "The disk is mounted read-only; use another folder, or mount it writable"),
    (
        UnreachableError,
        {errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH}
        | {errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ENETDOWN}
        | {errno.ENETUNREACH, errno.EREMOTEIO, errno.ENOLINK, errno.ESHUTDOWN, errno.EUCLEAN, errno.EBADMSG},
        f"The disk or its file server fails; look at the system's log (dmesg), mount the disk again, {_RERUN}",
    ),
    (UnsupportedError, {errno.EFBIG}, "The disk or a limit (ulimit -f) allows no file of this size; use another disk"),
    (StorageError, IN_USE, f"Another program has it open; close that program, {_RERUN}"),
    (StorageError, {errno.ENOTEMPTY}, "Another program writes into this folder; close that program and try again"),
    (StorageError, {errno.EMFILE, errno.ENFILE}, f"Raise the limit of open files (ulimit -n), {_RERUN}"),
    (ValueError, {errno.ENAMETOOLONG}, "Use a shorter name"),
    (ValueError, {errno.ENOTDIR}, "A part of this path is a file, not a folder; use another path"),
    (ValueError, {errno.EISDIR}, "This is a folder; give the path of a file"),
    (ValueError, {errno.ELOOP}, "A symbolic link in this path leads back to itself; remove the link"),
    (ValueError, {errno.EINVAL, errno.EILSEQ}, "The disk does not allow this name; use letters, digits, '.', '_', '-'"),
)
"""For each cause: its error, the system's numbers for it, and what to do."""


@contextmanager
def explained(path: Path, action: str) -> Iterator[None]:
    """Turn the system's errors in the `with` block into ours, and log if it takes long.

    Args:
        path: the file or folder.
        action: what fails, such as "read".

    Raises:
        FileNotFoundError: the file or its folder does not exist.
        StorageError: its kind says the cause, its message what to do.
        ValueError: the path cannot be that of a file.
    """
    try:
        with waiting_for(f"{action} {str(path)!r}"):
            yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{str(path)!r}: cannot {action} ({os.strerror(errno.ENOENT)})") from error
    except OSError as error:
        raise cause(path, action, error) from error
    except ValueError as error:  # a null character, or one that UTF-8 does not have
        raise ValueError(f"{str(path)!r}: cannot {action} ({error}). Use another name") from error


def cause(path: Path, action: str, error: OSError) -> StorageError | ValueError:
    """The error of ours for an error of the system."""
    reason = error.strerror or str(error)
    for kind, numbers, advice in _CAUSES:
        if error.errno in numbers:
            return kind(f"{str(path)!r}: cannot {action} ({reason}). {advice}")
    return StorageError(f"{str(path)!r}: cannot {action} ({reason})")
