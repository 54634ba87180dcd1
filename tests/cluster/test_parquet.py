import pyarrow as pa
import pyarrow.parquet as pq

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
