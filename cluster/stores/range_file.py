"""A seekable, read-only file over a store that delivers ranges of bytes, such as S3 or a web server.

pyarrow reads a range of a Python file by a seek and a read, and its size by a seek to the end and one back; the second
may happen in another thread in the middle of the first (arrow/python/io.cc locks only the first), and the read then
gives other bytes in silence. So each thread has a position of its own. Nothing is buffered: pyarrow asks for whole
column chunks, and other readers bring their buffers.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import Any


class RangeFile(io.RawIOBase):
    """One file of a store.

    Args:
        num_bytes: size of the file.
        read_range: returns the bytes from the first to before the second offset, all of them, or raises OSError.
    """

    def __init__(self, num_bytes: int, read_range: Callable[[int, int], bytes]) -> None:
        super().__init__()
        self._num_bytes = num_bytes
        self._read_range = read_range
        self._of_thread = threading.local()

    def readable(self) -> bool:
        """Return True: the file can be read."""
        return True

    def seekable(self) -> bool:
        """Return True: reading can start at any byte."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move this thread to a byte offset, which may be past the end."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}[whence]
        self._position = max(0, start + offset)
        return self._position

    @property
    def _position(self) -> int:
        position: int = getattr(self._of_thread, "position", 0)
        return position

    @_position.setter
    def _position(self, position: int) -> None:
        self._of_thread.position = position

    def tell(self) -> int:
        """The offset of the next byte to read."""
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes in one request, all that remain by default."""
        stop = self._num_bytes if size is None or size < 0 else min(self._position + size, self._num_bytes)
        if stop <= self._position:
            return b""
        data = self._read_range(self._position, stop)
        assert len(data) == stop - self._position, (len(data), self._position, stop)
        self._position = stop
        return data

    def readall(self) -> bytes:
        """Read the rest of the file in one request; the base class would request 8 KiB at a time."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, up to the end of the file."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
