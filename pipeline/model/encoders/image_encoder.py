"""Encoded images -> embeddings of length one, by a duplicate detector or by a model's image tower.

A detector is made for the purpose: it holds copies together and everything else apart. A CLIP holds pictures of one
thing together as well, so its threshold must be higher, and still confuses pictures that differ in details only (the
paper's authors gave this up for the detector, appendix C).
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
    """A network with what prepares its images; calls take encoded images and give float32 [N, E] of length one."""

    def __init__(self, encode: Callable[[Tensor], Tensor], prepare: Prepare, batch_size: int, device: str) -> None:
        self._encode = encode
        self._prepare = prepare
        self._batch_size = batch_size
        self._device = device

    @torch.inference_mode()
    def __call__(self, images: Sequence[bytes]) -> npt.NDArray[np.float32]:
        """The embeddings. Raises ValueError where an image cannot be decoded."""
        assert images
        embeddings = []
        for start in range(0, len(images), self._batch_size):
            pixels = torch.stack([self._prepare(image) for image in images[start : start + self._batch_size]])
            embeddings.append(self._encode(pixels.to(self._device)).float().cpu())
        return torch.cat(embeddings).numpy()


def encoder_from_files(files: Mapping[str, bytes], source: str, batch_size: int, device: str) -> ImageEncoder:
    """The encoder in a folder: a detector of jobs.detector or a model of jobs.pretrain.

    Args:
        files: content by name, of those of ENCODER_FILES that are there.
        source: where they come from, for messages.
        batch_size: images in a forward pass.
        device: where the network runs.

    Raises:
        FileNotFoundError: it is neither.
        ValueError: a file is damaged.
    """
    if duplicate_detector.CONFIG_FILE in files:
        detector = duplicate_detector.from_files(files, source).to(device).eval()
        size = detector.config.image.image_size
        return ImageEncoder(
            detector, lambda image: torch.from_numpy(duplicate_detector.squash(decode(image), size)), batch_size, device
        )
    if model_folder.CONFIG_FILE not in files:
        raise FileNotFoundError(f"{source} holds no image encoder: neither a detector nor a model")
    network = model_folder.from_files(files, source).network.to(device).eval()
    preprocess = preprocess_for(network.config.image.image_size)
    return ImageEncoder(
        lambda pixels: F.normalize(network.image_tower(pixels).float(), dim=-1),
        lambda image: preprocess(Image.fromarray(decode(image))),
        batch_size,
        device,
    )
