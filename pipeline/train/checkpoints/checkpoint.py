"""Save and load checkpoints: one folder of files per checkpoint, its manifest written last.

    checkpoints/step-00000400/model.safetensors, config.json, tokenizer.json    the model, as pipeline.load reads it
                              optimizer.pt                                      state of the optimizer
                              progress.json                                     steps and seconds so far
                              manifest.json                                     size and sha256 of each file above

Every file is read back and compared before the manifest is written. Only a folder with a manifest is a checkpoint.
A checkpoint whose files do not match its manifest is damaged: the run resumes from the checkpoint before it, and then
removes the damaged one, so that it does not take the place of a good one. If all checkpoints are damaged, the run is
refused. A folder without a manifest was left by a killed run or a removal that failed, and is removed. A storage that
refuses removals does not end the run (removal.py).
"""

import hashlib
import io
import json
import logging
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from pipeline.model.objectives.networks import empty_network
from pipeline.model.weights import model_folder
from pipeline.model.weights.model_folder import CONFIG_FILE, MODEL_FILES, TOKENIZER_FILE, Model
from pipeline.train.checkpoints.removal import Remover
from pipeline.train.checkpoints.storage_protocol import Storage

logger = logging.getLogger("clip")

WRITE_ATTEMPTS = 3
"""How many times a file is written before a difference on reading it back is an error."""
MANIFEST_FILE, OPTIMIZER_FILE, PROGRESS_FILE = "manifest.json", "optimizer.pt", "progress.json"
_STEP_FOLDER = re.compile(r"step-(\d{8}|[1-9]\d{8,})", re.ASCII)
_FILES = (PROGRESS_FILE, *MODEL_FILES, OPTIMIZER_FILE)

_Content = TypeVar("_Content")


@dataclass(frozen=True)
class Progress:
    """How far a run has progressed."""

    num_steps: int
    """Number of steps so far, including skipped steps."""
    seconds: float
    """Training time so far, over all resumptions."""
    chunk_size: int | None = None
    """The chunk size to continue with: the fastest that was found, or one that fits in memory (chunks.py)."""
    skipped_steps: int = 0
    """How many of the steps did not update the weights (nonfinite_steps.py)."""


