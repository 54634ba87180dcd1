import io
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.exchange import foreign_pairs
from pipeline.data.exchange.foreign_pairs import check_input, mark_duplicates, read_table, read_tar, shard_of
from pipeline.data.exchange.webdataset import TarWriter
from pipeline.data.images.image_header import perceptual_hash
from pipeline.hashing import hash128
from pipeline.model.images.random_crop import decode
from pipeline.pictures import decode as pictures
from pipeline.reasons import Reason
from pipeline.schemas import IMPORTED, PAIRS, conform
from tests.pipeline.data.rows import encode, ids, photo_like, table_rows
from tests.pipeline.data.sources.test_img2dataset import tar
from tests.pipeline.pictures.files import ALPHA_MODES, SHOWN, with_alpha

LOCAL = pyarrow.fs.LocalFileSystem()
IMAGE = encode(photo_like(1, 60, 20), "JPEG")
OTHER = encode(photo_like(2, 20, 30), "PNG")


def read(members: list[tuple[str, bytes]], listed: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    found = read_tar(io.BytesIO(tar(members)), table_rows(pa.Table.from_pylist(listed)) if listed else ())
    assert found.schema == IMPORTED
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def test_fields_of_img2dataset_are_taken_over() -> None:
    fields = {"url": "http://A.example/x?b", "caption": "two  blanks\nand a line ", "sha256": "ab" * 32, "width": 5}
    fields |= {"original_width": 600, "original_height": 200, "key": "0", "exif": "{}", "status": "success"}
    members = [("0.jpg", IMAGE), ("0.txt", b"two  blanks\nand a line "), ("0.json", json.dumps(fields).encode())]
    (row,) = read(members)
    assert row == {
        "pair_id": hash128("http://A.example/x?b", "two  blanks\nand a line "),
        "url": "http://A.example/x?b",
        "caption": "two  blanks\nand a line ",
        "language": "en",
        "spare_captions": None,
        "image": IMAGE,
        "width": 60,
        "height": 20,
        "original_width": 600,
        "original_height": 200,
        "sha256": "ab" * 32,
        "phash": int(perceptual_hash([IMAGE])[0]),
        "page_url": None,
        "caption_source": None,
        "query_ids": None,
        "reason": None,
    }


def test_a_tar_without_json_is_read() -> None:
    """open_clip can train from tars that have only images and texts."""
    first, second = read([("a/0.png", OTHER), ("a/0.txt", b"a star"), ("a/1.jpeg", IMAGE), ("a/1.txt", b"a star")])
    assert (first["image"], first["caption"], first["reason"]) == (OTHER, "a star", None)
    assert first["sha256"] == sha256(OTHER).hexdigest()
    assert first["url"].startswith("table:")
    assert first["pair_id"] != second["pair_id"]


def test_unreadable_samples_are_dropped_with_a_reason() -> None:
    members = [
        *(("0.jpg", IMAGE[:200]), ("0.txt", b"half of a picture")),
        *(("1.jpg", b"<html>"), ("1.txt", b"no picture")),
        *(("2.jpg", IMAGE), ("2.txt", b"")),
        ("3.jpg", IMAGE),
        ("4.txt", b"a text alone"),
        *(("5.jpg", IMAGE), ("5.txt", b"x"), ("5.json", b"{")),
        *(
            ("6.jpg", IMAGE),
            ("6.json", b'{"caption": "by the record", "url": 5, "pair_id": "x", "query_ids": [1, "x"]}'),
        ),
        *(("7.jpg", IMAGE.replace(b"\xff\xda\x00\x0c\x03", b"\xff\xda\x00\x0c\x09")), ("7.txt", b"a broken scan")),
    ]
    listed = [{"key": "6", "url": "http://a.example/6", "caption": "there"}]
    listed += [{"key": "8", "url": "http://a.example/8", "caption": "was not downloaded"}]
    rows = read(members, listed)
    reasons = [row["reason"] for row in rows]
    corrupt, missing, empty = Reason.CORRUPT_IMAGE, Reason.IMAGE_MISSING, Reason.CAPTION_EMPTY
    assert reasons[:7] == [corrupt, Reason.NOT_AN_IMAGE, empty, empty, missing, Reason.BROKEN_RECORD, None]
    assert reasons[7] == corrupt
    assert reasons[8:] == [missing]
    assert rows[8]["url"] == "http://a.example/8"
    assert (rows[6]["caption"], rows[6]["query_ids"]) == ("by the record", [1, None])
    assert shard_of(pa.Table.from_pylist(rows, IMPORTED), 4, 0).shape == (9,)


class TestWhatAnImportAcceptsTrainingCanRead:
    """Import, training and evaluation decode with pipeline.pictures."""

    @pytest.mark.parametrize("name", [*SHOWN, *ALPHA_MODES])
    def test_odd_pictures(self, name: str) -> None:
        for orientation in range(1, 9):
            image = SHOWN[name]() if name in SHOWN else with_alpha(name, orientation)
            (row,) = read([("0.jpg", image), ("0.txt", b"a star")])
            assert row["reason"] is None
            pixels = decode(image)
            assert pixels.shape == (row["height"], row["width"], 3)
            assert np.array_equal(pixels, np.asarray(pictures.decode(image).convert("RGB")))
            assert row["phash"] == int(perceptual_hash([encode(Image.fromarray(pixels))])[0])

    @settings(max_examples=200, deadline=None)
    @given(
        st.sampled_from(
            [
                encode(photo_like(1, 40, 30).convert(mode), kind, **options)
                for mode in ("RGB", "L", "CMYK")
                for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
                if mode != "CMYK" or kind in {"JPEG", "TIFF"}
                for options in ({}, {"compression": "tiff_lzw"}, {"compression": "jpeg"})
                if not options or kind == "TIFF"
            ]
        ),
        st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4), st.integers(0, 4)), max_size=3),
        st.booleans(),
    )
    def test_any_picture(self, image: bytes, changes: list[tuple[float, bytes, int]], in_header: bool) -> None:
        for place, new, num_replaced in changes:
            at = int(place * min(len(image), 150 if in_header else len(image)))
            image = image[:at] + new + image[at + num_replaced :]
        (row,) = read([("0.jpg", image), ("0.txt", b"a star")])
        if row["reason"] is None:
            assert decode(image).shape == (row["height"], row["width"], 3)
            assert decode(image, 10).shape[2] == 3


