"""Compute perceptual hashes of pictures and of their mirrored or rotated variants.

The hash is pHash (Zauner 2010), bit for bit as in imagehash, so that lists of hashes from other sources can be used.
Unlike imagehash, it hashes the picture that a page shows: upright, and with transparent pixels in white.
Each step makes the hash robust to certain changes:

- luminance only: changes or loss of colour;
- 32x32 pixels by antialiased Lanczos (its support grows with the reduction): the original size;
- the 8x8 lowest frequencies of the DCT: noise, blur, and JPEG or WebP quantisation, which affect high
  frequencies first;
- one bit per frequency, set if the frequency is above the median: brightness and contrast, unless pixels are clipped.

If no two frequencies are equal at the median, exactly 32 of the 64 bits are set. Distances are then even, so radius 3
finds the same pictures as radius 2.

The hash is not robust to changes of position: a cropped, framed, rotated or mirrored picture has a different hash. To
find mirrored and rotated copies, hash these variants too (`Variant`), which needs no second decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, radians, sin

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.fft import dct

from pipeline.hashing import UInt64
from pipeline.pictures.decode import decode

_SIDE = 32
_NUM_FREQUENCIES = 8


@dataclass(frozen=True)
class Variant:
    """A transformation of a picture: rotation, then mirroring."""

    mirrored: bool = False
    """Whether left and right are swapped."""
    degrees: float = 0.0
    """Counterclockwise rotation by any angle. Unless it is a multiple of 90, the picture is cropped to the largest
    central part that has the same aspect ratio and no empty corners."""


UNCHANGED = Variant()
MIRRORED = Variant(mirrored=True)


def perceptual_hash(images: Sequence[bytes]) -> UInt64:
    """The 64-bit DCT hash of each encoded image, bit for bit imagehash.phash.

    Args:
        images: B encoded images.

    Returns:
        uint64 of shape (B,). The highest bit belongs to the lowest frequency (the mean).

    Raises:
        ValueError: an image cannot be decoded.
    """
    return perceptual_hashes(images, [UNCHANGED])[:, 0]


def perceptual_hashes(images: Sequence[bytes], variants: Sequence[Variant]) -> UInt64:
    """The 64-bit DCT hash of every variant of each encoded image.

    Args:
        images: B encoded images.
        variants: V transformations.

    Returns:
        uint64 of shape (B, V).

    Raises:
        ValueError: an image cannot be decoded.
    """
    if not images or not variants:
        return np.zeros((len(images), len(variants)), np.uint64)
    grey = np.concatenate([_luminances(image, variants) for image in images]).astype(np.float64)
    # A matrix product would round differently, which would decide the bits of flat and symmetric images
    low = dct(dct(grey, axis=1)[:, :_NUM_FREQUENCIES], axis=2)[:, :, :_NUM_FREQUENCIES].reshape(len(grey), -1)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64).reshape(len(images), len(variants))


def _luminances(data: bytes, variants: Sequence[Variant]) -> npt.NDArray[np.uint8]:
    """The luminance of each variant at 32x32 pixels: uint8 of shape (V, 32, 32)."""
    grey = decode(data).convert("L")
    rotated: dict[float, npt.NDArray[np.uint8]] = {}
    luminances = []
    for variant in variants:
        quarters = round(variant.degrees / 90)
        degrees = variant.degrees - 90 * quarters
        if degrees not in rotated:
            rotated[degrees] = _reduced(grey, degrees)
        pixels = np.rot90(rotated[degrees], quarters)
        luminances.append(pixels[:, ::-1] if variant.mirrored else pixels)
    return np.stack(luminances)


def _reduced(grey: Image.Image, degrees: float) -> npt.NDArray[np.uint8]:
    box = None
    if degrees:
        grey = grey.reduce(max(min(grey.size) // (2 * _SIDE), 1))  # rotation time grows with the number of pixels
        width, height = grey.size
        sine, cosine = abs(sin(radians(degrees))), cos(radians(degrees))
        share = 1 / (cosine + sine * max(width, height) / min(width, height))
        margins = width * (1 - share) / 2, height * (1 - share) / 2
        box = (margins[0], margins[1], width - margins[0], height - margins[1])
        grey = grey.rotate(degrees, Image.Resampling.BICUBIC)
    return np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, box))
