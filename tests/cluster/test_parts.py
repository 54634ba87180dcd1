import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import storage
from cluster.part_file import RowGroups
from cluster.parts import Output, Part, Stage
from tests.cluster.rows import SCHEMA, buckets, table_of


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(str(tmp_path / "stage"), 3)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([None, None, "broken", "dull"])), max_size=40),
    st.integers(1, 9),
    st.integers(4, 6),
)
def test_buckets_and_dropped_rows_are_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str | None]], row_group_size: int, num_buckets: int
) -> None:
    stage = Stage(str(tmp_path_factory.mktemp("stage")), 1)
    table = table_of([reason for _, reason in rows])
    where = buckets([bucket for bucket, _ in rows])
    part = stage.write(0, table, buckets=where, num_buckets=num_buckets, row_groups=RowGroups(max_rows=row_group_size))
    assert part == stage.read_manifest(0)
    out = table["reason"].is_valid().to_numpy()
    for bucket in range(num_buckets):
        expected = table.filter(pa.array((where == bucket) & ~out))
        assert part.buckets[bucket] == expected.num_rows
        found = stage.read(part, bucket)
        assert (found is None) == (expected.num_rows == 0)
        assert found is None or found == expected, "rows keep their order"
    output = Output.of(stage)
    dropped = output.dropped(0)
    assert (dropped or SCHEMA.empty_table()) == table.filter(pa.array(out))
    assert output.reasons() == {reason: n for reason in ("broken", "dull") if (n := [r for _, r in rows].count(reason))}
    assert (output.num_kept, output.num_rows) == (int((~out).sum()), len(rows))


def test_a_row_group_has_one_bucket_and_limited_rows(stage: Stage) -> None:
    table = table_of([None] * 20 + ["broken"] * 5)
    part = stage.write(
        1, table, buckets=buckets([0, 1] * 10 + [2] * 5), num_buckets=4, row_groups=RowGroups(max_rows=4)
    )
    assert part.file is not None
    with pq.ParquetFile(storage.join(stage.uri, part.file)) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    assert sizes == [4, 4, 2, 4, 4, 2, 4, 1]
    assert [list(part.groups_of(bucket)) for bucket in range(5)] == [[0, 1, 2], [3, 4, 5], [], [], [6, 7]]


def test_large_images_give_row_groups_of_few_rows(stage: Stage) -> None:
    table = table_of([None] * 12)
    images = pa.array([bytes(1_000_000)] * 12, pa.large_binary())
    table = table.set_column(2, "image", images)
    part = stage.write(0, table, row_groups=RowGroups(max_bytes=4_500_000))
    assert part.row_groups == (4, 4, 4)
    found = stage.read(part, 0)
    assert found == table
    with pq.ParquetFile(storage.join(stage.uri, part.file or "")) as file:
        assert max(file.metadata.row_group(i).total_byte_size for i in range(3)) < 4_500_000


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 9))
def test_writing_in_pieces_equals_writing_at_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], max_rows: int
) -> None:
    stage = Stage(str(tmp_path_factory.mktemp("stage")), 2)
    table = table_of([None, "broken", None, None, "dull"] * sum(sizes))
    ends = [5 * sum(sizes[: number + 1]) for number in range(len(sizes))]
    pieces = [table.slice(start, end - start) for start, end in zip([0, *ends], ends, strict=False)]
    limits = RowGroups(max_rows=max_rows)
    whole = stage.write(0, table, row_groups=limits)
    made = stage.write_pieces(1, [pieces], row_groups=limits)
    assert (made.buckets, made.dropped, made.row_groups) == (whole.buckets, whole.dropped, whole.row_groups)
    for bucket in (0, 1):
        assert stage.read(made, bucket) == stage.read(whole, bucket)


def test_a_part_whose_pieces_fail_leaves_no_files(stage: Stage) -> None:
    def pieces() -> Iterator[pa.Table]:
        yield table_of([None] * 9)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        stage.write_pieces(0, [pieces()], row_groups=RowGroups(max_rows=2))
    assert storage.entries(stage.uri) == []


