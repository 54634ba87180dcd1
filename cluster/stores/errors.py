"""The errors of storage, by their cause: each says in one line what failed, where, and what to do.

Every store raises these, whatever library it uses. A file that does not exist is Python's FileNotFoundError.
Damage is none of them: `DamagedError` is raised only for bytes that were read whole, twice, and whose checksum differs.
"""

from __future__ import annotations


class StorageError(OSError):
    """The storage did not do what was asked. The message names the file or folder, the cause, and what to do."""

    transient = False
    """Whether the same request may succeed later without anybody's help. It has been retried already."""


class AccessDeniedError(StorageError):
    """The storage refuses this to these credentials or to this user."""


class CredentialsError(StorageError):
    """There are no credentials, or the storage does not accept them: unknown, wrong or expired."""


class ClockError(StorageError):
    """The clock of this machine differs too much from that of the storage, which therefore refuses signed requests."""


class NoSuchBucketError(StorageError):
    """The bucket does not exist, or is in another region than the configuration says."""


class CertificateError(StorageError):
    """The certificate of the server cannot be verified."""


class UnreachableError(StorageError):
    """No answer: the name is unknown, nothing listens, the network or a proxy fails, or the server stays silent."""

    transient = True


class ThrottledError(StorageError):
    """The storage asked to slow down in every attempt, or failed on its side in every attempt."""

    transient = True


class StorageFullError(StorageError):
    """The disk or the quota has no space left. No part of the file is visible."""


class UnsupportedError(StorageError):
    """The storage does not have an operation that is needed."""


class DamagedError(ValueError):
    """The bytes were read whole, twice, and are not those that were written. Nothing else is damage."""
