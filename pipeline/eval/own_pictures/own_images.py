"""Find and open a user's own images and compute their features. Shapes: N images, E joint embedding."""

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
"""Larger images are refused after reading their header. An image of this size takes 270 MB."""
# The common formats. Pillow supports many more, some of which start other programs
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")
_FAULTS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class ImageFile:
    """A file that should be an image. `named` is true if the user gave the file, and false if they gave its folder."""

    path: Path
    named: bool

    def __str__(self) -> str:
        """The path in printable characters, even if its bytes are not valid UTF-8."""
        return os.fsencode(self.path).decode(errors="replace")


@dataclass(frozen=True)
class Unreadable:
    """A file that is not an image, is damaged or is too large."""

    file: ImageFile
    reason: str


@dataclass(frozen=True)
class EncodedImages:
    """The readable files in their order, their unnormalised features N x E, and the unreadable files."""

    files: tuple[ImageFile, ...]
    features: Tensor
    unreadable: tuple[Unreadable, ...]


def find_images(paths: Sequence[str]) -> list[ImageFile]:
    """The given files, and all images (by SUFFIXES) below the given folders, sorted by name. Skips hidden files.

    Raises:
        FileNotFoundError: a path does not exist.
        PermissionError: a folder cannot be listed.
        ValueError: no paths are given, or a folder contains no images.
    """
    if not paths:
        raise ValueError("images: give an image or a folder of images, such as pictures/dog.jpg or pictures/")
    by_path: dict[Path, ImageFile] = {}
    for path in map(Path, paths):
        if path.is_dir():
            files = [ImageFile(image, named=False) for image in _walk(path)]
            if not files:
                raise ValueError(f"images: the folder '{path}' contains no images ({' '.join(SUFFIXES)})")
        elif path.exists():
            files = [ImageFile(path, named=True)]
        else:
            raise FileNotFoundError(f"images: the file or folder '{path}' does not exist")
        for file in files:
            by_path.setdefault(file.path, file)
    return list(by_path.values())


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield Path(parent, name)


def _raise(error: OSError) -> NoReturn:
    """Raise an error that os.walk would ignore: a folder that cannot be listed must not count as empty."""
    raise error


def open_image(path: Path) -> Image.Image:
    """Decode an image in its own mode, rotated as its EXIF orientation requires. Reads the first frame only.

    Raises:
        ValueError: the file is not an image, is damaged or has more than MAX_PIXELS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warnings about metadata and size; the size is checked below
            if path.stat().st_size == 0:
                raise ValueError("the file is empty")
            with Image.open(path, formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
                image.load()
                return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"not an image in a known format ({', '.join(_FORMATS)})") from error
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
    """Compute the features of every readable file, with one batch of images in memory at a time.

    Args:
        model: a network with `encode_image`.
        preprocess: turns a PIL image of any mode into the model's input.
        files: from `find_images`.
        batch_size: images in a forward pass.
        device: where the model is.
        advance: called with the number of files that each batch completed.

    Raises:
        ValueError: no file can be read, or the model's features are not finite.
    """
    readable: list[ImageFile] = []
    unreadable: list[Unreadable] = []
    features: list[Tensor] = []
    for start in range(0, len(files), batch_size):
        pixels = []
        for file in files[start : start + batch_size]:
            try:
                pixels.append(preprocess(open_image(file.path)))
            except ValueError as error:
                unreadable.append(Unreadable(file, str(error)))
            else:
                readable.append(file)
        if pixels:
            with torch.inference_mode():
                features.append(model.encode_image(torch.stack(pixels).to(device)).float().cpu())  # type: ignore[operator]
        advance(len(files[start : start + batch_size]))
    if not readable:
        raise ValueError(f"images: 0 of {len(files)} files can be read; {unreadable[0].file}: {unreadable[0].reason}")
    all_features = torch.cat(features)
    if not all_features.isfinite().all():
        raise ValueError("model: its embeddings are not finite; its training has diverged")
    return EncodedImages(tuple(readable), all_features, tuple(unreadable))
