"""What a run of pretraining is: what it learns from, what it makes of it, and where in its folder that lies."""

from dataclasses import dataclass, replace

import torch

from cluster import storage
from pipeline.data.order import ShardInfo
from pipeline.data.reading import Shards
from pipeline.model import model_folder
from pipeline.model.config import ModelConfig
from pipeline.model.model_folder import Model
from pipeline.model.objectives import network_for
from pipeline.model.tokenizer import Tokenizer
from pipeline.train.config import TrainConfig
from pipeline.train.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A run, as its workers need it."""

    output: str
    """Folder of the run, local or s3://."""
    shards: tuple[ShardInfo, ...]
    snapshot_id: str
    model: ModelConfig
    train: TrainConfig

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

    def new_model(self, tokenizer_json: str) -> Model:
        """Freshly initialised from the run's seed, with as many token embeddings as the tokenizer has entries."""
        tokenizer = Tokenizer.from_json(tokenizer_json, self.model.text.context_length)
        torch.manual_seed(self.train.seed)
        config = replace(self.model, text=replace(self.model.text, vocab_size=tokenizer.vocab_size))
        return Model(network_for(config), tokenizer)


def kept_model(output: str, images_seen: int) -> str:
    """The folder of the model that a run has kept after so many images (TrainConfig.keep_models_at)."""
    return storage.join(output, "models", f"images-{images_seen:012d}")


def write_model(model: Model, folder: str) -> None:
    """Put a model's files into a folder, local or s3://."""
    for name, data in model_folder.to_files(model).items():
        storage.write_bytes(storage.join(folder, name), data)
