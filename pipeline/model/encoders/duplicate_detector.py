"""The duplicate detector: an image tower whose embeddings are near for two versions of one picture (appendix C).

The paper took a ResNet-50 with weight norms instead of batch norms, so that no picture tells of its neighbours in the
batch, with GELU and anti-aliasing. Here the norms are of groups over standardised kernels, which are as silent about
the neighbours. A detector sees the whole picture, squashed into a square: nothing of it is cropped away.

A detector is a folder of two files: detector.safetensors and detector.json.
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
    """What makes one detector different from another."""

    embed_dim: int
    """Dimensions of an embedding: 2 bytes of every picture each."""
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
    """The detector of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in DETECTORS:
        raise ValueError(f"detector={name} is not known; choose one of {', '.join(sorted(DETECTORS))}")
    return DETECTORS[name]


class Detector(nn.Module):
    """uint8 B x 3 x S x S -> embeddings float32 B x E of length one."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.tower = ImageTower(config.image, config.embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """The embeddings."""
        features: Tensor = self.tower(normalise(images))
        return F.normalize(features.float(), dim=-1)


def squash(pixels: Pixels, image_size: int) -> Pixels:
    """The whole picture uint8 height x width x 3 as a square uint8 3 x S x S, whatever its shape was."""
    kernel = cv2.INTER_AREA if min(pixels.shape[:2]) > image_size else cv2.INTER_CUBIC
    square = cv2.resize(pixels, (image_size, image_size), interpolation=kernel)
    return np.ascontiguousarray(np.asarray(square, np.uint8).transpose(2, 0, 1))


def to_files(detector: Detector) -> dict[str, bytes]:
    """The content of a detector's files, by name."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.state_dict().items()}
    configuration = json.dumps(asdict(detector.config), indent=1).encode()
    return {WEIGHTS_FILE: safetensors.torch.save(weights), CONFIG_FILE: configuration}


def from_files(files: Mapping[str, bytes], source: str) -> Detector:
    """The detector that `to_files` wrote, float32 on the CPU.

    Args:
        files: content by name.
        source: where they come from, for messages.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or the two belong to different detectors.
    """
    if missing := [name for name in DETECTOR_FILES if name not in files]:
        raise FileNotFoundError(f"{source} is not a duplicate detector: {', '.join(missing)} missing")
    try:
        fields = json.loads(files[CONFIG_FILE])
        config = DetectorConfig(embed_dim=fields["embed_dim"], image=ImageTowerConfig(**fields["image"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{source}/{CONFIG_FILE}: not the configuration of a detector ({error})") from error
    detector = Detector(config)
    try:
        detector.load_state_dict(safetensors.torch.load(files[WEIGHTS_FILE]))
    except SafetensorError as error:
        raise ValueError(f"{source}/{WEIGHTS_FILE}: damaged ({error})") from error
    except RuntimeError as error:
        raise ValueError(f"{source}/{WEIGHTS_FILE} does not fit {CONFIG_FILE}: {error}") from error
    return detector
