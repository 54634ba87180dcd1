import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster import storage
from cluster.part_file import RowGroups
from cluster.resources import Pool
from cluster.runs import Run
from cluster.stages import Factory, Stages, shared
from tests.cluster.ray_private.free_cpus import wait_until_all_cpus_are_free

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_local")]

SCHEMA = pa.schema([("value", pa.int64()), ("text", pa.string()), ("reason", pa.string())])


def rows_of(part: int) -> pa.Table | None:
    """Part 0 is None, part 1 is a table without rows, and any other part n has n rows."""
    if part == 0:
        return None
    values = range(part * 100, part * 100 + part) if part > 1 else range(0)
    return pa.table([list(values), [f"row {v}" for v in values], [None] * len(values)], schema=SCHEMA)


def note(folder: Path, name: str) -> None:
    """Record an event in a folder, so that the test sees events of any process."""
    (folder / f"{name}-{random.SystemRandom().getrandbits(64)}").touch()


def noted(folder: Path) -> dict[str, int]:
    names = [file.name.rsplit("-", 1)[0] for file in folder.iterdir()]
    return {name: names.count(name) for name in sorted(set(names))}


def pool_of(function: Callable[[pa.Table], pa.Table]) -> tuple[Factory, Pool]:
    return (lambda: function), Pool(cpus=0.5)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.open(str(tmp_path / "run"), {"seed": 0})


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


def test_a_shared_value_is_available_in_tasks_and_actors(run: Run) -> None:
    offsets = shared(np.arange(1_000))

    def add(table: pa.Table) -> pa.Table:
        return table.set_column(0, "value", pa.array(table["value"].to_numpy() + offsets()[table["value"].to_numpy()]))

    output = Stages(run)("added", 4, rows_of, pools=[pool_of(add)], finish=add)
    assert output.part(3) == add(add(rows_of(3)))


