import json
from pathlib import Path

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import storage
from pipeline.data.snapshots import snapshot as snapshots
from pipeline.data.snapshots.commit import commit
from pipeline.data.snapshots.snapshot import OWN_FIELDS, Shard, Snapshot, tags, versions
from pipeline.schemas import PAIRS
from tests.pipeline.data.datasets import add_shard, counts, make, readable

ROOT = Path(__file__).resolve().parents[4]
SCHEMA = json.loads((ROOT / "docs" / "assets" / "snapshot.schema.json").read_text())


def test_a_version_is_read_as_it_was_committed(anywhere: str) -> None:
    made = make(anywhere, range(6), range(6, 15), metadata={"run": "abc", "configuration": {"seed": 1}})
    for found in (made, Snapshot.open(anywhere), Snapshot.open(anywhere + "/", "v00000001")):
        assert found == made
        assert (found.name, found.num_rows, found.num_taken_down) == ("v00000001", 15, 0)
        assert found.num_bytes == sum(len(storage.read_bytes(shard.path)) for shard in found.shards)
        assert [shard.row_groups for shard in found.shards] == [(4, 2), (4, 4, 1)]
        assert readable(found) == list(range(15))
        assert found.query_counts() == counts(range(15))
        assert found.verify() == []
    assert made.metadata["configuration"] == {"seed": 1}
    assert made.metadata["num_pairs"] == 15
    assert made.metadata["schema"] == {field.name: str(field.type) for field in PAIRS}
    assert made.metadata.keys() == OWN_FIELDS | {"run", "configuration"}


def test_records_match_the_json_schema(dataset: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for metadata in ({"run": "abc"}, {"configuration": {"seed": 1}, "funnel": [], "compacted": {"from": "v00000001"}}):
        record = dict(make(dataset, [len(metadata)], metadata=metadata).metadata)
        jsonschema.validate(record, SCHEMA)
        assert set(SCHEMA["required"]) == OWN_FIELDS
        for name in OWN_FIELDS:
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({key: value for key, value in record.items() if key != name}, SCHEMA)
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(record | {name: [1]}, SCHEMA)


def test_a_version_without_pairs(dataset: str) -> None:
    assert make(dataset).num_rows == 0
    assert Snapshot.open(dataset).shards == ()
    assert Snapshot.open(dataset).verify() == []


def test_verify_names_every_damaged_shard(anywhere: str) -> None:
    snapshot = make(anywhere, *([number] for number in range(6)))
    _, truncated, flipped, missing, empty, other = (shard.path for shard in snapshot.shards)
    size = snapshot.shards[1].num_bytes
    data = storage.read_bytes(flipped)
    storage.write_bytes(truncated, storage.read_bytes(truncated)[:-9])
    storage.write_bytes(flipped, data[:99] + bytes([data[99] ^ 1]) + data[100:])
    storage.write_bytes(empty, b"")
    storage.delete(missing)
    reported: list[int] = []
    found = snapshot.verify(reported.append)
    assert [fault.split(": ", 1) for fault in found] == [
        [truncated, f"{size} bytes expected, {size - 9} found"],
        [flipped, found[1].split(": ", 1)[1]],
        [missing, "missing"],
        [empty, f"{snapshot.shards[4].num_bytes} bytes expected, 0 found"],
    ]
    assert f"sha256 {snapshot.shards[2].sha256} expected, " in found[1]
    assert sum(reported) == snapshot.num_bytes
    assert other not in str(found)


def test_verify_counts_rows(dataset: str) -> None:
    shard = add_shard(dataset, range(5))
    made = commit(dataset, [Shard(**{**vars(shard), "num_rows": 6, "row_groups": (4, 2)})], counts([]), {})
    assert made.verify() == [f"{made.shards[0].path}: 6 rows in groups (4, 2) expected, 5 in (4, 1)"]


def test_verify_checks_the_record_and_the_query_counts(dataset: str) -> None:
    made = make(dataset, range(5))
    record = Path(dataset, "snapshots", "v00000001.json")
    record.write_text(json.dumps({**made.metadata, "num_pairs": 4}))
    Path(dataset, "query_counts", f"{made.snapshot_id}.parquet").write_bytes(b"PAR1")
    first, second = Snapshot.open(dataset).verify()
    assert first.startswith(f"{record}: ")
    assert "'num_pairs': 5" in first
    assert "the query counts of v00000001 cannot be read" in second


def test_a_damaged_manifest_is_noticed(dataset: str) -> None:
    snapshot = make(dataset, [1])
    manifest = storage.join(dataset, "manifests", f"{snapshot.snapshot_id}.parquet")
    data = storage.read_bytes(manifest)
    storage.write_bytes(manifest, data[:40] + bytes([data[40] ^ 1]) + data[41:])
    with pytest.raises(ValueError, match="the manifest of v00000001 is damaged"):
        Snapshot.open(dataset)
    make(dataset, [2])
    with pytest.raises(ValueError, match=f"{snapshot.snapshot_id}.parquet is damaged; remove it and commit again"):
        make(dataset, [1])
    storage.delete(manifest)
    assert readable(make(dataset, [1])) == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "the record of v00000001 is damaged"),
        (b"[]", "the record of v00000001 is damaged"),
        (b"\xff", "the record of v00000001 is damaged"),
        (b"[" * 100_000, "the record of v00000001 is damaged"),
        (b'{"schema_version": 1}', "not a record of this version"),
        (b'{"schema_version": 2}', "schema_version 2, this program reads 1; use the program that wrote it"),
    ],
)
def test_a_damaged_record_is_noticed(dataset: str, content: bytes, message: str) -> None:
    make(dataset, [1])
    storage.write_bytes(storage.join(dataset, "snapshots", "v00000001.json"), content)
    with pytest.raises(ValueError, match=message):
        Snapshot.open(dataset)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"version": 5}', b'{"version": "../v00000001"}']
)
def test_a_damaged_tag_is_named(dataset: str, content: bytes) -> None:
    make(dataset, [1])
    file = storage.join(dataset, "refs", "tags", "first.json")
    storage.write_bytes(file, content)
    with pytest.raises(ValueError, match=f"{file}: this tag is damaged"):
        tags(dataset)


