import base64
import gzip
import io
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import accumulate, groupby
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.sources import extract, warc_records
from pipeline.data.sources.extract import ExtractConfig, candidates_of, check_archive, read_archive
from pipeline.data.sources.page import MAX_DEPTH, page_candidates
from pipeline.data.sources.warc_records import Record
from pipeline.data.web.charsets import decode_html
from pipeline.isolation import DiedError
from pipeline.reasons import Reason
from pipeline.schemas import CANDIDATES
from tests.pipeline.data import independent
from tests.pipeline.data.archives import (
    HTML,
    Archive,
    image_page,
    members,
    offsets_by_warcio,
    open_file,
    read,
    response,
)

DAMAGE = {Reason.BROKEN_ARCHIVE, Reason.TRUNCATED_RECORD, Reason.BROKEN_RECORD}
LAST = response(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + image_page("last"))


def outcomes(table: pa.Table) -> list[str]:
    """The reason of each row, or its caption if it has no reason."""
    rows = zip(table["caption"].to_pylist(), table["reason"].to_pylist(), strict=True)
    return [reason or caption for caption, reason in rows]


@pytest.mark.parametrize("compressed", [True, False])
def test_every_record_is_a_row(compressed: bool) -> None:
    archive = Archive(compressed)
    page = b'<img src=1 alt="picture one"><img src=2 alt="picture two" title="a title">'
    offsets = [
        archive.add(b"software: x\r\n", kind="warcinfo", status=None),
        archive.add(b"", kind="request", status="GET / HTTP/1.1"),
        *[archive.add(page, url="http://a.example/page")] * 3,
        archive.add(page, status="404 Not Found"),
        archive.add(page, status="301 Moved", headers=[("Location", "/x")]),
        archive.add(b"\xff\xd8\xff", headers=[("Content-Type", "image/jpeg")]),
        archive.add(b"", kind="revisit"),
        archive.add(b"<p>no image</p>", url="http://a.example/empty"),
        archive.add(b"x", kind="resource", status=None),
        archive.add(image_page("xhtml"), headers=[("Content-Type", "Application/XHTML+xml; charset=utf-8")]),
        archive.add(image_page("no type"), headers=[]),
    ]
    table = read(archive.data)
    assert table.schema == CANDIDATES
    assert outcomes(table) == [
        *[Reason.NOT_A_RESPONSE] * 2,
        *["picture one", "picture two", "a title"],
        *[Reason.HTTP_ERROR_PAGE, Reason.HTTP_REDIRECT],
        Reason.NOT_HTML,
        Reason.REVISIT,
        Reason.NO_IMAGE,
        Reason.NOT_A_RESPONSE,
        *["the picture xhtml", "the picture no type"],
    ]
    assert table["record_offset"].to_pylist() == offsets
    assert set(table["archive"].to_pylist()) == {"x.warc.gz"}
    assert table["page_url"].to_pylist()[2] == "http://a.example/page"
    assert table["url"].to_pylist()[2:4] == ["http://a.example/1", "http://a.example/2"]


@pytest.mark.parametrize("suffix", [".warc.gz", ".warc", ".warc.zst"])
def test_compressions(tmp_path: Path, suffix: str) -> None:
    plain = [response(b"HTTP/1.1 200 OK\r\n\r\n" + image_page(str(i))) for i in range(3)]
    file = tmp_path / f"x{suffix}"
    if suffix == ".warc.zst":
        file.write_bytes(b"".join(pa.compress(record, "zstd", asbytes=True) for record in plain))
    else:
        file.write_bytes(members(*plain) if suffix == ".warc.gz" else b"".join(plain))
    check_archive(str(file), open_file)
    table = read_archive(str(file), open_file, ExtractConfig())
    assert outcomes(table) == ["the picture 0", "the picture 1", "the picture 2"]


def test_an_archive_in_a_single_gzip_member() -> None:
    records = [response(b"HTTP/1.1 200 OK\r\n\r\n" + image_page(str(i))) for i in range(3)]
    assert outcomes(read(gzip.compress(b"".join(records)))) == [f"the picture {i}" for i in range(3)]
    for length in range(len(gzip.compress(b"".join(records)))):
        assert set(outcomes(read(gzip.compress(b"".join(records))[:length]))) & DAMAGE or length == 0


def test_an_empty_archive_has_no_rows() -> None:
    assert read(b"") == CANDIDATES.empty_table()


