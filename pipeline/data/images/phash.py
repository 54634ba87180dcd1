"""The perceptual hash of a picture, and of what it would be mirrored or turned.

pHash (Zauner 2010) as imagehash computes it, bit for bit, so that lists of hashes made elsewhere can be used. Its
choices, and what each of them makes it indifferent to:

- luminance: colours, and their loss;
- 32x32 pixels, by Lanczos with a support that grows with the reduction (antialiased): the size it came in;
- the 8x8 lowest frequencies of the DCT: noise, blur, the quantisation of JPEG and WebP, which change the others first;
- a bit for each that is above their median: brightness and contrast, as long as nothing is clipped. Without two equal
  frequencies at the median 32 of the 64 bits are set, so that distances are even: radius 3 finds what radius 2 does.

It is not indifferent to where things are: what is cropped, framed, turned or mirrored has another hash. Mirrored and
turned pictures can be looked for by hashes of their own (Variant), which need no second decoding.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, radians, sin

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.fft import dct

from pipeline.hashing import UInt64

_SIDE = 32
_NUM_FREQUENCIES = 8


@dataclass(frozen=True)
class Variant:
    """What may have been done to a picture: turned, then mirrored."""

    mirrored: bool = False
    """Left and right changed."""
    degrees: float = 0.0
    """Turned to the left, any number. The corners that come out empty are cut off: of a picture that is not turned by
    quarters, the largest middle part of its own proportions that has none."""


AS_IT_IS = Variant()
MIRRORED = Variant(mirrored=True)


def perceptual_hash(images: Sequence[bytes]) -> UInt64:
    """The 64-bit DCT hash of each encoded image, bit for bit imagehash.phash.

    Args:
        images: encoded images that decode, B of them.

    Returns:
        uint64 of shape (B,): the first row's first column, which is the mean, is the highest bit.
    """
    return perceptual_hashes(images, [AS_IT_IS])[:, 0]


def perceptual_hashes(images: Sequence[bytes], variants: Sequence[Variant]) -> UInt64:
    """The 64-bit DCT hash of each encoded image as it would be after each variant.

    Args:
        images: encoded images that decode, B of them.
        variants: V of them.

    Returns:
        uint64 of shape (B, V).
    """
    if not images or not variants:
        return np.zeros((len(images), len(variants)), np.uint64)
    grey = np.concatenate([_luminances(image, variants) for image in images]).astype(np.float64)
    # Not by matrix products, whose rounding would decide the bits of flat and of symmetric images
    low = dct(dct(grey, axis=1)[:, :_NUM_FREQUENCIES], axis=2)[:, :, :_NUM_FREQUENCIES].reshape(len(grey), -1)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64).reshape(len(images), len(variants))


def _luminances(data: bytes, variants: Sequence[Variant]) -> npt.NDArray[np.uint8]:
    """Luminance at 32x32 pixels of each variant: uint8 of shape (V, 32, 32)."""
    with Image.open(io.BytesIO(data)) as image:
        grey = image.convert("L")
    made: dict[float, npt.NDArray[np.uint8]] = {}
    found = []
    for variant in variants:
        quarters = round(variant.degrees / 90)
        degrees = variant.degrees - 90 * quarters
        if degrees not in made:
            made[degrees] = _reduced(grey, degrees)
        pixels = np.rot90(made[degrees], quarters)
        found.append(pixels[:, ::-1] if variant.mirrored else pixels)
    return np.stack(found)


def _reduced(grey: Image.Image, degrees: float) -> npt.NDArray[np.uint8]:
    box = None
    if degrees:
        grey = grey.reduce(max(min(grey.size) // (2 * _SIDE), 1))  # turning costs by the pixel
        width, height = grey.size
        sine, cosine = abs(sin(radians(degrees))), cos(radians(degrees))
        share = 1 / (cosine + sine * max(width, height) / min(width, height))
        margins = width * (1 - share) / 2, height * (1 - share) / 2
        box = (margins[0], margins[1], width - margins[0], height - margins[1])
        grey = grey.rotate(degrees, Image.Resampling.BICUBIC)
    return np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, box))
