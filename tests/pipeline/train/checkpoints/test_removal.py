"""Old checkpoints on stores that refuse to delete: training goes on, and no good checkpoint is lost."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import storage
from pipeline.model.objectives.clip import CLIP
from pipeline.model.weights.model_folder import Model
from pipeline.train.checkpoints.background_saver import BackgroundSaver
from pipeline.train.checkpoints.checkpoint import CheckpointFolder
from pipeline.train.checkpoints.removal import MAX_FAILURES
from tests.pipeline.model.models import CONFIG
from tests.pipeline.train.checkpoints.test_checkpoint import DAMAGES, checkpoint, vocabulary
from tests.stores.imitated import ImitatedStore, Quirk, only
from tests.stores.refusals import access_denied
from tests.stores.removals import (
    delete_of_many_denied,
    delete_of_many_not_allowed,
    invalid_delete_of_many,
    missing_content_md5,
)

NO_DELETION = only(access_denied, "Delete.*")


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(CLIP(CONFIG), vocabulary())


@pytest.fixture
def folder(s3: str, tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(f"{s3}/{tmp_path.name}/checkpoints", storage, keep=1)


@contextmanager
def store(*quirks: Quirk) -> Iterator[ImitatedStore]:
    with ImitatedStore(os.environ["AWS_ENDPOINT_URL"], *quirks) as imitated, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", imitated.endpoint)
        yield imitated


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "cannot be removed" in record.getMessage()]


@pytest.mark.parametrize("quirk", [missing_content_md5, invalid_delete_of_many, delete_of_many_not_allowed])
def test_a_store_without_the_deletion_of_many_keeps_only_the_newest(
    folder: CheckpointFolder, model: Model, quirk: Quirk, caplog: pytest.LogCaptureFixture
) -> None:
    with store(quirk):
        for num_steps in (5, 10, 15):
            folder.save(checkpoint(model, num_steps))
    assert folder.steps() == [15]
    assert warnings(caplog) == []


@pytest.mark.parametrize("quirk", [NO_DELETION, delete_of_many_denied])
def test_a_store_that_refuses_deletions_does_not_end_training(
    folder: CheckpointFolder, model: Model, quirk: Quirk, caplog: pytest.LogCaptureFixture
) -> None:
    saver = BackgroundSaver(folder)
    with store(quirk, only(access_denied, "DeleteObject")):
        for num_steps in (5, 10, 15, 20, 25, 30):
            saver.begin(checkpoint(model, num_steps))
            saved = saver.wait()
            assert saved is not None
            loaded = folder.latest()
            assert loaded is not None
            assert loaded.progress.num_steps == num_steps
    assert folder.steps() == [5, 10, 15, 20, 25, 30]
    lines = warnings(caplog)
    num_failures = 1 + 2 + 3 * MAX_FAILURES
    assert len(lines) == 4, f"the first, second, fourth and eighth of {num_failures}"
    assert all("step-000000" in line and "Training goes on" in line and "denied" in line.lower() for line in lines)
    assert lines[-1].endswith("failures of this kind so far: 8")
    folder.save(checkpoint(model, 35))
    assert folder.steps() == [35], "the next checkpoint tries again"


def test_new_folders_are_removed_first(folder: CheckpointFolder, model: Model) -> None:
    """Some that can never be removed do not use up the attempts of the others."""
    locked = "|".join(f"step-{num_steps:08d}" for num_steps in range(1, MAX_FAILURES + 1))
    with store(only(access_denied, "Delete.*", locked), delete_of_many_not_allowed):
        for num_steps in range(1, 2 * MAX_FAILURES + 2):
            folder.save(checkpoint(model, num_steps))
    assert folder.steps() == [*range(1, MAX_FAILURES + 1), 2 * MAX_FAILURES + 1]


def test_a_half_removed_checkpoint_is_none(folder: CheckpointFolder, model: Model) -> None:
    with store(only(access_denied, "Delete.*", "optimizer|tokenizer"), delete_of_many_not_allowed):
        for num_steps in (5, 10):
            folder.save(checkpoint(model, num_steps))
    assert folder.steps() == [10]
    assert [uri for uri in storage.list_files(folder.uri) if "step-00000005/optimizer.pt" in uri]
    resumed = CheckpointFolder(folder.uri, storage, keep=2)
    loaded = resumed.latest()
    assert loaded is not None
    assert loaded.progress.num_steps == 10
    resumed.collect(10)
    assert {uri.split("/")[-2] for uri in storage.list_files(folder.uri)} == {"step-00000010"}


def test_a_damaged_checkpoint_that_cannot_be_removed_takes_no_place_and_is_replaced(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CheckpointFolder(str(tmp_path / "checkpoints"), storage, keep=2)
    for num_steps in (5, 20):
        folder.save(checkpoint(model, num_steps))
    DAMAGES["flipped bit"](Path(folder.uri) / "step-00000020")
    loaded = folder.latest()
    assert loaded is not None
    assert loaded.progress.num_steps == 5

    def refuse(uri: str) -> None:
        raise PermissionError(13, "Permission denied", uri)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", refuse)
        folder.collect(5)
        for num_steps in (10, 15, 25):
            folder.save(checkpoint(model, num_steps))
        assert folder.steps() == [5, 10, 15, 20, 25]
    folder.collect(25)
    assert folder.steps() == [15, 25], "and not 20"
    DAMAGES["flipped bit"](Path(folder.uri) / "step-00000025")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", refuse)
        folder.save(checkpoint(model, 25))
    loaded = folder.latest()
    assert loaded is not None
    assert loaded.progress.num_steps == 25


def test_a_listing_that_fails_does_not_end_training(
    folder: CheckpointFolder, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    folder.save(checkpoint(model, 5))
    with store(only(access_denied, "List.*")):
        folder.save(checkpoint(model, 10))
    (line,) = warnings(caplog)
    assert line.startswith(f"{folder.uri} is no longer needed")
    assert folder.steps() == [5, 10]


def test_one_bad_transfer_does_not_make_a_checkpoint_damaged(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = CheckpointFolder(str(tmp_path / "checkpoints"), storage)
    folder.save(checkpoint(model, 5))
    read, num_reads = storage.read_bytes, dict[str, int]()

    def read_badly_at_first(uri: str) -> bytes:
        num_reads[uri] = num_reads.get(uri, 0) + 1
        data = read(uri)
        return data[:-1] if num_reads[uri] == 1 else data

    monkeypatch.setattr(storage, "read_bytes", read_badly_at_first)
    loaded = folder.latest()
    assert loaded is not None
    assert loaded.progress.num_steps == 5
    assert set(num_reads.values()) == {2}
    assert caplog.records == []
