import contextlib
import io
import tarfile
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.sources.tar_headers import MAX_GLOBAL_RECORDS, MAX_HEADER_BYTES, open_tar

X, G, LONG = tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME


def header(kind: bytes, size: int, name: str = "././@PaxHeader") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.USTAR_FORMAT)


def member(kind: bytes, content: bytes, name: str = "././@PaxHeader") -> bytes:
    return header(kind, len(content), name) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def record(name: bytes, value: bytes) -> bytes:
    length = len(name) + len(value) + 3
    while len(b"%d %s=%s\n" % (length, name, value)) != length:
        length += 1
    return b"%d %s=%s\n" % (length, name, value)


def names(data: bytes) -> list[str]:
    """The names of the members up to a header that is refused."""
    found: list[str] = []
    with open_tar(io.BytesIO(data + bytes(1024))) as tar, contextlib.suppress(tarfile.TarError):
        found.extend(info.name for info in tar)
    return found


FIRST, SECOND = member(b"0", b"a", "1.txt"), member(b"0", b"b", "2.txt")


@given(
    st.lists(st.text("aé名/._- ", min_size=1, max_size=300).map(lambda name: f"a{name}z"), min_size=1, max_size=4),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.dictionaries(st.text("abc", min_size=1, max_size=4), st.text("ab1\n=é ", max_size=80), max_size=3),
)
@settings(max_examples=50, deadline=None)
def test_tars_of_tarfile_are_read_as_tarfile_reads_them(paths: list[str], layout: int, records: dict[str, str]) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=layout, pax_headers=records) as tar:
        for path in paths:
            info = tarfile.TarInfo(path)
            info.mtime = 1.5  # a float gives each member a pax header
            tar.addfile(info)
    with (
        tarfile.open(fileobj=io.BytesIO(file.getvalue()), mode="r:") as plain,
        open_tar(io.BytesIO(file.getvalue())) as checked,
    ):
        assert [info.get_info() for info in checked] == [info.get_info() for info in plain]
        assert checked.offset == plain.offset


HOSTILE = {
    "digits (CVE-2024-6232)": lambda size: member(X, b"1" * size),
    "digits of a value": lambda size: member(X, record(b"comment", b"1" * size)),
    "no equals sign": lambda size: member(X, b"5 aa\n" * (size // 5) + b"="),
    "equals signs behind the records": lambda size: member(X, b"3 a" * (size // 3) + b"=\n"),
    "a length of 0": lambda size: member(X, b"0 a=\n" * (size // 6)),
    "a length beyond the header": lambda size: member(X, b"%d a=\n" % (2 * size)),
    "a negative length": lambda size: member(X, b"-5 a=\n" * (size // 7)),
    "a sparse file without numbers": lambda size: (
        member(X, record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0"))
        + member(b"0", b"9" * size, "3.jpg")
    ),
    "many global records": lambda size: member(G, b"".join(record(b"k%d" % i, b"") for i in range(size // 10))),
    "a long name": lambda size: member(LONG, b"a" * size),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_ends_the_tar_at_once(name: str) -> None:
    started = time.process_time()
    for size in (MAX_HEADER_BYTES - 1000, 8 * 2**20):
        data = FIRST + HOSTILE[name](size) + SECOND
        assert names(data)[0] == "1.txt"
        if not name.startswith("a long name") or size > MAX_HEADER_BYTES:
            assert "2.txt" not in names(data)
    assert time.process_time() - started < 2


def test_many_global_headers_end_the_tar() -> None:
    """Each header of a member would copy all of them."""
    start = b"".join(member(G, record(b"k%d" % i, b"")) for i in range(MAX_GLOBAL_RECORDS))
    assert names(start + FIRST) == ["1.txt"]
    assert names(FIRST + start + member(G, record(b"more", b"")) + SECOND) == ["1.txt"]


def test_8_mib_of_the_largest_headers_take_linear_time() -> None:
    digits = b"".join(record(b"comment", b"1" * 60 + b" ") for _ in range(MAX_HEADER_BYTES // 80))
    data = b"".join(member(X, digits) + member(b"0", b"", f"{i}.txt") for i in range(2**23 // len(digits)))
    started = time.process_time()
    assert len(names(data)) == 2**23 // len(digits)
    assert time.process_time() - started < 8