def test_pools_finish_and_bucketing_process_all_rows(run: Run, notes: Path) -> None:
    def make(name: str, change: Callable[[pa.Table], pa.Table]) -> Factory:
        def factory() -> Callable[[pa.Table], pa.Table]:
            note(notes, f"{name} made")
            return change

        return factory

    def double(table: pa.Table) -> pa.Table:
        return table.set_column(0, "value", pa.array(table["value"].to_numpy() * 2))

    def refuse_some(table: pa.Table) -> pa.Table:
        reasons = ["too large" if value >= 1000 else None for value in table["value"].to_pylist()]
        return table.set_column(2, "reason", pa.array(reasons, pa.string()))

    def finish(table: pa.Table) -> pa.Table:
        return table.append_column("part_size", pa.array([table.num_rows] * table.num_rows, pa.int32()))

    stages = Stages(run)
    output = stages(
        "made",
        7,
        rows_of,
        pools=[(make("first", double), Pool(cpus=0.5)), (make("second", refuse_some), Pool(cpus=0.5))],
        finish=finish,
        bucketing=lambda table: (table["value"].to_numpy() // 2 % 3).astype(np.int32),
        num_buckets=3,
        row_groups=RowGroups(max_rows=2),
    )
    sizes = [part.num_rows for part in output.parts]
    assert sizes == [0, 0, 2, 3, 4, 5, 6], "parts stay whole"
    assert output.reasons() == {"too large": 5 + 6}
    found = [row for bucket in range(3) for row in (output.bucket(bucket) or pa.table({})).to_pylist()]
    expected = [(v, n) for n in (2, 3, 4) for v in range(n * 100, n * 100 + n)]
    expected.sort(key=lambda pair: (pair[0] % 3, pair[0]))
    assert [(row["value"] // 2, row["part_size"]) for row in found] == expected
    assert [row["text"] for row in found] == [f"row {value}" for value, _ in expected]
    assert noted(notes) == {"first made": 1, "second made": 1}, "an actor creates its function once"
    (line,) = stages.funnel()
    assert line.pop("seconds") > 0
    assert line == {"stage": "made", "kept": 9, "dropped": {"too large": 11}}


def test_a_rerun_does_only_missing_parts(run: Run, notes: Path) -> None:
    def read(part: int) -> pa.Table | None:
        note(notes, f"part {part}")
        return rows_of(part)

    first = Stages(run)("made", 5, read)
    assert noted(notes) == {f"part {part}": 1 for part in range(5)}
    stage = run.stage("made", 5)
    files = {uri: storage.read_bytes(uri) for uri in storage.list_files(stage.uri)}
    for part in (1, 3):
        storage.delete(storage.join(stage.uri, f"_part-{part:05d}.json"))
    again = Stages(run)
    assert again("made", 5, read) == first
    assert noted(notes) == {"part 0": 1, "part 1": 2, "part 2": 1, "part 3": 2, "part 4": 1}
    assert {uri: storage.read_bytes(uri) for uri in storage.list_files(stage.uri)} == files
    seconds = again.funnel()[0]["seconds"]
    ended = [event for event in again.events.read() if event["event"] == "stage"]
    assert seconds > 0.999 * sum(event["seconds"] for event in ended) > 0, "over both runs"
    assert Stages(run)("made", 5, read) == first
    assert sum(noted(notes).values()) == 7, "complete parts are not read again"
    assert [event["event"] for event in again.events.read()] == ["stage_started", "stage"] * 2


def test_files_of_killed_workers_are_removed_from_a_run_and_left_in_a_data_set(run: Run, tmp_path: Path) -> None:
    """At the end, and when the stage is found complete at a resume. Versions may name files that no manifest names."""
    for uri in (None, str(tmp_path / "data set")):
        orphan = Path(uri or storage.join(run.uri, "made"), f"part-00003-{'0' * 16}.parquet")
        for _ in range(2):
            storage.write_bytes(str(orphan), b"")
            os.utime(orphan, (0, 0))
            output = Stages(run)("made", 4, rows_of, uri=uri)
            assert orphan.exists() == (uri is not None)
            assert output.num_kept == 2 + 3


def test_a_stage_reads_the_buckets_of_an_earlier_stage(run: Run, tmp_path: Path) -> None:
    stages = Stages(run)
    first = stages(
        "first", 6, rows_of, bucketing=lambda table: (table["value"].to_numpy() % 4).astype(np.int32), num_buckets=4
    )
    second = stages("second", 4, first.bucket, uri=str(tmp_path / "elsewhere"))
    assert second.stage.uri == str(tmp_path / "elsewhere")
    assert [part.num_kept for part in second.parts] == first.num_kept_by_bucket()
    for bucket in range(4):
        assert second.part(bucket) == first.bucket(bucket)
    rows = pa.concat_tables([table for part in range(2, 6) if (table := rows_of(part)) is not None])
    assert sorted(second.table(SCHEMA)["value"].to_pylist()) == rows["value"].to_pylist()
    assert [line["stage"] for line in stages.funnel()] == ["first", "second"]


def test_a_stage_of_only_empty_parts(run: Run) -> None:
    output = Stages(run)("empty", 2, rows_of, pools=[pool_of(lambda table: table)], num_buckets=2)
    assert [part.file for part in output.parts] == [None, None]
    assert output.table(SCHEMA) == SCHEMA.empty_table()


def test_a_pool_that_loses_rows_fails(run: Run) -> None:
    with pytest.raises(AssertionError, match="3 rows in, 2 out"):
        Stages(run)("made", 4, lambda part: rows_of(3) if part == 3 else None, pools=[pool_of(lambda t: t.slice(1))])
    assert 3 not in run.stage("made", 4).complete()
    wait_until_all_cpus_are_free()


def test_errors_keep_their_type_and_complete_parts_are_kept(run: Run) -> None:
    def read(part: int) -> pa.Table | None:
        if part == 4:
            raise ValueError("input=x.warc.gz: broken")
        return rows_of(part)

    with pytest.raises(ValueError, match=r"input=x\.warc\.gz: broken"):
        Stages(run)("made", 5, read)
    assert 4 not in run.stage("made", 5).complete()
    assert Stages(run)("made", 5, rows_of).num_kept == 2 + 3 + 4


def test_large_parts_are_not_split_and_small_parts_are_not_merged(run: Run) -> None:
    """By default Ray Data splits blocks at 128 MiB and merges small ones."""

    def read(part: int) -> pa.Table:
        images = [bytes([part]) * (40 * 2**20)] * 4 if part == 0 else [b"small"]
        return pa.table([pa.array(images, pa.large_binary()), pa.nulls(len(images), pa.string())], ["image", "reason"])

    output = Stages(run)("large", 3, read, pools=[pool_of(lambda table: table)])
    assert [part.num_rows for part in output.parts] == [4, 1, 1]
    assert [part.num_bytes > 160 * 2**20 for part in output.parts] == [True, False, False]


@pytest.mark.parametrize(("max_share", "is_refused"), [(0.1, True), (0.2, False), (1.0, False)])
def test_a_job_stops_if_too_many_rows_have_a_reason(run: Run, max_share: float, is_refused: bool) -> None:
    def drop(table: pa.Table) -> pa.Table:
        reasons = ["unheard of" if value % 5 == 0 else None for value in table["value"].to_pylist()]
        return table.set_column(2, "reason", pa.array(reasons, pa.string()))

    def some() -> int:
        return Stages(run, {"unheard of": max_share})("some", 1, lambda _: drop(rows_of(5))).num_kept

    if is_refused:
        message = r"some: 1 of 5 rows have the reason 'unheard of', more than the share of 0\.1 .*max_unforeseen_share"
        with pytest.raises(ValueError, match=message):
            some()
        assert Stages(run, {"unheard of": 0.2})("some", 1, rows_of).num_kept == 4, (
            "a rerun with a higher share continues"
        )
    else:
        assert some() == 4
