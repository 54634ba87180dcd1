"""S3 as a filesystem of pyarrow, over the same client as everything else.

Errors of a read pass through pyarrow unchanged, so a StorageError is told from the damage of a file.
"""

from __future__ import annotations

import functools
import io
from contextlib import suppress
from typing import Any

import fsspec
import pyarrow.fs

from cluster.stores.errors import AccessDeniedError
from cluster.stores.range_file import RangeFile
from cluster.stores.s3.listing import delete, is_folder, objects
from cluster.stores.s3.reading import Version, read_range, version
from cluster.stores.s3.writing import write


@functools.lru_cache
def filesystem() -> pyarrow.fs.FileSystem:
    """The filesystem, whose paths are `bucket/key`. It can be pickled."""
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(S3FileSystem()))


class S3FileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """S3 objects by the paths `bucket/key`. A folder exists if an object is below it."""

    cachable = False

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Path, type and size of an object or a folder. Raises FileNotFoundError and StorageError."""
        uri = f"s3://{path}"
        try:
            if "/" in path.strip("/"):
                return _entry(path, "file", version(uri).num_bytes)
        except FileNotFoundError:
            pass
        if is_folder(uri):
            return _entry(path, "directory", 0)
        raise FileNotFoundError(f"nothing at '{uri}'")

    def isfile(self, path: str) -> bool:  # noqa: ARG002  # fsspec calls it by this name
        """Return True, so that opening tells why a file cannot be opened; fsspec's own takes every error for False."""
        return True

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """The objects and folders in a folder."""
        base = f"{path.rstrip('/')}/"
        found = {}
        for uri, num_bytes, _modified in objects(f"s3://{path}"):
            name, slash, _below = uri.removeprefix("s3://").removeprefix(base).partition("/")
            is_file = not slash
            found[base + name] = _entry(base + name, "file" if is_file else "directory", num_bytes if is_file else 0)
        return list(found.values()) if detail else sorted(found)

    def rm_file(self, path: str) -> None:
        """Delete an object."""
        delete(f"s3://{path}")

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing, because folders exist by their objects."""

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Do nothing, because folders exist by their objects."""

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.IOBase:
        uri = f"s3://{path}"
        if mode == "rb":
            known = _version(uri)
            return RangeFile(known.num_bytes, lambda start, stop: read_range(uri, start, stop, known))
        if mode == "wb":
            return _NewObject(uri)
        raise ValueError(f"'{uri}': objects can be read or written whole, not opened as '{mode}'")


def _entry(path: str, kind: str, num_bytes: int) -> dict[str, Any]:
    """What fsspec tells about a path."""
    return {"name": path, "type": kind, "size": num_bytes}


def _version(uri: str) -> Version:
    """The version of an object. A missing bucket, of which the answer about an object does not tell, is told, too."""
    try:
        return version(uri)
    except FileNotFoundError:
        with suppress(AccessDeniedError):
            is_folder(uri)
        raise


class _NewObject(io.BytesIO):
    """The content of an object, which is written when it is closed."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._uri = uri

    def close(self) -> None:
        if not self.closed:
            write(self._uri, self.getvalue())
        super().close()
