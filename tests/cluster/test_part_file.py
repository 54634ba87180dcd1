from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import storage
from cluster.part_file import PartFile, RowGroups


def images(sizes: list[int]) -> pa.Table:
    return pa.table({"image": pa.array([bytes(size) for size in sizes], pa.large_binary())})


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3_000), max_size=40), st.integers(1, 9), st.integers(1, 5_000))
def test_row_groups_respect_both_limits(sizes: list[int], max_rows: int, max_bytes: int) -> None:
    groups = RowGroups(max_rows=max_rows, max_bytes=max_bytes).full_groups(np.array(sizes, np.int64))
    start = 0
    for rows in groups:
        assert 1 <= rows <= max_rows
        assert rows == 1 or sum(sizes[start : start + rows]) <= max_bytes
        assert rows == max_rows or sum(sizes[start : start + rows + 1]) > max_bytes, "no group ends too early"
        start += rows
    assert not sizes or start < len(sizes), "the last group is left open"
    rest = sizes[start:]
    assert len(rest) <= max_rows
    assert len(rest) <= 1 or sum(rest) <= max_bytes


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=40), st.lists(st.integers(1, 39), max_size=4))
def test_groups_do_not_depend_on_how_rows_are_added(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    table, limits = images(sizes), RowGroups(max_rows=7, max_bytes=700)
    ends = sorted({0, len(sizes), *(cut for cut in cuts if cut < len(sizes))})
    found = []
    for pieces in ([table], [table.slice(start, end - start) for start, end in pairwise(ends)]):
        with PartFile(str(folder), limits) as file:
            for piece in pieces:
                file.add(piece)
            name = file.finish("part")
        assert name is not None
        found.append((file.row_groups, pq.read_table(folder / name)))
    assert found[0] == found[1]
    assert sum(found[0][0]) == len(sizes)


def test_name_and_footer_match_the_content(tmp_path: Path) -> None:
    with PartFile(str(tmp_path), RowGroups(max_rows=2)) as file:
        file.add(images([10, 20, 30]))
        file.end_group()
        file.add(images([40]))
        name = file.finish("part-1")
    assert name == f"part-1-{file.sha256[:16]}.parquet"
    data = (tmp_path / name).read_bytes()
    assert file.num_bytes == len(data)
    assert data.endswith(file.footer)
    assert len(file.footer) == 8 + int.from_bytes(data[-8:-4], "little")
    assert pq.read_metadata(pa.BufferReader(file.footer)).num_row_groups == 3
    assert file.row_groups == [2, 1, 1]
    assert file.num_rows == 4


def test_no_file_is_written_without_rows(tmp_path: Path) -> None:
    with PartFile(str(tmp_path), RowGroups()) as file:
        file.add(images([]))
        assert file.finish("part") is None
    assert (file.num_bytes, file.row_groups, file.footer) == (0, [], b"")
    assert storage.entries(str(tmp_path)) == []


def test_an_unfinished_file_is_deleted(tmp_path: Path) -> None:
    with PartFile(str(tmp_path), RowGroups(max_rows=1)) as file:
        file.add(images([10, 20, 30]))
        assert file.row_groups == [1, 1]
        assert len(storage.entries(str(tmp_path))) == 1
        assert not list(tmp_path.glob("*.parquet")), "the file is hidden until it is complete"
    assert storage.entries(str(tmp_path)) == []
