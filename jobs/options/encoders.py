"""Image encoders from folders, local or s3://: models of jobs.pretrain and detectors of jobs.detector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from cluster import storage
from cluster.resources import Pool
from pipeline.eval.flows.benchmark_flow import hash_model
from pipeline.model.encoders.image_encoder import ENCODER_FILES, ImageEncoder, encoder_from_files


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """What makes embeddings of pictures, and where."""

    model: str | None = None
    """Folder of a detector of jobs.detector (its output/model), or of a model of jobs.pretrain; without one there are
    no embeddings."""
    batch_size: int = 64
    """Images in a forward pass."""
    pool: Pool = field(default_factory=Pool)
    """Actors, each with the model in memory; on a GPU where the pool has one."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"encoder.batch_size = {self.batch_size}: must be at least 1")

    def open(self) -> tuple[Callable[[], ImageEncoder], str] | None:
        """What makes the encoder in each actor, and the hash of its files; None without a model.

        Raises:
            FileNotFoundError: there is none in that folder.
            ValueError: a file is damaged.
        """
        if self.model is None:
            return None
        uri = storage.absolute(self.model)
        load_encoder(uri, 1, "cpu")  # what is wrong with it is told before anything starts
        return partial(load_encoder, uri, self.batch_size, "cuda" if self.pool.gpus else "cpu"), hash_model(uri)


def load_encoder(uri: str, batch_size: int, device: str) -> ImageEncoder:
    """The encoder in a folder. Raises as `EncoderConfig.open`."""
    places = {name: storage.join(uri, name) for name in ENCODER_FILES}
    files = {name: storage.read_bytes(place) for name, place in places.items() if storage.exists(place)}
    return encoder_from_files(files, uri, batch_size, device)
