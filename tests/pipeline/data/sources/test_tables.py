from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

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
            ({"image": [{"bytes": b"x"}], "caption": ["x"]}, "column 'image' holds struct<.*>, expected bytes"),
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
