"""Decode and randomly crop training images. Does not import torch, so that reading tasks start faster."""

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.pictures import decode as pictures
from pipeline.pictures.essential import Essential, essential, shorter_side

Pixels = npt.NDArray[np.uint8]

REDUCED_SHRINK = 1.5
"""A crop decoded at reduced size must still be this many times as large as the result. At 1.5 it differs from Pillow's
bicubic resize hardly more than a crop that was decoded in full (docs/results.md)."""
_AREA_SHRINK = 1.2
"""Up to this shrink factor, crops are resized with OpenCV's cubic kernel. It is closer to Pillow's kernel, which widens
with the scale, than the area kernel, and takes a quarter of the time."""
_REDUCED = {factor: getattr(cv2, f"IMREAD_REDUCED_COLOR_{factor}") for factor in (8, 4, 2)}


def decode(data: bytes, least_side: float | None = None) -> Pixels:
    """Decode a compressed image to pixels, uint8 height x width x 3 (RGB), upright and on white.

    OpenCV decodes JPEGs, which it can reduce, and opaque PNGs and WebPs, in half of Pillow's time and to the same
    pixels. Whatever else an import accepts is decoded by `pipeline.pictures`, as the import did.

    Args:
        data: a file of a type in pipeline.pictures.essential.FORMATS.
        least_side: minimum shorter side of the result in pixels. A JPEG is decoded at a half, a quarter or an eighth
            of its size, which is faster, if its shorter side keeps this many pixels. None: decode in full.

    Raises:
        ValueError: the data cannot be decoded.
    """
    parts = essential(data)
    pixels = None if parts is None or parts.problem else _decode_with_opencv(parts, least_side)
    if parts is not None and pixels is not None:
        return pictures.upright(pixels, parts.orientation)
    try:
        return np.asarray(pictures.decode(data).convert("RGB"))
    except ValueError as error:
        raise ValueError(f"an image of {len(data)} bytes cannot be decoded ({error})") from error


def _decode_with_opencv(parts: Essential, least_side: float | None) -> Pixels | None:
    """The pixels as RGB, not yet upright; None if Pillow must decode them."""
    if parts.kind == "JPEG":
        shorter = 0 if least_side is None else shorter_side(parts.data)
        factor = next((factor for factor in _REDUCED if least_side and shorter // factor >= least_side), 1)
        flags = _REDUCED.get(factor, cv2.IMREAD_COLOR_RGB) | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = pictures.opencv(parts.data, flags)
        is_rgb = factor == 1  # the flags for reduced sizes always give BGR
    elif (parts.kind == "WEBP" and parts.data[12:16] != b"VP8X") or (parts.kind == "PNG" and b"tRNS" not in parts.data):
        pixels = pictures.opencv(parts.data, cv2.IMREAD_UNCHANGED)
        is_rgb = False
    else:
        return None
    if pixels is None or pixels.dtype != np.uint8 or (pixels.ndim == 3 and pixels.shape[2] != 3):
        return None
    if not is_rgb:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.ndim == 3 else cv2.COLOR_GRAY2RGB)
    return np.asarray(pixels, np.uint8)


def random_square_crop(pixels: Pixels, image_size: int, share: float, at: tuple[float, float]) -> Pixels:
    """Cut a square crop and resize it: the paper's only augmentation (section 2.3).

    Args:
        pixels: uint8 height x width x 3.
        image_size: S, the side of the result.
        share: the crop's side as a share of the picture's shorter side.
        at: vertical and horizontal position of the crop, from 0 (top, left) to 1 (bottom, right).

    Returns:
        uint8 3 x S x S, which may be a view of `pixels`.
    """
    height, width, _ = pixels.shape
    side = max(1, round(share * min(height, width)))
    top, left = (int(fraction * (length - side + 1)) for fraction, length in zip(at, (height, width), strict=True))
    crop = pixels[top : top + side, left : left + side]
    if side != image_size:
        kernel = cv2.INTER_AREA if side > _AREA_SHRINK * image_size else cv2.INTER_CUBIC
        crop = np.asarray(cv2.resize(crop, (image_size, image_size), interpolation=kernel), np.uint8)
    return crop.transpose(2, 0, 1)
