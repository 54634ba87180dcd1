from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data.sources.tables import check_table, read_table
from pipeline.reasons import Reason
from pipeline.schemas import CANDIDATES

LOCAL = pyarrow.fs.LocalFileSystem()


class TestTables:
    """Tables of URLs or images with captions."""

    @pytest.mark.parametrize(("url", "caption"), [("url", "caption"), ("URL", "TEXT"), ("url", "text")])
    @pytest.mark.parametrize("suffix", [".parquet", ".csv"])
    def test_urls(self, tmp_path: Path, url: str, caption: str, suffix: str) -> None:
        file = str(tmp_path / f"x{suffix}")
        table = pa.table(
            {"similarity": [0.3, 0.4], url: ["HTTP://A.example/1.jpg", "x"], caption: ["a  dog\nruns", "2021"]}
        )
        if suffix == ".csv":
            pyarrow.csv.write_csv(table, file)
        else:
            pq.write_table(table, file)
        check_table(file, LOCAL, file)
        found = read_table(file, LOCAL, file)
        assert found.schema == CANDIDATES
        assert found["url"].to_pylist() == ["http://a.example/1.jpg", "x"]
        assert found["caption"].to_pylist() == ["a dog runs", "2021"]
        assert found["reason"].to_pylist() == [None, Reason.BAD_URL]
        assert found["record_offset"].to_pylist() == [0, 1]
        assert set(found["archive"].to_pylist()) == {file}
        assert set(found["caption_source"].to_pylist()) == {"table"}

    def test_images_with_several_captions(self, tmp_path: Path) -> None:
        file = str(tmp_path / "x.parquet")
        captions = [["a dog", "one dog"], ["a cat"], [], None, ["an owl", None]]
        pq.write_table(pa.table({"image": [b"1", b"2", b"3", b"4", b"1"], "captions": captions}), file)
        check_table(file, LOCAL, file)
        found = read_table(file, LOCAL, file)
        assert found["caption"].to_pylist() == ["a dog", "one dog", "a cat", "", "", "an owl", ""]
        assert found["record_offset"].to_pylist() == [0, 0, 1, 2, 3, 4, 4], "no row is lost"
        assert found["image"].to_pylist() == [b"1", b"1", b"2", b"3", b"4", b"1", b"1"]
        urls = found["url"].to_pylist()
        assert urls[0] == urls[1] == urls[5] != urls[2], "an image without a URL is identified by its content"
        assert set(found["reason"].to_pylist()) == {None}

    def test_images_with_urls(self, tmp_path: Path) -> None:
        file = str(tmp_path / "x.parquet")
        urls = ["http://a.example/1.jpg", None, "http://a.example/3.jpg", None]
        pq.write_table(
            pa.table({"jpg": [b"1", b"2", None, None], "url": urls, "caption": ["one a", "b", "c", "d"]}), file
        )
        found = read_table(file, LOCAL, file)
        assert found["image"].to_pylist() == [b"1", b"2", None, None]
        assert found["reason"].to_pylist() == [None, None, None, Reason.BAD_URL]
        assert found["url"].to_pylist()[0::2] == urls[0::2]

    def test_a_data_url_in_a_table(self, tmp_path: Path) -> None:
        file = str(tmp_path / "x.parquet")
        pq.write_table(pa.table({"url": ["data:image/png;base64,AAAA"], "caption": ["a dog"]}), file)
        assert read_table(file, LOCAL, file)["image"].to_pylist() == [b"\0\0\0"]

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            (
                {"url": ["x"]},
                r"no caption column; expected one of \['caption', 'text', 'TEXT', 'captions'\], found \['url'\]",
            ),
            ({"caption": ["x"], "width": [1]}, r"no URL or image column; .* found \['caption', 'width'\]"),
            ({"url": ["x"], "caption": [1]}, "column 'caption' holds int64, expected strings"),
            ({"url": [1], "caption": ["x"]}, "column 'url' holds int64, expected strings"),
            ({"image": [{"path": "x"}], "caption": ["x"]}, "column 'image' holds struct<.*>, expected bytes"),
            ({"url": ["x"], "captions": [[1]]}, "column 'captions' holds list<.*>, expected strings, or lists of them"),
        ],
    )
    def test_refused_tables(self, tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
        file = str(tmp_path / "x.parquet")
        pq.write_table(pa.table(columns), file)
        with pytest.raises(ValueError, match=rf"x\.parquet: {message}"):
            check_table(file, LOCAL, file)

    @pytest.mark.parametrize(("name", "kind"), [("x.parquet", "Parquet"), ("x.csv", "CSV")])
    @pytest.mark.parametrize("data", [b"", b"\0\xff\xfe\0" * 9])
    def test_files_that_do_not_match_their_suffix(self, tmp_path: Path, name: str, kind: str, data: bytes) -> None:
        file = tmp_path / name
        file.write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}: (cannot be read as {kind}|no caption column)"):
            check_table(str(file), LOCAL, str(file))

    def test_quoted_lines_in_a_csv(self, tmp_path: Path) -> None:
        file = tmp_path / "x.csv"
        file.write_text('url,caption\nhttp://a.example/1,"a dog,\n""Rex"", runs"\nhttp://a.example/2,\n')
        assert read_table(str(file), LOCAL, str(file))["caption"].to_pylist() == ['a dog, "Rex", runs', ""]