def test_only_images_are_not_compressed(stage: Stage) -> None:
    part = stage.write(0, table_of([None] * 100))
    assert part.file is not None
    columns = pq.read_metadata(storage.join(stage.uri, part.file)).row_group(0).to_dict()["columns"]
    compression = {column["path_in_schema"]: column["compression"] for column in columns}
    assert compression.pop("image") == "UNCOMPRESSED"
    assert set(compression.values()) == {"ZSTD"}
    assert {column["path_in_schema"]: column["statistics"] is None for column in columns}["image"]


def test_only_requested_columns_are_read(stage: Stage) -> None:
    table = table_of([None, "broken", None])
    stage.write(0, table)
    for index in (1, 2):
        stage.write(index, table.slice(0, 0))
    output = Output.of(stage)
    assert output.bucket(0, ["query_ids", "pair_id"]) == table.take([0, 2]).select(["query_ids", "pair_id"])
    assert output.part(0, ["phash"]) == table.take([0, 2]).select(["phash"])
    assert output.dropped(0, ["reason"]) == table.slice(1, 1).select(["reason"])


def test_an_output_reads_its_parts_in_order(stage: Stage) -> None:
    tables = [table_of([None] * 4, salt) for salt in "abc"]
    for index in (2, 0, 1):
        stage.write(index, tables[index], buckets=buckets([1, 0, 1, 2]), num_buckets=3)
    output = Output.of(stage)
    assert output.bucket(1) == pa.concat_tables([table.take([0, 2]) for table in tables])
    assert output.part(1) == tables[1].take([1, 0, 2, 3])
    assert output.table(SCHEMA) == pa.concat_tables([table.take([1, 0, 2, 3]) for table in tables])
    assert output.num_kept_by_bucket() == [3, 6, 3]
    assert [part.index for part in output.parts] == [0, 1, 2]


@pytest.mark.parametrize("table", [pa.table({}), SCHEMA.empty_table()], ids=["no columns", "no rows"])
def test_an_empty_part_has_only_a_manifest(stage: Stage, table: pa.Table) -> None:
    part = stage.write(0, table, num_buckets=3)
    assert (part.file, part.num_bytes, part.buckets, part.num_rows) == (None, 0, (0, 0, 0), 0)
    assert storage.list_files(stage.uri) == [storage.join(stage.uri, "_part-00000.json")]
    assert [stage.read(part, bucket) for bucket in range(4)] == [None] * 4
    stage.write(1, table, num_buckets=3)
    stage.write(2, table, num_buckets=3)
    output = Output.of(stage)
    assert output.table(SCHEMA) == SCHEMA.empty_table()
    assert (output.bucket(2), output.part(1), output.dropped(0), output.reasons()) == (None, None, None, {})


def test_missing_parts_are_listed_in_the_error(stage: Stage) -> None:
    assert stage.complete() == {}
    stage.write(1, table_of([None]))
    assert list(stage.complete()) == [1]
    with pytest.raises(FileNotFoundError, match=r"stage: parts \[0, 2\] are missing; run its job to the end"):
        Output.of(stage)


def test_a_file_without_a_manifest_does_not_count(stage: Stage) -> None:
    part = stage.write(0, table_of([None]))
    storage.delete(storage.join(stage.uri, "_part-00000.json"))
    assert stage.complete() == {}
    assert stage.write(0, table_of([None])) == part, "the same rows give the same file"
    assert len(storage.list_files(stage.uri)) == 2


def test_the_first_of_two_attempts_counts(stage: Stage) -> None:
    first = stage.write(0, table_of([None], "first"))
    second = stage.write(0, table_of([None], "second"))
    assert second == first
    found = stage.read(first, 0)
    assert found == table_of([None], "first")
    assert len(storage.list_files(stage.uri)) == 2, "the file of the second attempt is deleted"


def test_exactly_one_of_racing_attempts_counts(stage: Stage) -> None:
    attempts = 8
    barrier = threading.Barrier(attempts)

    def attempt(number: int) -> Part:
        barrier.wait()
        return stage.write(2, table_of([None] * (number + 1), str(number)))

    with ThreadPoolExecutor(attempts) as threads:
        parts = list(threads.map(attempt, range(attempts)))
    assert all(part == parts[0] for part in parts)
    winner = parts[0].num_rows - 1
    assert stage.read(parts[0], 0) == table_of([None] * (winner + 1), str(winner))
    assert len(storage.list_files(stage.uri)) == 2