GZIPPED, BROTLI = ("Content-Encoding", "gzip"), ("Content-Encoding", "br")
CHUNKED = ("Transfer-Encoding", "chunked")


def chunked(body: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (body[:50], body[50:])) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([GZIPPED], gzip.compress(image_page("x"), mtime=0)),
        ([("Content-Encoding", "deflate")], zlib.compress(image_page("x"))),
        ([CHUNKED], chunked(image_page("x"))),
        ([GZIPPED, CHUNKED], chunked(gzip.compress(image_page("x"), mtime=0))),
        # Some crawlers undo an encoding but keep its header
        ([GZIPPED], image_page("x")),
        ([BROTLI], image_page("x")),
        ([CHUNKED], image_page("x")),
        ([GZIPPED, CHUNKED], gzip.compress(image_page("x"), mtime=0)),
        ([GZIPPED, CHUNKED], image_page("x")),
        ([("Content-Encoding", "from-the-future")], image_page("x")),
    ],
)
def test_encodings_are_undone(headers: list[tuple[str, str]], body: bytes) -> None:
    archive = Archive()
    archive.add(body, headers=[*HTML, *headers])
    assert outcomes(read(archive.data)) == ["the picture x"]


@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        (b"HTTP/1.1 200 OK\nContent-Type: text/html\n\n" + image_page("x"), "the picture x"),  # lines end in LF alone
        (b"HTTP/2 200\r\n\r\n" + image_page("x"), "the picture x"),
        (b"HTTP/1.1 200 OK\r\nContent-Type text/html\r\n\r\n" + image_page("x"), "the picture x"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=nonsense\r\n\r\n" + image_page("x"), "the picture x"),
        (b"HTTP/1.1 999999999999 OK\r\n\r\n" + image_page("x"), "the picture x"),
        (b"", Reason.NO_IMAGE),
        (b"\0\1\2" * 100, Reason.NO_IMAGE),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", Reason.BROKEN_RECORD),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + b"\0" * 99, Reason.BROKEN_RECORD),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\n" + b"\xff\0" * 99, Reason.BROKEN_RECORD),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"<div>" * (MAX_DEPTH + 1) + image_page("x"), Reason.TOO_DEEP),
        (b"HTTP/1.1 200 OK\r\n\r\n<img srcset='a 1.2.3x' alt='the picture x'>", Reason.NO_IMAGE),
        (b"HTTP/1.1 200 OK\r\n\r\n<base href='http://[x'>" + image_page("x"), "the picture x"),
    ],
)
def test_a_malformed_record_gives_one_row_and_does_not_affect_the_next(message: bytes, outcome: str) -> None:
    assert outcomes(read(members(response(message), LAST))) == [outcome, "the picture last"]


def test_records_of_other_protocols() -> None:
    dns = LAST.replace(b"application/http", b"text/dns").replace(b"http://a.example/", b"dns:a.example")
    assert outcomes(read(members(dns, LAST))) == [Reason.NOT_HTML, "the picture last"]


