"""Make copies of photographs as they occur on the web, which a duplicate detector should find."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from math import cos, radians, sin
from multiprocessing import get_context

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

from pipeline.data.images.phash import Variant, perceptual_hashes
from pipeline.hashing import UInt64

WATERMARK = "© photo.example"


def jpeg(picture: Image.Image, quality: int = 90) -> bytes:
    """Encode a picture as JPEG."""
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=quality)
    return sink.getvalue()


def _webp(picture: Image.Image) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, "WEBP", quality=80)
    return sink.getvalue()


def _resized(picture: Image.Image, divisor: int) -> bytes:
    size = (picture.width // divisor, picture.height // divisor)
    return jpeg(picture.resize(size, Image.Resampling.BICUBIC))


def _cropped(picture: Image.Image, share: float) -> bytes:
    x, y = (round(side * share / 2) for side in picture.size)
    return jpeg(picture.crop((x, y, picture.width - x, picture.height - y)))


def _watermarked(picture: Image.Image) -> bytes:
    layer = Image.new("RGBA", picture.size)
    font = ImageFont.load_default(picture.height / 9)
    position = (picture.width / 2, picture.height * 0.85)
    ImageDraw.Draw(layer).text(position, WATERMARK, (255, 255, 255, 128), font, anchor="mm")
    return jpeg(Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB"))


TRANSFORMATIONS: Mapping[str, Callable[[Image.Image], bytes]] = {
    "half the size": lambda picture: _resized(picture, 2),
    "a quarter of the size": lambda picture: _resized(picture, 4),
    "JPEG of quality 30": lambda picture: jpeg(picture, 30),
    "WebP of quality 80": _webp,
    "cropped by 5%": lambda picture: _cropped(picture, 0.05),
    "cropped by 10%": lambda picture: _cropped(picture, 0.10),
    "black border, 5% a side": lambda picture: jpeg(ImageOps.expand(picture, round(picture.width / 20), "black")),
    "brightness x 1.3": lambda picture: jpeg(ImageEnhance.Brightness(picture).enhance(1.3)),
    "contrast x 1.3": lambda picture: jpeg(ImageEnhance.Contrast(picture).enhance(1.3)),
    "grey": lambda picture: jpeg(ImageOps.grayscale(picture)),
    "watermark": _watermarked,
    "blur, radius 1": lambda picture: jpeg(picture.filter(ImageFilter.GaussianBlur(1))),
    "mirrored": lambda picture: jpeg(ImageOps.mirror(picture)),
}
"""Functions that return an encoded copy, by default as JPEG of quality 90. Crops remove this share of each side."""


def rotated(picture: Image.Image, degrees: float) -> bytes:
    """The rotated picture, cropped to its largest central part with the original proportions and no empty corners."""
    angle, longer, shorter = radians(abs(degrees)), max(picture.size), min(picture.size)
    share = shorter / (longer * sin(angle) + shorter * cos(angle))
    x, y = (round(side * (1 - share) / 2) for side in picture.size)
    whole = picture.rotate(degrees, Image.Resampling.BICUBIC)
    return jpeg(whole.crop((x, y, picture.width - x, picture.height - y)))


def versions(photograph: bytes) -> list[bytes]:
    """The file of the photograph, followed by the files of its copies in the order of TRANSFORMATIONS."""
    picture = Image.open(io.BytesIO(photograph)).convert("RGB")
    return [photograph, *(transform(picture) for transform in TRANSFORMATIONS.values())]


def _hashes(photograph: bytes, variants: Sequence[Variant]) -> UInt64:
    return perceptual_hashes(versions(photograph), variants)


def hashes_of_versions(photographs: Sequence[bytes], variants: Sequence[Variant]) -> UInt64:
    """Perceptual hashes of all versions of each photograph: uint64 of shape (photographs, versions, variants)."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return np.stack(list(pool.map(partial(_hashes, variants=variants), photographs, chunksize=50)))
