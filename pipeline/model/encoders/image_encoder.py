"""Compute embeddings of encoded images with a duplicate detector or a model's image tower.

A detector is trained for this purpose: its embeddings of copies are close, and those of different pictures far apart. A
CLIP also gives close embeddings to pictures of the same subject. It needs a higher threshold, and still confuses
pictures that differ only in details; the paper's authors therefore replaced it by the detector (appendix C).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipeline.model.encoders import duplicate_detector
from pipeline.model.images.preprocess import preprocess_for
from pipeline.model.images.random_crop import decode
from pipeline.model.weights import model_folder

ENCODER_FILES = (*duplicate_detector.DETECTOR_FILES, *model_folder.MODEL_FILES)

Prepare = Callable[[bytes], Tensor]


class ImageEncoder:
    """A network and its preprocessing. A call turns N encoded images into embeddings, float32 N x E of length one."""

    def __init__(self, encode: Callable[[Tensor], Tensor], prepare: Prepare, batch_size: int, device: str) -> None:
        self._encode = encode
        self._prepare = prepare
        self._batch_size = batch_size
        self._device = device

    @torch.inference_mode()
    def __call__(self, images: Sequence[bytes]) -> npt.NDArray[np.float32]:
        """Compute the embeddings. Raises ValueError if an image cannot be decoded."""
        assert images
        embeddings = []
        for start in range(0, len(images), self._batch_size):
            pixels = torch.stack([self._prepare(image) for image in images[start : start + self._batch_size]])
            embeddings.append(self._encode(pixels.to(self._device)).float().cpu())
        return torch.cat(embeddings).numpy()


def encoder_from_files(files: Mapping[str, bytes], source: str, batch_size: int, device: str) -> ImageEncoder:
    """The encoder in a folder: a detector from jobs.detector, or a model from jobs.pretrain.

    Args:
        files: content by name, of those ENCODER_FILES that the folder contains.
        source: where the files come from, for messages.
        batch_size: images in a forward pass.
        device: where the network runs.

    Raises:
        FileNotFoundError: the folder contains neither.
        ValueError: a file is damaged.
    """
    if duplicate_detector.CONFIG_FILE in files:
        detector = duplicate_detector.from_files(files, source).to(device).eval()
        size = detector.config.image.image_size
        return ImageEncoder(
            detector, lambda image: torch.from_numpy(duplicate_detector.squash(decode(image), size)), batch_size, device
        )
    if model_folder.CONFIG_FILE not in files:
        raise FileNotFoundError(f"{source} contains no image encoder: neither a detector nor a model")
    network = model_folder.from_files(files, source).network.to(device).eval()
    preprocess = preprocess_for(network.config.image.image_size)
    return ImageEncoder(
        lambda pixels: F.normalize(network.image_tower(pixels).float(), dim=-1),
        lambda image: preprocess(Image.fromarray(decode(image))),
        batch_size,
        device,
    )
