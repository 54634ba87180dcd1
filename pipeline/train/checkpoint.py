"""Checkpoints: a folder of files for each, its manifest written last.

    checkpoints/step-00000400/model.safetensors, config.json, tokenizer.json    the model, as pipeline.load reads it
                              optimizer.pt                                      state of the optimizer
                              progress.json                                     steps and seconds so far
                              manifest.json                                     size and sha256 of each of these

A checkpoint whose manifest is missing, or does not fit its files, is skipped for the one before it.
"""

import hashlib
import io
import json
import logging
import pickle
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pipeline.model import model_folder
from pipeline.model.model_folder import Model
from pipeline.train.files import Files

logger = logging.getLogger("clip")

MANIFEST_FILE, OPTIMIZER_FILE, PROGRESS_FILE = "manifest.json", "optimizer.pt", "progress.json"


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    num_steps: int
    """Steps taken."""
    seconds: float
    """Time spent on them, over all resumptions."""


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on. The order of the data and the crops are functions of the step."""

    model: Model
    optimizer: dict[str, Any]
    """`state_dict` of the optimizer."""
    progress: Progress


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of a run, the newest `keep` of them."""

    uri: str
    files: Files
    keep: int = 2

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; older ones than the newest `keep` are removed when it is complete."""
        folder = self._folder(checkpoint.progress.num_steps)
        content = _to_files(checkpoint)
        records = {
            name: {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in content.items()
        }
        self.files.delete(self.files.join(folder, MANIFEST_FILE))  # of a damaged one, which this one replaces
        for name, data in content.items():
            self.files.write_bytes(self.files.join(folder, name), data)
        self.files.write_bytes(self.files.join(folder, MANIFEST_FILE), json.dumps(records, indent=1).encode())
        for num_steps in self._found()[self.keep :]:
            self.files.delete(self._folder(num_steps))

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, on the CPU, or None; each that is not is logged as a warning."""
        for num_steps in self._found():
            folder = self._folder(num_steps)
            try:
                return _from_files(self._read(folder), folder)
            except (FileNotFoundError, ValueError) as error:
                logger.warning("checkpoint skipped, the one before it is tried: %s", error)
        return None

    def _found(self) -> list[int]:
        """Steps of all checkpoint folders, whole or not, the newest first."""
        try:
            found = self.files.list_files(self.uri)
        except FileNotFoundError:
            return []
        names = {uri.rsplit("/", 2)[1] for uri in found}
        return sorted((int(name.removeprefix("step-")) for name in names if name.startswith("step-")), reverse=True)

    def _folder(self, num_steps: int) -> str:
        return self.files.join(self.uri, f"step-{num_steps:08d}")

    def _read(self, folder: str) -> dict[str, bytes]:
        """The files that the manifest names, verified.

        Raises:
            FileNotFoundError: a file, or the manifest, is missing.
            ValueError: a file is not the one that was written.
        """
        try:
            records = json.loads(self.files.read_bytes(self.files.join(folder, MANIFEST_FILE)))
        except ValueError as error:
            raise ValueError(f"{folder}/{MANIFEST_FILE} is damaged: {error}") from error
        content = {}
        for name, record in records.items():
            data = self.files.read_bytes(self.files.join(folder, name))
            if len(data) != record["num_bytes"]:
                raise ValueError(f"{folder}/{name}: {record['num_bytes']} bytes expected, {len(data)} found")
            digest = hashlib.sha256(data).hexdigest()
            if digest != record["sha256"]:
                raise ValueError(f"{folder}/{name}: sha256 {record['sha256']} expected, {digest} found")
            content[name] = data
        return content


def _to_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save(checkpoint.optimizer, buffer)
    return model_folder.to_files(checkpoint.model) | {
        OPTIMIZER_FILE: buffer.getvalue(),
        PROGRESS_FILE: json.dumps(asdict(checkpoint.progress)).encode(),
    }


def _from_files(content: dict[str, bytes], folder: str) -> Checkpoint:
    try:
        optimizer = torch.load(io.BytesIO(content[OPTIMIZER_FILE]), map_location="cpu", weights_only=True)
        progress = Progress(**json.loads(content[PROGRESS_FILE]))
    except (KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{folder} is not a checkpoint of this program: {error}") from error
    return Checkpoint(model_folder.from_files(content, folder), optimizer, progress)
