"""Files of killed writers never stay in a folder that users read as a table."""

import logging
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster import orphans, storage
from cluster.orphans import LEFTOVER_SECONDS, remove_orphans
from cluster.parts import Output, Stage
from cluster.removal import remove_if_possible
from tests.cluster.rows import table_of
from tests.stores.imitated import ImitatedStore, only
from tests.stores.refusals import access_denied
from tests.stores.removals import no_delete_of_many

HOUR = 3600.0


@pytest.fixture(params=["local", "s3"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    folder = str(tmp_path) if request.param == "local" else f"{request.getfixturevalue('s3')}/{tmp_path.name}"
    return Stage(f"{folder}/fetched", 2)


def write_and_die(stage: Stage, salt: str) -> None:
    storage.put_if_absent = lambda *_: os._exit(9)
    stage.write(0, table_of([None] * 3, salt))


def kill_before_manifest(stage: Stage, salt: str = "killed") -> None:
    """Write part 0 in a process that is killed after it has written the file, and before it writes the manifest."""
    process = multiprocessing.get_context("spawn").Process(target=write_and_die, args=(stage, salt))
    process.start()
    process.join()
    assert process.exitcode == 9


def leave(stage: Stage, name: str, age_seconds: float = 0.0) -> Path:
    file = Path(stage.uri, name)
    file.write_bytes(b"")
    os.utime(file, (time.time() - age_seconds,) * 2)
    return file


def complete(stage: Stage, salt: str = "") -> Output:
    for index in range(2):
        stage.write(index, table_of([None] * 2, f"{salt}{index}"))
    return Output.of(stage)


def files(stage: Stage) -> Sequence[str]:
    return [entry.uri.rsplit("/", 1)[1] for entry in stage.listing()]


def test_the_file_of_a_killed_worker_is_removed(tmp_path: Path) -> None:
    stage = Stage(str(tmp_path / "fetched"), 2)
    kill_before_manifest(stage)
    output = complete(stage)
    assert pq.read_table(stage.uri).num_rows == 4 + 3
    remove_orphans(output, stage.listing())
    assert pq.read_table(stage.uri).num_rows == 4
    assert [output.with_dropped(index) for index in range(2)] == [table_of([None] * 2, salt) for salt in "01"]


def test_a_stage_without_orphans_costs_no_request(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(f"{s3}/{tmp_path.name}", 2)
    output = complete(stage)
    listing = stage.listing()
    with ImitatedStore(os.environ["AWS_ENDPOINT_URL"]) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        remove_orphans(output, listing)
        assert store.operations == []
        monkeypatch.setattr(orphans, "LEFTOVER_SECONDS", -60.0)
        for number in range(5):
            storage.write_bytes(storage.join(stage.uri, f"part-00000-{number:016x}.parquet"), b"")
        listing = stage.listing()
        store.operations.clear()
        remove_orphans(output, listing)
        assert store.operations == ["DeleteObjects"]
        assert len(files(stage)) == 4


def test_all_generations_but_the_newest_complete_one_are_removed(stage: Stage) -> None:
    output = complete(stage)
    again = replace(stage, generation=1)
    before = files(stage)
    again.write(0, table_of([None], "again"))
    kill_before_manifest(again)
    remove_orphans(output, stage.listing())
    assert len(files(stage)) == len(before) + 3, "the new generation is being written"
    again.write(1, table_of([None], "again 1"))
    after = Output.of(again)
    remove_orphans(after, again.listing())
    assert sorted(files(stage)) == sorted(
        [*(f"_part-0000{index}{middle}.json" for index in range(2) for middle in ("", ".1")), *named(after)]
    )
    remove_orphans(output, stage.listing())
    assert all(after.with_dropped(index) is not None for index in range(2)), "a later generation is complete"


def named(output: Output) -> list[str]:
    return [part.file for part in output.parts if part.file]


def test_a_file_that_is_younger_than_the_stage_may_be_of_a_writer_that_lives(tmp_path: Path) -> None:
    stage = Stage(str(tmp_path / "fetched"), 2)
    output = complete(stage)
    young = leave(stage, f"part-00000-{'0' * 16}.parquet", -1)
    remove_orphans(output, stage.listing())
    assert young.exists()
    listing = stage.listing()
    assert orphans.orphans(output, listing, time.time() + LEFTOVER_SECONDS - HOUR) == []
    assert [entry.uri for entry in orphans.orphans(output, listing, time.time() + LEFTOVER_SECONDS + 9)] == [str(young)]


def test_only_old_temporary_files_are_removed_and_no_other_files(tmp_path: Path) -> None:
    stage = Stage(str(tmp_path / "fetched"), 2)
    output = complete(stage)
    old = [
        leave(stage, name, LEFTOVER_SECONDS + HOUR)
        for name in (f".new.{'0' * 32}.tmp", f"._part-00001.json.{'a' * 32}.tmp", f"part-00001-{'0' * 16}.parquet")
    ]
    kept = [
        leave(stage, f".new.{'1' * 32}.tmp", LEFTOVER_SECONDS - HOUR),
        *(leave(stage, name, 99 * LEFTOVER_SECONDS) for name in ("notes.txt", "my-part-00001.parquet", ".hidden")),
    ]
    remove_orphans(output, stage.listing())
    assert not any(file.exists() for file in old)
    assert all(file.exists() for file in kept)
    assert Output.of(stage) == output


def test_orphans_that_cannot_be_removed_are_a_warning(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(f"{s3}/{tmp_path.name}", 2)
    kill_before_manifest(stage)
    output = complete(stage)
    orphan = next(name for name in files(stage) if name.endswith(".parquet") and name not in named(output))
    with ImitatedStore(os.environ["AWS_ENDPOINT_URL"], only(access_denied, "Delete.*")) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        remove_orphans(output, stage.listing())
        assert orphan in files(stage)
        (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert line.startswith("1 of 1 files could not be removed (")
        assert "denied" in line.lower()
        assert f"{stage.uri}/{orphan}; pq.read_table reads their rows as part of the stage" in line
        # An attempt that loses cannot remove its file, either
        assert stage.write(0, table_of([None], "loses")) == output.parts[0]
        output.delete_replaced_files(replace(output, parts=(replace(output.parts[0], file=orphan), output.parts[1])))
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 3


def test_files_are_removed_and_missing_ones_are_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a").touch()
    remove_if_possible([str(tmp_path / "a"), str(tmp_path / "b")], "nothing follows")
    remove_if_possible([], "nothing follows")
    assert list(tmp_path.iterdir()) == []
    assert caplog.records == []


def test_one_warning_names_some_of_the_files_that_are_left(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uris = [f"{s3}/{tmp_path.name}/{name}" for name in ("a", "locked-1", "b", "locked-2", "locked-3", "locked-4")]
    for uri in uris:
        storage.write_bytes(uri, b"")
    quirks = (no_delete_of_many, only(access_denied, "DeleteObject", "locked"))
    with ImitatedStore(os.environ["AWS_ENDPOINT_URL"], *quirks) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        remove_if_possible(uris, "they take up space")
        assert [entry.uri for entry in storage.entries(f"{s3}/{tmp_path.name}")] == sorted({*uris} - {uris[0], uris[2]})
    lines = [record.getMessage() for record in caplog.records if "could not be removed" in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith("4 of 6 files could not be removed (")
    assert lines[0].endswith(f"): {uris[1]}, {uris[3]}, {uris[4]}, ...; they take up space")
