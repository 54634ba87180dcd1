import errno
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.stores.errors import AccessDeniedError
from pipeline.data.sources.parquet_rows import check_storage, parquet_rows, read_schema
from pipeline.data.sources.warc_records import ReadError
from pipeline.reasons import Reason

LOCAL = pyarrow.fs.LocalFileSystem()
TABLE = pa.table({"url": [f"http://a.example/{i}" for i in range(9)], "caption": ["a"] * 9, "image": [b"1"] * 9})


def test_storage_that_fails_is_no_damage(tmp_path: Path) -> None:
    file = str(tmp_path / "x.parquet")
    pq.write_table(TABLE, file)
    damage = pa.ArrowInvalid("of the content")
    check_storage(LOCAL, file, damage)
    with pytest.raises(ReadError):
        check_storage(LOCAL, f"{file}.missing", damage)
    for failure in (OSError(errno.EIO, "of a disk"), AccessDeniedError("of a store"), FileNotFoundError("gone")):
        with pytest.raises(ReadError, match=r"of a|gone"):
            check_storage(LOCAL, file, failure)
    with pytest.raises(FileNotFoundError):
        read_schema("x.parquet", LOCAL, f"{file}.missing")


def test_columns_that_are_not_known_or_exist_twice_are_left_out(tmp_path: Path) -> None:
    file = str(tmp_path / "x.parquet")
    names = ["url", "caption", "key", "key", "width", "taken", "a.b"]
    columns = [["u"], ["c"], ["1"], ["2"], [3], pa.array([0], pa.timestamp("s")), ["x"]]
    pq.write_table(pa.table(columns, names=names), file)
    (row,) = parquet_rows(LOCAL, file, ["key", "width", "taken", "a", "missing"])
    assert row.values == {"url": b"u", "caption": b"c", "width": 3}


def test_a_table_without_any_known_column_has_all_its_rows(tmp_path: Path) -> None:
    file = str(tmp_path / "x.parquet")
    pq.write_table(pa.table({"x": [1, 2, 3]}), file)
    assert [(row.number, row.values) for row in parquet_rows(LOCAL, file)] == [(0, {}), (1, {}), (2, {})]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_any_damage_gives_rows(tmp_path: Path, damage: list[tuple[float, int]]) -> None:
    file = tmp_path / "x.parquet"
    pq.write_table(TABLE, file, row_group_size=3, compression="none")
    data = bytearray(file.read_bytes())
    for share, change in damage:
        data[int(share * len(data))] ^= change
    file.write_bytes(data)
    rows = list(parquet_rows(LOCAL, str(file)))
    assert {row.reason for row in rows} <= {None, Reason.BROKEN_ARCHIVE}
    is_readable = True
    try:
        read_schema("x.parquet", LOCAL, str(file))
    except ValueError:
        is_readable = False
    assert is_readable or [row.reason for row in rows] == [Reason.BROKEN_ARCHIVE]
