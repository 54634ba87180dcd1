"""What training asks of a storage; the module cluster.storage is one."""

from collections.abc import Iterator, Sequence
from typing import Protocol


class Storage(Protocol):
    """Whole files at URIs; a file becomes visible complete or not at all."""

    def read_bytes(self, uri: str) -> bytes:
        """The content of a file; FileNotFoundError where there is none."""

    def read_chunks(self, uri: str) -> Iterator[bytes]:
        """The content of a file, a piece at a time."""

    def write_bytes(self, uri: str, data: bytes) -> None:
        """Writes a file, replacing the one that is there."""

    def exists(self, uri: str) -> bool:
        """Whether there is a file."""

    def list_files(self, uri: str, suffixes: Sequence[str] = ()) -> list[str]:
        """All files below a folder, sorted; FileNotFoundError where there is none."""

    def join(self, uri: str, *parts: str) -> str:
        """The URI of something below a folder."""

    def delete(self, uri: str) -> None:
        """Removes a file or a folder."""
