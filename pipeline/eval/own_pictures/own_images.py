"""Images of a person's own, from files and folders, to features. Shape legend: N images, E joint embedding."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from pipeline.model.images.preprocess import Preprocess

MAX_PIXELS = 89_000_000
"""Larger images are refused by their header; one of these takes 270 MB."""
# What people have; Pillow knows many more, some of which call other programs
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")
_FAULTS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class ImageFile:
    """A file that should be an image; `named` says that a person named it, and not the folder that it lies in."""

    path: Path
    named: bool

    def __str__(self) -> str:
        """The path in characters that can be printed, whatever bytes the name has."""
        return os.fsencode(self.path).decode(errors="replace")


@dataclass(frozen=True)
class Unreadable:
    """A file that is no image, or one that is damaged or too large."""

    file: ImageFile
    reason: str


@dataclass(frozen=True)
class EncodedImages:
    """What can be read, in the order of the files, with its unnormalised features [N, E]; and what cannot."""

    files: tuple[ImageFile, ...]
    features: Tensor
    unreadable: tuple[Unreadable, ...]


def find_images(places: Sequence[str]) -> list[ImageFile]:
    """The named files, and all images (by SUFFIXES) below the named folders in order of name, hidden ones left out.

    Raises:
        FileNotFoundError: a place does not exist.
        PermissionError: a folder may not be listed.
        ValueError: there are no places, or no image is below a folder.
    """
    if not places:
        raise ValueError("images: name an image or a folder of images, such as pictures/dog.jpg or pictures/")
    found: dict[Path, ImageFile] = {}
    for place in map(Path, places):
        if place.is_dir():
            below = [ImageFile(path, named=False) for path in _walk(place)]
            if not below:
                raise ValueError(f"images: below the folder '{place}' there is no image ({' '.join(SUFFIXES)})")
        elif place.exists():
            below = [ImageFile(place, named=True)]
        else:
            raise FileNotFoundError(f"images: there is no file or folder '{place}'")
        for file in below:
            found.setdefault(file.path, file)
    return list(found.values())


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield Path(parent, name)


def _refuse(error: OSError) -> NoReturn:
    """A folder that cannot be listed is none without images."""
    raise error


def open_image(path: Path) -> Image.Image:
    """The decoded image, upright as its EXIF orientation says, in its own mode; the first frame of several.

    Raises:
        ValueError: it is no image, is damaged or has more than MAX_PIXELS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on metadata; and the size is looked at here
            if path.stat().st_size == 0:
                raise ValueError("the file is empty")
            with Image.open(path, formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
                image.load()
                return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"not an image of a known format ({', '.join(_FORMATS)})") from error
    except _FAULTS as error:
        raise ValueError(str(error) or "damaged") from error


def encode_images(
    model: nn.Module,
    preprocess: Preprocess,
    files: Sequence[ImageFile],
    *,
    batch_size: int,
    device: str,
    advance: Callable[[int], None],
) -> EncodedImages:
    """Features of every file that can be read; a batch of images is in memory at a time.

    Args:
        model: has `encode_image`.
        preprocess: a PIL image of any mode -> its input.
        files: of `find_images`.
        batch_size: images in a forward pass.
        device: where the model is.
        advance: is told how many more files are done.

    Raises:
        ValueError: none of them can be read, or the model gives features that are not finite.
    """
    good: list[ImageFile] = []
    bad: list[Unreadable] = []
    features: list[Tensor] = []
    for start in range(0, len(files), batch_size):
        pixels = []
        for file in files[start : start + batch_size]:
            try:
                pixels.append(preprocess(open_image(file.path)))
            except ValueError as error:
                bad.append(Unreadable(file, str(error)))
            else:
                good.append(file)
        if pixels:
            with torch.inference_mode():
                features.append(model.encode_image(torch.stack(pixels).to(device)).float().cpu())  # type: ignore[operator]
        advance(len(files[start : start + batch_size]))
    if not good:
        raise ValueError(f"images: none of {len(files)} can be read; {bad[0].file}: {bad[0].reason}")
    found = torch.cat(features)
    if not found.isfinite().all():
        raise ValueError("model: gives embeddings that are not finite; it has diverged")
    return EncodedImages(tuple(good), found, tuple(bad))
