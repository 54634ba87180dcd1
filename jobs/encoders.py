"""Image encoders from folders, local or s3://: models of jobs.pretrain and detectors of jobs.detector."""

from __future__ import annotations

from cluster import storage
from pipeline.model.encoders import ENCODER_FILES, ImageEncoder, encoder_from_files


def load_encoder(uri: str, batch_size: int, device: str) -> ImageEncoder:
    """The encoder in a folder; actors call this, so that each has the weights once.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file is damaged.
    """
    places = {name: storage.join(uri, name) for name in ENCODER_FILES}
    files = {name: storage.read_bytes(place) for name, place in places.items() if storage.exists(place)}
    return encoder_from_files(files, uri, batch_size, device)