def read(tmp_path: Path, table: pa.Table | bytes, **options: int) -> list[dict[str, object]]:
    """The rows read from a Parquet table, or from the bytes of a CSV file."""
    file = tmp_path / ("x.csv" if isinstance(table, bytes) else "x.parquet")
    if isinstance(table, bytes):
        file.write_bytes(table)
    else:
        pq.write_table(table, file, **options)
    check_table(str(file), LOCAL, str(file))
    rows: list[dict[str, object]] = read_table(str(file), LOCAL, str(file)).to_pylist()
    return rows


def strings(values: list[bytes | None]) -> pa.StringArray:
    """A column of strings that nothing has validated."""
    return pa.array(values, pa.binary()).view(pa.string())


def write_encrypted(file: Path) -> None:
    """The footer of a file with encrypted columns, without its key."""
    file.write_bytes(b"PARE" + bytes(100) + b"\x10\0\0\0PARE")


def write_damaged_footer(file: Path) -> None:
    pq.write_table(pa.table({"url": ["http://a.example/"], "caption": ["a"]}), file)
    data = bytearray(file.read_bytes())
    size = int.from_bytes(data[-8:-4], "little")
    data[-8 - size : -8] = b"\xff" * size
    file.write_bytes(data)


def write_name_that_is_not_utf8(file: Path) -> None:
    pq.write_table(pa.table({"url": ["http://a.example/"], "caption": ["a"], "width": [1]}), file)
    file.write_bytes(file.read_bytes().replace(b"width", b"w\xffdth"))


