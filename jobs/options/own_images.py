"""The options and steps that jobs.classify and jobs.search share: the user's own images and the model."""

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
    """Options for running a model on the user's own images."""

    model: str
    """Folder of a model from jobs.pretrain (its output/model), or a model name together with --weights."""
    images: tuple[str, ...] = ()
    """Image files, and folders that are searched recursively. Arguments that follow no option are taken as images."""
    weights: str | None = None
    """The weights, if --model is a name and not a folder."""
    top: int = 5
    """Maximum number of results to show: labels per image (jobs.classify) or images (jobs.search)."""
    picture: str | None = None
    """File to draw the results into: .png, .jpg, .pdf or .svg. Unset: nothing is drawn."""
    batch_size: int = 32
    """Number of images in a forward pass."""
    device: str = "cpu"
    """Device that runs the model, such as cpu or cuda."""

    def __post_init__(self) -> None:
        for name in ("top", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")

    def find(self) -> list[ImageFile]:
        """List the image files. Raises like `find_images`, and like `check_picture` for the option `picture`."""
        if self.picture is not None:
            check_picture(self.picture)
        return find_images(self.images)

    def load(self) -> tuple[CLIP, Preprocess, Tokenize]:
        """Load the model. Raises like `pipeline.load`.

        Raises:
            FileNotFoundError: `model` does not exist, and `weights` is not given.
            ValueError: the device is not available.
        """
        if self.weights is None and not Path(self.model).exists():
            raise FileNotFoundError(
                f"model={self.model}: does not exist; to use a model by its name, also give --weights"
            )
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device={self.device}: {str(error).splitlines()[0]}") from error
        return pipeline.load(self.model, self.weights, self.device)

    def encode(self, model: CLIP, preprocess: Preprocess, files: Sequence[ImageFile]) -> EncodedImages:
        """Encode the readable images and log the unreadable ones. Raises ValueError if no image can be read."""
        with Progress("encode", len(files), "images") as progress:
            encoded = encode_images(
                model, preprocess, files, batch_size=self.batch_size, device=self.device, advance=progress.update
            )
        for file in encoded.unreadable:
            logger.warning("%s: %s", file.file, file.reason)
        if encoded.unreadable:
            logger.warning("%d of %d images cannot be read", len(encoded.unreadable), len(files))
        return encoded


def refuse_unreadable(encoded: EncodedImages) -> None:
    """Fail if an image file named in the options could not be read. Call this after the results have been shown.

    Unreadable files that were found by searching a folder are only logged.

    Raises:
        ValueError: a file named in the options cannot be read.
    """
    named = [str(file.file) for file in encoded.unreadable if file.file.named]
    if named:
        raise ValueError(f"images: cannot read {', '.join(named)}; the reasons are logged above")
