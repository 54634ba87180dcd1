"""Define the duplicate detector, whose embeddings of two versions of one picture are close (appendix C).

The paper used a ResNet-50 with GELU, anti-aliasing, and weight norms instead of batch norms, so that an embedding does
not depend on the other pictures of its batch. Group norms over standardised kernels, used here, have the same property.
A detector's input is the whole picture, squashed into a square: nothing is cropped.

A detector is saved as a folder of two files: detector.safetensors and detector.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import cv2
import numpy as np
import safetensors.torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.model.config import ImageTowerConfig, model_config
from pipeline.model.images.random_crop import Pixels
from pipeline.model.towers.image_tower import ImageTower, normalise

WEIGHTS_FILE, CONFIG_FILE = "detector.safetensors", "detector.json"
DETECTOR_FILES = (WEIGHTS_FILE, CONFIG_FILE)


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """The architecture of a detector."""

    embed_dim: int
    """Dimensions of an embedding. Each takes 2 bytes per picture."""
    image: ImageTowerConfig


DETECTORS: Mapping[str, DetectorConfig] = {
    "tiny": DetectorConfig(embed_dim=128, image=model_config("tiny").image),
    "resnet50": DetectorConfig(
        embed_dim=256,
        image=ImageTowerConfig(
            architecture="resnetv2_50d_gn", image_size=224, options={"act_layer": "gelu"}, weight_standardisation=True
        ),
    ),
}
"""Detectors by name."""


def detector_config(name: str) -> DetectorConfig:
    """The configuration of the detector with this name.

    Raises:
        ValueError: no detector has this name. The message lists all names.
    """
    if name not in DETECTORS:
        raise ValueError(f"detector={name} is not known; choose one of {', '.join(sorted(DETECTORS))}")
    return DETECTORS[name]


class Detector(nn.Module):
    """A network: uint8 B x 3 x S x S -> embeddings float32 B x E of length one."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.tower = ImageTower(config.image, config.embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the embeddings."""
        features: Tensor = self.tower(normalise(images))
        return F.normalize(features.float(), dim=-1)


def squash(pixels: Pixels, image_size: int) -> Pixels:
    """Resize a whole picture, uint8 height x width x 3, to a square, uint8 3 x S x S, ignoring its aspect ratio."""
    kernel = cv2.INTER_AREA if min(pixels.shape[:2]) > image_size else cv2.INTER_CUBIC
    square = cv2.resize(pixels, (image_size, image_size), interpolation=kernel)
    return np.ascontiguousarray(np.asarray(square, np.uint8).transpose(2, 0, 1))


def to_files(detector: Detector) -> dict[str, bytes]:
    """The content of a detector's files, by name."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.state_dict().items()}
    configuration = json.dumps(asdict(detector.config), indent=1).encode()
    return {WEIGHTS_FILE: safetensors.torch.save(weights), CONFIG_FILE: configuration}


def from_files(files: Mapping[str, bytes], source: str) -> Detector:
    """The detector that `to_files` wrote; float32, on the CPU.

    Args:
        files: content by name.
        source: where the files come from, for messages.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or the files belong to different detectors.
    """
    if missing := [name for name in DETECTOR_FILES if name not in files]:
        raise FileNotFoundError(f"{source} is not a duplicate detector: it lacks {', '.join(missing)}")
    try:
        fields = json.loads(files[CONFIG_FILE])
        config = DetectorConfig(embed_dim=fields["embed_dim"], image=ImageTowerConfig(**fields["image"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{source}/{CONFIG_FILE}: not a valid detector configuration ({error})") from error
    detector = Detector(config)
    try:
        detector.load_state_dict(safetensors.torch.load(files[WEIGHTS_FILE]))
    except SafetensorError as error:
        raise ValueError(f"{source}/{WEIGHTS_FILE}: damaged ({error})") from error
    except RuntimeError as error:
        raise ValueError(f"{source}/{WEIGHTS_FILE} does not fit {CONFIG_FILE}: {error}") from error
    return detector
