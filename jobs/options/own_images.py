"""Images of a person's own and the model that looks at them: what jobs.classify and jobs.search share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import pipeline
from cluster.telemetry import Progress
from pipeline.eval.own_pictures.contact_sheet import check_picture
from pipeline.eval.own_pictures.own_images import EncodedImages, ImageFile, encode_images, find_images
from pipeline.eval.own_pictures.own_texts import Tokenize
from pipeline.model.images.preprocess import Preprocess
from pipeline.model.objectives.clip import CLIP

logger = logging.getLogger("clip")


@dataclass(frozen=True, kw_only=True)
class OwnImagesJob:
    """Images, a model, and how much to show."""

    model: str
    """Folder of a model of jobs.pretrain (its output/model), or the name of a model with --weights."""
    images: tuple[str, ...] = ()
    """Files, and folders with all images below them; the words that follow no option."""
    weights: str | None = None
    """The weights of a model that is named."""
    top: int = 5
    """The most to show: labels of an image, or images that were found."""
    picture: str | None = None
    """Draw the result into this file: .png, .jpg, .pdf or .svg."""
    batch_size: int = 32
    """Images in a forward pass."""
    device: str = "cpu"
    """Where the model runs, such as cpu or cuda."""

    def __post_init__(self) -> None:
        for name in ("top", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")

    def find(self) -> list[ImageFile]:
        """The images. Raises ValueError or FileNotFoundError where there are none, or the picture has no place."""
        if self.picture is not None:
            check_picture(self.picture)
        return find_images(self.images)

    def load(self) -> tuple[CLIP, Preprocess, Tokenize]:
        """The model. Raises as `pipeline.load`, and for a name without weights, or a device that is not there."""
        if self.weights is None and not Path(self.model).exists():
            raise FileNotFoundError(f"model={self.model}: nothing is there; the name of a model needs --weights")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device={self.device}: {str(error).splitlines()[0]}") from error
        return pipeline.load(self.model, self.weights, self.device)

    def encode(self, model: CLIP, preprocess: Preprocess, files: Sequence[ImageFile]) -> EncodedImages:
        """Features of what can be read; the others are told of. Raises ValueError where nothing can be read."""
        with Progress("look", len(files), "images") as progress:
            encoded = encode_images(
                model, preprocess, files, batch_size=self.batch_size, device=self.device, advance=progress.update
            )
        for file in encoded.unreadable:
            logger.warning("%s: %s", file.file, file.reason)
        if encoded.unreadable:
            logger.warning("%d of %d images cannot be read", len(encoded.unreadable), len(files))
        return encoded


def refuse_unreadable(encoded: EncodedImages) -> None:
    """At the end, when what can be read has been shown.

    Raises:
        ValueError: a file that was named itself, and not the folder that it is in, cannot be read.
    """
    named = [str(file.file) for file in encoded.unreadable if file.file.named]
    if named:
        raise ValueError(f"images: {', '.join(named)} cannot be read, for the reasons above")
