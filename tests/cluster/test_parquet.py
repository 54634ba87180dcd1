from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import parquet

TABLE = pa.table(
    {
        "text": pa.array(["a", "b", "a", None]),
        "numbers": pa.array([[1, 2], [], None, [3]], pa.list_(pa.int32())),
        "image": pa.array([b"jpeg" * 100] * 4, pa.large_binary()),
    }
).replace_schema_metadata({b"made": b"by hand"})


def test_an_encoded_table_keeps_its_rows_and_metadata() -> None:
    found = pq.read_table(pa.BufferReader(parquet.encode(TABLE)), page_checksum_verification=True)
    assert found == TABLE
    assert found.schema.metadata == {b"made": b"by hand"}


def test_equal_rows_give_equal_bytes() -> None:
    in_pieces = pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1)])
    assert parquet.encode(in_pieces) == parquet.encode(TABLE)


def test_only_images_are_not_compressed() -> None:
    group = pq.ParquetFile(pa.BufferReader(parquet.encode(TABLE))).metadata.row_group(0)
    columns = {group.column(index).path_in_schema: group.column(index) for index in range(group.num_columns)}
    assert {name: column.compression for name, column in columns.items()} == {
        "text": "ZSTD",
        "numbers.list.element": "ZSTD",
        "image": "UNCOMPRESSED",
    }
    assert [name for name, column in columns.items() if column.has_dictionary_page] == ["text", "numbers.list.element"]
    assert [name for name, column in columns.items() if column.is_stats_set] == ["text", "numbers.list.element"]


SCHEMA = pa.schema([("text", pa.string()), ("number", pa.int32()), ("share", pa.float32())])
GOOD = pa.table([["a", None], [1, 2], [0.5, None]], schema=SCHEMA)


def test_other_widths_are_cast_and_other_columns_and_metadata_are_kept() -> None:
    wide = pa.table(
        {
            "more": [b"1", b"2"],
            "share": pa.array([1, 2], pa.int8()),
            "number": pa.array([1, 2], pa.uint64()),
            "text": pa.array(["a", None], pa.large_string()).dictionary_encode(),
        }
    ).replace_schema_metadata({b"made": b"by hand"})
    found = parquet.cast(wide, SCHEMA, "x.parquet")
    assert found.column_names == wide.column_names
    assert found.select(["text", "number"]) == GOOD.select(["text", "number"])
    assert found["share"].to_pylist() == [1.0, 2.0]
    assert found.schema.metadata == {b"made": b"by hand"}


def test_a_column_without_values_fits_every_type() -> None:
    found = parquet.cast(GOOD.set_column(0, "text", pa.nulls(2)), SCHEMA, "x.parquet")
    assert found["text"].type == pa.string()


def test_a_column_that_is_missing_or_occurs_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x\.parquet: column 'number' is missing; it needs the columns \['text', "):
        parquet.cast(GOOD.drop_columns(["number"]), SCHEMA, "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet: column 'text' occurs 2 times"):
        parquet.cast(GOOD.append_column("text", GOOD["text"]), SCHEMA, "x.parquet")


VALUES = st.none() | st.integers(-(2**63), 2**63 - 1) | st.text() | st.binary() | st.floats() | st.booleans()


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SCHEMA.names), st.lists(VALUES, min_size=2, max_size=2) | st.lists(st.lists(VALUES, max_size=2)))
def test_whatever_a_column_holds_it_is_cast_or_refused_by_name(name: str, values: list[object]) -> None:
    try:
        column = pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError):
        return
    if len(column) != 2:
        return
    table = GOOD.set_column(SCHEMA.get_field_index(name), name, column)
    try:
        found = parquet.cast(table, SCHEMA, "x.parquet")
    except ValueError as error:
        assert str(error).startswith(f"x.parquet: column '{name}' ")  # noqa: PT017 (most values raise nothing)
    else:
        assert found.schema == SCHEMA


def test_a_damaged_file_is_named_and_a_missing_one_is_missing(tmp_path: Path) -> None:
    uri = str(tmp_path / "x.parquet")
    Path(uri).write_bytes(parquet.encode(TABLE)[:-20])
    with pytest.raises(ValueError, match=rf"{uri}: cannot be read as Parquet \("), parquet.reading(uri):
        pq.ParquetFile(uri)
    Path(uri).unlink()
    with pytest.raises(FileNotFoundError), parquet.reading(uri):
        pq.ParquetFile(uri)