def test_an_unforeseen_exception_of_a_decoder_costs_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: list[bytes]) -> None:
        raise UnforeseenError("\ud800")

    monkeypatch.setattr(foreign_pairs, "perceptual_hash", fail)
    (row,) = read([("0.jpg", IMAGE), ("0.txt", b"a star")])
    assert row["reason"] == Reason.CORRUPT_IMAGE


class UnforeseenError(Exception):
    """An exception that no library is known to raise."""


def test_a_damaged_tar_is_read_up_to_the_damage() -> None:
    data = tar([(f"{n}.{kind}", content) for n in range(3) for kind, content in (("jpg", IMAGE), ("txt", b"a star"))])
    rows = read_tar(io.BytesIO(data[: len(data.rstrip(b"\0")) - len(IMAGE)])).to_pylist()
    assert [row["reason"] for row in rows] == [None, None, Reason.BROKEN_ARCHIVE]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "caption": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
                "url": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9),
                "language": st.sampled_from([None, "de"]),
                "spare_captions": st.none() | st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5)),
                "page_url": st.none() | st.just("http://a.example/"),
                "original_width": st.none() | st.integers(1, 2**31 - 1),
                "query_ids": st.none() | st.lists(st.integers(0, 2**31 - 1), max_size=3),
            }
        ),
        max_size=4,
    )
)
def test_importing_an_export_restores_the_pairs(rows: list[dict[str, Any]]) -> None:
    phash = int(perceptual_hash([IMAGE])[0])
    known = {"image": IMAGE, "width": 60, "height": 20, "phash": phash, "sha256": "cd" * 32, "caption_source": "alt"}
    made = [{**row, **known, "pair_id": pair_id} for row, pair_id in zip(rows, ids(len(rows)), strict=True)]
    table = pa.Table.from_pylist(made, PAIRS)
    sink = io.BytesIO()
    writer = TarWriter(sink, "00000", 10)
    writer.write(table, range(table.num_rows))
    writer.close()
    assert read_tar(io.BytesIO(sink.getvalue())) == conform(table, IMPORTED)


