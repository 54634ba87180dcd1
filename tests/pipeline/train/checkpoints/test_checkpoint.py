import functools
import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster import storage
from pipeline.model.objectives.clip import CLIP
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.model.weights.model_folder import Model
from pipeline.train.checkpoints.checkpoint import Checkpoint, CheckpointFolder, Progress
from pipeline.train.config import TrainConfig
from pipeline.train.optimizer.optimizer import make_optimizer, optimizer_step
from tests.pipeline.model.models import CONFIG


@functools.cache
def vocabulary() -> Tokenizer:
    captions = [f"{first}{second} {second}{first}" for first in "abcdefghijklm" for second in "nopqrstuvwxyz"]
    return Tokenizer.train(captions, CONFIG.text.vocab_size, CONFIG.text.context_length)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(CLIP(CONFIG), vocabulary())


def checkpoint(model: Model, num_steps: int) -> Checkpoint:
    """A checkpoint after one optimizer step, so that the optimizer has a state."""
    optimizer = make_optimizer(model.network, TrainConfig())
    for p in model.network.parameters():
        p.grad = torch.full_like(p, 0.1)
    optimizer_step(model.network, optimizer, 1e-3)
    return Checkpoint(model, optimizer.state_dict(), Progress(num_steps, 1.5 * num_steps))


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(str(tmp_path / "checkpoints"), storage)


def test_an_empty_folder_has_no_checkpoint(folder: CheckpointFolder) -> None:
    assert folder.latest() is None


def test_a_saved_checkpoint_is_loaded_unchanged(folder: CheckpointFolder, model: Model) -> None:
    saved = checkpoint(model, 7)
    folder.save(saved)
    loaded = folder.latest()
    assert loaded is not None
    assert loaded.progress == Progress(7, 10.5)
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(loaded.model.network.state_dict()[name], tensor), name
    assert loaded.model.tokenizer.to_json() == model.tokenizer.to_json()
    optimizer = make_optimizer(loaded.model.network, TrainConfig())
    optimizer.load_state_dict(loaded.optimizer)
    for index, state in saved.optimizer["state"].items():
        for name, value in state.items():
            assert torch.equal(optimizer.state_dict()["state"][index][name], value), (index, name)


def test_the_two_newest_are_kept(folder: CheckpointFolder, model: Model) -> None:
    for num_steps in (5, 10, 15):
        folder.save(checkpoint(model, num_steps))
    assert sorted(path.name for path in Path(folder.uri).iterdir()) == ["step-00000010", "step-00000015"]


def test_the_first_checkpoint_of_each_interval_is_kept_as_well(folder: CheckpointFolder, model: Model) -> None:
    """Checkpoints that are due by time may fall on any step within an interval."""
    folder = replace(folder, keep_every_steps=10)
    for num_steps in (4, 9, 13, 17, 20, 24, 41, 44, 47):
        folder.save(checkpoint(model, num_steps))
    assert [int(path.name[5:]) for path in sorted(Path(folder.uri).iterdir())] == [13, 20, 41, 44, 47]


def test_folders_without_a_manifest_are_removed(folder: CheckpointFolder, model: Model) -> None:
    """A killed run may leave them at any step. The newest complete checkpoint is kept."""
    folder.save(checkpoint(model, 5))
    for name in ("step-00000003", "step-00000009"):
        shutil.copytree(Path(folder.uri) / "step-00000005", Path(folder.uri) / name)
        (Path(folder.uri) / name / "manifest.json").unlink()
    folder.collect(5)
    assert [path.name for path in Path(folder.uri).iterdir()] == ["step-00000005"]


