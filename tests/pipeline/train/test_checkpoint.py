import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cluster import storage
from pipeline.model.clip import CLIP
from pipeline.model.model_folder import Model
from pipeline.model.tokenizer import Tokenizer
from pipeline.train.checkpoint import Checkpoint, CheckpointFolder, Progress
from pipeline.train.config import TrainConfig
from pipeline.train.optimizer import make_optimizer, optimizer_step
from tests.pipeline.model.models import CONFIG


@pytest.fixture(scope="module")
def model() -> Model:
    captions = [f"{first}{second} {second}{first}" for first in "abcdefghijklm" for second in "nopqrstuvwxyz"]
    return Model(CLIP(CONFIG), Tokenizer.train(captions, CONFIG.text.vocab_size, CONFIG.text.context_length))


def checkpoint(model: Model, num_steps: int) -> Checkpoint:
    """After one optimizer step, so that the optimizer has a state."""
    optimizer = make_optimizer(model.network, TrainConfig())
    for p in model.network.parameters():
        p.grad = torch.full_like(p, 0.1)
    optimizer_step(model.network, optimizer, 1e-3)
    return Checkpoint(model, optimizer.state_dict(), Progress(num_steps, 1.5 * num_steps))


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(str(tmp_path / "checkpoints"), storage)


def test_none_at_first(folder: CheckpointFolder) -> None:
    assert folder.latest() is None


def test_what_is_saved_is_loaded(folder: CheckpointFolder, model: Model) -> None:
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


def test_the_newest_two_are_kept(folder: CheckpointFolder, model: Model) -> None:
    for num_steps in (5, 10, 15):
        folder.save(checkpoint(model, num_steps))
    assert sorted(path.name for path in Path(folder.uri).iterdir()) == ["step-00000010", "step-00000015"]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no manifest": lambda place: (place / "manifest.json").unlink(),
    "half a manifest": lambda place: (place / "manifest.json").write_text('{"model.safe'),
    "missing file": lambda place: (place / "optimizer.pt").unlink(),
    "short file": lambda place: cut(place / "model.safetensors"),
    "flipped bit": lambda place: flip(place / "optimizer.pt"),
}


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
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
    folder.save(checkpoint(model, 10))  # and the run writes it anew
    loaded = folder.latest()
    assert loaded is not None
    assert loaded.progress.num_steps == 10


def test_only_damaged_ones(folder: CheckpointFolder, model: Model, caplog: pytest.LogCaptureFixture) -> None:
    folder.save(checkpoint(model, 5))
    DAMAGES["flipped bit"](Path(folder.uri) / "step-00000005")
    assert folder.latest() is None
    assert "optimizer.pt: sha256" in caplog.text


def test_code_in_an_optimizers_state_is_not_run(folder: CheckpointFolder, model: Model) -> None:
    """Even where the manifest fits: torch loads tensors and plain data only."""
    folder.save(checkpoint(model, 5))
    place = Path(folder.uri) / "step-00000005"
    torch.save({"state": Path("/")}, place / "optimizer.pt")
    data = (place / "optimizer.pt").read_bytes()
    records = json.loads((place / "manifest.json").read_text())
    records["optimizer.pt"] = {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (place / "manifest.json").write_text(json.dumps(records))
    assert folder.latest() is None


def test_on_s3(s3: str, model: Model) -> None:
    folder = CheckpointFolder(f"{s3}/run/checkpoints", storage, keep=1)
    for num_steps in (5, 10):
        folder.save(checkpoint(model, num_steps))
    loaded = folder.latest()
    assert loaded is not None
    assert loaded.progress.num_steps == 10
    assert {uri.split("/")[-2] for uri in storage.list_files(folder.uri)} == {"step-00000010"}
