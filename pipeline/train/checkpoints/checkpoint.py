"""Checkpoints: a folder of files for each, its manifest written last.

    checkpoints/step-00000400/model.safetensors, config.json, tokenizer.json    the model, as pipeline.load reads it
                              optimizer.pt                                      state of the optimizer
                              progress.json                                     steps and seconds so far
                              manifest.json                                     size and sha256 of each of these

Every file is read back and compared before the manifest is written, which makes the folder a checkpoint. One whose
manifest does not fit its files is skipped for the one before it, and removed once the run has gone on from there, so
that it never counts as one to keep; where all are damaged, the run is refused. Folders without a manifest are what a
killed run has left, and are removed.
"""

import hashlib
import io
import json
import logging
import pickle
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from pipeline.model.objectives.networks import empty_network
from pipeline.model.weights import model_folder
from pipeline.model.weights.model_folder import CONFIG_FILE, MODEL_FILES, TOKENIZER_FILE, Model
from pipeline.train.checkpoints.storage_protocol import Storage

logger = logging.getLogger("clip")

WRITE_ATTEMPTS = 3
"""How often a file is written that reads back as another."""
MANIFEST_FILE, OPTIMIZER_FILE, PROGRESS_FILE = "manifest.json", "optimizer.pt", "progress.json"
_FILES = (PROGRESS_FILE, *MODEL_FILES, OPTIMIZER_FILE)

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    num_steps: int
    """Steps taken."""
    seconds: float
    """Time spent on them, over all resumptions."""
    chunk_size: int | None = None
    """What was found best, or has fitted, and is to go on with (chunks.py)."""
    skipped_steps: int = 0
    """How many of them were not taken (nonfinite_steps.py)."""


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on. The order of the data and the crops are functions of the step."""

    model: Model
    optimizer: dict[str, Any]
    """`state_dict` of the optimizer."""
    progress: Progress

    def copied(self) -> "Checkpoint":
        """As it is now, in the host's memory: training may go on while the copy is written."""
        network = empty_network(self.model.network.config)
        network.load_state_dict(_copied(self.model.network.state_dict()), assign=True)
        return Checkpoint(Model(network, self.model.tokenizer), _copied(self.optimizer), self.progress)


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of a run: the newest ones, and of each so many steps the first."""

    uri: str
    files: Storage
    keep: int = 2
    """How many of the newest are kept."""
    keep_every_steps: int = 0
    """The first one of each so many steps is kept as well, if this is not 0."""

    def save(self, checkpoint: Checkpoint) -> dict[str, bytes]:
        """Write a checkpoint and return its files; what is not to be kept is removed when it is complete.

        Raises:
            OSError: a file cannot be stored as it is.
        """
        folder = self._folder(checkpoint.progress.num_steps)
        content = _to_files(checkpoint)
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
        records = {name: {"num_bytes": len(data), "sha256": hashes[name]} for name, data in content.items()}
        self.files.delete(self.files.join(folder, MANIFEST_FILE))  # of a damaged one, which this one replaces
        for name, data in content.items():
            self._write(self.files.join(folder, name), data, hashes[name])
        self.files.write_bytes(self.files.join(folder, MANIFEST_FILE), json.dumps(records, indent=1).encode())
        self.collect(checkpoint.progress.num_steps)
        return content

    def collect(self, newest: int) -> None:
        """Remove the checkpoints that are not to be kept, and what is left of those that were never finished.

        Of a run's processes one may do so, and not while another writes.

        Args:
            newest: steps of the checkpoint that was just saved, or gone on from. Later ones were skipped as damaged.
        """
        found = self._found()
        complete = [num_steps for num_steps in found if found[num_steps] and num_steps <= newest]
        kept, reached = set(complete[: self.keep]), 0
        for num_steps in reversed(complete if self.keep_every_steps else []):
            if num_steps // self.keep_every_steps > reached:
                reached = num_steps // self.keep_every_steps
                kept.add(num_steps)
        for num_steps in found:
            if num_steps not in kept:
                folder = self._folder(num_steps)
                self.files.delete(self.files.join(folder, MANIFEST_FILE))  # first: half of one is none
                self.files.delete(folder)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, on the CPU; None where none was ever finished.

        Raises:
            ValueError: all that were finished are damaged.
        """
        return self._newest(lambda folder: _from_files(self._read(folder, _FILES), folder))

    def description(self) -> tuple[str, bytes, bytes] | None:
        """Of the newest checkpoint in which these are whole: its folder, and what of it says which model it is of, as
        bytes: the configuration and the tokenizer. None, and raises, as `latest`."""

        def describe(folder: str) -> tuple[str, bytes, bytes]:
            content = self._read(folder, (CONFIG_FILE, TOKENIZER_FILE))
            return folder, content[CONFIG_FILE], content[TOKENIZER_FILE]

        return self._newest(describe)

    def _newest(self, read: Callable[[str], _Found]) -> _Found | None:
        """What is read from the newest folder that `read` finds whole; each that is not is logged as a warning."""
        damaged = []
        for num_steps, complete in self._found().items():
            try:
                return read(self._folder(num_steps))
            except (FileNotFoundError, ValueError) as error:
                logger.warning("checkpoint skipped, the one before it is tried: %s", error)
                if complete:
                    damaged.append(error)
        if damaged:
            raise ValueError(
                f"{self.uri}: no checkpoint in it is whole (the newest: {damaged[0]}). Remove this folder, to start "
                "anew, or choose another output"
            )
        return None

    def _found(self) -> dict[int, bool]:
        """Steps of all checkpoint folders, the newest first, and whether each has a manifest."""
        try:
            found = self.files.list_files(self.uri)
        except FileNotFoundError:
            return {}
        complete: dict[int, bool] = {}
        for uri in found:
            _, folder, name = uri.rsplit("/", 2)
            if folder.startswith("step-"):
                num_steps = int(folder.removeprefix("step-"))
                complete[num_steps] = complete.get(num_steps, False) or name == MANIFEST_FILE
        return dict(sorted(complete.items(), reverse=True))

    def _folder(self, num_steps: int) -> str:
        return self.files.join(self.uri, f"step-{num_steps:08d}")

    def _write(self, uri: str, data: bytes, sha256: str) -> None:
        for _ in range(WRITE_ATTEMPTS):
            self.files.write_bytes(uri, data)
            digest = hashlib.sha256()
            for chunk in self.files.read_chunks(uri):
                digest.update(chunk)
            if digest.hexdigest() == sha256:
                return
        raise OSError(f"{uri}: what is read back is not what was written, {WRITE_ATTEMPTS} times")

    def _read(self, folder: str, names: Sequence[str]) -> dict[str, bytes]:
        """Storage of a checkpoint, verified.

        Raises:
            FileNotFoundError: a file, or the manifest, is missing.
            ValueError: a file is not the one that was written.
        """
        try:
            manifest = json.loads(self.files.read_bytes(self.files.join(folder, MANIFEST_FILE)))
            records = {name: (manifest[name]["num_bytes"], manifest[name]["sha256"]) for name in names}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder}/{MANIFEST_FILE} is damaged: {error!r}") from error
        content = {}
        for name, (num_bytes, sha256) in records.items():
            data = self.files.read_bytes(self.files.join(folder, name))
            if len(data) != num_bytes:
                raise ValueError(f"{folder}/{name}: {num_bytes} bytes expected, {len(data)} found")
            digest = hashlib.sha256(data).hexdigest()
            if digest != sha256:
                raise ValueError(f"{folder}/{name}: sha256 {sha256} expected, {digest} found")
            content[name] = data
        return content


def _to_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save(checkpoint.optimizer, buffer)
    # The small one first: a killed run's folder shows in a listing once it has a file that is whole
    return {
        PROGRESS_FILE: json.dumps(asdict(checkpoint.progress)).encode(),
        **model_folder.to_files(checkpoint.model),
        OPTIMIZER_FILE: buffer.getvalue(),
    }


def _from_files(content: dict[str, bytes], folder: str) -> Checkpoint:
    try:
        optimizer = torch.load(io.BytesIO(content[OPTIMIZER_FILE]), map_location="cpu", weights_only=True)
        progress = Progress(**json.loads(content[PROGRESS_FILE]))
    except (TypeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{folder} is not a checkpoint of this program: {error}") from error
    return Checkpoint(model_folder.from_files(content, folder), optimizer, progress)


def _copied(tree: Any) -> Any:
    """Nested dictionaries and lists with a copy of each tensor, on the CPU."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, list) else tree
