import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.flows.input_files import read_input
from pipeline.data.sources import img2dataset
from pipeline.data.sources.extract import ExtractConfig
from pipeline.data.sources.img2dataset import read_shard
from pipeline.data.sources.tables import check_table, read_table
from pipeline.data.sources.warc_records import ReadError
from pipeline.reasons import Reason
from pipeline.schemas import CANDIDATES
from tests.pipeline.data.rows import table_rows

ROWS = [
    {"url": f"http://a.example/{number}.jpg", "caption": f"a star {number}", "key": f"00000000{number}"}
    for number in range(3)
]
OUTCOMES = ["success", "failed_to_download", "success"]
IMAGES = [b"image 0", None, b"image 2"]


def meta(row: int) -> dict[str, Any]:
    """The metadata that img2dataset 1.47 writes for a sample."""
    rest = {"error_message": None, "width": 4, "height": 3, "original_width": 8, "original_height": 6, "exif": "{}"}
    return {**ROWS[row], "status": OUTCOMES[row], **rest, "sha256": "0" * 64}


def tar(members: Sequence[tuple[str, bytes]]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as shard:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def sample(row: int) -> list[tuple[str, bytes]]:
    key, image = ROWS[row]["key"], IMAGES[row] or b""
    text = ROWS[row]["caption"].encode()
    return [(f"{key}.jpg", image), (f"{key}.json", json.dumps(meta(row)).encode()), (f"{key}.txt", text)]


SHARD = tar([*sample(0), *sample(2)])
LISTED = pa.Table.from_pylist([meta(row) for row in range(3)])


def read(data: bytes, listed: pa.Table | None = LISTED) -> pa.Table:
    return read_shard("x/00000.tar", io.BytesIO(data), table_rows(listed) if listed is not None else ())


def test_a_shard_gives_images_and_its_table_gives_failures() -> None:
    found = read(SHARD)
    assert found.schema == CANDIDATES
    assert found["url"].to_pylist() == [ROWS[row]["url"] for row in (0, 2, 1)]
    assert found["caption"].to_pylist() == ["a star 0", "a star 2", "a star 1"]
    assert found["image"].to_pylist() == [b"image 0", b"image 2", None]
    assert found["reason"].to_pylist() == [None] * 3
    assert found["record_offset"].to_pylist()[::2] == [0, None]
    assert set(found["archive"].to_pylist()) == {"x/00000.tar"}
    assert read(SHARD, None).num_rows == 2


def test_parquet_output_gives_the_same_candidates(tmp_path: Path) -> None:
    table = LISTED.append_column("jpg", pa.array(IMAGES, pa.binary()))
    table = table.append_column("txt", table["caption"])
    pq.write_table(table, tmp_path / "00000.parquet")
    location = (str(tmp_path / "00000.parquet"), pyarrow.fs.LocalFileSystem(), str(tmp_path / "00000.parquet"))
    check_table(*location)
    found = read_table(*location).sort_by("pair_id")
    columns = ["pair_id", "url", "caption", "image", "reason"]
    assert found.select(columns) == read(SHARD).sort_by("pair_id").select(columns)


@pytest.mark.parametrize("extension", ["png", "webp", "JPG", "jpeg"])
def test_names_of_members(extension: str) -> None:
    members = [(f"./a/0.{extension}", b"image"), ("./a/0.txt", b"a star"), ("__MACOSX/._0", b""), ("readme", b"")]
    (row,) = read(tar(members), pa.table({"key": ["a/0"], "url": ["http://a.example/"], "caption": ["x"]})).to_pylist()
    assert (row["image"], row["caption"], row["reason"]) == (b"image", "a star", None)


def test_incomplete_samples() -> None:
    members = [
        ("0.jpg", b"image"),
        ("1.json", json.dumps(meta(1)).encode()),
        ("2.txt", b"a text alone"),
        ("3.json", b"[" * 100_000),
        ("3.jpg", b"image"),
        ("4.json", b"[1]"),
        ("5.json", b'{"url": 5, "caption": ["x"]}'),
    ]
    found = read(tar(members), None)
    bad = Reason.BAD_URL
    assert found["reason"].to_pylist() == [None, None, bad, Reason.BROKEN_RECORD, bad, bad]
    assert found["image"].to_pylist() == [b"image", *[None] * 5]
    assert found["url"].to_pylist()[1] == ROWS[1]["url"], "its image is requested again"


def test_members_that_are_too_long_or_not_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(img2dataset._LIMITS, "jpg", 10)
    link = tarfile.TarInfo("1.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as shard:
        for name, size in (("0.jpg", 11), ("../../2.jpg", 10)):
            info = tarfile.TarInfo(name)
            info.size = size
            shard.addfile(info, io.BytesIO(bytes(size)))
        shard.addfile(link)
    found = read(sink.getvalue(), None)
    assert found["reason"].to_pylist() == [Reason.TOO_MANY_BYTES, None]
    assert found["image"].to_pylist() == [None, bytes(10)]


def test_samples_after_damage_are_requested_again() -> None:
    for length in range(0, len(SHARD.rstrip(b"\0")), 100):
        found = read(SHARD[:length])
        broken = found.filter(pc.equal(found["reason"], Reason.BROKEN_ARCHIVE))
        assert broken.num_rows == 1, f"{length} bytes"
        assert set(found["url"].drop_null().to_pylist()) == {row["url"] for row in ROWS}, f"{length} bytes"


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 12), st.integers(0, 511), st.integers(1, 255))
def test_no_flipped_byte_loses_a_row(block: int, offset: int, flip: int) -> None:
    data = bytearray(SHARD)
    data[(block * 512 + offset) % len(data)] ^= flip
    found = read(bytes(data))
    assert set(found["url"].drop_null().to_pylist()) >= {ROWS[1]["url"]}
    assert found.num_rows >= 3


