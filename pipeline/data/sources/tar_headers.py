"""Read the headers of tars in linear time and bounded memory, whatever Python's release.

A pax header holds records such as `30 mtime=1700000000.123456789\\n` for the next member (or, if it is global, for all
members). tarfile looks through its digits in quadratic time (CVE-2024-6232, mended in Python 3.11.10), reads records
whose lengths do not fit again and again, and copies the global records for every header. So pax headers are checked
before tarfile reads them. Sources: POSIX.1-2017, pax interchange format; tarfile.
"""

from __future__ import annotations

import re
import tarfile
from typing import Any, BinaryIO

MAX_HEADER_BYTES = 2**16
"""Maximum bytes of a pax header or of a long name."""
MAX_GLOBAL_RECORDS = 100
"""Maximum records of all global pax headers."""
_PAX_TYPES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG_NAME_TYPES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_MANY_DIGITS = re.compile(rb"[0-9]{64}")
_SPARSE = b"GNU.sparse."


def open_tar(file: Any) -> tarfile.TarFile:
    """Open an uncompressed tar for reading.

    A header that is refused raises tarfile.TarError. tarfile itself ends silently at a broken one, so the caller
    compares the offset at which reading ended with the end of the file.

    Raises:
        tarfile.TarError: the first header is broken, or refused.
    """
    return tarfile.open(fileobj=file, mode="r:", tarinfo=_CheckedTarInfo)


class _CheckedTarInfo(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> _CheckedTarInfo:
        """Read the next member, after checking that its headers can be read in linear time."""
        assert tarfile.fileobj is not None
        _check(tarfile, tarfile.fileobj)
        return super().fromtarfile(tarfile)


def _check(tar: tarfile.TarFile, file: BinaryIO | Any) -> None:
    """Check the header at the position of a file, and return to this position.

    Raises:
        tarfile.HeaderError: it is a header of another header, and too long, or not well-formed.
    """
    if len(tar.pax_headers) > MAX_GLOBAL_RECORDS:
        raise tarfile.HeaderError("too many global records")
    position = file.tell()
    block = file.read(tarfile.BLOCKSIZE)
    kind = block[156:157]
    if kind in (*_PAX_TYPES, *_LONG_NAME_TYPES):
        size = tarfile.TarInfo.frombuf(block, tar.encoding or "utf-8", "surrogateescape").size
        if size > MAX_HEADER_BYTES:
            raise tarfile.HeaderError(f"a header of {size} bytes")
        if kind in _PAX_TYPES:
            _check_records(file.read(size))
    file.seek(position)


def _check_records(content: bytes) -> None:
    """Check that records fill the content of a pax header, except for zeros at its end.

    Raises:
        tarfile.HeaderError: they do not, or one has very many digits or is of a sparse file.
    """
    content, start = content.rstrip(b"\0"), 0
    while start < len(content):
        digits, blank, _ = content[start : start + 8].partition(b" ")
        end = start + int(digits) if blank and digits.isdigit() else 0
        name, equals, _ = content[start + len(digits) + 1 : end].partition(b"=")
        if not equals or content[end - 1 : end] != b"\n" or name.startswith(_SPARSE):
            raise tarfile.HeaderError("a record of a pax header cannot be read")
        start = end
    if _MANY_DIGITS.search(content):
        raise tarfile.HeaderError("a pax header with many digits")
