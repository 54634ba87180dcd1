import hashlib
import io
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.sources.byte_ranges import ByteRange, cut, read_lines, sha256


@given(st.lists(st.integers(0, 1000), max_size=5), st.integers(1, 300))
def test_ranges_cover_each_file_once(sizes: list[int], max_bytes: int) -> None:
    ranges = cut(((str(i), size) for i, size in enumerate(sizes)), max_bytes)
    for i, size in enumerate(sizes):
        own = [byte_range for byte_range in ranges if byte_range.uri == str(i)]
        assert [own[0].start, own[-1].stop] == [0, size]
        assert all(a.stop == b.start for a, b in pairwise(own))
        assert all(byte_range.stop - byte_range.start <= max_bytes for byte_range in own)


@given(st.binary(max_size=200) | st.text("a\n\r", max_size=40).map(str.encode), st.integers(1, 50))
def test_every_line_is_in_one_range(data: bytes, max_bytes: int) -> None:
    ranges = cut([("x", len(data))], max_bytes)
    found = [line for byte_range in ranges for line in read_lines(io.BytesIO(data), byte_range)]
    lines = data.split(b"\n")
    assert found == [line.rstrip(b"\r").decode("utf-8", "replace") for line in (lines if lines[-1] else lines[:-1])]


def test_a_line_that_begins_in_a_range_is_read_to_its_end() -> None:
    data = b"one\ntwo and more\nthree"
    assert list(read_lines(io.BytesIO(data), ByteRange("x", 0, 5))) == ["one", "two and more"]
    assert list(read_lines(io.BytesIO(data), ByteRange("x", 5, 20))) == ["three"]
    assert list(read_lines(io.BytesIO(data), ByteRange("x", 20, 22))) == []


def test_sha256_of_a_file() -> None:
    data = bytes(range(256)) * 10_000
    assert sha256(io.BytesIO(data)) == hashlib.sha256(data).hexdigest()