@pytest.mark.parametrize("version", ["v00000002", "v1", "latest", "../v00000001"])
def test_opening_an_unknown_version_raises(dataset: str, version: str) -> None:
    make(dataset, [1])
    with pytest.raises(FileNotFoundError, match=rf"no snapshot {version}; there are \['v00000001'\]"):
        Snapshot.open(dataset, version)


def test_opening_a_data_set_without_versions_raises(dataset: str) -> None:
    assert versions(dataset) == []
    for version in (None, "v00000001"):
        with pytest.raises(FileNotFoundError, match=f"no snapshot {version or 'yet'}; there are none"):
            Snapshot.open(dataset, version)


def test_files_with_other_names_are_not_versions(dataset: str) -> None:
    made = make(dataset, [1])
    for name in ("v2.json", "v00000009.json.tmp", ".v00000009.json.1.tmp", "notes.txt", "xv00000009.json"):
        storage.write_bytes(storage.join(dataset, "snapshots", name), json.dumps(made.metadata).encode())
    assert versions(dataset) == ["v00000001"]


def test_reading_a_damaged_shard_raises_an_error_that_names_it(dataset: str) -> None:
    shard = make(dataset, range(5)).shards[0]
    data = bytearray(Path(shard.path).read_bytes())
    column = pq.read_metadata(shard.path).row_group(1).column(PAIRS.names.index("image"))
    data[column.data_page_offset + column.total_compressed_size - 5] ^= 1
    Path(shard.path).write_bytes(data)
    assert shard.read_row_group(0, ["caption"]).num_rows == 4
    with pytest.raises(ValueError, match=f"{shard.path}: this shard is damaged"):
        shard.read_row_group(1)
    Path(shard.path).unlink()
    with pytest.raises(FileNotFoundError, match=f"{shard.path}: this shard is gone"):
        shard.read_row_group(0)


def test_manifests_are_parquet_with_the_documented_columns(dataset: str) -> None:
    made = make(dataset, [1])
    table = pq.read_table(Path(dataset, "manifests", f"{made.snapshot_id}.parquet"))
    assert table.schema == snapshots.SHARDS
    assert isinstance(table["row_groups"].combine_chunks(), pa.ListArray)
