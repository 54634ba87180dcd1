import io
import json
import tarfile
from typing import Any

import pyarrow as pa
import pytest

from pipeline.data.exchange.webdataset import TarWriter, shard_name
from pipeline.schemas import PAIRS, conform
from tests.pipeline.data.rows import encode, photo_like

ROWS: list[dict[str, Any]] = [
    {
        "pair_id": f"{number:032x}",
        "url": f"http://a.example/{number}",
        "caption": caption,
        "language": "en",
        "spare_captions": [] if number else ["a spare"],
        "image": encode(photo_like(number, 40, 30), kind),
        "width": 40,
        "height": 30,
        "original_width": 400,
        "sha256": f"{number:064x}",
        "phash": 2**64 - 1 - number,
        "page_url": None,
        "query_ids": [3, 7],
    }
    for number, (caption, kind) in enumerate(
        [("a star", "JPEG"), ("ein Stern\n– „zwei“ ☆", "PNG"), ("s", "WEBP"), ("t", "GIF")]
    )
]
TABLE = conform(pa.Table.from_pylist(ROWS, PAIRS), PAIRS)


def tar_of(*tables: pa.Table, numbers: list[int]) -> bytes:
    sink, start = io.BytesIO(), 0
    writer = TarWriter(sink, "00002", 20_000)
    for table in tables:
        writer.write(table, numbers[start : start + table.num_rows])
        start += table.num_rows
    writer.close()
    assert writer.num_pairs == start
    return sink.getvalue()


def test_members_follow_the_layout_of_img2dataset() -> None:
    data = tar_of(TABLE, numbers=[0, 1, 5, 19_999])
    assert len(data) % tarfile.RECORDSIZE == 0
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        assert {(member.mtime, member.uid, member.gid, member.isreg()) for member in tar} == {(0, 0, 0, True)}
    keys = ["0000200000", "0000200001", "0000200005", "0000219999"]
    kinds = ["jpg", "png", "webp", "jpg"]
    assert list(members) == [
        f"{key}.{kind}" for key, image in zip(keys, kinds, strict=True) for kind in (image, "json", "txt")
    ]
    for key, row, image in zip(keys, ROWS, kinds, strict=True):
        assert members[f"{key}.{image}"] == row["image"]
        assert members[f"{key}.txt"].decode() == row["caption"]
        fields = json.loads(members[f"{key}.json"])
        assert fields.pop("phash") == f"{row['phash']:016x}"
        assert (fields.pop("key"), fields.pop("status"), fields.pop("error_message")) == (key, "success", None)
        expected = {name: row.get(name) for name in PAIRS.names if name not in {"image", "phash"}}
        assert fields == expected


def test_a_tar_depends_only_on_its_pairs() -> None:
    assert tar_of(TABLE, numbers=[0, 1, 2, 3]) == tar_of(TABLE.slice(0, 1), TABLE.slice(1), numbers=[0, 1, 2, 3])


def test_a_tar_without_pairs_is_valid() -> None:
    data = tar_of(numbers=[])
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        assert tar.getnames() == []


@pytest.mark.parametrize(
    ("number", "count", "name"), [(0, 1, "00000"), (99_999, 100_000, "99999"), (1, 100_001, "000001")]
)
def test_shard_names_are_padded_to_sort_as_numbers(number: int, count: int, name: str) -> None:
    assert shard_name(number, count) == name