def test_tables_are_read(tmp_path: Path) -> None:
    rows = [
        {"url": "http://a.example/0", "caption": " as it  is ", "jpg": IMAGE, "status": "success", "key": "0"},
        {"url": "http://a.example/1", "caption": "gone", "jpg": None, "status": "failed_to_download", "key": "1"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
    found = read_table(LOCAL, str(tmp_path / "0.parquet"))
    assert found["caption"].to_pylist() == [" as it  is ", "gone"]
    assert found["image"].to_pylist() == [IMAGE, None]
    assert found["reason"].to_pylist() == [None, Reason.IMAGE_MISSING]
    pq.write_table(pa.table({"captions": [["one", "two"], [], None], "image": [IMAGE] * 3}), tmp_path / "1.parquet")
    found = read_table(LOCAL, str(tmp_path / "1.parquet"))
    assert found["caption"].to_pylist() == ["one", None, None]
    assert found["spare_captions"].to_pylist() == [["two"], None, None]
    assert found["reason"].to_pylist() == [None, Reason.CAPTION_EMPTY, Reason.CAPTION_EMPTY]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"url": ["x"], "caption": ["x"]},
            r"no column of images; expected one of .*jpg.*found \['url', 'caption'\]; jobs",
        ),
        ({"jpg": [b"x"]}, "no column of captions"),
        ({"jpg": ["x"], "caption": ["x"]}, "column 'jpg' holds string, expected bytes"),
        ({"image": [{"path": "x"}], "caption": ["x"]}, "column 'image' holds struct<.*>, expected bytes"),
    ],
)
def test_tables_without_a_required_column_raise(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_input("x.parquet", pa.table(columns).schema)


def test_images_of_hugging_face_are_read(tmp_path: Path) -> None:
    images = pa.array([{"bytes": IMAGE, "path": None}, {"bytes": None, "path": "x.jpg"}, None])
    pq.write_table(pa.table({"image": images, "text": ["one", "two", "three"], "label": [1, 2, 3]}), tmp_path / "x")
    found = read_table(LOCAL, str(tmp_path / "x"))
    assert found["image"].to_pylist() == [IMAGE, None, None]
    assert found["reason"].to_pylist() == [None, Reason.IMAGE_MISSING, Reason.IMAGE_MISSING]


@pytest.mark.parametrize("column", ["caption", "url", "language"])
def test_a_value_that_is_not_utf8_costs_its_own_row(tmp_path: Path, column: str) -> None:
    values = {name: [b"one", b"two", b"three"] for name in ("caption", "url", "language", "remark")}
    values[column][1] = b"caf\xe9"
    values["remark"] = [b"\xff"] * 3  # a column that is not used
    strings = {name: pa.array(column, pa.binary()).view(pa.string()) for name, column in values.items()}
    pq.write_table(pa.table({"jpg": [IMAGE] * 3, **strings}), tmp_path / "x")
    assert read_table(LOCAL, str(tmp_path / "x"))["reason"].to_pylist() == [None, Reason.BROKEN_RECORD, None]


def test_damage_to_one_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    file = tmp_path / "x"
    table = pa.table({"jpg": [IMAGE] * 3, "caption": ["one star", "two stars", "three stars"]})
    pq.write_table(
        table, file, row_group_size=1, compression="none", use_dictionary=False, write_page_checksum=True,
        write_statistics=False,
    )  # fmt: skip
    data = file.read_bytes()
    file.write_bytes(data.replace(b"two stars", b"two Stars", 1))
    rows = read_table(LOCAL, str(file)).to_pylist()
    assert [row["reason"] for row in rows] == [None, Reason.BROKEN_ARCHIVE, None]
    assert rows[1]["caption"].startswith("1 rows: ")


def test_an_unforeseen_error_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("unheard of")

    monkeypatch.setattr(foreign_pairs, "identifier", fail)
    rows = read([("0.jpg", IMAGE), ("0.txt", b"a star"), ("1.jpg", b"<html>"), ("1.txt", b"a star")])
    assert [row["reason"] for row in rows] == [Reason.UNFORESEEN, Reason.NOT_AN_IMAGE]
    assert rows[0]["caption"] == "ZeroDivisionError: unheard of"


def test_repeated_pair_ids_are_dropped() -> None:
    found = mark_duplicates(pa.table({"pair_id": ["b", "a", "b", "c", "a", "b"]}))
    duplicate = Reason.DUPLICATE_PAIR
    assert found["reason"].to_pylist() == [None, None, duplicate, None, duplicate, duplicate]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([{"a": 1}]),
        pa.array([{"bytes": "a"}]),
        pa.array([2**62], pa.timestamp("us")),
        pa.array([[[1]]]),
        pa.array([[("a", "b")]], pa.map_(pa.string(), pa.string())),
        pa.array([1.5]),
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize("name", ["sha256", "spare_captions", "query_ids", "original_width"])
def test_a_column_of_an_odd_type_is_left_out(tmp_path: Path, name: str, column: pa.Array) -> None:
    pq.write_table(pa.table({"jpg": [IMAGE], "caption": ["a dog"], name: column}), tmp_path / "x.parquet")
    (row,) = read_table(LOCAL, str(tmp_path / "x.parquet")).to_pylist()
    assert (row["caption"], row["reason"], row["sha256"]) == ("a dog", None, sha256(IMAGE).hexdigest())