def test_long_pages_are_truncated() -> None:
    page = image_page("first") + b"<p>lorem ipsum</p>" * 1_000 + image_page("second")
    archive = Archive()
    archive.add(page)
    archive.add(gzip.compress(page), headers=[*HTML, GZIPPED])
    archive.add(chunked(page), headers=[*HTML, CHUNKED])
    archive.add(image_page("last"))
    assert outcomes(read(archive.data, ExtractConfig(max_page_bytes=len(page) // 2))) == [
        *["the picture first"] * 3,
        "the picture last",
    ]
    assert len(read(archive.data)) == 7


def test_a_decompression_bomb_is_truncated() -> None:
    """100 KB that decompress to 100 MB of blanks: reading all of it would take 1 GB and ten seconds."""
    archive = Archive()
    archive.add(image_page("first") + gzip.compress(b"", mtime=0), headers=HTML)
    archive.add(gzip.compress(image_page("x") + b" " * 100_000_000), headers=[*HTML, GZIPPED])
    assert outcomes(read(archive.data))[1] == "the picture x"


def test_a_page_that_takes_too_long_costs_its_own_row() -> None:
    """Lexbor compares each attribute of a tag with all earlier ones: 8 MiB of attributes would take an hour."""
    slow = b"<a " + b" ".join(b"a%d" % number for number in range(300_000)) + b">" + image_page("slow")
    archive = Archive()
    offsets = [archive.add(page) for page in (image_page("first"), slow, image_page("last"))]
    began = time.monotonic()
    table = read(archive.data, ExtractConfig(page_timeout_seconds=1.0))
    assert time.monotonic() - began < 20
    assert outcomes(table) == ["the picture first", Reason.PAGE_TIMEOUT, "the picture last"]
    assert table["record_offset"].to_pylist() == offsets
    assert table["page_url"][1].as_py()
    assert table["caption"][1].as_py() == "no answer after 1 s"


class TestDeaths:
    """A child process that dies costs at most the page that it reads."""

    @pytest.mark.parametrize("num_deaths", [1, 100])
    def test_a_page_is_refused_when_a_second_process_dies_of_it(
        self, monkeypatch: pytest.MonkeyPatch, num_deaths: int
    ) -> None:
        """When memory is short, the kernel kills a process for what others have taken."""
        deaths: list[int] = []

        def dying(request: bytes, _timeout_seconds: float) -> bytes:
            _, records = extract._REQUESTS.decode(request)
            if len(records) == 1 and b"picture deadly" in bytes(records[0][2]) and len(deaths) < num_deaths:
                deaths.append(1)
                raise DiedError("exit status -9")
            if len(records) > 1:
                raise DiedError("exit status -9")
            return extract.answer(request)

        monkeypatch.setattr(extract, "_read_in_child", dying)
        archive = Archive()
        offsets = [archive.add(image_page(name)) for name in ("first", "deadly", "last")]
        table = read(archive.data)
        middle = "the picture deadly" if num_deaths == 1 else Reason.PAGE_DIED
        assert outcomes(table) == ["the picture first", middle, "the picture last"]
        assert table["record_offset"].to_pylist() == offsets

    def test_a_process_that_is_killed_between_batches_costs_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        child, numbers = extract._read_in_child, []

        def killed(request: bytes, timeout_seconds: float) -> bytes:
            answer = child(request, timeout_seconds)
            assert child._process is not None
            numbers.append(child._process.pid)
            child._process.kill()
            child._process.wait()
            return answer

        monkeypatch.setattr(extract, "_read_in_child", killed)
        monkeypatch.setattr(extract, "BATCH_RECORDS", 2)
        archive = Archive()
        for number in range(5):
            archive.add(image_page(str(number)))
        assert outcomes(read(archive.data)) == [f"the picture {number}" for number in range(5)]
        assert len(set(numbers)) == 3


def test_an_unforeseen_error_becomes_a_row_with_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("\ud800 is \0")

    monkeypatch.setattr(extract, "_page_of", fail)
    record = Record(7, b"\r\nWARC-Target-URI: http://a.example/\r\n", b"", True)
    (page,) = msgspec.msgpack.decode(extract.answer(msgspec.msgpack.encode((ExtractConfig(), [record]))))
    assert page == [
        "http://a.example/",
        None,
        [[None, None, "ZeroDivisionError: \\ud800 is \\x00", None, None, Reason.UNFORESEEN]],
    ]


def test_an_unforeseen_error_of_the_reader_ends_the_archive_with_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive()
    archive.add(image_page("first"))

    def records(stream: object, max_bytes: int) -> Iterator[Record]:
        yield from warc_records.read_records(stream, max_bytes)
        raise ValueError("unheard of")

    monkeypatch.setattr(extract, "read_records", records)
    table = read(archive.data)
    assert outcomes(table) == ["the picture first", Reason.UNFORESEEN]
    assert table["caption"][1].as_py() == "ValueError: unheard of"


class TestDamage:
    """Partial downloads and flipped bits: if a record is missing, a row must report it."""

    @pytest.fixture(params=[True, False], ids=["gzip", "plain"])
    def archive(self, request: pytest.FixtureRequest) -> tuple[bytes, list[int]]:
        archive = Archive(request.param)
        offsets = [archive.add(image_page(str(i)), url=f"http://a.example/{i}") for i in range(3)]
        return archive.data, offsets

    def test_truncated_files(self, archive: tuple[bytes, list[int]]) -> None:
        data, offsets = archive
        for length in range(len(data)):
            found = read(data[:length])
            reported = set(outcomes(found)) & DAMAGE
            # A plain record is complete even without the two empty lines at its end
            slack = 4 if data.startswith(b"WARC") else 0
            ends = [*offsets[1:], len(data)]
            between = length == 0 or any(end - slack <= length <= end for end in ends)
            assert reported or between, f"{len(data) - length} bytes short: {outcomes(found)}"
            whole = [i for i, end in enumerate(ends) if end <= length]
            assert outcomes(found)[: len(whole)] == [f"the picture {i}" for i in whole]

    @pytest.mark.parametrize("kind", ["flip", "zero", "drop", "double"])
    def test_damage_inside_a_file(self, archive: tuple[bytes, list[int]], kind: str) -> None:
        data, offsets = archive
        for at in range(1, len(data), 5):
            piece = {
                "flip": bytes([data[at] ^ 1 << at % 8]),
                "zero": b"\0",
                "drop": b"",
                "double": data[at : at + 1] * 2,
            }
            found = read(data[:at] + piece[kind] + data[at + 1 :])
            if not set(outcomes(found)) & DAMAGE:
                assert len(set(found["record_offset"].to_pylist())) == len(offsets), f"byte {at}"

    def test_the_row_gives_the_offset(self) -> None:
        archive = Archive()
        start = [archive.add(image_page(str(i))) for i in range(3)][1]
        data = bytearray(archive.data)
        data[start + 3] ^= 4  # a flag of the gzip header: the next bytes now give the length of an extra field
        rows = read(bytes(data)).to_pylist()
        assert [row["reason"] for row in rows] == [None, Reason.BROKEN_ARCHIVE]
        assert rows[1]["record_offset"] <= start
        assert rows[1]["caption"]

    @settings(max_examples=150, deadline=None)
    @given(st.binary(max_size=80), st.sampled_from([b"", b"WARC/1.0\r\n", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", LAST]))
    def test_arbitrary_bytes(self, junk: bytes, head: bytes) -> None:
        found = outcomes(read(head + junk))
        if head == LAST:
            assert found[0] == "the picture last"
            assert found[1:] or not junk.strip()
        else:
            assert found or not (head + junk).strip()


def opener(data: bytes) -> io.BytesIO:
    return io.BytesIO(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the archive is empty"),
        (b"just some text\n" * 100, "not a web archive; expected WARC"),
        (gzip.compress(b"just some text\n" * 100, mtime=0), "not a web archive"),
        (b"\x1f\x8b" + b"junk" * 100, "not a web archive"),
        (b"\x28\xb5\x2f\xfd" + b"junk" * 100, "not a web archive"),
        (gzip.compress(b"", mtime=0), "the archive has no WARC record"),
        (b"PK\x03\x04 a zip file", "not a web archive"),
    ],
)
def test_files_that_are_not_archives(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"runs/x\.warc\.gz: .*{message}"):
        check_archive("runs/x.warc.gz", lambda _: opener(data))


@pytest.mark.realdata
def test_every_record_of_real_archives_has_a_row(clip_data: Path) -> None:
    files = sorted((clip_data / "web").glob("*.gz"))
    assert files, "the folder of archives is empty"
    candidates = 0
    for file in files:
        table = read_archive(str(file), open_file, ExtractConfig())
        assert list(dict.fromkeys(table["record_offset"].to_pylist())) == offsets_by_warcio(file), file.name
        assert not set(outcomes(table)) & DAMAGE, file.name
        candidates += pc.sum(table["reason"].is_null()).as_py()
    assert candidates > 900


@pytest.mark.realdata
def test_pages_of_one_site_do_not_depend_on_their_encoding_in_transfer(clip_data: Path) -> None:
    found = []
    for encoding in ("none", "gzip", "brotli"):
        file = clip_data / "web" / f"transfer_compression_{encoding}.warc.gz"
        found.append(outcomes(read_archive(str(file), open_file, ExtractConfig())))
    assert found[0] == found[1] == found[2]


@pytest.mark.realdata
def test_captions_in_the_charsets_of_real_pages(clip_data: Path) -> None:
    file = clip_data / "web" / "chatnoir-resiliparse-clueweb-quirk.warc.gz"  # Japanese pages; header lines end in LF
    table = read_archive(str(file), open_file, ExtractConfig())
    captions = "".join(table["caption"].drop_null().to_pylist())
    assert captions.count("\ufffd") < len(captions) / 1000
    assert sum("\u3040" <= character <= "\u30ff" for character in captions) > 1000, "kana"


KINDS = {
    Reason.NOT_A_RESPONSE: {"warcinfo", "request", "metadata", "resource", "conversion"},
    Reason.REVISIT: {"revisit"},
    Reason.NOT_HTML: {"not http", "not html"},
    Reason.HTTP_REDIRECT: {"redirect"},
    Reason.HTTP_ERROR_PAGE: {"error"},
    Reason.NO_IMAGE: {"page"},
    None: {"page"},
}


def compare(ours: Counter[tuple[str, str, str]], theirs: Counter[tuple[str, str, str]]) -> None:
    """Texts must occur equally often, and URLs must be equal if an image has only one URL."""
    texts = [Counter({row[1:]: 0 for row in found}) for found in (ours, theirs)]
    for counted, found in zip(texts, (ours, theirs), strict=True):
        for row, count in found.items():
            counted[row[1:]] += count
    assert texts[0] == texts[1]
    assert [row for row in theirs if row[0] and row not in ours] == []


@pytest.mark.realdata
def test_real_archives_agree_with_warcio_and_the_standard_library(clip_data: Path) -> None:
    """The two readers agree after independent.py removes four differences.

    Port 80 is removed from URLs. Charset labels have their meaning on the web (gb2312 is gbk). URLs are ignored for
    pictures with sources and images with srcset or lazy-load attributes. Brotli is decoded outside of warcio.
    """
    kinds: Counter[str] = Counter()
    num_candidates = 0
    for file in sorted((clip_data / "web").glob("*.gz")):
        rows = read_archive(str(file), open_file, ExtractConfig()).to_pylist()
        records = [list(found) for _, found in groupby(rows, key=lambda row: row["record_offset"])]
        for record, theirs in zip(records, independent.read(file), strict=True):
            reason = None if record[0]["caption_source"] else record[0]["reason"]
            assert theirs.kind in KINDS[reason], f"{file.name}: byte {record[0]['record_offset']}"
            ours = Counter((r["url"], r["caption_source"], r["caption"]) for r in record if r["caption_source"])
            compare(ours, theirs.candidates)
            kinds[theirs.kind] += 1
            num_candidates += ours.total()
    assert kinds.keys() == set().union(*KINDS.values())
    assert num_candidates > 900


@pytest.mark.realdata
def test_real_pages_agree_with_the_standard_library(clip_data: Path) -> None:
    num_candidates = 0
    for page in pq.read_table(clip_data / "web" / "pages.parquet").to_pylist():
        found = page_candidates(decode_html(page["html"], None), page["url"], 1024, 2000)
        ours = Counter((row.url or "", row.caption_source or "", row.caption or "") for row in found)
        compare(ours, independent.images_of(page["html"], "text/html", page["url"]))
        num_candidates += ours.total()
    assert num_candidates > 1000


CRAWL = b"robots: obey\r\nisPartOf: CC-MAIN-2020-34\r\n"


def test_the_crawl_and_the_date_of_a_page() -> None:
    archive = Archive()
    archive.add(image_page("before"))
    archive.add(CRAWL, kind="warcinfo", status=None)
    archive.add(image_page("x"))
    archive.add(b"IsPartOf:  a crawl of ours ", kind="warcinfo", status=None)
    archive.add(image_page("y"))
    archive.add(b"software: x", kind="warcinfo", status=None)
    archive.add(image_page("z"))
    for name, first in (("", None), ("s3://commoncrawl/crawl-data/CC-MAIN-2024-22/x.warc.gz", "CC-MAIN-2024-22")):
        table = candidates_of(archive.data, archive=name)
        ours = ["a crawl of ours"] * 4
        assert table["crawl_id"].to_pylist() == [first, *["CC-MAIN-2020-34"] * 2, *ours]
        assert set(table["archive"].to_pylist()) == {name}
    age = datetime.now(UTC) - table["page_date"].to_pylist()[0]
    assert abs(age) < timedelta(minutes=5), "the archive was written just now"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2024-05-18T01:58:10Z", "2024-05-18T01:58:10+00:00"),
        ("2024-05-18T01:58:10.123456Z", "2024-05-18T01:58:10+00:00"),
        ("2024-05-18T03:58:10+02:00", "2024-05-18T01:58:10+00:00"),
        ("2024-05-18", "2024-05-18T00:00:00+00:00"),
        ("last week", None),
        ("", None),
    ],
)
def test_dates(written: str, expected: str | None) -> None:
    dated = LAST.replace(
        b"Content-Type: application/http", f"WARC-Date: {written}\r\nContent-Type: application/http".encode()
    )
    (row,) = read(gzip.compress(dated)).to_pylist()
    assert (row["page_date"].isoformat() if row["page_date"] else None) == expected


@pytest.mark.realdata
def test_the_crawl_of_a_real_archive(clip_data: Path) -> None:
    file = clip_data / "web" / "whirlwind-python-whirlwind.warc.gz"
    table = read_archive(str(file), open_file, ExtractConfig())
    assert set(table["crawl_id"].to_pylist()) == {"CC-MAIN-2024-22"}
    assert {date.isoformat() for date in table["page_date"].to_pylist()[1:]} == {"2024-05-18T01:58:10+00:00"}


def test_many_records_in_windows_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members may begin anywhere in a window and may contain bytes that look like the beginning of a member."""
    pages = [image_page(str(number)) + b"\x1f\x8b\x08" * (number % 3) for number in range(20)]
    plain = [response(b"HTTP/1.1 200 OK\r\n\r\n" + page) for page in pages]
    stored = [gzip.compress(record, 0) for record in plain]
    expected = [f"the picture {number}" for number in range(20)]
    offsets = list(accumulate(map(len, stored[:-1]), initial=0))
    for size in (*range(1, 40), 97, 1000, 5000):
        monkeypatch.setattr(warc_records, "_WINDOW_BYTES", size)
        found = read(b"".join(stored))
        assert outcomes(found) == expected, f"windows of {size} bytes"
        assert found["record_offset"].to_pylist() == offsets, f"windows of {size} bytes"


def test_what_all_rows_of_a_record_or_an_archive_share_is_short() -> None:
    """Otherwise two headers of 1 MB give 4 GB: each row has a copy."""
    archive = Archive()
    archive.add(b"isPartOf: " + b"c" * 1_000_000, kind="warcinfo", status=None)
    archive.add(b"<img src=http://b.example/x alt=picture>" * 2_000, url="http://a.example/" + "p" * 50_000)
    table = read(archive.data)
    assert table.num_rows == 2_001
    assert table.nbytes < 30_000_000
    assert table["page_url"][1].as_py().startswith("http://a.example/ppp")
    assert table["crawl_id"][1].as_py().startswith("ccc")
    assert table["url"][1].as_py() == "http://b.example/x"


def test_images_of_a_picture_that_share_a_data_url_are_bounded() -> None:
    data = "data:image/png;base64," + base64.b64encode(bytes(8 * 2**20 // 2)).decode()
    page = f"<picture><source srcset='{data}'>{'<img alt=picture>' * 12}</picture>".encode() + image_page("last")
    archive = Archive()
    archive.add(page)
    rows = read(archive.data).to_pylist()
    assert [row["reason"] for row in rows] == [None] * 8 + [Reason.TOO_MANY_BYTES] * 4 + [None]
    assert [row["image"] is None for row in rows] == [False] * 8 + [True] * 5
    assert rows[-1]["caption"] == "the picture last"


@pytest.mark.parametrize(
    "member",
    [
        b"WARC/1.0\r\nWARC-Type: response\r\n\r\ntext\r\n\r\n",
        b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: -4\r\n\r\ntext\r\n\r\n",
        b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 1e3\r\n\r\ntext\r\n\r\n",
        b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 99999999999999999999\r\n\r\ntext\r\n\r\n",
        bytes(1000),
        b"<html>no record</html>",
        b"",
    ],
)
def test_a_member_that_is_no_record_costs_no_other(member: bytes) -> None:
    """Lengths are often wrong (webrecorder/warcio#121, iipc/jwarc#29), and readers stop at those that are no number."""
    first = response(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + image_page("first"))
    found = outcomes(read(members(first, member, LAST)))
    assert [found[0], found[-1]] == ["the picture first", "the picture last"]
    assert found[1:-1] == ([Reason.BROKEN_RECORD] if member else [])


@pytest.mark.parametrize("date", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
def test_a_date_whose_time_zone_leads_out_of_the_calendar_is_missing(date: str) -> None:
    record = LAST.replace(b"WARC-Type", f"WARC-Date: {date}\r\nWARC-Type".encode(), 1)
    assert read(members(record))["page_date"].to_pylist() == [None]