class TestBrokenRows:
    """A row that cannot be read has a reason, and costs no other row."""

    @pytest.mark.parametrize("column", ["url", "caption"])
    @pytest.mark.parametrize(
        "value",
        [
            b"caf\xe9 noir",  # parquet2#108
            b"\xed\xa0\x80",  # a lone surrogate in UTF-8: arrow#29635
            b"\xff\xfea\0",  # UTF-16
            b"\xf0\x9f\x98",  # a cut emoji: polars#7222
        ],
    )
    def test_strings_that_are_not_utf8(self, tmp_path: Path, column: str, value: bytes) -> None:
        values: dict[str, list[bytes | None]] = {"url": [b"http://a.example/%d" % i for i in range(1000)]}
        values["caption"] = [b"the picture %d" % i for i in range(1000)]
        values[column][500] = value
        rows = read(tmp_path, pa.table({name: strings(column) for name, column in values.items()}), row_group_size=300)
        assert [row["record_offset"] for row in rows] == list(range(1000))
        assert [row["record_offset"] for row in rows if row["reason"]] == [500]
        assert rows[500]["reason"] == Reason.BROKEN_RECORD
        assert "decode" in str(rows[500]["caption"])

    def test_one_of_several_captions(self, tmp_path: Path) -> None:
        captions = pa.ListArray.from_arrays([0, 2, 3], strings([b"a dog", b"\xff", b"a cat"]))
        rows = read(tmp_path, pa.table({"image": [b"1", b"2"], "captions": captions}))
        assert [(row["record_offset"], row["reason"]) for row in rows] == [(0, Reason.BROKEN_RECORD), (1, None)]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b"http://a.example/x,a dog, and a cat", "3 fields instead of 2: http://a.example/x,a dog, and a cat"),
            (b"http://a.example/x", "1 fields instead of 2: http://a.example/x"),
            (b"http://a.example/x,caf\xe9 noir", "not UTF-8: http://a.example/x,caf\ufffd noir"),
            (b'http://a.example/x,"a" "b",', '3 fields instead of 2: http://a.example/x,a "b",'),
        ],
    )
    def test_a_broken_line_behind_60000_good_ones(self, tmp_path: Path, line: bytes, message: str) -> None:
        """img2dataset#318; Arrow's readers check the start of a file, and raise later."""
        good = b"".join(b"http://a.example/%d,the picture %d\n" % (i, i) for i in range(60_000))
        rows = read(tmp_path, b"url,caption\n" + good + line + b"\n\nhttp://a.example/,the last\n")
        assert [row["record_offset"] for row in rows] == list(range(60_002))
        assert [(row["caption"], row["reason"]) for row in rows[-2:]] == [
            (message, Reason.BROKEN_RECORD),
            ("the last", None),
        ]
        assert not any(row["reason"] for row in rows[:-2])

    def test_a_quotation_mark_that_is_never_closed(self, tmp_path: Path) -> None:
        lines = [b"http://a.example/%d,the picture %d\n" % (i, i) for i in range(100_000)]
        lines[10] = b'http://a.example/10,"the picture\n'
        rows = read(tmp_path, b"url,caption\n" + b"".join(lines))
        assert [row["record_offset"] for row in rows] == list(range(100_000))
        assert [row["record_offset"] for row in rows if row["reason"]] == [10]
        assert rows[10]["reason"] == Reason.BROKEN_RECORD

    def test_other_columns_do_not_matter(self, tmp_path: Path) -> None:
        """Arrow infers the type of a column from the first block: arrow#22288, pandas#13237."""
        lines = [f"{i},http://a.example/{i},the picture\n".encode() for i in range(60_000)]
        rows = read(tmp_path, b"width,url,caption\n" + b"".join(lines) + b"n/a,http://a.example/x,the picture\n")
        assert [row["reason"] for row in rows] == [None] * 60_001

    def test_damage_in_one_row_group(self, tmp_path: Path) -> None:
        file = tmp_path / "x.parquet"
        urls = [f"http://a.example/{i}" for i in range(90)]
        pq.write_table(
            pa.table({"url": urls, "caption": [f"picture {i}" for i in range(90)]}), file, row_group_size=30,
            write_page_checksum=True, use_dictionary=False, compression="none",
        )  # fmt: skip
        data = bytearray(file.read_bytes())
        data[data.index(b"picture 45")] ^= 1
        file.write_bytes(data)
        rows = read_table(str(file), LOCAL, str(file)).to_pylist()
        assert [row["record_offset"] for row in rows if row["reason"] is None] == [*range(30), *range(60, 90)]
        (broken,) = (row for row in rows if row["reason"])
        assert (broken["record_offset"], broken["reason"]) == (30, Reason.BROKEN_ARCHIVE)
        assert str(broken["caption"]).startswith("30 rows: ")

    def test_an_unforeseen_error_is_a_row(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(url: str, *_: object) -> None:
            raise RuntimeError(url[-1])

        monkeypatch.setattr("pipeline.data.sources.tables.candidate", fail)
        (row,) = read(tmp_path, b"url,caption\nhttp://a.example/1,the picture\n")
        assert (row["url"], row["caption"], row["reason"]) == (
            "http://a.example/1",
            "RuntimeError: 1",
            Reason.UNFORESEEN,
        )


def test_columns_of_other_types(tmp_path: Path) -> None:
    """Hugging Face's images, dictionaries, views, and columns without a value."""
    images = pa.array([{"bytes": b"1", "path": "x"}, {"bytes": None, "path": "y"}, None])
    captions = pa.array(["a dog", "a cat", "a dog"]).dictionary_encode()
    rows = read(tmp_path, pa.table({"image": images, "caption": captions, "url": pa.nulls(3)}))
    assert [(row["image"], row["caption"]) for row in rows] == [(b"1", "a dog"), (None, "a cat"), (None, "a dog")]
    views = pa.array(["a dog"], pa.string_view())
    assert read(tmp_path, pa.table({"url": ["http://a.example/"], "text": views}))[0]["caption"] == "a dog"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.text('a,"\r\n\0é\u2028', max_size=60).map(str.encode))
def test_any_csv_can_be_read(tmp_path: Path, data: bytes) -> None:
    for row in read(tmp_path, b"url,caption\n" + data):
        assert row["reason"] in {None, Reason.BAD_URL, Reason.BROKEN_RECORD}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_that_exists_twice_is_refused(tmp_path: Path, suffix: str) -> None:
    file = str(tmp_path / f"x{suffix}")
    table = pa.table([["http://a.example/"], ["a"], ["b"]], names=["url", "caption", "caption"])
    if suffix == ".csv":
        pyarrow.csv.write_csv(table, file)
    else:
        pq.write_table(table, file)
    with pytest.raises(ValueError, match=r"2 columns are called 'caption'; rename all but one"):
        check_table(file, LOCAL, file)


@pytest.mark.parametrize("write", [write_encrypted, write_damaged_footer, write_name_that_is_not_utf8])
def test_files_that_cannot_be_opened_are_refused(tmp_path: Path, write: Callable[[Path], None]) -> None:
    file = tmp_path / "x.parquet"
    write(file)
    with pytest.raises(ValueError, match=r"x\.parquet: cannot be read as Parquet"):
        check_table(str(file), LOCAL, str(file))
    (row,) = read_table(str(file), LOCAL, str(file)).to_pylist()
    assert row["reason"] == Reason.BROKEN_ARCHIVE


def test_a_message_shows_some_columns(tmp_path: Path) -> None:
    names = ",".join(f"column_{number}" for number in range(100_000))
    with pytest.raises(ValueError, match=r"'column_49', \.\.\.\] \(100000 columns\)") as error:
        read(tmp_path, names.encode())
    assert len(str(error.value)) < 2_000
