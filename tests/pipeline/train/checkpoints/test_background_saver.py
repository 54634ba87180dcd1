"""Checkpoints that are written while training continues."""

import threading
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from cluster import storage
from pipeline.model.objectives.clip import CLIP
from pipeline.model.weights.model_folder import Model
from pipeline.train.checkpoints.background_saver import BackgroundSaver
from pipeline.train.checkpoints.checkpoint import Checkpoint, CheckpointFolder, Progress
from pipeline.train.config import TrainConfig
from pipeline.train.optimizer.optimizer import make_optimizer, optimizer_step
from tests.pipeline.model.models import CONFIG
from tests.pipeline.train.checkpoints.test_checkpoint import vocabulary


@dataclass
class BlockedStorage:
    """A storage whose writes wait for an event."""

    go: threading.Event

    def write_bytes(self, uri: str, data: bytes) -> None:
        assert self.go.wait(10)
        storage.write_bytes(uri, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(storage, name)


def step(network: CLIP, optimizer: torch.optim.Optimizer) -> None:
    for p in network.parameters():
        p.grad = torch.full_like(p, 0.1)
    optimizer_step(network, optimizer, 1e-2)


def test_the_saved_state_is_the_one_at_the_call_of_begin(tmp_path: Any) -> None:
    blocked = BlockedStorage(threading.Event())
    folder = CheckpointFolder(str(tmp_path), blocked)
    network = CLIP(CONFIG)
    optimizer = make_optimizer(network, TrainConfig())
    step(network, optimizer)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    moment = optimizer.state_dict()["state"][0]["exp_avg"].clone()

    saver = BackgroundSaver(folder)
    saver.begin(Checkpoint(Model(network, vocabulary()), optimizer.state_dict(), Progress(1, 0.5)))
    step(network, optimizer)
    assert saver.finished() is None, "nothing is written yet, although training has continued"
    blocked.go.set()
    saved = saver.wait()
    assert saved is not None
    assert saved.num_steps == 1
    assert "model.safetensors" in saved.files
    assert saver.finished() is saver.wait() is None, "it is returned once"

    loaded = folder.latest()
    assert loaded is not None
    for name, tensor in loaded.model.network.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert torch.equal(loaded.optimizer["state"][0]["exp_avg"], moment)


def test_a_failed_write_is_raised_by_wait(tmp_path: Any) -> None:
    (tmp_path / "file").touch()
    network = CLIP(CONFIG)
    saver = BackgroundSaver(CheckpointFolder(str(tmp_path / "file" / "checkpoints"), storage))
    saver.begin(Checkpoint(Model(network, vocabulary()), {}, Progress(1, 0.5)))
    with pytest.raises(ValueError, match=r"Not a directory\)\. A part of this path is a file"):
        saver.wait()
