"""What a run of pretraining is: what it learns from, what it makes of it, and where in its folder that lies."""

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
"""Of a run: the model that it started from, where one was given."""


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A run, as its workers need it."""

    output: str
    """Folder of the run, local or s3://."""
    shards: tuple[ShardInfo, ...]
    snapshot_id: str
    model: ModelConfig
    train: TrainConfig
    start_from: str | None = None
    """Folder or file of the weights to start from (initial_weights.py); unset: initial values by the seed."""

    def plan(self) -> Plan:
        """Which rows make which step."""
        config = self.train
        return Plan(
            self.shards,
            global_batch_size=config.global_batch_size,
            shuffle_row_groups=config.shuffle_row_groups,
            seed=config.seed,
        )

    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.plan().steps_per_epoch * self.train.epochs

    def open_shards(self) -> Shards:
        """The snapshot's files."""
        filesystem, _ = storage.filesystem(self.shards[0].path)
        return Shards(filesystem, tuple(storage.filesystem(shard.path)[1] for shard in self.shards), self.shards)

    def tokenizer(self) -> Tokenizer:
        """The run's vocabulary, learned once from the snapshot's captions."""
        text = self.model.text
        uri = storage.join(self.output, "tokenizer.json")
        if not storage.exists(uri):
            captions = self.open_shards().captions(self.train.tokenizer_captions)
            tokenizer = Tokenizer.train(captions, text.vocab_size, text.context_length)
            storage.write_bytes(uri, tokenizer.to_json().encode())
        return Tokenizer.from_json(storage.read_bytes(uri).decode(), text.context_length)

    def keep_start(self, start: Model) -> None:
        """Put the model to start from where every worker can read it; the run's vocabulary is the one it came with."""
        write_model(start, storage.join(self.output, START_FOLDER))
        storage.write_bytes(storage.join(self.output, "tokenizer.json"), start.tokenizer.to_json().encode())

    def new_model(self, tokenizer_json: str) -> Model:
        """The one to start from, or one freshly initialised from the run's seed."""
        if self.start_from:
            return read_folder(storage.join(self.output, START_FOLDER), storage)
        tokenizer = Tokenizer.from_json(tokenizer_json, self.model.text.context_length)
        torch.manual_seed(self.train.seed)
        return Model(network_for(self._model_with(tokenizer)), tokenizer)

    def checkpoints(self) -> CheckpointFolder:
        """Those of the run."""
        config = self.train
        folder = storage.join(self.output, "checkpoints")
        return CheckpointFolder(folder, storage, config.keep_checkpoints, config.keep_checkpoint_every_steps)

    def refuse_batches(self) -> None:
        """Check that the batches can be made, and shared out to the workers, before anything is written.

        Raises:
            ValueError: the snapshot has fewer pairs than a batch, or the workers cannot share one out, or the model has
                no text tower whose weights could be halved.
        """
        self.plan()
        network = empty_network(self.model)
        if self.train.text_weights == "bf16":
            halve_text_weights(network)
        unit = self.train.norm_group_size if has_batch_norms(network) else 1
        _, most = self.train.workers
        self.train.local_batch_sizes(most, unit)

    def refuse_missing_shards(self) -> None:
        """Check that every shard is there, by listing their folders.

        Raises:
            FileNotFoundError: one is not; the message names it.
        """
        places = [storage.absolute(shard.path) for shard in self.shards]
        there = {entry.uri for folder in {_folder(place) for place in places} for entry in storage.entries(folder)}
        for place in places:
            if place not in there:
                raise FileNotFoundError(f"{place}: this shard of the snapshot is gone")

    def refuse_other_checkpoints(self, tokenizer: Tokenizer) -> None:
        """Check that the newest checkpoint is of the run's model and its tokenizer.

        Raises:
            ValueError: it is of others; the message says what differs. Or all are damaged.
        """
        found = self.checkpoints().description()
        if found is None:
            return
        folder, config, entries = found
        differing = list(differences(json.loads(config), json.loads(json.dumps(self._model_with(tokenizer).to_dict()))))
        if not differing and json.loads(entries) != json.loads(tokenizer.to_json()):
            differing = ["the entries of the tokenizer"]
        if differing:
            raise ValueError(
                f"{folder} is a checkpoint of another model; it differs in {'; '.join(differing[:5])}. Remove it, or "
                "choose another output"
            )

    def _model_with(self, tokenizer: Tokenizer) -> ModelConfig:
        """The model has as many token embeddings as the tokenizer has entries."""
        return replace(self.model, text=replace(self.model.text, vocab_size=tokenizer.vocab_size))


def kept_model(output: str, images_seen: int) -> str:
    """The folder of the model that a run has kept after so many images (TrainConfig.keep_models_at)."""
    return storage.join(output, "models", f"images-{images_seen:012d}")


def write_model(model: Model, folder: str) -> None:
    """Put a model's files into a folder, local or s3://."""
    for name, data in model_folder.to_files(model).items():
        storage.write_bytes(storage.join(folder, name), data)


def _folder(uri: str) -> str:
    return uri.rsplit("/", 1)[0]