def test_racing_attempts_with_the_same_rows_keep_their_file(stage: Stage) -> None:
    with ThreadPoolExecutor(8) as threads:
        parts = list(threads.map(lambda _: stage.write(0, table_of([None] * 9)), range(8)))
    assert stage.read(parts[0], 0) == table_of([None] * 9)


@pytest.mark.parametrize(("index", "where"), [(3, [0]), (-1, [0]), (0, [2]), (0, [9]), (0, [-1])])
def test_invalid_parts_and_buckets_are_refused(stage: Stage, index: int, where: list[int]) -> None:
    with pytest.raises(AssertionError):
        stage.write(index, table_of([None]), buckets=buckets(where), num_buckets=2)


def test_a_newer_generation_counts_once_it_is_complete(stage: Stage) -> None:
    first, second = table_of([None, "timeout"]), table_of([None, None])
    for index in range(3):
        stage.write(index, first)
    before = Output.of(stage)
    again = replace(stage, generation=1)
    for index in range(2):
        again.write(index, second)
        assert stage.newest() == stage
    with pytest.raises(FileNotFoundError, match=r"parts \[2\] are missing"):
        Output.of(again)
    again.write(2, first)
    assert stage.newest() == again
    after = Output.of(again)
    assert (before.num_kept, after.num_kept) == (3, 5)
    assert before.with_dropped(0) == first
    after.delete_replaced_files(before)
    assert [after.with_dropped(index) for index in range(3)] == [second, second, first]
    assert len(storage.list_files(stage.uri, suffixes=(".parquet",))) == 3, "an unchanged part keeps its file"
    assert len(stage.complete()) == 3, "earlier manifests are kept as a record"


class TestDamage:
    """A damaged file either raises an error or returns exactly the rows that were written."""

    @pytest.fixture
    def part(self, stage: Stage) -> Part:
        rows = table_of([None if i % 3 else "broken" for i in range(30)])
        return stage.write(
            0, rows, buckets=buckets([i % 2 for i in range(30)]), num_buckets=2, row_groups=RowGroups(max_rows=8)
        )

    def test_a_flipped_bit_never_changes_the_rows(self, stage: Stage, part: Part) -> None:
        file = Path(stage.uri, part.file or "")
        data = file.read_bytes()
        whole = [stage.read(part, bucket) for bucket in range(3)]
        noticed = 0
        for at in range(0, len(data), 13):
            file.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
            for bucket in range(3):
                try:
                    found = stage.read(part, bucket)
                except ValueError as error:
                    noticed += file.name in str(error)
                else:
                    assert found == whole[bucket], f"byte {at}"
        assert noticed > len(data) / 13, "bits of the footer in every bucket, bits of a page in its own bucket"

    @pytest.mark.parametrize("size", [0, 1, 100, -1, -4, -100])
    def test_a_truncated_file_is_an_error(self, stage: Stage, part: Part, size: int) -> None:
        file = Path(stage.uri, part.file or "")
        data = file.read_bytes()[:size]
        file.write_bytes(data)
        sizes = f"{part.num_bytes} bytes expected, {len(data)} found"
        with pytest.raises(ValueError, match=rf"{file}: is damaged \({sizes}\); remove .*_part-00000\.json"):
            stage.read(part, 0)

    def test_a_missing_file_is_an_error(self, stage: Stage, part: Part) -> None:
        Path(stage.uri, part.file or "").unlink()
        with pytest.raises(ValueError, match=rf"{part.file}: is gone; remove {stage._manifest(0)} and run"):
            stage.read(part, 0)

    def test_another_file_is_an_error(self, stage: Stage, part: Part) -> None:
        rows = table_of([None if i % 3 else "broken" for i in range(30)], salt="x")
        other = Stage(stage.uri + "-2", 1).write(
            0, rows, buckets=buckets([i % 2 for i in range(30)]), num_buckets=2, row_groups=RowGroups(max_rows=8)
        )
        data = Path(stage.uri + "-2", other.file or "").read_bytes()
        Path(stage.uri, part.file or "").write_bytes(data)
        with pytest.raises(ValueError, match=r"is damaged \(.*expected"):
            stage.read(part, 0)