def test_a_failing_storage_raises_an_error() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:  # noqa: ARG002 (signature of the base class)
            raise OSError("the network is gone")

    with pytest.raises(ReadError, match="the network is gone"):
        read_shard("x.tar", Broken(SHARD), table_rows(LISTED))


def test_only_tables_next_to_shards_are_left_out() -> None:
    files = ["a/0.parquet", "a/0.tar", "a/1.parquet", "b/0.parquet", "b/0.warc"]
    assert img2dataset.without_shard_tables(files) == ["a/0.tar", "a/1.parquet", "b/0.parquet", "b/0.warc"]


def test_properties_of_a_sample() -> None:
    full = img2dataset.Sample("0", 0, {"png": b"png", "jpg": b"jpg", "txt": b"a \xff", "json": b'{"url": "x"}'})
    assert (full.text, full.fields(), full.image, full.image_is_too_long) == ("a \ufffd", {"url": "x"}, b"jpg", False)
    empty = img2dataset.Sample("0", 0, {})
    assert (empty.text, empty.fields(), empty.image, empty.image_is_too_long) == ("", {}, None, False)
    long = img2dataset.Sample("0", 0, {"jpg": None, "png": b"png", "json": b"{"})
    assert (long.fields(), long.image, long.image_is_too_long) == (None, None, True)


@pytest.mark.parametrize(
    "names",
    [
        ["photo.v2.jpg", "photo.v2.txt"],  # webdataset#237, open_clip#480
        ["a/b.c/photo.v2.final.jpg", "a/b.c/photo.v2.final.txt"],
        ["./1.2.3.JPG", "./1.2.3.txt"],
    ],
)
def test_keys_with_dots(names: list[str]) -> None:
    rows = read(tar([(name, b"image" if name.lower().endswith("jpg") else b"a star") for name in names]), None)
    assert [(row["image"], row["caption"], row["reason"]) for row in rows.to_pylist()] == [(b"image", "a star", None)]


def test_other_parts_of_a_sample_make_no_sample() -> None:
    members = [("1.cls", b"3"), ("1.jpg", b"image"), ("1.seg.png", b"mask"), ("1.txt", b"a star"), ("1.x.txt", b"x")]
    rows = read(tar(members), None).to_pylist()
    assert [(row["image"], row["caption"]) for row in rows] == [(b"image", "a star")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tar([("readme.md", b"x"), ("photo", b"x")]), "EOFError: the shard has no member named KEY.jpg"),
        (SHARD + tar([*sample(1)]), "EOFError: another tar follows the end of the shard"),
    ],
    ids=["no sample", "joined tars"],
)
def test_no_member_is_ignored_without_a_row(data: bytes, message: str) -> None:
    last = read(data, None).to_pylist()[-1]
    assert last["reason"] == Reason.BROKEN_ARCHIVE
    assert last["caption"].startswith(message)
    assert read(tar([]), None).num_rows == 0


