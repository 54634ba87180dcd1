"""Load image encoders from local or s3:// folders: models of jobs.pretrain and detectors of jobs.detector."""

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
    """The image encoder that computes embeddings, and its actors."""

    model: str | None = None
    """Folder of a detector from jobs.detector or of a model from jobs.pretrain (its output/model). Unset: no embeddings
    are computed."""
    batch_size: int = 64
    """Number of images in a forward pass."""
    pool: Pool = field(default_factory=Pool)
    """Actors that each hold the model in memory. They run it on a GPU if the pool has GPUs."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"encoder.batch_size = {self.batch_size}: must be at least 1")

    def open(self) -> tuple[Callable[[], ImageEncoder], str] | None:
        """Return a function that loads the encoder in an actor, and the hash of its files; None if `model` is unset.

        Raises:
            FileNotFoundError: the folder contains no encoder.
            ValueError: a file is damaged.
        """
        if self.model is None:
            return None
        uri = storage.absolute(self.model)
        load_encoder(uri, 1, "cpu")  # reports a missing or damaged encoder before any stage starts
        return partial(load_encoder, uri, self.batch_size, "cuda" if self.pool.gpus else "cpu"), hash_model(uri)


def load_encoder(uri: str, batch_size: int, device: str) -> ImageEncoder:
    """Load the encoder of a folder. Raises like `EncoderConfig.open`."""
    uris = {name: storage.join(uri, name) for name in ENCODER_FILES}
    files = {name: storage.read_bytes(file_uri) for name, file_uri in uris.items() if storage.exists(file_uri)}
    return encoder_from_files(files, uri, batch_size, device)