@dataclass(frozen=True)
class Checkpoint:
    """The state that a run resumes from. It holds no reader state: data order and crops are functions of the step."""

    model: Model
    optimizer: dict[str, Any]
    """`state_dict` of the optimizer."""
    progress: Progress

    def copied(self) -> "Checkpoint":
        """Copy the present state to host memory, so that training can continue while the copy is written."""
        network = empty_network(self.model.network.config)
        network.load_state_dict(_copied(self.model.network.state_dict()), assign=True)
        return Checkpoint(Model(network, self.model.tokenizer), _copied(self.optimizer), self.progress)


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of a run. Keeps the newest ones, and optionally the first of every interval of steps."""

    uri: str
    storage: Storage
    keep: int = 2
    """How many of the newest checkpoints are kept."""
    keep_every_steps: int = 0
    """Keep also the first checkpoint of every interval of this many steps; 0 turns this off."""
    remover: Remover = field(init=False, compare=False, repr=False)
    damaged: set[int] = field(default_factory=set, init=False, compare=False, repr=False)
    """Steps of damaged checkpoints that this process could not remove. They are not kept in place of good ones."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "remover", Remover(self.storage))

    def save(self, checkpoint: Checkpoint) -> dict[str, bytes]:
        """Write a checkpoint and return its files. Then remove the checkpoints that are not to be kept.

        A removal that fails is logged, and tried again after the next checkpoint.

        Raises:
            OSError: a file cannot be written, or repeatedly reads back different.
        """
        folder = self._folder(checkpoint.progress.num_steps)
        content = _to_files(checkpoint)
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
        records = {name: {"num_bytes": len(data), "sha256": hashes[name]} for name, data in content.items()}
        manifest = self.storage.join(folder, MANIFEST_FILE)
        if checkpoint.progress.num_steps in self.damaged:  # if its manifest stays, it remains damaged until the end
            self.remover.remove(manifest)
        for name, data in content.items():
            self._write(self.storage.join(folder, name), data, hashes[name])
        self.storage.write_bytes(manifest, json.dumps(records, indent=1).encode())
        self.damaged.discard(checkpoint.progress.num_steps)
        self.collect(checkpoint.progress.num_steps)
        return content

    def collect(self, newest: int) -> None:
        """Remove the checkpoints that are not to be kept, and the folders of unfinished ones.

        Only one process of a run may call this, and not while a checkpoint is being written.

        Args:
            newest: steps of the checkpoint that was just saved or resumed from. Later checkpoints are damaged.
        """
        try:
            is_complete = self._list_steps()
        except OSError as error:
            self.remover.log(self.uri, error)
            return
        self.damaged.update(num_steps for num_steps in is_complete if num_steps > newest)
        complete = [num_steps for num_steps in is_complete if is_complete[num_steps] and num_steps not in self.damaged]
        kept, last_interval = set(complete[: self.keep]), 0
        for num_steps in reversed(complete if self.keep_every_steps else []):
            if num_steps // self.keep_every_steps > last_interval:
                last_interval = num_steps // self.keep_every_steps
                kept.add(num_steps)
        folders = [self._folder(num_steps) for num_steps in is_complete if num_steps not in kept]
        # The manifest first, so that a half-deleted folder is no checkpoint
        self.remover.remove_each((self.storage.join(folder, MANIFEST_FILE), folder) for folder in folders)

    def latest(self) -> Checkpoint | None:
        """Load the newest undamaged checkpoint, on the CPU; None if no checkpoint was ever completed.

        Raises:
            ValueError: all completed checkpoints are damaged.
        """
        return self._newest(lambda folder: _from_files(self._read(folder, _FILES), folder))

    def description(self) -> tuple[str, bytes, bytes] | None:
        """Return the files that identify a checkpoint's model: (folder, bytes of config.json, bytes of tokenizer.json).

        They come from the newest checkpoint in which both files are undamaged. None and errors as for `latest`.
        """

        def describe(folder: str) -> tuple[str, bytes, bytes]:
            content = self._read(folder, (CONFIG_FILE, TOKENIZER_FILE))
            return folder, content[CONFIG_FILE], content[TOKENIZER_FILE]

        return self._newest(describe)

    def _newest(self, read: Callable[[str], _Content]) -> _Content | None:
        """Call `read` on the folders, newest first, until one is undamaged. Logs a warning for each damaged folder."""
        damaged = []
        for num_steps, complete in self._list_steps().items():
            try:
                return read(self._folder(num_steps))
            except (FileNotFoundError, ValueError) as error:
                logger.warning("checkpoint skipped, trying the one before it: %s", error)
                if complete:
                    damaged.append(error)
        if damaged:
            raise ValueError(
                f"{self.uri}: every checkpoint in it is damaged (the newest: {damaged[0]}). Remove this folder to "
                "start again from step 0, or choose another output"
            )
        return None

    def steps(self) -> list[int]:
        """The steps after which the complete checkpoints were taken, ascending."""
        return sorted(num_steps for num_steps, complete in self._list_steps().items() if complete)

    def _list_steps(self) -> dict[int, bool]:
        """The steps of all checkpoint folders, newest first, and whether each folder has a manifest.

        Only names that `_folder` gives count. A copy such as step-00000400-old is neither read nor removed.
        """
        try:
            uris = self.storage.list_files(self.uri)
        except FileNotFoundError:
            return {}
        complete: dict[int, bool] = {}
        root = self.storage.absolute(self.uri)
        for uri in uris:
            folder, _, name = uri.removeprefix(f"{root}/").partition("/")
            if match := _STEP_FOLDER.fullmatch(folder):
                num_steps = int(match[1])
                complete[num_steps] = complete.get(num_steps, False) or name == MANIFEST_FILE
        return dict(sorted(complete.items(), reverse=True))

    def _folder(self, num_steps: int) -> str:
        return self.storage.join(self.uri, f"step-{num_steps:08d}")

    def _write(self, uri: str, data: bytes, sha256: str) -> None:
        for _ in range(WRITE_ATTEMPTS):
            self.storage.write_bytes(uri, data)
            digest = hashlib.sha256()
            for chunk in self.storage.read_chunks(uri):
                digest.update(chunk)
            if digest.hexdigest() == sha256:
                return
        raise OSError(f"{uri}: read back different from what was written, {WRITE_ATTEMPTS} times; check the storage")

    def _read(self, folder: str, names: Sequence[str]) -> dict[str, bytes]:
        """Read files of a checkpoint and verify them against its manifest. What is wrong is read again.

        Raises:
            FileNotFoundError: a file or the manifest is missing.
            ValueError: a file differs from the manifest, or the manifest is damaged.
        """

        def parse(data: bytes) -> dict[str, tuple[int, str]]:
            try:
                manifest = json.loads(data)
                return {name: (manifest[name]["num_bytes"], manifest[name]["sha256"]) for name in names}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{folder}/{MANIFEST_FILE} is damaged: {error!r}") from error

        records = self._read_twice(self.storage.join(folder, MANIFEST_FILE), parse)

        def verify(name: str, data: bytes) -> bytes:
            num_bytes, sha256 = records[name]
            if len(data) != num_bytes:
                raise ValueError(f"{folder}/{name}: {num_bytes} bytes expected, {len(data)} found")
            digest = hashlib.sha256(data).hexdigest()
            if digest != sha256:
                raise ValueError(f"{folder}/{name}: sha256 {sha256} expected, {digest} found")
            return data

        return {name: self._read_twice(self.storage.join(folder, name), partial(verify, name)) for name in names}

    def _read_twice(self, uri: str, parse: Callable[[bytes], _Content]) -> _Content:
        """Read and parse a file. Content that does not parse is read again: a checkpoint that is called damaged is
        removed, so one bad transfer must not be enough."""
        try:
            return parse(self.storage.read_bytes(uri))
        except ValueError:
            return parse(self.storage.read_bytes(uri))


def _to_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save(checkpoint.optimizer, buffer)
    # The smallest file first: a folder is listed, and so cleaned up after a killed run, once it holds one file
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
    """Copy nested dictionaries and lists, with a copy of each tensor on the CPU."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, list) else tree
