"""Define a pretraining run: its data, model, recipe, and the files in its folder."""

import json
from dataclasses import dataclass, replace

import torch

from cluster import storage
from cluster.runs import differences
from pipeline.data.snapshots.epoch_order import ShardInfo
from pipeline.data.snapshots.reading import Shards
from pipeline.model.config import ModelConfig
from pipeline.model.objectives.networks import empty_network, network_for
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.model.weights import model_folder
from pipeline.model.weights.model_folder import Model
from pipeline.train.checkpoints.checkpoint import CheckpointFolder
from pipeline.train.checkpoints.initial_weights import read_folder
from pipeline.train.config import TrainConfig
from pipeline.train.network.batch_norm import has_batch_norms
from pipeline.train.network.bf16_text_weights import halve_text_weights
from pipeline.train.reading.plan import Plan

START_FOLDER = "start"
"""Folder in a run's output that holds a copy of the model given by --start_from."""


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A pretraining run, as its workers need it."""

    output: str
    """Folder of the run, local or s3://."""
    shards: tuple[ShardInfo, ...]
    snapshot_id: str
    model: ModelConfig
    train: TrainConfig
    start_from: str | None = None
    """Folder or file of the weights to start from (initial_weights.py); None: random values from the seed."""

    def plan(self) -> Plan:
        """The plan that assigns rows to steps."""
        config = self.train
        return Plan(
            self.shards,
            global_batch_size=config.global_batch_size,
            shuffle_row_groups=config.shuffle_row_groups,
            seed=config.seed,
        )

    def num_steps(self) -> int:
        """The number of steps of the whole run."""
        return self.plan().steps_per_epoch * self.train.epochs

    def open_shards(self) -> Shards:
        """Open the snapshot's files."""
        filesystem, _ = storage.filesystem(self.shards[0].path)
        return Shards(filesystem, tuple(storage.filesystem(shard.path)[1] for shard in self.shards), self.shards)

    def tokenizer(self) -> Tokenizer:
        """Read the run's tokenizer. The first call learns it from the snapshot's captions and writes it."""
        text = self.model.text
        uri = storage.join(self.output, "tokenizer.json")
        if not storage.exists(uri):
            captions = self.open_shards().captions(self.train.tokenizer_captions)
            tokenizer = Tokenizer.train(captions, text.vocab_size, text.context_length)
            storage.write_bytes(uri, tokenizer.to_json().encode())
        return Tokenizer.from_json(storage.read_bytes(uri).decode(), text.context_length)

    def keep_start(self, start: Model) -> None:
        """Copy the model to start from into the output, where all workers can read it, and use its tokenizer."""
        write_model(start, storage.join(self.output, START_FOLDER))
        storage.write_bytes(storage.join(self.output, "tokenizer.json"), start.tokenizer.to_json().encode())

    def new_model(self, tokenizer_json: str) -> Model:
        """Return the model to start from, or one initialised from the run's seed."""
        if self.start_from:
            return read_folder(storage.join(self.output, START_FOLDER), storage)
        tokenizer = Tokenizer.from_json(tokenizer_json, self.model.text.context_length)
        torch.manual_seed(self.train.seed)
        return Model(network_for(self._model_with(tokenizer)), tokenizer)

    def checkpoints(self) -> CheckpointFolder:
        """The folder of the run's checkpoints."""
        config = self.train
        folder = storage.join(self.output, "checkpoints")
        return CheckpointFolder(folder, storage, config.keep_checkpoints, config.keep_checkpoint_every_steps)

    def check_batches(self) -> None:
        """Check that batches can be formed and divided among the workers, before anything is written.

        Raises:
            ValueError: the snapshot has fewer pairs than a batch, or a batch cannot be divided among the workers, or
                text_weights = "bf16" for a model without a text tower.
        """
        self.plan()
        network = empty_network(self.model)
        if self.train.text_weights == "bf16":
            halve_text_weights(network)
        unit = self.train.norm_group_size if has_batch_norms(network) else 1
        _, most = self.train.workers
        self.train.local_batch_sizes(most, unit)

    def check_shards_exist(self) -> None:
        """Check that every shard exists, by listing the shards' folders.

        Raises:
            FileNotFoundError: a shard is missing; the message names it.
        """
        uris = [storage.absolute(shard.path) for shard in self.shards]
        existing = {entry.uri for folder in {_folder(uri) for uri in uris} for entry in storage.entries(folder)}
        for uri in uris:
            if uri not in existing:
                raise FileNotFoundError(f"{uri}: this shard of the snapshot is gone")

    def check_checkpoint_model(self, tokenizer: Tokenizer) -> None:
        """Check that the newest checkpoint has the run's model configuration and tokenizer.

        Raises:
            ValueError: it has different ones, and the message names the differences; or all checkpoints are damaged.
        """
        description = self.checkpoints().description()
        if description is None:
            return
        folder, config, entries = description
        differing = list(differences(json.loads(config), json.loads(json.dumps(self._model_with(tokenizer).to_dict()))))
        if not differing and json.loads(entries) != json.loads(tokenizer.to_json()):
            differing = ["the entries of the tokenizer"]
        if differing:
            raise ValueError(
                f"{folder} is a checkpoint of another model; it differs in {'; '.join(differing[:5])}. Remove it, or "
                "choose another output"
            )

    def _model_with(self, tokenizer: Tokenizer) -> ModelConfig:
        """The model's configuration with one token embedding per entry of the tokenizer."""
        return replace(self.model, text=replace(self.model.text, vocab_size=tokenizer.vocab_size))


def kept_model(output: str, images_seen: int) -> str:
    """The folder of the model that a run keeps after `images_seen` images (TrainConfig.keep_models_at)."""
    return storage.join(output, "models", f"images-{images_seen:012d}")


def write_model(model: Model, folder: str) -> None:
    """Write a model's files to a folder, local or s3://."""
    for name, data in model_folder.to_files(model).items():
        storage.write_bytes(storage.join(folder, name), data)


def _folder(uri: str) -> str:
    return uri.rsplit("/", 1)[0]