@dataclass
class LossyStorage:
    """A storage that silently flips a bit in the first writes of optimizer.pt."""

    num_flips: int

    def write_bytes(self, uri: str, data: bytes) -> None:
        if uri.endswith("optimizer.pt") and self.num_flips:
            self.num_flips -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])
        storage.write_bytes(uri, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(storage, name)


def test_a_file_that_reads_back_different_is_written_again(folder: CheckpointFolder, model: Model) -> None:
    lossy = replace(folder, storage=LossyStorage(2))
    lossy.save(checkpoint(model, 5))
    assert folder.latest() is not None
    with pytest.raises(OSError, match=r"step-00000010/optimizer\.pt: read back different from what was written"):
        replace(folder, storage=LossyStorage(3)).save(checkpoint(model, 10))
    loaded = folder.latest()
    assert loaded is not None
    assert loaded.progress.num_steps == 5


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no manifest": lambda step_folder: (step_folder / "manifest.json").unlink(),
    "half a manifest": lambda step_folder: (step_folder / "manifest.json").write_text('{"model.safe'),
    "another manifest": lambda step_folder: (step_folder / "manifest.json").write_text('{"model.safetensors": []}'),
    "missing file": lambda step_folder: (step_folder / "optimizer.pt").unlink(),
    "short file": lambda step_folder: cut(step_folder / "model.safetensors"),
    "flipped bit": lambda step_folder: flip(step_folder / "optimizer.pt"),
}


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before_it(
    folder: CheckpointFolder, model: Model, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for num_steps in (5, 10):
        folder.save(checkpoint(model, num_steps))
    DAMAGES[damage](Path(folder.uri) / "step-00000010")
    with caplog.at_level(logging.WARNING, "clip"):
        loaded = folder.latest()
    assert loaded is not None
    assert loaded.progress.num_steps == 5
    assert "checkpoint skipped" in caplog.text
    assert "step-00000010" in caplog.text
    folder.save(checkpoint(model, 10))  # the resumed run writes it again
    loaded = folder.latest()
    assert loaded is not None
    assert loaded.progress.num_steps == 10


def test_damaged_checkpoints_do_not_count_as_kept(folder: CheckpointFolder, model: Model) -> None:
    """The run resumes from step 5; only that checkpoint and later saves count."""
    folder = replace(folder, keep=3)
    for num_steps in (5, 20, 30):
        folder.save(checkpoint(model, num_steps))
    for name in ("step-00000020", "step-00000030"):
        DAMAGES["flipped bit"](Path(folder.uri) / name)
    folder = replace(folder, keep=2)
    folder.save(checkpoint(model, 10))
    assert sorted(path.name for path in Path(folder.uri).iterdir()) == ["step-00000005", "step-00000010"]
    loaded = folder.latest()
    assert loaded is not None
    assert loaded.progress.num_steps == 10


def test_a_folder_with_only_damaged_checkpoints_is_refused(
    folder: CheckpointFolder, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """The run must not silently start again from step 0."""
    for num_steps in (5, 10):
        folder.save(checkpoint(model, num_steps))
        DAMAGES["flipped bit"](Path(folder.uri) / f"step-{num_steps:08d}")
    (Path(folder.uri) / "step-00000015").mkdir()
    (Path(folder.uri) / "step-00000015" / "progress.json").touch()
    newest = "step-00000010/optimizer.pt: sha256 "
    message = rf"{folder.uri}: every checkpoint in it is damaged \(the newest: .*{newest}.*Remove"
    with pytest.raises(ValueError, match=message):
        folder.latest()
    assert "step-00000005/optimizer.pt: sha256" in caplog.text


def test_an_unfinished_first_checkpoint_is_ignored(folder: CheckpointFolder, model: Model) -> None:
    folder.save(checkpoint(model, 5))
    DAMAGES["no manifest"](Path(folder.uri) / "step-00000005")
    assert folder.latest() is None


def test_code_in_an_optimizer_state_is_not_run(folder: CheckpointFolder, model: Model) -> None:
    """Even if the manifest matches: torch loads only tensors and plain data."""
    folder.save(checkpoint(model, 5))
    step_folder = Path(folder.uri) / "step-00000005"
    torch.save({"state": Path("/")}, step_folder / "optimizer.pt")
    data = (step_folder / "optimizer.pt").read_bytes()
    records = json.loads((step_folder / "manifest.json").read_text())
    records["optimizer.pt"] = {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (step_folder / "manifest.json").write_text(json.dumps(records))
    with pytest.raises(ValueError, match="step-00000005 is not a checkpoint of this program"):
        folder.latest()


FOREIGN = (
    "step-old",
    "step-",
    "step-7",
    "step--0000007",
    "step-0_000_07",
    "step-000000070",
    "step-٠٠٠٠٠٠٠٧",
    "step-00000007-old",
    "copy of step-00000007",
    "old/step-00000007",
    "tensorboard",
)


@pytest.mark.parametrize("name", FOREIGN)
def test_other_folders_are_neither_read_nor_removed(folder: CheckpointFolder, model: Model, name: str) -> None:
    """People keep copies of checkpoints beside the originals, and other programs have other names for theirs."""
    folder.save(checkpoint(model, 3))
    copy = Path(folder.uri) / name
    shutil.copytree(Path(folder.uri) / "step-00000003", copy)
    assert folder.steps() == [3]
    loaded = folder.latest()
    assert loaded is not None
    assert loaded.progress.num_steps == 3
    folder.save(checkpoint(model, 5))
    folder.save(checkpoint(model, 9))
    assert folder.steps() == [5, 9]
    assert (copy / "manifest.json").exists()


def test_a_folder_given_by_a_relative_path(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = CheckpointFolder("run/checkpoints/", storage)
    folder.save(checkpoint(model, 100_000_000))
    assert folder.steps() == [100_000_000]
    assert folder.latest() is not None


def test_on_s3(s3: str, model: Model) -> None:
    folder = CheckpointFolder(f"{s3}/run/checkpoints", storage, keep=1)
    for num_steps in (5, 10):
        folder.save(checkpoint(model, num_steps))
    loaded = folder.latest()
    assert loaded is not None
    assert loaded.progress.num_steps == 10
    assert {uri.split("/")[-2] for uri in storage.list_files(folder.uri)} == {"step-00000010"}
