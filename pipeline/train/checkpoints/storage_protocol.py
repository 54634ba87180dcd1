"""The storage functions that training needs, as a protocol; the module cluster.storage implements it."""

from collections.abc import Iterator, Sequence
from typing import Protocol


class Storage(Protocol):
    """Reads and writes whole files at URIs. A file becomes visible only when it is complete."""

    def read_bytes(self, uri: str) -> bytes:
        """Read a file. Raises FileNotFoundError if it does not exist."""

    def read_chunks(self, uri: str) -> Iterator[bytes]:
        """Read a file in pieces."""

    def write_bytes(self, uri: str, data: bytes) -> None:
        """Write a file, replacing an existing one."""

    def exists(self, uri: str) -> bool:
        """Whether the file exists."""

    def list_files(self, uri: str, suffixes: Sequence[str] = ()) -> list[str]:
        """List all files below a folder, sorted. Raises FileNotFoundError if the folder does not exist."""

    def join(self, uri: str, *parts: str) -> str:
        """Build the URI of a file or folder below `uri`."""

    def absolute(self, uri: str) -> str:
        """A URI that does not depend on the working directory, as `list_files` gives it."""

    def delete(self, uri: str) -> None:
        """Remove a file or a folder."""
