"""Find and open a user's own images and compute their features. Shapes: N images, E joint embedding."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.model.images.preprocess import Preprocess
from pipeline.pictures.decode import decode

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif")


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
    """Decode an image as training does: the first frame, upright, transparent pixels on white.

    Raises:
        ValueError: the file cannot be read, is not an image, is damaged or has more than 89 million pixels.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(str(error)) from error
    if not data:
        raise ValueError("the file is empty")
    return decode(data)


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