def test_text_that_cannot_be_stored() -> None:
    """JSON may hold lone surrogates, names any bytes, and Parquet strings that are not UTF-8."""
    fields = b'{"url": "http://a.example/\\ud800", "caption": "a \\udfff star"}'
    rows = read(tar([("caf\udce9.jpg", b"image"), ("caf\udce9.json", fields)]), None).to_pylist()
    assert [(row["url"], row["caption"]) for row in rows] == [("http://a.example/%EF%BF%BD", "a \ufffd star")]
    broken = pa.array([b"caf\xe9 noir", b"a star"]).view(pa.string())
    listed = pa.table({"key": ["8", "9"], "url": ["http://a.example/8", "http://a.example/9"], "caption": broken})
    rows = read(tar([]), listed).to_pylist()
    assert [row["reason"] for row in rows] == [Reason.BROKEN_RECORD, None]


def test_an_unforeseen_error_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(sample: img2dataset.Sample) -> None:
        raise ZeroDivisionError(sample.key)

    monkeypatch.setattr(img2dataset, "_candidate", fail)
    rows = read(SHARD, None).to_pylist()
    assert [(row["reason"], row["caption"]) for row in rows] == [
        (Reason.UNFORESEEN, "ZeroDivisionError: 000000000"),
        (Reason.UNFORESEEN, "ZeroDivisionError: 000000002"),
    ]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**62, 0], pa.timestamp("us")),  # beyond the years of Python: apache/arrow#36323
        pa.array([2**62, 0], pa.duration("s")),
        pa.array([2**30, 0], pa.date32()),
        pa.array([1, 2], pa.timestamp("us", "Mars/Phobos")),
        pa.array([{"a": 1}, None]),
        pa.array([b"\xff", b""]).view(pa.string()),
    ],
    ids=lambda column: str(column.type),
)
def test_columns_of_the_table_that_are_not_used_do_not_matter(column: pa.Array) -> None:
    listed = pa.table({"key": ["8", "9"], "url": ["http://a.example/8"] * 2, "caption": ["a", "b"], "exif": column})
    rows = read(tar([]), listed).to_pylist()
    assert [(row["caption"], row["reason"]) for row in rows] == [("a", None), ("b", None)]


@pytest.mark.parametrize("data", [b"", b"PAR1", b"x" * 1000, b"PARE" + bytes(100) + b"\x10\0\0\0PARE"])
def test_a_table_that_cannot_be_read_costs_no_sample(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "0.tar").write_bytes(SHARD)
    (tmp_path / "0.parquet").write_bytes(data)
    rows = read_input(str(tmp_path / "0.tar"), ExtractConfig()).to_pylist()
    assert [row["reason"] for row in rows] == [None, None, Reason.BROKEN_ARCHIVE]
    assert rows[-1]["caption"].startswith("all further rows: ")


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """A header of a tar with any size field."""
    info = tarfile.TarInfo(name)
    data = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    data[124:136], data[156:157], data[148:156] = size.ljust(12, b"\0"), kind, b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def pax_size(size: int) -> bytes:
    record = f" size={size}\n"
    record = f"{len(record) + 2}{record}" if len(record) < 98 else record
    return header("pax", b"%011o" % len(record), b"x") + record.encode().ljust(512, b"\0")


@pytest.mark.parametrize("name", ["8.jpg", "8.dat"])
@pytest.mark.parametrize(
    ("before", "size", "kind"),
    [
        (b"", b"\x80\0\0\0" + (2**62).to_bytes(8, "big"), b"0"),  # more than any storage can seek to
        (b"", b"\xff" * 9 + bytes(3), b"0"),  # -2**24
        (pax_size(-1536), b"0", b"0"),  # back to its own header: cpython#130577 (CVE-2025-8194)
        (pax_size(-(10**18)), b"0", b"0"),
        (pax_size(10**18), b"0", b"0"),
        (b"", b"77777777777", b"0"),  # 8 GiB
        (b"", b"77777777777", b"L"),  # a long name of 8 GiB
        (b"", b"77777777777", b"x"),
        (b"damage" * 100, b"0", b"0"),
    ],
)
def test_absurd_sizes_are_damage_and_the_sample_before_is_kept(
    name: str, before: bytes, size: bytes, kind: bytes
) -> None:
    start = SHARD.rstrip(b"\0")
    data = start + bytes(-len(start) % 512) + before + header(name, size, kind) + SHARD
    rows = read(data, None).to_pylist()
    assert [row["reason"] for row in rows] == [None, None, Reason.BROKEN_ARCHIVE]
    assert [row["image"] for row in rows] == [b"image 0", b"image 2", None]


def test_a_truncated_sample_is_left_out() -> None:
    start = SHARD.rstrip(b"\0")
    data = start[: -512 - 1] + b"x" * 1024
    rows = read(data, None).to_pylist()
    assert [(row["image"], row["reason"]) for row in rows] == [(b"image 0", None), (None, Reason.BROKEN_ARCHIVE)]
