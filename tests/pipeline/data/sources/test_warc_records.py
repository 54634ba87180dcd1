import io
import struct
import time
import zlib

import pytest

from pipeline.data.sources.warc_records import read_records

MAX_BYTES = 8 * 2**20


def member(content: bytes) -> bytes:
    """A record as one gzip member, stored without compression, so that its content is in the archive as it is."""
    head = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: %d\r\n\r\n" % len(content)
    gzip = zlib.compressobj(0, zlib.DEFLATED, 31)
    return gzip.compress(head + content + b"\r\n\r\n") + gzip.flush()


@pytest.mark.parametrize("num_bytes", [0, 100, MAX_BYTES - 1])
def test_a_page_of_beginnings_of_members_takes_linear_time(num_bytes: int) -> None:
    """Each beginning may be the end of the member, so the member may be inflated from its start each time.

    `num_bytes` is the size that each such end claims. 4 MiB took 54 s, four times as much as half of them.
    """
    piece = struct.pack("<II", 0, num_bytes) + b"\x1f\x8b\x08"
    page = piece * (7 * 2**20 // len(piece))
    archive = member(b"first") + member(page) + member(b"last")
    started = time.process_time()
    records = list(read_records(io.BytesIO(archive), MAX_BYTES))
    assert time.process_time() - started < 8
    assert [bytes(record.content) for record in records] == [b"first", page, b"last"]
    assert all(record.is_whole for record in records)
